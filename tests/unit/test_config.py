"""Settings of methods and trees: what each means, and what is refused with which words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seedmp.config import EngineConfig
from seedmp.errors import ConfigError
from seedmp.methods.registry import method_class
from seedmp.sampling import SamplingParams
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.growmap_file import save_growmap
from seedmp.token_tree.tree import ProposalKind

COUNTS = (2, 1, 0, 0)


def config(**settings: Any) -> EngineConfig:
    return EngineConfig(target="-", draft="-", **settings)


@pytest.mark.parametrize(
    ("settings", "nodes", "drafted"),
    [
        ({"method": "ar"}, 0, 0),
        ({"method": "sd", "k_config": (2, 2, 1)}, 10, 6),
        ({"method": "mcsd", "k_config": (1, 1)}, 2, 1),
        ({"method": "specinfer", "k_config": (3, 1)}, 6, 3),
        ({"method": "specinfer", "growmap": "4x3"}, 12, 8),
        ({"method": "sequoia", "growmap": COUNTS}, 3, 1),
        ({"method": "coupled", "growmap": ((2,), (1, 0), (0,))}, 3, 1),
        ({"method": "opt-tree"}, 50, sum(range(42, 51))),
        ({"method": "opt-tree", "nodes": 4, "max_depth": 9, "threshold": 0.1}, 4, 4 + 3 + 2 + 1),
        ({"method": "opt-tree", "nodes": 4, "max_depth": 1}, 4, 0),
        ({"method": "eagle"}, 59, 7 * 10),
        ({"method": "eagle", "nodes": 4, "max_depth": 3, "threshold": 0.1}, 4, 4 + 3),
        ({"method": "eagle", "nodes": 5, "top_k": 1}, 5, 5),
        ({"method": "ngram"}, 16, 0),
        ({"method": "ngram", "nodes": 5, "max_depth": 2}, 5, 0),
    ],
    ids=str,
)
def test_sizes_of_proposals_and_the_way_to_the_workers(settings: dict[str, Any], nodes: int, drafted: int) -> None:
    made = config(**settings)
    assert (made.method.max_tree_nodes, made.method.max_drafted) == (nodes, drafted)
    assert EngineConfig.from_plain(json.loads(json.dumps(made.to_plain()))) == made
    assert method_class(made.method) is method_class(settings["method"]) is type(made.method)
    assert (made.drafts_per_group > 0) == made.method.has_drafts == (made.method.name not in ("ar", "ngram"))
    assert replace(made, kv_slots=512).method == made.method


def test_a_growmap_travels_as_child_counts(tmp_path: Path) -> None:
    growmap = Growmap(COUNTS)
    forms: list[Any] = [growmap, COUNTS, list(COUNTS), [[2], [1, 0], [0]]]
    for name in ("map.pt", "map.json"):
        save_growmap(growmap, tmp_path / name)
        forms += [tmp_path / name, str(tmp_path / name)]
    for form in forms:
        made = config(method="sequoia", growmap=form)
        assert made.method.settings() == {"growmap": COUNTS} and made.method.shape == growmap
    assert config(method="coupled", growmap="5x8").method.shape == Growmap.chains(5, 8)


KINDS = {
    "sd": ProposalKind.IID,
    "specinfer": ProposalKind.IID,
    "mcsd": ProposalKind.WITHOUT_REPLACEMENT,
    "sequoia": ProposalKind.WITHOUT_REPLACEMENT,
    "opt-tree": ProposalKind.DETERMINISTIC,
    "ngram": ProposalKind.DETERMINISTIC,
    "eagle": ProposalKind.DETERMINISTIC,
    "coupled": ProposalKind.DETERMINISTIC,
}


@pytest.mark.parametrize("method", KINDS)
def test_kinds_of_proposals(method: str) -> None:
    made = config(method=method, growmap=COUNTS if method == "sequoia" else None)
    assert made.method.drawing(SamplingParams(draft_temperature=0.7)).kind is KINDS[method]
    assert made.method.drawing(SamplingParams(draft_temperature=0.0)).kind is ProposalKind.DETERMINISTIC


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "seqoia"}, "method='seqoia': must be one of ar, sd, mcsd, specinfer, sequoia, opt-tree, ngram"),
        ({"method": "sequoia"}, "growmap=None: method=sequoia needs one: the path"),
        ({"growmap": "2x2"}, "growmap is not used by method=mcsd: only by specinfer, sequoia, coupled"),
        ({"method": "ngram", "growmap": COUNTS}, "growmap is not used by method=ngram"),
        ({"method": "sequoia", "growmap": (2, 2, 1)}, r"growmap=\(2, 2, 1\): .* child counts add up to 5, not 2"),
        ({"method": "sequoia", "growmap": "none.pt"}, "growmap='none.pt': none.pt: no such file"),
        ({"method": "sequoia", "growmap": 5}, 'growmap=5: must be the path of a .pt or .json file, "KxD"'),
        ({"method": "sequoia", "growmap": (0,)}, "0 draft tokens; must be 1 to 512"),
        ({"method": "sequoia", "growmap": "33x16"}, "growmap='33x16': 33 chains of 16 tokens: at most 512 in all"),
        ({"method": "coupled", "growmap": (600, *[0] * 600)}, "600 draft tokens; must be 1 to 512"),
        ({"method": "specinfer", "growmap": "9x2", "draft_top_m": 8}, "a node has 9 children, but draft_top_m=8"),
        (
            {"method": "coupled", "k_config": (9,), "draft_top_m": 8},
            r"k_config=\(9,\): a node has 9 children, but draft_top_m=8",
        ),
        ({"nodes": 5}, "nodes is not used by method=mcsd: only by opt-tree, ngram"),
        ({"method": "coupled", "max_depth": 5}, "max_depth is not used by method=coupled"),
        ({"method": "ngram", "threshold": 0.5}, "threshold is not used by method=ngram: only by opt-tree"),
        ({"method": "opt-tree", "top_k": 5}, "top_k is not used by method=opt-tree: only by eagle"),
        ({"method": "eagle", "draft_shape": "134m"}, "draft_shape='134m': a head has the shape"),
        ({"method": "eagle", "top_k": 0}, "layer_width=0: must be a whole number from 1 to 512"),
        ({"method": "eagle", "max_depth": 0}, "max_depth=0: must be a whole number"),
        ({"method": "eagle", "growmap": "2x2"}, "growmap is not used by method=eagle"),
        ({"method": "opt-tree", "nodes": 0}, "nodes=0: must be a whole number from 1 to 512"),
        ({"method": "ngram", "nodes": True}, "nodes=True: must be a whole number"),
        ({"method": "opt-tree", "max_depth": 2.5}, "max_depth=2.5: must be a whole number"),
        ({"method": "opt-tree", "threshold": -1}, "threshold=-1: must be a finite number >= 0"),
        ({"method": "opt-tree", "threshold": "low"}, "threshold='low': must be a finite number >= 0"),
    ],
    ids=str,
)
def test_what_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        config(**settings)


def test_k_config_may_be_anything_where_it_is_not_used() -> None:
    assert config(method="opt-tree", k_config=(9,), draft_top_m=8).method.static_tree is None
