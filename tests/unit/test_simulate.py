"""The simulator against arithmetic, bounds and a measured table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seedmp.commands import main as cli
from seedmp.commands.simulate import read_acceptance
from seedmp.config import EngineConfig
from seedmp.errors import ConfigError
from seedmp.models import branch_attention
from seedmp.simulation import simulate as simulate_module
from seedmp.simulation.costs import EXAMPLE, Costs, Curve, chain_acceptance, load_costs
from seedmp.simulation.simulate import Outcome, Workload, simulate
from seedmp.simulation.virtual_clock import VirtualClock
from seedmp.tuning.check import fit_acceptance

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
FLAT = Costs(Curve((1,), (10.0,)), Curve((1,), (2.0,)), message_ms=0.0, acceptance=((0.6,),))


def sim(costs: Costs = FLAT, branches: int = 8, hardware: str = "ideal", **settings: Any) -> Outcome:
    options = {name: settings.pop(name) for name in ("num_verifiers",) if name in settings}
    work = {name: settings.pop(name) for name in ("prompt_len", "max_tokens", "seed", "shared_len") if name in settings}
    config = EngineConfig(target="-", draft="-", **{"k_config": (1, 1, 1), "kv_slots": 1 << 15, **settings})
    load = Workload(branches=branches, **{"prompt_len": 2, "max_tokens": 64, **work})
    return simulate(config, costs, load, hardware=hardware, **options)


# --- prices --------------------------------------------------------------------------------------


def test_a_curve_is_straight_between_its_points() -> None:
    curve = Curve((2, 4, 8), (10.0, 12.0, 20.0))
    assert [curve.at(size) for size in (1, 2, 3, 4, 6, 8, 10)] == [10, 10, 11, 12, 16, 20, 24]
    assert Curve((1, 2), (5.0, 3.0)).at(10) == 3.0, "it does not fall beyond its end"


def test_a_context_is_paid_for_once() -> None:
    curve = Curve((1, 4), (10.0, 1.0)).less([2.0, 3.0])
    assert curve.ms == (8.0, 0.0)
    settings: dict[str, Any] = {
        "branches": 1,
        "method": "ar",
        "schedule": "serial",
        "prompt_len": 100,
        "max_tokens": 20,
    }
    more_s = sim(replace(FLAT, context_ms=1000.0), **settings).wall_s - sim(**settings).wall_s
    assert more_s == pytest.approx(sum(range(100, 119)) / 1000)  # the prompt brings the first token
    four: Any = [SimpleNamespace(chain_ids=(1,), tree=(), context_slots=range(100))] * 4
    assert simulate_module._pairs(four, shared_len=0) == 4 * 400, "each row with the contexts of all"
    assert simulate_module._pairs(four, shared_len=100) == 4 * 100, "which are one where prompts are shared"
    assert (simulate_module.MIN_SAVED, simulate_module.COLUMN_COST) == (
        branch_attention.MIN_SAVED, branch_attention.COLUMN_COST,
    )  # fmt: skip


def test_samples_become_a_curve_that_rises() -> None:
    curve = Curve.from_samples([(1, 5.0), (2, 9.0), (3, 7.0), (3, 7.0), (3, 7.0), (0, 99.0)])
    assert curve is not None
    assert curve.sizes == (1, 2, 3) and curve.ms == (5.0, 7.5, 7.5)
    assert Curve.from_samples([]) is None


@pytest.mark.parametrize(
    ("sizes", "ms", "text"),
    [((), (), "0 sizes"), ((2, 1), (1.0, 1.0), "increase"), ((1,), (-1.0,), ">= 0"), ((1, 2), (1.0,), "as many")],
)
def test_what_is_no_curve_is_refused(sizes: Any, ms: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Curve(sizes, ms)


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(json.dumps(EXAMPLE.to_plain()))
    assert load_costs(tmp_path) == load_costs(tmp_path / "costs.json") == EXAMPLE


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Expecting"),
        ('{"format": 9}', "format 1"),
        ('{"format": 1, "target": {"sizes": [1], "ms": [1]}}', "missing .'draft'"),
        ('{"format": 1, "target": {"sizes": [1]}, "draft": {"sizes": [1], "ms": [1]}}', "'ms'"),
        ('{"format": 1, "target": 1, "draft": 2, "colour": 3}', "unknown key 'colour'"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(ConfigError, match=told):
        load_costs(tmp_path)


def test_the_acceptance_of_a_chain() -> None:
    a = chain_acceptance(1.22, 3)
    assert a + a**2 + a**3 == pytest.approx(1.22)
    assert read_acceptance("0.7,0.3/0.6") == ((0.7, 0.3), (0.6,))
    with pytest.raises(ConfigError, match="0 to 1"):
        FLAT.with_acceptance([[1.5]])


# --- time ----------------------------------------------------------------------------------------


def test_jobs_share_what_they_compete_for() -> None:
    clock = VirtualClock()
    ends: dict[str, float] = {}
    cores = clock.resource(2.0)
    clock.work(cores, 2, 10.0, lambda: ends.__setitem__("target", clock.now_ms))
    clock.at(4.0, lambda: clock.work(cores, 1, 4.0, lambda: ends.__setitem__("draft", clock.now_ms)))
    clock.run()
    # Alone to 4; then one core has two threads, and the target waits for its slower half: 4 ms of drafting take 8.
    assert ends == pytest.approx({"draft": 12.0, "target": 14.0})


def test_jobs_of_one_thread_move_between_the_cores() -> None:
    clock = VirtualClock()
    ends: list[float] = []
    cores = clock.resource(2.0)
    for _ in range(3):
        clock.work(cores, 1, 4.0, lambda: ends.append(clock.now_ms))
    clock.run()
    assert ends == pytest.approx([6.0, 6.0, 6.0])


# --- runs ----------------------------------------------------------------------------------------


def test_plain_decoding_pays_a_forward_a_token() -> None:
    outcome = sim(method="ar", schedule="serial", branches=2, max_tokens=50)
    assert outcome.tokens == 100 and outcome.mean_accepted_len == 1
    assert outcome.wall_s == pytest.approx(1.0, rel=0.05)


def test_serial_speculation_pays_draft_and_forward_by_turns() -> None:
    outcome = sim(schedule="serial", branches=2, max_tokens=200)
    rounds_s = 0.016 * outcome.tokens / outcome.mean_accepted_len
    assert outcome.wall_s == pytest.approx(rounds_s, rel=0.03)
    assert outcome.verifier_busy == pytest.approx(10 / 16, rel=0.05)


def test_the_papers_policy_hides_drafting_and_no_more() -> None:
    """Bound: at most 1 + d/v over serial speculation, reached when there are enough drafts."""
    serial, fcfs = sim(schedule="serial", max_tokens=200), sim(policy="fcfs", num_drafts=3, max_tokens=200)
    assert 1.5 < fcfs.tokens_per_s / serial.tokens_per_s <= 1.6 + 0.02
    assert fcfs.verifier_busy > 0.98 and fcfs.branches_per_forward == pytest.approx(1, abs=0.05)


def test_what_is_accepted_follows_the_law() -> None:
    outcome = sim(branches=40, max_tokens=200)
    assert outcome.mean_accepted_len == pytest.approx(1 + 0.6 + 0.36 + 0.216, rel=0.04)
    wide = sim(FLAT.with_acceptance([[0.6, 0.5]]), branches=40, max_tokens=200, k_config=(2, 2, 1))
    level = 0.6 + 0.4 * 0.5
    assert wide.mean_accepted_len == pytest.approx(1 + level + level**2 + level**2 * 0.6, rel=0.04)


def test_a_seed_repeats_and_another_differs() -> None:
    assert sim(seed=3) == sim(seed=3)
    assert sim(seed=3).wall_s != sim(seed=4).wall_s


def test_more_verifiers_serve_more() -> None:
    one, two = sim(branches=16), sim(branches=16, num_verifiers=2)
    assert two.tokens == one.tokens and two.tokens_per_s > one.tokens_per_s
    parallel = sim(branches=16, schedule="parallel", num_drafts=2)
    assert parallel.tokens == one.tokens


def test_sharing_a_gpu_by_turns_costs_the_overlap() -> None:
    settings: dict[str, Any] = {"policy": "fcfs", "num_drafts": 3, "max_tokens": 100}
    alone, shared = sim(hardware="gpus", **settings), sim(hardware="gpu", **settings)
    assert shared.tokens_per_s < 0.9 * alone.tokens_per_s


def test_a_common_prompt_is_computed_once() -> None:
    per_row = Costs(Curve((1, 1000), (1.0, 1000.0)), Curve((1,), (1.0,)))
    apart = sim(per_row, prompt_len=200, max_tokens=2)
    shared = sim(per_row, prompt_len=200, shared_len=199, max_tokens=2)
    assert shared.wall_s < apart.wall_s / 3


@pytest.mark.parametrize("n", [2, 3, 4])
def test_measured_schedules_are_met(n: int) -> None:
    """The 134M shape on 2 cores: prices from serial rows, one's first token and ``fcfs-batch``."""
    report = json.loads((RESULTS / "schedules-cpu-134m.json").read_text())
    rows = {row["name"]: row for row in report["rows"] if row["n"] == n}
    serial = rows["serial-sd"]
    first_token_s = next(row["first_token_s"] for row in report["rows"] if (row["n"], row["name"]) == (1, "serial-ar"))
    accepted = fit_acceptance((1, 1, 1), serial["mean_accepted_len"], Workload(n, 80, 0, 96))
    costs = Costs(
        Curve(
            (1, 4, 4 * n, 80),
            (*(rows[name]["verify_ms"] for name in ("serial-ar", "serial-sd", "fcfs-batch")), 1e3 * first_token_s),
        ),
        Curve((1,), (serial["draft_round_ms"] / 3,)), draft_overhead_ms=0.4, branch_overhead_ms=0.4, message_ms=0.15,
        target_threads=2, cores=2, acceptance=((accepted,),),
    )  # fmt: skip
    settings: dict[str, dict[str, Any]] = {
        "serial-ar": {"method": "ar", "schedule": "serial"}, "serial-sd": {"schedule": "serial"},
        "fcfs": {"policy": "fcfs", "num_drafts": n}, "fcfs-batch": {"num_drafts": n},
    }  # fmt: skip
    for name, more in settings.items():
        outcome = sim(costs, branches=n, hardware="cpu", prompt_len=80, max_tokens=96, **more)
        assert outcome.tokens_per_s == pytest.approx(rows[name]["tokens_per_s"], rel=0.1), name


