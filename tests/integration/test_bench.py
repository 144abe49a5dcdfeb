"""``seedmp bench`` runs with small models and writes what it promises."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from seedmp import Engine, SamplingParams
from seedmp.benchmarks.questions import accepted
from seedmp.commands.main import main

FIGURES = {"tokens_per_s", "speedup", "acceptance_rate", "mean_accepted_len", "overlap_s", "verifier_busy", "repeats"}


def bench(name: str, out: Path, *arguments: str) -> dict[str, Any]:
    assert main(["bench", name, "--smoke", "--out", str(out), *arguments]) == 0
    ElementTree.parse(out / f"{name}.svg")
    assert name in (out / "report.html").read_text()
    report: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    assert report["complete"] and {"settings", "threads", "node", "model", "took_s"} <= report.keys()
    return report


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_peers(tmp_path: Path) -> None:
    rows = {row["name"]: row for row in bench("peers", tmp_path)["rows"]}
    assert {"generate", "generate-batch", "continuous-batch", "assisted", "prompt-lookup", "ar", "fcfs-batch"} <= set(
        rows
    )
    assert all(rows[name].keys() >= FIGURES for name in ("ar", "fcfs-batch"))
    for name in ("llama.cpp", "llama.cpp with draft"):
        assert "tokens_per_s" in rows[name] or "not installed" in rows[name]["not_run"]
    ran = [row for row in rows.values() if "tokens_per_s" in row]
    assert len(ran) >= 6
    assert all(row["text_equals_base"] for row in ran), "float32: every row makes the same tokens"
    assert rows["fcfs-batch"]["mean_accepted_len"] > 1 == rows["ar"]["mean_accepted_len"]
    assert rows["fcfs-batch"]["memory_mib"]["verifier-0"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_table1_and_what_a_noisy_draft_costs(tmp_path: Path) -> None:
    ar, batch = bench("table1", tmp_path)["rows"]
    assert (ar["name"], batch["name"], batch["task"]) == ("ar", "mcsd-batch", "blocksworld")
    assert batch["text_equals_base"] and batch["num_tokens"] >= 6
    noisy = bench("acceptance", tmp_path)["rows"][-1]
    assert noisy["draft_noise"] == 0.5 and noisy["text_equals_base"]
    assert noisy["acceptance_rate"] < 0.5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_accepted_lengths_of_fitted_trees(tmp_path: Path) -> None:
    report = bench("accepted", tmp_path)
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == {"ar", "k_config", "sequoia"} and report["settings"]["nodes"] == 16
    assert all(row["text_equals_base"] and row["rounds"] and row["task"] == "blocksworld" for row in rows.values())
    assert rows["sequoia"]["mean_accepted_len"] > 1 == rows["ar"]["mean_accepted_len"]
    (fitted,) = report["fitted"]
    assert fitted["growmap_expected"] >= fitted["k_config_expected"] > 1
    assert report["model"].startswith("bundled target; ")


def test_prompt_lookup_does_not_find_what_an_earlier_run_wrote() -> None:
    prompts = [tuple(range(7, 7 + 3 * 24, 3))]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, seed=0)
    with Engine(method="ngram") as engine:
        rounds = [accepted.run_texts(engine, prompts, params).figures["rounds"] for _ in range(2)]
        engine.generate(prompts, params, timeout=60)
        found = engine.generate(prompts, params, timeout=60)[0].metrics.rounds
    assert rounds[0] == rounds[1] > found, "without forgetting it is found"
