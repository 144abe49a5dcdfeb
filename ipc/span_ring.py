"""What a process does, span by span, in a file of the runtime folder: one writer, any reader.

A worker is always in exactly one activity; ``enter`` ends the last one and begins the next, so the spans
of a process have no gaps and sum to its time. Spans are kept only while a reader asks for it: a profile, or
the engine's span log. Whether or not one does, ``enter`` costs about a microsecond. The file outlives its
writer, so a killed worker's last spans are read.

Layout, all int64 in native byte order: MAGIC, pid, recording (a byte for each reader, PROFILE and LOG, that is
not 0 while it reads; written by the readers, all else by the owner), spans written so far, current activity,
branch, number and start, bytes received, bytes sent; from HEADER_BYTES on ``NUM_SPANS`` records of activity,
branch, number, start, end, of which the oldest is overwritten.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seedmp.trace import Activity

MAGIC = 0x5345454453503031
NUM_SPANS = 32768  # some seconds of the fastest models
HEADER_BYTES = 128
SUFFIX = ".spans"
PROFILE, LOG = 0, 1  # who reads
_RECORD = struct.Struct("=5q")
_CURRENT = struct.Struct("=4q")
_PAIR = struct.Struct("=2q")
_ONE = struct.Struct("=q")
_PID_AT, _RECORDING_AT, _COUNT_AT, _CURRENT_AT, _BYTES_AT = 8, 16, 24, 32, 64
_PROFILE_AT, _LOG_AT = _RECORDING_AT + PROFILE, _RECORDING_AT + LOG
_SIZE_BYTES = HEADER_BYTES + NUM_SPANS * _RECORD.size


class SpanRing:
    """The writer's side. Without a file, if none can be made, it forgets everything.

    Runs in: any one thread of the process that it tells about.
    """

    def __init__(self, path: Path | None = None, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.clock_ns = clock_ns
        self._map: mmap.mmap | None = None
        self._count = 0
        self._activity, self._branch_id, self._num, self._start_ns = Activity.IDLE, -1, 0, clock_ns()
        if path is not None:
            self._map = _make(path)
        self._note_current()

    @property
    def is_recording(self) -> bool:
        """Whether somebody wants to know."""
        return self._map is not None and bool(self._map[_PROFILE_AT] or self._map[_LOG_AT])

    def enter(self, activity: Activity, branch_id: int = -1, num: int = 0) -> None:
        """End the current span and begin one.

        Args:
            branch_id: whose work it is, -1 for several or none.
            num: how much work: branches that are drafted for, rows of a forward.
        """
        if self._map is None or (activity is self._activity and activity is Activity.IDLE):
            return
        now_ns = self.clock_ns()
        self._write(self._activity, self._branch_id, self._num, self._start_ns, now_ns)
        self._activity, self._branch_id, self._num, self._start_ns = activity, branch_id, num, now_ns
        self._note_current()

    def note(self, activity: Activity, branch_id: int, num: int, start_ns: int, end_ns: int) -> None:
        """A span beside the others, such as a proposal's wait in the queue."""
        self._write(activity, branch_id, num, start_ns, end_ns)

    def count_bytes(self, received: int, sent: int) -> None:
        """Totals of this process's sockets."""
        if self._map is not None:
            _PAIR.pack_into(self._map, _BYTES_AT, received, sent)

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None

    def _write(self, activity: Activity, branch_id: int, num: int, start_ns: int, end_ns: int) -> None:
        if self._map is None or not (self._map[_PROFILE_AT] or self._map[_LOG_AT]):
            return
        at = HEADER_BYTES + self._count % NUM_SPANS * _RECORD.size
        _RECORD.pack_into(self._map, at, activity, branch_id, num, start_ns, end_ns)
        self._count += 1
        _ONE.pack_into(self._map, _COUNT_AT, self._count)

    def _note_current(self) -> None:
        if self._map is not None:
            _CURRENT.pack_into(self._map, _CURRENT_AT, self._activity, self._branch_id, self._num, self._start_ns)


@dataclass(frozen=True)
class Current:
    """What a process is doing; its end is not known yet."""

    activity: Activity
    branch_id: int
    num: int
    start_ns: int


class SpanReader:
    """The reader's side of one process's ring.

    Args:
        who: PROFILE or LOG; both may read at once, two of a kind may not.

    Raises:
        OSError, ValueError: there is no ring in this file (yet).
    """

    def __init__(self, path: Path, who: int = PROFILE) -> None:
        self._recording_at = _RECORDING_AT + who
        with open(path, "r+b") as file:
            if os.fstat(file.fileno()).st_size != _SIZE_BYTES:
                raise ValueError(f"{path} is no ring of spans")
            self._map = mmap.mmap(file.fileno(), _SIZE_BYTES)
        if _ONE.unpack_from(self._map, 0)[0] != MAGIC:
            self._map.close()
            raise ValueError(f"{path} is no ring of spans")
        self.name = path.name.removesuffix(SUFFIX)
        self.num_lost = 0
        self._seen = self._count

    @property
    def pid(self) -> int:
        return int(_ONE.unpack_from(self._map, _PID_AT)[0])

    @property
    def num_bytes(self) -> tuple[int, int]:
        """Received and sent by the process's sockets since it began."""
        received, sent = _PAIR.unpack_from(self._map, _BYTES_AT)
        return int(received), int(sent)

    @property
    def current(self) -> Current:
        activity, branch_id, num, start_ns = _CURRENT.unpack_from(self._map, _CURRENT_AT)
        return Current(Activity(activity), branch_id, num, start_ns)

    def record(self, wanted: bool) -> None:
        """Let the process keep its spans from now on, or no more."""
        self._map[self._recording_at] = 1 if wanted else 0
        if wanted:
            self._seen = self._count

    @property
    def is_recording(self) -> bool:
        """Whether a reader of this kind has asked for spans."""
        return self._map[self._recording_at] != 0

    def read(self) -> np.ndarray:
        """[spans since the last call, 5] int64: activity, branch, number, start, end."""
        count = self._count
        first = max(self._seen, count - NUM_SPANS)
        ring = np.frombuffer(self._map, dtype=np.int64, offset=HEADER_BYTES).reshape(NUM_SPANS, 5)
        rows = ring[np.arange(first, count) % NUM_SPANS].copy()
        del ring  # it would keep the map open
        overwritten = max(0, self._count + 1 - NUM_SPANS - first)  # meanwhile, the one being written included
        kept: np.ndarray = rows[min(overwritten, len(rows)) :]
        self.num_lost += count - self._seen - len(kept)
        self._seen = count
        return kept

    def close(self) -> None:
        self._map.close()

    @property
    def _count(self) -> int:
        return int(_ONE.unpack_from(self._map, _COUNT_AT)[0])


def ring_path(folder: Path, name: str) -> Path:
    """Where a process of this name keeps its ring."""
    return folder / f"{name}{SUFFIX}"


def _make(path: Path) -> mmap.mmap | None:
    """A mapped file whose blocks exist: a page that a full disk refuses would kill the process when touched."""
    header = struct.pack("=3q", MAGIC, os.getpid(), 0)
    try:
        with open(path, "w+b") as file:
            file.write(header + bytes(_SIZE_BYTES - len(header)))
            file.flush()
            return mmap.mmap(file.fileno(), _SIZE_BYTES)
    except OSError:
        return None
