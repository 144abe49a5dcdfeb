"""Profiles of processes that never were: rings of spans, files, pictures and words."""

from __future__ import annotations

import itertools
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seedmp.commands import main as cli
from seedmp.config import EngineConfig
from seedmp.errors import ConfigError
from seedmp.ipc.span_ring import NUM_SPANS, SpanReader, SpanRing, ring_path
from seedmp.profiling import chrome_trace, overhead, report, timeline
from seedmp.profiling.data import ProfileData
from seedmp.profiling.findings import diagnose, measure_busy
from seedmp.profiling.sampler import Counts, ProcessRecord, Sample, Sampler, clip, read_counts
from seedmp.reporting.output import check_folder
from seedmp.trace import Activity

MS = 1_000_000
S = 1000 * MS
SVG = "{http://www.w3.org/2000/svg}"


# --- rings ---------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Iterator[int]:
    return itertools.count(100, 10)


def make_ring(folder: Path, clock: Iterator[int], name: str = "draft-0.0-0") -> tuple[SpanRing, SpanReader]:
    ring = SpanRing(ring_path(folder, name), lambda: next(clock))
    return ring, SpanReader(ring_path(folder, name))


def test_spans_of_a_ring_have_no_gaps(tmp_path: Path, clock: Iterator[int]) -> None:
    ring, reader = make_ring(tmp_path, clock)
    ring.enter(Activity.IPC)  # nobody records
    reader.record(True)
    for activity in (Activity.DRAFT, Activity.IPC, Activity.IDLE, Activity.IDLE, Activity.IPC):
        ring.enter(activity, 7, 3)
    rows = reader.read().tolist()
    assert [row[0] for row in rows] == [Activity.IPC, Activity.DRAFT, Activity.IPC, Activity.IDLE]
    assert [row[1:3] for row in rows] == [[-1, 0], [7, 3], [7, 3], [7, 3]]
    assert all(before[4] == after[3] for before, after in itertools.pairwise(rows))
    assert reader.current.activity is Activity.IPC and reader.current.start_ns == rows[-1][4]
    assert len(reader.read()) == 0
    reader.record(False)
    ring.enter(Activity.DRAFT)
    assert len(reader.read()) == 0 and not ring.is_recording


def test_a_ring_outlives_its_writer_and_tells_who_it_was(tmp_path: Path, clock: Iterator[int]) -> None:
    ring, reader = make_ring(tmp_path, clock)
    reader.record(True)
    ring.note(Activity.QUEUE, 5, 3, 1, 9)
    ring.count_bytes(11, 22)
    ring.close()
    ring.enter(Activity.DRAFT)  # after the end it is deaf
    os.unlink(ring_path(tmp_path, "draft-0.0-0"))
    assert reader.read().tolist() == [[Activity.QUEUE, 5, 3, 1, 9]]
    assert (reader.pid, reader.num_bytes, reader.name) == (os.getpid(), (11, 22), "draft-0.0-0")


def test_overwritten_spans_are_counted(tmp_path: Path, clock: Iterator[int]) -> None:
    ring, reader = make_ring(tmp_path, clock)
    reader.record(True)
    for i in range(NUM_SPANS + 50):
        ring.enter(Activity.DRAFT, i)
    rows = reader.read()
    assert len(rows) + reader.num_lost == NUM_SPANS + 50
    assert reader.num_lost >= 50 and rows[-1, 1] == NUM_SPANS + 48
    assert (np.diff(rows[:, 1]) == 1).all()


def test_what_is_no_ring_is_refused_and_without_a_file_nothing_happens(tmp_path: Path) -> None:
    (tmp_path / "other.spans").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="no ring"):
        SpanReader(tmp_path / "other.spans")
    ring = SpanRing(tmp_path / "missing" / "x.spans")
    ring.enter(Activity.DRAFT)
    ring.note(Activity.QUEUE, 0, 0, 0, 1)
    assert not ring.is_recording


# --- the sampler -----------------------------------------------------------------------------------


