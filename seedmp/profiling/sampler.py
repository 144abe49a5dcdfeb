"""What the processes of an engine use while it runs: spans from their rings, CPU and memory from the kernel.

One thread in the user's process samples them. Every ``period_s`` it takes new spans, CPU time, RSS and shared memory.
Every ``slow_s`` it takes what costs the kernel more: USS and PSS, for which the kernel walks the page tables, and
context switches, which are counted by thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from seedmp.errors import ConfigError
from seedmp.ipc.span_ring import SUFFIX, SpanReader
from seedmp.profiling.gpus import GpuMeter
from seedmp.trace import Activity

PERIOD_S = 0.1
SLOW_S = 2.0  # between looks at USS and PSS, at least: the kernel walks the page tables for them
MAX_SLOW_SHARE = 0.01  # of the time, for these looks
PROC = Path("/proc")
QUEUE = int(Activity.QUEUE)


@dataclass(frozen=True)
class Sample:
    """One look at a process. ``cpu_s`` counts from its start; ``uss`` and ``pss`` are 0 in most samples."""

    at_ns: int
    cpu_s: float
    rss_bytes: int
    shared_bytes: int
    uss_bytes: int = 0
    pss_bytes: int = 0
    gpu_bytes: int = 0
    gpu_share: float = 0.0


@dataclass(frozen=True)
class Counts:
    """Counters, summed over the threads that are alive."""

    voluntary: int = 0
    involuntary: int = 0
    minor_faults: int = 0
    major_faults: int = 0

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            self.voluntary - other.voluntary, self.involuntary - other.involuntary,
            self.minor_faults - other.minor_faults, self.major_faults - other.major_faults,
        )  # fmt: skip


@dataclass
class ProcessRecord:
    """One process of an engine.

    Args:
        name: ``engine`` (yours; its spans are of the thread seedmp-engine), ``supervisor``, ``verifier-0``,
            ``draft-0.1``; a replacement for one that died has its epoch behind it.
        spans: [n, 5] int64 activity, branch, number, start, end within the profile, in order, without gaps.
        waits: the same of activity QUEUE, beside the others.
    """

    name: str
    pid: int
    started_ns: int
    ended_ns: int = 0
    samples: list[Sample] = field(default_factory=list)
    first: Counts = field(default_factory=Counts)
    last: Counts = field(default_factory=Counts)
    bytes_in: int = 0
    bytes_out: int = 0
    num_lost: int = 0
    spans: np.ndarray = field(default_factory=lambda: np.empty((0, 5), dtype=np.int64))
    waits: np.ndarray = field(default_factory=lambda: np.empty((0, 5), dtype=np.int64))

    @property
    def counts(self) -> Counts:
        """During the profile."""
        return self.last - self.first

    @property
    def wall_s(self) -> float:
        """How long it was looked at."""
        return (self.ended_ns - self.started_ns) / 1e9

    def cpu_share(self) -> float:
        """CPU seconds per second; 2 is two cores all the time."""
        if len(self.samples) < 2:
            return 0.0
        first, last = self.samples[0], self.samples[-1]
        elapsed_s = (last.at_ns - first.at_ns) / 1e9
        return (last.cpu_s - first.cpu_s) / elapsed_s if elapsed_s > 0 else 0.0

    def seconds(self) -> dict[Activity, float]:
        """Time in each activity; they sum to ``wall_s`` unless spans were lost."""
        result = {}
        for activity in Activity:
            rows = self.spans[self.spans[:, 0] == activity]
            if len(rows):
                result[activity] = float((rows[:, 4] - rows[:, 3]).sum()) / 1e9
        return result


class _Watched:
    """A process while it is watched."""

    def __init__(self, reader: SpanReader, now_ns: int) -> None:
        self.reader = reader
        name, _, epoch = reader.name.rpartition("-")
        shown = reader.name if not name else name if epoch == "0" else f"{name} #{epoch}"
        self.record = ProcessRecord(shown, reader.pid, now_ns)
        self.process: psutil.Process | None = None
        with contextlib.suppress(psutil.Error):
            self.process = psutil.Process(reader.pid)
        self.rows: list[np.ndarray] = []
        self.bytes_before = reader.num_bytes
        self.record.first = self.record.last = read_counts(reader.pid)

    def take_spans(self) -> None:
        rows = self.reader.read()
        if len(rows):
            self.rows.append(rows)

    def take_sample(self, *, slow: bool, gpus: GpuMeter | None) -> None:
        if self.process is None:
            return
        try:
            with self.process.oneshot():
                times, memory = self.process.cpu_times(), self.process.memory_info()
            now_ns = time.monotonic_ns()
            full = self.process.memory_full_info() if slow else None
        except psutil.Error:  # it ended
            self.process = None
            self.record.ended_ns = time.monotonic_ns()
            return
        gpu_bytes, gpu_share = gpus.of(self.record.pid) if gpus is not None else (0, 0.0)
        self.record.samples.append(
            Sample(
                now_ns, times.user + times.system, memory.rss, getattr(memory, "shared", 0),
                getattr(full, "uss", 0), getattr(full, "pss", 0), gpu_bytes, gpu_share,
            )
        )  # fmt: skip
        if slow:
            self.record.last = read_counts(self.record.pid) or self.record.last

    def finish(self, end_ns: int) -> ProcessRecord:
        """Clip to the profile; the activity that goes on ends where the profile does."""
        record, current = self.record, self.reader.current
        self.take_spans()
        is_alive = self.process is not None and self.process.is_running()
        record.ended_ns = end_ns if is_alive else record.ended_ns or end_ns
        rows = np.concatenate(self.rows) if self.rows else np.empty((0, 5), dtype=np.int64)
        is_wait = rows[:, 0] == QUEUE
        spans, waits = rows[~is_wait], rows[is_wait]
        if not len(spans) or current.start_ns >= spans[-1, 4]:
            last = [current.activity, current.branch_id, current.num, current.start_ns, record.ended_ns]
            spans = np.concatenate([spans, np.array([last], dtype=np.int64)])
        record.spans, record.waits = (clip(some, record.started_ns, record.ended_ns) for some in (spans, waits))
        record.num_lost = self.reader.num_lost
        after = self.reader.num_bytes
        record.bytes_in, record.bytes_out = after[0] - self.bytes_before[0], after[1] - self.bytes_before[1]
        return record


class Sampler:
    """Watches every process with a ring in an engine's folder, replacements for dead ones too.

    Args:
        folder: the engine's runtime folder.
    """

    def __init__(self, folder: Path, period_s: float = PERIOD_S, slow_s: float = SLOW_S) -> None:
        self.folder = folder
        self.period_s = period_s
        self.slow_s = slow_s
        self.gpus = GpuMeter.open()
        self._watched: dict[str, _Watched] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="seedmp-profile", daemon=True)
        self.start_ns = self.end_ns = 0

    def start(self) -> None:
        """Begin.

        Raises:
            ConfigError: the engine is being profiled already.
        """
        for path in self.folder.glob(f"*{SUFFIX}"):
            reader = _open(path)
            if reader is None:
                continue
            taken = reader.is_recording
            reader.close()
            if taken:
                raise ConfigError("this engine is being profiled already: one profile at a time")
        self.start_ns = time.monotonic_ns()
        self._discover()
        self._look(slow=True)
        self._thread.start()

    def stop(self) -> list[ProcessRecord]:
        """End. Returns a record for each process: yours first, then verifiers, drafts and the supervisor."""
        self._stop.set()
        self._thread.join()
        self._look(slow=True)
        self.end_ns = time.monotonic_ns()
        records = [watched.finish(self.end_ns) for watched in self._watched.values()]
        for watched in self._watched.values():
            watched.reader.record(False)
            watched.reader.close()
        if self.gpus is not None:
            self.gpus.close()
        order = ("engine", "verifier", "draft", "supervisor")
        return sorted(records, key=lambda r: (order.index(r.name.split("-")[0]), r.name))

    def _run(self) -> None:
        next_slow_s = time.monotonic() + self.slow_s
        while not self._stop.wait(self.period_s):
            self._discover()
            began_s = time.monotonic()
            slow = began_s >= next_slow_s
            self._look(slow=slow)
            if slow:
                took_s = time.monotonic() - began_s
                next_slow_s = began_s + max(self.slow_s, took_s / MAX_SLOW_SHARE)

    def _discover(self) -> None:
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path.name in self._watched:
                continue
            reader = _open(path)
            if reader is not None:
                reader.record(True)
                now_ns = time.monotonic_ns() if self._watched and self._thread.is_alive() else self.start_ns
                self._watched[path.name] = _Watched(reader, now_ns)

    def _look(self, *, slow: bool) -> None:
        if self.gpus is not None:
            self.gpus.look()
        for watched in self._watched.values():
            watched.take_spans()
            watched.take_sample(slow=slow, gpus=self.gpus)


def clip(rows: np.ndarray, start_ns: int, end_ns: int) -> np.ndarray:
    """Spans within a time; what lies outside is cut off."""
    rows = rows.copy()
    rows[:, 3:] = rows[:, 3:].clip(start_ns, end_ns)
    kept: np.ndarray = rows[rows[:, 4] > rows[:, 3]]
    return kept


def read_counts(pid: int) -> Counts:
    """Context switches and page faults of a process so far; zeros where the kernel does not tell."""
    voluntary = involuntary = minor = major = 0
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        minor, major = int(fields[7]), int(fields[9])
        for task in (PROC / str(pid) / "task").iterdir():
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt"):
                    voluntary += int(line.split()[1])
                elif line.startswith("nonvoluntary_ctxt"):
                    involuntary += int(line.split()[1])
    except (OSError, IndexError, ValueError):
        pass  # not Linux, or it ended meanwhile
    return Counts(voluntary, involuntary, minor, major)


def _open(path: Path) -> SpanReader | None:
    try:
        return SpanReader(path)
    except (OSError, ValueError):
        return None  # being made, or gone
