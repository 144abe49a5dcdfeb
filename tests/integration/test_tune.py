"""``seedmp tune`` on the bundled pair: the plan is made, an engine takes it, and its text is plain decoding's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seedmp.commands import main as cli
from seedmp.engine import Engine
from seedmp.plan import Plan, load_plan
from seedmp.sampling import SamplingParams

SETTINGS = ("--quick", "--branches", "2", "--max-tokens", "12", "--repeats", "1", "--drafts", "1", "--dtype", "float32")
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
PROMPT = "Question: Tom has 3 bags with 4 apples each. How many apples has he?\nAnswer:"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_plan_is_made_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "plan.json", tmp_path / "all.json"
    assert cli.main(["tune", *SETTINGS, "--out", str(out), "--json", str(report)]) == 0
    plan = load_plan(out)
    printed = capsys.readouterr().out
    assert "speculation pays here" in printed or "speculation does not pay here" in printed
    assert plan.predicted > 0 and plan.measured.repeats == 1

    figures = json.loads(report.read_text())
    assert Plan.from_plain(figures["plan"]) == plan
    assert {"plan", "dynamic", "along texts, greedy"} <= set(figures["acceptance"])
    assert figures["trials"][0]["name"].startswith("plain decoding") and len(figures["trials"]) == 3
    assert all(trial["same_text_as_ar"] and trial["predicted"] > 0 for trial in figures["trials"])
    assert sum(trial["is_plan"] for trial in figures["trials"]) == 1
    if not plan.pays:
        assert plan.measured == plan.ar

    # Which setting is fastest is the machine's affair: take one that speculates.
    chosen = Plan(figures["trials"][1]["settings"], 1.0, plan.measured, plan.ar, 1.0)
    chosen.save(tmp_path / "tree.json")
    with Engine(plan=tmp_path / "tree.json", kv_slots=512) as engine:
        assert engine.config.kv_slots == 512 and engine.config.num_drafts == 1
        drafted = engine.generate(PROMPT, GREEDY, timeout=60)[0].token_ids
        assert engine.stats()["drafted"] > 0
    with Engine(method="ar", dtype="float32") as engine:
        assert engine.generate(PROMPT, GREEDY, timeout=60)[0].token_ids == drafted


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--branches", "0"], "branches=0"),
        (["--data", "missing.jsonl"], "missing.jsonl"),
        (["--data", "empty.txt"], "no problems"),
        (["--temperature", "-1"], "temperature=-1"),
        (["--max-tokens", "4000"], "positions"),
        (["--drafts", "1,x"], "--drafts"),
        (["--drafts", "0"], "drafts=0: must be a whole number from 1 to 64"),
        (["--draft-top-p", "0"], "top-p"),
        (["--target", "x"], "name both"),
        (["--target-shape", "huge"], "huge"),
        (["--out", "none/plan.json"], "no folder"),
        (["--json", "plan.json"], "same file"),
    ],
)
def test_bad_arguments_are_refused_before_any_model_is_loaded(
    args: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    monkeypatch.setattr("seedmp.tuning.tune.EngineSubject.start", lambda _: pytest.fail("an engine was started"))
    assert cli.main(["tune", *args]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "plan.json").exists()