def test_a_sampler_sees_this_process_and_its_spans_sum_to_the_wall_time(tmp_path: Path) -> None:
    ring = SpanRing(ring_path(tmp_path, "engine"))
    sampler = Sampler(tmp_path, period_s=0.005)
    sampler.start()
    with pytest.raises(ConfigError, match="being profiled already"):
        Sampler(tmp_path).start()
    for activity in (Activity.IPC, Activity.COMMIT, Activity.IDLE) * 20:
        ring.enter(activity)
    ring.note(Activity.QUEUE, 1, 1, sampler.start_ns, sampler.start_ns + 5)
    (record,) = sampler.stop()
    assert record.name == "engine" and record.pid == os.getpid()
    assert sum(record.seconds().values()) == pytest.approx(record.wall_s)
    assert len(record.waits) == 1 and record.num_lost == 0
    assert len(record.samples) >= 2 and record.samples[0].rss_bytes > 0 and record.samples[-1].pss_bytes > 0
    ring.close()


def test_counts_of_this_process() -> None:
    counts = read_counts(os.getpid())
    assert counts.minor_faults > 0 and counts.voluntary + counts.involuntary > 0
    assert read_counts(2**22 + 1) == Counts()
    assert Counts(3, 2, 1, 0) - Counts(1, 1, 1, 0) == Counts(2, 1, 0, 0)


def test_spans_are_cut_at_the_window() -> None:
    rows = np.array([[3, 0, 0, 0, 10], [3, 0, 0, 10, 20], [3, 0, 0, 40, 50]])
    assert clip(rows, 5, 15).tolist() == [[3, 0, 0, 5, 10], [3, 0, 0, 10, 15]]


# --- a run that is written by hand -------------------------------------------------------------------


def process(name: str, spans: Sequence[tuple[Activity, int, int]], wall_ms: int, **more: Any) -> ProcessRecord:
    """Spans of (activity, begin, end) in ms; idle between them."""
    rows, at = [], 0
    for activity, start, end in spans:
        if start > at:
            rows.append([Activity.IDLE, -1, 0, at * MS, start * MS])
        rows.append([activity, 1, 4 if activity is Activity.VERIFY else 1, start * MS, end * MS])
        at = end
    if at < wall_ms:
        rows.append([Activity.IDLE, -1, 0, at * MS, wall_ms * MS])
    samples = [Sample(i * 100 * MS, i * 0.1 * more.get("cpu", 1.0), 2**20, 2**19, 2**19, 2**18) for i in range(3)]
    return ProcessRecord(
        name, 100 + sum(map(ord, name)), 0, wall_ms * MS, samples, Counts(), Counts(5, more.get("switches", 0)),
        10, 20, 0, np.array(rows, dtype=np.int64), np.array(more.get("waits", np.empty((0, 5))), dtype=np.int64),
    )  # fmt: skip


def run(verify_ms: int, draft_ms: int, *, rounds: int = 20, period_ms: int = 10, **settings: Any) -> ProfileData:
    """Rounds of one verifier and two drafts, one after another every ``period_ms``."""
    extra = {name: settings.pop(name) for name in ("cpu", "switches", "wait_ms") if name in settings}
    wall = rounds * period_ms
    verify = [(Activity.VERIFY, i * period_ms, i * period_ms + verify_ms) for i in range(rounds)]
    resample = [(Activity.RESAMPLE, end, end + 1) for _, _, end in verify if verify_ms < period_ms]
    draft = [(Activity.DRAFT, i * period_ms, i * period_ms + draft_ms) for i in range(rounds)]
    wait_ms = extra.pop("wait_ms", 0)
    waits = [[Activity.QUEUE, 1, 3, i * period_ms * MS, (i * period_ms + wait_ms) * MS] for i in range(rounds)]
    queue = {"waits": waits} if wait_ms else {}
    processes = [
        process("engine", [], wall),
        process("verifier-0", sorted(verify + resample, key=lambda s: s[1]), wall, **queue, **extra),
        process("draft-0.0", draft, wall, **extra),
        process("draft-0.1", draft, wall, **extra),
    ]
    options = {name: settings.pop(name) for name in ("shares_gpu", "mps") if name in settings}
    config = EngineConfig(target="-", draft="-", k_config=(1, 1, 1), num_drafts=2, **settings)
    stats = {"rounds": float(rounds), "forwards": float(rounds), "accepted": 1.2 * rounds, "drafted": 3.0 * rounds}
    stats["committed_tokens"] = 2.2 * rounds
    return ProfileData(0, wall * MS, processes, config, {"cores": 2, "gpus": []}, 2.0, stats, **options)


