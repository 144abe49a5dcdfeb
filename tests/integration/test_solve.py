"""``seedmp solve``: results line by line, interrupted and resumed, and what is refused before a model is loaded."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from seedmp.commands.main import main
from seedmp.errors import ConfigError
from seedmp.solve import SolveOptions, run_solve

TIMEOUT_S = 240
COMMAND = [
    "solve", "blocksworld", "--limit", "4", "--thoughts", "2", "--depth", "1", "--num-drafts", "1",
    "--concurrency", "1",
]  # fmt: skip


def results(path: Path) -> dict[int, Any]:
    """What was solved, without what depends on the machine."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert len(rows) == len({row["index"] for row in rows}), "nothing twice"
    return {row["index"]: (row["correct"], row["path"], row["counts"]["thoughts"]) for row in rows}


def test_an_interrupted_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert main([*COMMAND, "--out", str(whole), "--pages", str(tmp_path / "pages")]) == 0
    assert "solved" in capsys.readouterr().out and len(results(whole)) == 4
    assert len(list((tmp_path / "pages").glob("*.html"))) == 4

    running = subprocess.Popen(
        [sys.executable, "-m", "seedmp", *COMMAND, "--out", cut],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    while (not cut.exists() or cut.read_text().count("\n") < 2) and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=TIMEOUT_S)
    if running.returncode != 0:  # it may have been quicker than the signal
        assert running.returncode == 130 and "the same command goes on" in errors
    with cut.open("a") as file:
        file.write('{"seed": 0, "index": 3, "corr')  # as when the machine went down in the middle of a line
    before = len(cut.read_text().splitlines()) - 2
    assert main([*COMMAND, "--out", str(cut)]) == 0
    assert f"{before} of 4 results are in" in capsys.readouterr().out.replace("\n", " ")
    assert results(cut) == results(whole)


def test_all_done_needs_no_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = SolveOptions("blocksworld", limit=1, engine={"target": "nowhere"})
    head = json.dumps({"seedmp_solve": 1, **json.loads(json.dumps(options.__dict__))})
    row = {"seed": 0, "index": 0, "correct": True, "any_correct": True, "counts": {"thoughts": 7}}
    out = tmp_path / "out.jsonl"
    out.write_text(head + "\n" + json.dumps(row) + "\n")
    report = run_solve(options, out)
    assert (report.solved, report.done, report.tokens) == (1, 1, 0)
    assert "1 of 1 = 100.0%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chess"], "there is no task 'chess'; known are blocksworld"),
        (["game24", "--search", "astar"], "search='astar': must be one of bfs, dfs"),
        (["game24", "--evaluate", "dice"], "evaluate='dice': must be one of value"),
        (["game24", "--data", "missing.csv"], "missing.csv"),
        (["game24", "--beam", "0"], "beam=0: must be a whole number >= 1"),
        (["game24", "--option", "deep"], "must be NAME=VALUE"),
        (["game24", "--option", "deep=1"], "no option 'deep'; it has answer"),
        (["game24", "--temperature", "-1"], "temperature=-1.0"),
        (["game24", "--max-seconds", "-1"], "seconds=-1.0: must be a finite number > 0"),
        (["game24", "--concurrency", "0"], "concurrency=0"),
        (["game24", "--out", "/proc/none/out.jsonl"], "cannot be written"),
        (["game24", "--pages", "/proc/none"], "cannot be written"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("seedmp.solve.Engine", None)  # none may be started
    assert main(["solve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_files_of_others_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seedmp.solve.Engine", None)
    notes = tmp_path / "notes.txt"
    notes.write_text("buy milk\n")
    with pytest.raises(ConfigError, match="line 1: no result of seedmp solve"):
        run_solve(SolveOptions("game24", limit=1), notes)
    assert notes.read_text() == "buy milk\n"
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"seedmp_solve": 1, "task": "gsm8k"}) + "\n")
    with pytest.raises(ConfigError, match=r"was made with task='gsm8k', not 'game24': choose another"):
        run_solve(SolveOptions("game24", limit=1), other)