def test_hundreds_of_branches_take_a_moment() -> None:
    outcome = sim(branches=300, num_drafts=8, k_config=(2, 2, 1), max_tokens=8, hardware="gpus")
    assert outcome.tokens == 300 * 8


# --- the command -----------------------------------------------------------------------------------


def test_the_command_tells_where_drafts_stop_paying(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "costs.json").write_text(json.dumps(FLAT.to_plain()))
    out = tmp_path / "out.json"
    argv = ["simulate", "--costs", str(tmp_path), "--drafts", "1,2,4", "--policy", "fcfs", "--max-tokens", "32"]
    assert cli.main([*argv, "--hardware", "ideal", "--branches", "4", "--json", str(out)]) == 0
    told = capsys.readouterr().out
    assert "fcfs, k=1,1,1, 4 branches: beyond" in told
    report = json.loads(out.read_text())
    assert [row["drafts"] for row in report["rows"]] == [1, 2, 4]
    assert Costs.from_plain(report["costs"]) == FLAT and all(row["over_ar"] > 0 for row in report["rows"])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--drafts", "many"], "--drafts 'many'"),
        (["--drafts", "0"], "num_drafts=0"),
        (["--method", "opt-tree"], "cannot be simulated"),
        (["--costs", "nowhere.json"], "nowhere.json"),
        (["--verifiers", "0"], "num_verifiers"),
        (["--branches", "0"], "branches=0"),
        (["--json", "no/such/folder/x.json"], "cannot be written"),
        (["--cores", "-1"], "cores=-1"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", *argv]) == 2
    assert told in capsys.readouterr().err