def kinds(data: ProfileData) -> list[str]:
    return [finding.kind for finding in diagnose(data)]


def test_the_limit_is_named() -> None:
    assert kinds(run(9, 3))[0] == "verifier-bound"
    assert kinds(run(3, 9))[0] == "draft-bound"
    assert kinds(run(3, 2, schedule="serial"))[0] == "little-work"
    assert kinds(run(2, 2))[0] == "little-work"
    told = diagnose(run(9, 3, policy="fcfs"))[0]
    assert "fcfs-batch" in told.advice and told.numbers["verifier_busy"] >= 0.9


def test_further_limits_are_told_with_their_numbers() -> None:
    assert "gpu-time-slicing" in kinds(run(9, 3, shares_gpu=True, mps="off"))
    assert "gpu-time-slicing" not in kinds(run(9, 3, shares_gpu=True, mps="on"))
    crowded = [f for f in diagnose(run(9, 3, cpu=1.0, switches=100)) if f.kind == "core-contention"]
    assert crowded and crowded[0].numbers["cores_used"] > 1.9
    starved = [f for f in diagnose(run(9, 9, cpu=0.2, switches=100)) if f.kind == "core-contention"]
    assert starved and "something else" in starved[0].text
    assert "core-contention" not in kinds(run(9, 3, cpu=0.2, switches=0))
    assert "queue" in kinds(run(4, 3, wait_ms=9))
    empty = run(9, 3)
    for record in empty.processes:
        record.spans = record.spans[:0]
    assert kinds(empty) == ["idle"]


def test_shares_are_of_the_time_in_which_something_was_asked() -> None:
    busy = measure_busy(run(5, 3))
    assert busy.forward == pytest.approx(0.5, abs=0.03) and busy.draft == pytest.approx(0.3, abs=0.03)
    assert busy.overlap == pytest.approx(0.3, abs=0.03) and busy.overhead == pytest.approx(1 / 6, abs=0.01)
    assert busy.mean_forward_ms == pytest.approx(5) and busy.branches_per_forward == 1


# --- what is written ---------------------------------------------------------------------------------


