"""The harness: order of repeats, medians, rows that cannot run, partial results, comparison. No process, no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from seedmp.benchmarks.harness import MAX_REPEATS, Group, Plan, Repeats, Row, run_plan
from seedmp.benchmarks.summary import NOISE_FLOOR, Likeness, Result, agreement, compare, row_of, spread
from seedmp.errors import ConfigError
from seedmp.measuring import engines
from seedmp.measuring.account import rotated
from seedmp.measuring.engines import EnginePool, NotRunError, Subject

ABOUT: dict[str, Any] = {"settings": {"seed": 0}}


@dataclass(frozen=True)
class FakeSubject:
    """Stands for an engine."""

    name: str

    def start(self) -> str:
        return self.name

    def need_gib(self) -> float:
        return 1e9 if self.name == "huge" else 0.0


class FakePool:
    """Starts nothing; a subject named ``missing`` cannot run."""

    def prepare(self, subjects: Sequence[Subject], on_started: Callable[[], object]) -> dict[Subject, Any]:
        return {s: NotRunError("no such thing here") if s.name == "missing" else s.name for s in subjects}  # type: ignore[attr-defined]

    def memory_mib(self, subject: Subject) -> dict[str, float]:
        return {"verifier-0": 10.0}


class Steps:
    """Counts the progress."""

    def __init__(self) -> None:
        self.num = self.more = 0.0

    def step(self, text: str) -> None:
        pass

    def advance(self, amount: float = 1.0) -> None:
        self.num += amount

    def extend(self, amount: float) -> None:
        self.more += amount


def rate(tokens_per_s: float, *texts: tuple[int, ...]) -> Result:
    return Result(1.0, tokens_per_s, texts, {"acceptance_rate": tokens_per_s / 100})


def plan_of(rows: Sequence[Row], **settings: Any) -> Plan:
    return Plan("toy", [Group("cell", rows, rows[0].name, {"n": 3})], settings)


def run(plan: Plan, path: Path, repeats: int = 3) -> dict[str, Any]:
    return run_plan(plan, Repeats(repeats), FakePool(), Steps(), path / "toy.json", ABOUT)


def test_each_repeat_begins_with_the_next_row() -> None:
    assert [rotated("abc", repeat) for repeat in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert rotated([], 3) == []


def test_repeats_are_interleaved_and_medians_taken(tmp_path: Path) -> None:
    order: list[str] = []
    rates = {"ar": [10.0, 20.0, 30.0], "sd": [40.0, 40.0, 30.0]}

    def work(name: str) -> Callable[[Any, int], Result]:
        def call(started: str, repeat: int) -> Result:
            assert started == name
            order.append(f"{name}{repeat}")
            return rate(rates[name][repeat], (1, 2))

        return call

    greedy = {"ar": ((1, 2, 3, 4),), "sd": ((1, 2, 9, 4),)}
    rows = [Row(name, FakeSubject(name), work(name), lambda started: greedy[started]) for name in rates]
    report = run(plan_of(rows, max_tokens=2), tmp_path)
    assert order == ["ar0", "sd0", "sd1", "ar1", "ar2", "sd2"]
    ar, sd = report["rows"]
    assert (ar["tokens_per_s"], ar["tokens_per_s_min"], ar["tokens_per_s_max"]) == (20, 10, 30)
    assert (sd["speedup"], sd["speedup_min"], sd["speedup_max"]) == (2, 1, 4)
    assert sd["repeats"] == [40, 40, 30] and sd["acceptance_rate"] == 0.4
    assert ar["text_equals_base"] and not sd["text_equals_base"] and sd["agreement"] == 0.5
    assert (sd["cell"], sd["n"], sd["num_tokens"], sd["memory_mib"]) == ("cell", 3, 2, {"verifier-0": 10.0})
    assert report["complete"] is True and report["settings"] == {"seed": 0, "max_tokens": 2}
    assert json.loads((tmp_path / "toy.json").read_text()) == report


def test_a_row_that_cannot_run_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    def fails(started: Any, repeat: int) -> Result:
        raise NotRunError("out of luck\nand more")

    rows = [
        Row("ar", FakeSubject("ar"), lambda started, repeat: rate(10.0)),
        Row("absent", FakeSubject("missing"), lambda started, repeat: rate(1.0)),
        Row("unlucky", FakeSubject("x"), fails),
    ]
    ar, absent, unlucky = run(plan_of(rows), tmp_path)["rows"]
    assert ar["tokens_per_s"] == 10
    assert absent["not_run"] == "no such thing here" and "tokens_per_s" not in absent
    assert unlucky["not_run"] == "out of luck"


def test_what_does_not_fit_is_not_started() -> None:
    with EnginePool() as pool:
        small, huge = FakeSubject("small"), FakeSubject("huge")
        started = pool.prepare([huge, small], lambda: None)
        assert str(started[huge]).startswith("needs about 1000000000.0 GiB") and started[small] == "small"
        assert pool.memory_mib(small) == {}
        pool._started.clear()  # a str cannot be closed


class Closable:
    """Stands for an engine whose pages come late."""

    def __init__(self, name: str, closed: list[str]) -> None:
        self.name, self.closed = name, closed

    def close(self) -> None:
        self.closed.append(self.name)


@dataclass(frozen=True)
class LateSubject:
    """Needs 3 GiB, and takes none of it at once."""

    name: str
    closed: list[str] = field(hash=False, compare=False)

    def start(self) -> Closable:
        return Closable(self.name, self.closed)

    def need_gib(self) -> float:
        return 3.0


def test_what_engines_were_promised_is_not_given_away_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_free_gib", lambda: 9.0)  # whoever started
    closed: list[str] = []
    one, two, three, four = (LateSubject(name, closed) for name in ("one", "two", "three", "four"))
    with EnginePool() as pool:
        pool.prepare([one, two], lambda: None)
        assert closed == []
        result = pool.prepare([two, three], lambda: None)
        assert closed == ["one"] and isinstance(result[three], Closable)
        result = pool.prepare([two, three, four], lambda: None)
        assert closed == ["one"] and str(result[four]) == "needs about 3.0 GiB, 2.4 GiB are left for it"
    assert closed == ["one", "two", "three"]


def test_a_wrong_setting_ends_the_run(tmp_path: Path) -> None:
    def fails(started: Any, repeat: int) -> Result:
        raise ConfigError("wrong")

    with pytest.raises(ConfigError, match="wrong"):
        run(plan_of([Row("ar", FakeSubject("ar"), fails)]), tmp_path)


def test_ctrl_c_leaves_what_was_measured(tmp_path: Path) -> None:
    def work(started: str, repeat: int) -> Result:
        if started == "sd" and repeat == 1:
            raise KeyboardInterrupt
        return rate(10.0 + repeat)

    rows = [Row(name, FakeSubject(name), work) for name in ("ar", "sd", "late")]
    first = Group("first", [Row("ar", FakeSubject("ar"), work)], "ar")
    plan = Plan("toy", [first, Group("second", rows, "ar"), Group("never", rows, "ar")])
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path)
    report = json.loads((tmp_path / "toy.json").read_text())
    assert report["complete"] is False and "node" in report
    assert [(row["cell"], row["name"]) for row in report["rows"]] == [
        ("first", "ar"), ("second", "ar"), ("second", "sd"), ("second", "late"),
    ]  # fmt: skip
    assert report["rows"][0]["repeats"] == [10, 11, 12]
    assert report["rows"][1]["repeats"] == report["rows"][2]["repeats"] == [10]


def test_ratios_are_of_repeats_that_both_have(tmp_path: Path) -> None:
    """The base row was interrupted before its second repeat, which the rotated order runs last."""

    def work(started: str, repeat: int) -> Result:
        if started == "ar" and repeat == 1:
            raise KeyboardInterrupt
        return rate({"ar": 10.0, "sd": 20.0 + repeat}[started])

    with pytest.raises(KeyboardInterrupt):
        run(plan_of([Row(name, FakeSubject(name), work) for name in ("ar", "sd")]), tmp_path)
    ar, sd = json.loads((tmp_path / "toy.json").read_text())["rows"]
    assert ar["repeats"] == [10] and sd["repeats"] == [20, 21]
    assert sd["speedup_min"] == sd["speedup_max"] == 2.0


def test_progress_is_what_was_planned(tmp_path: Path) -> None:
    steps = Steps()
    plan = plan_of([Row(n, FakeSubject(n), lambda started, repeat: rate(1.0)) for n in ("ar", "missing")])
    run_plan(plan, Repeats(3), FakePool(), steps, tmp_path / "toy.json", ABOUT)
    assert steps.num == plan.num_steps * 4


def noisy(rates: Sequence[float]) -> Plan:
    """``sd`` takes its rates in turn, ``ar`` always has 10."""

    def work(started: str, repeat: int) -> Result:
        return rate(10.0 if started == "ar" else rates[repeat % len(rates)])

    return plan_of([Row(name, FakeSubject(name), work) for name in ("ar", "sd")])


@pytest.mark.parametrize(("rates", "num"), [((20.0,), 6), ((19.5, 20.0, 20.5), 28), ((10.0, 30.0), MAX_REPEATS)])
def test_precision_repeats_until_chance_moves_no_speedup_by_more(
    rates: Sequence[float], num: int, tmp_path: Path
) -> None:
    plan, steps = noisy(rates), Steps()
    report = run_plan(plan, Repeats(6, precision=0.015), FakePool(), steps, tmp_path / "toy.json", ABOUT)
    ar, sd = report["rows"]
    assert len(ar["repeats"]) == len(sd["repeats"]) == num and ar["speedup_notch"] == 0
    assert (sd["speedup_notch"] <= 0.015 * sd["speedup"]) is (num < MAX_REPEATS)
    assert steps.num == 2 + 2 * num and steps.more == 2 * (num - 6)


def test_notches_judge_two_runs_as_chance_does() -> None:
    """Two runs of one law differ seldom beyond their notches; against another median they nearly always do."""
    random = Random(0)

    def run_once(median: float) -> dict[str, Any]:
        pairs = [(rate(median * random.lognormvariate(0, 0.1)), rate(10.0)) for _ in range(20)]
        return {"rows": [{"cell": "c", **row_of("sd", *map(list, zip(*pairs, strict=True)))}]}

    same = [compare(run_once(20.0), run_once(20.0))[0].speedups_differ for _ in range(400)]
    other = [compare(run_once(20.0), run_once(25.0))[0].speedups_differ for _ in range(400)]
    assert sum(map(bool, same)) / 400 < 0.05 and sum(map(bool, other)) / 400 > 0.9


def test_spread_of_one_and_of_many() -> None:
    assert spread([3.0]) == {"median": 3, "min": 3, "max": 3, "iqr": 0}
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3, "min": 1, "max": 5, "iqr": 2}


def test_agreement_counts_tokens_before_the_first_difference() -> None:
    assert agreement(((1, 2, 3), (4,)), ((1, 9, 3), (4,))) == 0.5
    assert agreement((), ()) == 1


def report_of(*rates: float) -> dict[str, Any]:
    results = [rate(value) for value in rates]
    return {"rows": [{"cell": "c", **row_of("sd", results, [rate(10.0)] * len(rates))}]}


def test_compare_flags_changes_beyond_the_noise() -> None:
    (quiet,) = compare(report_of(99.0, 100.0, 101.0), report_of(109.0, 110.0, 111.0))
    assert quiet.is_beyond_noise and quiet.ratio == pytest.approx(1.1) and quiet.noise == NOISE_FLOOR
    assert quiet.ratio_of_speedups == pytest.approx(1.1)
    (noisy,) = compare(report_of(80.0, 100.0, 120.0), report_of(90.0, 110.0, 130.0))
    assert not noisy.is_beyond_noise and noisy.noise > 0.2
    (slower,) = compare(report_of(100.0), report_of(90.0))
    assert slower.is_beyond_noise and slower.ratio < 1
    assert compare(report_of(100.0), {"rows": [{"name": "sd", "cell": "other", "tokens_per_s": 1.0}]}) == []


def test_likeness_counts_speedups_that_two_runs_share() -> None:
    def report(ar: list[float]) -> dict[str, Any]:
        rows = {"ar": [rate(value) for value in ar], "sd": [rate(20.0)] * len(ar)}
        return {"rows": [{"cell": "c", **row_of(name, results, rows["ar"])} for name, results in rows.items()]}

    base, sd = compare(report([10.0, 10.0, 10.0]), report([10.0, 5.0, 5.0]))
    assert base.ratio_of_speedups is None and base.speedups_differ is None
    assert sd.ratio_of_speedups == pytest.approx(2) and sd.speedups_differ is True  # 2 against 4 ±0.9
    likeness = Likeness.of([sd.ratio_of_speedups, 1.04, None])
    assert likeness and (likeness.num, likeness.num_same) == (2, 1) and Likeness.of([None]) is None
