"""Profiles of a real engine on the bundled pair."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedmp import Engine, SamplingParams
from seedmp.client.observers import OBSERVERS
from seedmp.commands import main as cli
from seedmp.errors import ConfigError
from seedmp.profiling.engines import profile_engines
from seedmp.simulation.costs import load_costs
from seedmp.simulation.simulate import Workload, simulate
from tests.unit.test_profile import check_trace

CHECKOUT = Path(__file__).resolve().parents[2]
PROMPTS = [f"Question: There are {i} birds and {i + 2} fish. How many animals?\nAnswer:" for i in range(4)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, seed=0, ignore_eos=True)
FILES = {"trace.json", "profile.json", "timeline.svg", "summary.txt", "report.html", "costs.json"}
WORK = {"verifier-0": "verify", "draft-0.0": "draft", "draft-0.1": "draft", "engine": "ipc", "supervisor": "idle"}
TIMEOUT_S = 90.0


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(num_drafts=2, k_config=(1, 1, 1), kv_slots=1024, target_threads=1) as started:
        yield started


@pytest.mark.alone
def test_spans_of_each_process_sum_to_the_wall_time(engine: Engine, tmp_path: Path) -> None:
    plain = [out.token_ids for out in engine.generate(PROMPTS, GREEDY, timeout=TIMEOUT_S)]
    with engine.profile(tmp_path / "out") as profile:
        profiled = [out.token_ids for out in engine.generate(PROMPTS, GREEDY, timeout=TIMEOUT_S)]
    assert profiled == plain
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    report = json.loads((tmp_path / "out" / "profile.json").read_text())
    rows = {row["name"]: row for row in report["processes"]}
    assert rows.keys() == WORK.keys()
    for name, row in rows.items():
        assert sum(row["spans_s"].values()) == pytest.approx(row["wall_s"], rel=0.03)
        assert row["wall_s"] == pytest.approx(report["wall_s"], rel=0.03)
        assert row["spans_s"][WORK[name]] > 0 and row["spans_lost"] == 0
        assert row["rss_mib"] > 1 and row["num_samples"] >= 2
    assert report["stats"]["committed_tokens"] == 24 * len(PROMPTS)
    verifier, drafts = rows["verifier-0"], [rows["draft-0.0"], rows["draft-0.1"]]
    assert {"resample", "commit", "schedule", "ipc", "idle"} <= verifier["spans_s"].keys()
    assert verifier["socket_bytes"]["out"] == pytest.approx(
        sum(d["socket_bytes"]["in"] for d in drafts) + rows["engine"]["socket_bytes"]["in"], rel=0.2
    )
    trace = json.loads((tmp_path / "out" / "trace.json").read_text())
    check_trace(trace)
    assert {"draft", "verify", "queue", "resample", "commit", "ipc"} <= {e["name"] for e in trace["traceEvents"]}
    ET.parse(tmp_path / "out" / "timeline.svg")
    assert profile.summary in (tmp_path / "out" / "summary.txt").read_text()
    assert any(word in profile.summary for word in ("limited by", "take turns", "wait for work"))


def test_a_second_profile_and_costs_for_the_simulator(engine: Engine, tmp_path: Path) -> None:
    for name in ("one", "two"):
        with engine.profile(tmp_path / name):
            engine.generate(PROMPTS, GREEDY, timeout=TIMEOUT_S)
    costs = load_costs(tmp_path / "two")
    assert costs.target.at(4) > 0 and costs.draft.at(1) > 0 and 0 < costs.acceptance[0][0] < 1
    outcome = simulate(engine.config, costs, Workload(branches=4, prompt_len=20, max_tokens=24))
    assert outcome.tokens == 96
    assert json.loads((tmp_path / "two" / "profile.json").read_text())["stats"]["committed_tokens"] == 96


def test_two_profiles_at_once_and_a_folder_that_cannot_be_written_are_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        engine.profile(tmp_path / "file")
    with engine.profile(tmp_path / "one"), pytest.raises(ConfigError, match="already"):
        engine.profile(tmp_path / "two").__enter__()
    engine.generate(PROMPTS[:1], GREEDY, timeout=TIMEOUT_S)


def test_an_engine_may_close_inside_a_profile(tmp_path: Path) -> None:
    with profile_engines(tmp_path) as profiles:
        with Engine(method="ar", num_drafts=1, kv_slots=512, target_threads=1) as short:
            short.generate(PROMPTS[:1], GREEDY, timeout=TIMEOUT_S)
        assert (tmp_path / "profile.json").is_file(), "written when the engine closes"
    (profile,) = profiles
    assert profile.data is not None and profile.data.stats["committed_tokens"] == 24
    assert not (tmp_path / "costs.json").exists(), "no draft, no price of drafting"
    assert not OBSERVERS


def test_the_command_refuses_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["profile", "--out", str(tmp_path / "file"), "--", "generate", "x"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert cli.main(["profile", "--out", str(tmp_path / "out")]) == 2
    assert cli.main(["profile", "--out", str(tmp_path / "out"), "--", "no-such-script.py"]) == 2
    assert cli.main(["profile", "--out", str(tmp_path / "out"), "--period", "0", "--", "doctor"]) == 2


SCRIPT = """
from seedmp import Engine, SamplingParams
engine = Engine(num_drafts=1, kv_slots=512, target_threads=1)
print("ready", flush=True)
while True:
    engine.generate("Question:", SamplingParams(temperature=0.0, max_tokens=16, seed=0, ignore_eos=True))
    print("again", flush=True)
"""


def test_after_an_interrupt_the_files_are_there(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "seedmp", "profile", "--out", str(tmp_path / "out"), "--", "script.py"]
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, env=env, text=True) as process:
        assert process.stdout is not None
        assert any(line.strip() == "again" for line in process.stdout)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "verifier-0" in rest and "profile.json" in rest
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    report = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert report["stats"]["committed_tokens"] > 0