def check_trace(trace: dict[str, Any]) -> None:
    """The Trace Event Format as Perfetto wants it."""
    events = trace["traceEvents"]
    for event in events:
        assert {"ph", "ts", "pid", "tid", "name"} <= event.keys()
        assert event["ph"] in {"X", "M", "C"} and event["ts"] >= 0
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["dur"] > 0 and event["name"] in {activity.name.lower() for activity in Activity}
        if event["ph"] == "C":
            assert all(isinstance(value, float | int) for value in event["args"].values())
    named = {event["pid"] for event in events if event["ph"] == "M" and event["name"] == "process_name"}
    assert named >= {event["pid"] for event in events}
    threads = {(e["pid"], e["tid"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    ends: dict[tuple[int, int], float] = {}
    for event in sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"]):
        key = event["pid"], event["tid"]
        assert key in threads
        assert event["ts"] >= ends.get(key, 0.0) - 1e-3, "spans of a thread overlap"
        ends[key] = event["ts"] + event["dur"]
    json.dumps(trace)


def test_the_trace_keeps_the_format_and_waits_have_lanes() -> None:
    data = run(4, 3, wait_ms=15)  # waits overlap
    trace = chrome_trace.events(data)
    check_trace(trace)
    tids = {event["tid"] for event in trace["traceEvents"] if event["name"] == "queue"}
    assert tids == {100, 101} and trace["otherData"]["spans_left_out"] == 0
    assert {e["name"] for e in trace["traceEvents"] if e["ph"] == "C"} == {"CPU %", "RSS MiB", "PSS MiB"}


def test_a_long_trace_leaves_out_the_shortest_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chrome_trace, "MAX_EVENTS", 60)
    data = run(6, 3)
    trace = chrome_trace.events(data)
    shown = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert 0 < len(shown) <= 80 and all(event["dur"] > 1000 for event in shown)
    assert trace["otherData"]["spans_left_out"] > 0


def test_the_picture_has_a_row_a_process_and_shows_a_usual_dozen() -> None:
    data = run(5, 3, rounds=40)
    start, end = timeline.choose_window(data)
    assert 110 * MS < end - start < 140 * MS
    root = ET.fromstring(timeline.svg(data))
    rows = [group.get("data-process") for group in root.iter(f"{SVG}g") if group.get("class") == "row"]
    assert rows == ["verifier-0", "draft-0.0", "draft-0.1"]
    titles = [title.text or "" for title in root.iter(f"{SVG}title")]
    assert any(text.startswith("verify 5.00 ms") for text in titles)
    nothing = run(5, 3)
    for record in nothing.processes:
        record.spans = record.spans[:0]
    ET.fromstring(timeline.svg(nothing))


def test_figures_words_and_page() -> None:
    data = run(5, 3)
    findings = diagnose(data)
    plain = json.loads(json.dumps(report.figures(data, findings)))
    assert plain["tokens_per_s"] == pytest.approx(44 / 0.2) and plain["acceptance_rate"] == pytest.approx(0.4)
    verifier = plain["processes"][1]
    assert verifier["spans_over_wall"] == pytest.approx(1) and verifier["spans_s"]["verify"] == pytest.approx(0.1)
    assert verifier["socket_bytes"] == {"in": 10, "out": 20} and verifier["cpu_share"] == pytest.approx(1)
    words = report.in_words(data, findings)
    assert "verifier-0" in words and "Try:" in words
    page = report.page(data, words, timeline.svg(data))
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "<script" not in page


def test_no_text_of_a_profile_is_obeyed() -> None:
    evil = "</pre><script>alert('x')</script>\""
    data = run(5, 3)
    data.node["gpus"] = evil
    for record in data.processes:
        record.name += evil
    page = report.page(data, evil, timeline.svg(data))
    root = ET.fromstring(page.partition("\n")[2])
    assert root.find(".//script") is None
    assert "".join(root.itertext()).count(evil) >= 2 + len(data.processes)


def test_costs_of_a_run() -> None:
    costs = report.costs(run(6, 3))
    assert costs is not None
    assert costs.target.at(4) == pytest.approx(6) and costs.draft.at(1) == pytest.approx(1)
    a = costs.acceptance[0][0]
    assert a + a**2 + a**3 == pytest.approx(1.2, abs=0.01)
    assert report.costs(run(6, 3, method="ar")) is None


def test_what_the_verifier_does_between_forwards_is_divided_among_forwards_and_branches() -> None:
    data = run(6, 3)
    rows: list[list[int]] = []
    at = 0
    for num_branches in (1, 3, 2, 1):  # 2 ms a forward and 1 ms a branch, in two activities
        for activity, number, ms in (
            (Activity.SCHEDULE, 0, 0 if not rows else 1), (Activity.VERIFY, 4, 6),
            (Activity.RESAMPLE, num_branches, 1 + num_branches), (Activity.IDLE, 0, 5),
        ):  # fmt: skip
            rows.append([activity, 1, number, at * MS, (at + ms) * MS])
            at += ms
    rows.append([Activity.COMMIT, 1, 1, at * MS, (at + 1) * MS])
    data.processes[1].spans = np.array(rows, dtype=np.int64)
    data.processes[2].spans[-1, 0] = Activity.IPC
    costs = report.costs(data)
    assert costs is not None
    assert (costs.forward_overhead_ms, costs.branch_overhead_ms) == pytest.approx((2, 1))
    told_ms = (data.processes[2].spans[-1, 4] - data.processes[2].spans[-1, 3]) / MS
    assert costs.draft_overhead_ms == pytest.approx(told_ms / 40)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_folder(tmp_path / "file" / "below")
    assert check_folder(tmp_path / "new" / "folder").is_dir()


def test_the_cost_of_profiling_is_told_beside_the_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"overhead": 0.012, "spread": (-0.01, 0.03), "noise": 0.02}
    monkeypatch.setattr(overhead, "measure_overhead", lambda folder, repeats, period_s: {**result, "repeats": repeats})
    assert cli.main(["profile", "--overhead", "--repeats", "5", "--out", str(tmp_path)]) == 0
    assert "costs 1.2 % (median of 5; -1.0 to 3.0 %); two runs without it differ by 2.0 %" in capsys.readouterr().out
    assert json.loads((tmp_path / "overhead.json").read_text())["repeats"] == 5
