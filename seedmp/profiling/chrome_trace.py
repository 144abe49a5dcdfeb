"""The profile in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.

Each worker is a process of the trace. Thread 0 has its spans. Threads 100 + i have the proposals that wait in the
verifier's queue: waits that overlap are in different lanes i. Counters: CPU share, PSS, RSS, GPU memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from seedmp.profiling.data import ProfileData
from seedmp.profiling.sampler import ProcessRecord
from seedmp.trace import Activity

MAX_EVENTS = 300_000  # a viewer takes no more; the shortest spans are left out first
FIRST_LANE = 100
MIB = 2**20
_NOTHING = np.empty(0, dtype=np.int64)
_WHAT = {Activity.VERIFY: "rows", Activity.RESAMPLE: "branches", Activity.DRAFT: "branches", Activity.QUEUE: "nodes"}


def events(data: ProfileData) -> dict[str, Any]:
    """The whole file as a JSON-able dictionary; times in µs from the profile's begin."""
    elapsed = np.concatenate([_elapsed(rows) for p in data.processes for rows in (_working(p), p.waits)] or [_NOTHING])
    total = len(elapsed)
    shortest = 0 if total <= MAX_EVENTS else int(np.partition(elapsed, total - MAX_EVENTS)[total - MAX_EVENTS])
    result: list[dict[str, Any]] = []
    for index, process in enumerate(data.processes):
        result += _metadata(process, index)
        result += [_event(process, 0, row, data.start_ns) for row in _longer(_working(process), shortest)]
        waits = _longer(process.waits, shortest)
        for lane, row in zip(lanes(waits), waits, strict=True):
            result.append(_event(process, FIRST_LANE + lane, row, data.start_ns))
        for lane in range(max(lanes(waits), default=-1) + 1):
            result.append(_named(process, "thread_name", f"queue {lane}", FIRST_LANE + lane))
        result += _counters(process, data.start_ns)
    left_out = total - sum(event["ph"] == "X" for event in result)
    other = {"clock": "CLOCK_MONOTONIC", "start_ns": data.start_ns, "spans_left_out": left_out, "node": data.node}
    return {"traceEvents": result, "displayTimeUnit": "ms", "otherData": other}


def lanes(waits: np.ndarray) -> list[int]:
    """For each wait the first lane that is free when it begins."""
    result, ends = [0] * len(waits), list[int]()
    for i in np.argsort(waits[:, 3], kind="stable").tolist():
        start, end = int(waits[i, 3]), int(waits[i, 4])
        lane = next((lane for lane, until in enumerate(ends) if until <= start), len(ends))
        if lane == len(ends):
            ends.append(end)
        ends[lane] = end
        result[i] = lane
    return result


def _working(process: ProcessRecord) -> np.ndarray:
    """Its spans, without idle ones: a viewer shows them as gaps."""
    rows: np.ndarray = process.spans[process.spans[:, 0] != Activity.IDLE]
    return rows


def _elapsed(rows: np.ndarray) -> np.ndarray:
    elapsed: np.ndarray = rows[:, 4] - rows[:, 3]
    return elapsed


def _longer(rows: np.ndarray, shortest_ns: int) -> np.ndarray:
    kept: np.ndarray = rows[_elapsed(rows) >= shortest_ns]
    return kept


def _event(process: ProcessRecord, tid: int, row: np.ndarray, start_ns: int) -> dict[str, Any]:
    kind, branch_id, num, begin_ns, end_ns = (int(value) for value in row)
    activity = Activity(kind)
    args = {"branch": branch_id} if branch_id >= 0 else {}
    if activity in _WHAT:
        args[_WHAT[activity]] = num
    return {
        "ph": "X", "name": activity.name.lower(), "cat": "seedmp", "pid": process.pid, "tid": tid,
        "ts": (begin_ns - start_ns) / 1e3, "dur": (end_ns - begin_ns) / 1e3, "args": args,
    }  # fmt: skip


def _metadata(process: ProcessRecord, index: int) -> list[dict[str, Any]]:
    order = {"ph": "M", "name": "process_sort_index", "pid": process.pid, "tid": 0, "ts": 0}
    return [
        _named(process, "process_name", process.name),
        {**order, "args": {"sort_index": index}},
        _named(process, "thread_name", "work"),
    ]


def _named(process: ProcessRecord, what: str, name: str, tid: int = 0) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process.pid, "tid": tid, "ts": 0, "args": {"name": name}}


def _counters(process: ProcessRecord, start_ns: int) -> list[dict[str, Any]]:
    result = []

    def count(name: str, at_ns: int, value: float) -> None:
        result.append(
            {
                "ph": "C", "name": name, "pid": process.pid, "tid": 0, "ts": (at_ns - start_ns) / 1e3,
                "args": {name: round(value, 3)},
            }
        )  # fmt: skip

    for before, sample in zip(process.samples, process.samples[1:], strict=False):
        elapsed_s = (sample.at_ns - before.at_ns) / 1e9
        if elapsed_s > 0:
            count("CPU %", sample.at_ns, 100 * (sample.cpu_s - before.cpu_s) / elapsed_s)
        count("RSS MiB", sample.at_ns, sample.rss_bytes / MIB)
        if sample.pss_bytes:
            count("PSS MiB", sample.at_ns, sample.pss_bytes / MIB)
        if sample.gpu_bytes:
            count("GPU MiB", sample.at_ns, sample.gpu_bytes / MIB)
    return result
