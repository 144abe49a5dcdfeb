"""The table of accepted lengths: equal numbers of draft tokens, fair opponents, honest errors. No process, no model."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seedmp.benchmarks.calibration import Calibration, FittedSubject, best_growmap, best_k_config
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.questions import accepted
from seedmp.benchmarks.questions.accepted import Counts, not_so, split_prompts, subjects, tables
from seedmp.benchmarks.subjects import engine_subject
from seedmp.config import EngineConfig
from seedmp.errors import ConfigError
from seedmp.measuring.engines import EngineSubject, NotRunError, Subject
from seedmp.models import pair
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.sequoia import expected_tokens
from tests.unit.test_bench_workloads import WordEncoder

SURE = np.array([[0, 0.9, 0.02, 0.01, 0.01]])
UNSURE = np.array([[0, 0.3, 0.2, 0.15, 0.1, 0.05, 0.05]])


def calibration(acceptance: np.ndarray) -> Calibration:
    made = Calibration(Options(), [(1, 2)], 0.0, 8, acceptance.shape[1] - 1)
    made.measured = acceptance
    return made


def config_of(subject: Subject) -> EngineConfig:
    engine = subject.engine if isinstance(subject, FittedSubject) else subject
    assert isinstance(engine, EngineSubject)
    settings = dict(engine.settings)
    if isinstance(subject, FittedSubject):
        settings |= subject.choose(subject.calibration.acceptance(), subject.num_nodes)
    return EngineConfig(**{**settings, "target": "t", "draft": "d", "dtype": "float32"})


@pytest.mark.parametrize("acceptance", [SURE, UNSURE], ids=["sure", "unsure"])
@pytest.mark.parametrize("num_nodes", [1, 7, 12, 16])
def test_every_tree_has_the_same_number_of_draft_tokens(num_nodes: int, acceptance: np.ndarray) -> None:
    for name, subject in subjects(Options(), num_nodes, calibration(acceptance)).items():
        nodes = {"ar": 0, "chain-4": 4}.get(name, num_nodes)
        assert config_of(subject).method.max_tree_nodes == nodes, name
        assert subject.need_gib() > 0


def k_configs(num_nodes: int) -> list[tuple[int, ...]]:
    """All of exactly so many nodes, by trying."""
    found = []
    for depth in range(1, num_nodes + 1):
        for ks in itertools.product(range(1, num_nodes + 1), repeat=depth) if depth <= 4 else [(1,) * depth]:
            if sum(math.prod(ks[: i + 1]) for i in range(depth)) == num_nodes:
                found.append(ks)
    return found


@pytest.mark.parametrize("acceptance", [SURE, UNSURE], ids=["sure", "unsure"])
def test_the_k_config_is_the_best_there_is_and_sequoias_tree_no_worse(acceptance: np.ndarray) -> None:
    for num_nodes in (1, 6, 8):
        best = Growmap.from_k_config(best_k_config(acceptance, num_nodes)["k_config"])
        assert best.num_nodes == num_nodes
        others = [expected_tokens(Growmap.from_k_config(ks), acceptance) for ks in k_configs(num_nodes)]
        assert expected_tokens(best, acceptance) >= max(others) - 1e-12
        growmap = Growmap(best_growmap(acceptance, num_nodes)["growmap"])
        assert growmap.num_nodes == num_nodes
        assert expected_tokens(growmap, acceptance) >= expected_tokens(best, acceptance) - 1e-12


def test_standard_error_is_that_of_a_ratio_of_sums() -> None:
    figures = Counts((10, 30, 20), (10, 10, 20)).figures()
    assert figures["mean_accepted_len"] == 2.5 and figures["rounds"] == 40
    squares = (10 - 15) ** 2 + (30 - 15) ** 2 + (20 - 30) ** 2
    assert figures["standard_error"] == pytest.approx(math.sqrt(1.5 * squares) / 40)
    assert Counts((3, 3), (2, 2)).figures()["standard_error"] == 0
    assert "standard_error" not in Counts((5,), (2,)).figures()
    assert Counts((), ()).figures()["mean_accepted_len"] == 0


def test_prompts_that_trees_are_fitted_to_are_others() -> None:
    encoder: Any = WordEncoder()
    own, other = split_prompts(Options(), encoder, "gsm8k", 4, 2)
    assert (len(own), len(other)) == (4, 2) and not set(own) & set(other)
    own, other = split_prompts(Options(), encoder, "gsm8k", 24, 12)
    assert (len(own), len(other)) == (5, 3) and not set(own) & set(other)


def test_one_prompt_is_too_few(tmp_path: Path) -> None:
    folder = tmp_path / "creative_writing"
    folder.mkdir()
    (folder / "inputs.txt").write_text("The door was open. It was late. She saw a cat. It began to snow.\n")
    encoder: Any = WordEncoder()
    with pytest.raises(ConfigError, match="creative_writing: has 1 different prompts"):
        split_prompts(Options(data=tmp_path), encoder, "creative_writing", 2, 1)


def row(name: str, length: float, cell: str = "gsm8k T=0", temperature: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"name": name, "cell": cell, "task": "gsm8k", "temperature": temperature, "mean_accepted_len": length} | more


def test_relations_that_do_not_hold_are_told_with_both_figures() -> None:
    rows = [
        row("k_config", 2.5, standard_error=0.3), row("sequoia", 2.0, standard_error=0.4), row("opt-tree", 2.0),
        row("sequoia", 2.0, "gsm8k T=1", 1.0), row("opt-tree", 1.5, "gsm8k T=1", 1.0),
    ]  # fmt: skip
    (line,) = not_so(rows)
    assert (line["name"], line["cell"]) == ("sequoia >= k_config", "gsm8k T=0")
    assert (line["first"], line["second"]) == ("2.00 ±0.40", "2.50 ±0.30")
    assert line["in_errors"] == pytest.approx(-1.0)
    (line,) = not_so([row("sequoia", 3.0), row("opt-tree", 2.0)])
    assert line["name"] == "opt-tree >= sequoia" and line["in_errors"] is None


def test_the_table_has_a_column_for_each_cell() -> None:
    rows = [
        row("ar", 1.0, text_equals_base=True, agreement=1.0),
        row("sequoia", 2.5, standard_error=0.125, text_equals_base=False, agreement=0.5),
        {"name": "eagle", "cell": "gsm8k T=0", "task": "gsm8k", "temperature": 0.0, "not_run": "no head"},
        row("sequoia", 2.0, "gsm8k T=1", 1.0),
    ]
    by_method, relations, fitted, every = tables({"rows": rows, "settings": {"nodes": 9}})
    assert by_method.heads == ("row", "gsm8k T=0", "gsm8k T=1", "same greedy text")
    assert by_method.rows == (
        ("`ar`", "1.00", "–", "yes"),
        ("`sequoia`", "2.50 ±0.12", "2.00", "50 %"),
        ("`eagle`", "–", "–", "not run: no head"),
    )
    assert "9 draft tokens" in by_method.title and relations.title.endswith("nowhere") and not relations.rows
    assert not fitted.rows and len(every.rows) == 4


def test_fitted_trees_are_reported_once_they_were_measured() -> None:
    cells = {"a": calibration(UNSURE), "b": Calibration(Options(), [(1,)], 0.0, 8, 3)}
    (line,) = accepted.fitted(cells, 4)
    assert line["name"] == "a" and line["growmap_expected"] >= line["k_config_expected"] > 1
    (shown,) = tables({"rows": [], "settings": {}, "fitted": [line]})[2].rows
    assert shown[:2] == ("a", "0.30")


# --- heads -------------------------------------------------------------------------------------------


def test_the_head_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "HEAD", tmp_path / "absent")
    assert Options().eagle_head is None and Options(head="h").eagle_head == "h"
    with pytest.raises(NotRunError, match="head is not in this installation"):
        engine_subject(Options(dtype="float32"), method="eagle").start()
    with pytest.raises(NotRunError, match="give --head"):
        engine_subject(Options(target="t", draft="d", dtype="float32"), method="eagle").start()
    monkeypatch.setattr(pair, "HEAD", tmp_path)
    assert Options().eagle_head == str(tmp_path)
    assert Options(target="t", draft="d").eagle_head is None
    subject = engine_subject(Options(draft_shape="68m"), method="eagle", nodes=5)
    assert dict(subject.settings)["draft"] == str(tmp_path) and dict(subject.settings)["draft_shape"] is None


def test_a_head_that_is_none_is_refused_before_any_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no EAGLE head"):
        Options(head=str(pair.DRAFT), out=tmp_path, smoke=True).resolved()


@pytest.mark.parametrize("nodes", [0, 129])
def test_nodes_out_of_range(nodes: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"nodes={nodes}: must be a whole number from 1 to 128"):
        Options(nodes=nodes, out=tmp_path, smoke=True).resolved()
