"""What the workers of an engine did, gathered from their span rings."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np

from seedmp.ids import DRAFT, VERIFIER, Incarnation
from seedmp.ipc.span_ring import LOG, SUFFIX, SpanReader
from seedmp.trace import Activity, Span

log = logging.getLogger(__name__)

READ_S = 0.1  # a ring is full after some seconds of the fastest models
MAX_ROWS = 1 << 19  # kept of one worker
_KEPT = (Activity.DRAFT, Activity.VERIFY, Activity.RESAMPLE, Activity.QUEUE)


class _WorkerLog:
    """Rows of one worker's ring, as ``SpanReader.read`` gives them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader: SpanReader | None = SpanReader(path, LOG)  # None once the ring is gone
        self.reader.record(True)
        self.worker = Incarnation.parse(self.reader.name).worker
        self.rows = np.empty((0, 5), dtype=np.int64)
        self.num_lost = 0

    def read(self) -> None:
        if self.reader is None:
            return
        is_gone = not self.path.exists()  # its worker died a while ago
        new = self.reader.read()
        self.num_lost += self.reader.num_lost
        self.reader.num_lost = 0
        if is_gone:
            self.close()
        if len(new):
            rows = np.concatenate([self.rows, new[np.isin(new[:, 0], _KEPT)]])
            self.num_lost += max(0, len(rows) - MAX_ROWS)
            self.rows = rows[-MAX_ROWS:]

    def close(self) -> None:
        if self.reader is not None:
            self.reader.record(False)
            self.reader.close()
            self.reader = None

    def spans(self) -> list[Span]:
        rows, worker_id = self.rows, -1 if self.worker.draft is None else self.worker.draft
        waits = rows[rows[:, 0] == Activity.QUEUE].tolist()
        spans = [Span("queue", -1, branch_id, start, end) for _, branch_id, _, start, end in waits]
        for activity, branch_id, num, start, end in rows[rows[:, 0] != Activity.QUEUE].tolist():
            if activity == Activity.DRAFT:
                spans.append(Span("draft", worker_id, branch_id, start, end, num))
            elif activity == Activity.VERIFY:
                spans.append(Span("verify", worker_id, branch_id, start, end))
            elif spans and spans[-1].kind == "verify" and spans[-1].end_ns == start:  # the rule ends the pass
                spans[-1] = Span("verify", worker_id, spans[-1].branch_id, spans[-1].start_ns, end)
        return spans


class SpanLog:
    """Records from the first call of ``spans`` on; a worker that is forked later is found within ``READ_S``.

    Thread-safe.

    Args:
        folder: the engine's runtime folder.

    Runs in: the user's process; a thread reads the rings before they overwrite what they hold.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._workers: dict[str, _WorkerLog] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._num_reported = 0

    @property
    def num_lost(self) -> int:
        """Spans that were overwritten, or were too many to be kept: figures made of the others are short."""
        with self._lock:
            return sum(worker.num_lost for worker in self._workers.values())

    def spans(self, *, reset: bool = False) -> list[Span]:
        """What was recorded since the first call, or the last one with ``reset``, which forgets it."""
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="seedmp-spans", daemon=True)
                self._thread.start()
            self._read()
            spans = [span for worker in self._workers.values() for span in worker.spans()]
            if reset:
                for worker in self._workers.values():
                    worker.rows = worker.rows[:0]
        return sorted(spans, key=lambda span: span.start_ns)

    def close(self) -> None:
        """Record no more; what was recorded can still be asked for."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for worker in self._workers.values():
                worker.close()

    def _run(self) -> None:
        while not self._stop.wait(READ_S) and self.folder.exists():
            with self._lock:
                self._read()

    def _read(self) -> None:
        if self._stop.is_set():
            return
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path.name not in self._workers and path.name.startswith((VERIFIER, DRAFT)):
                try:
                    self._workers[path.name] = _WorkerLog(path)
                except (OSError, ValueError):
                    continue  # being made, or gone
        for worker in self._workers.values():
            worker.read()
        num_lost = sum(worker.num_lost for worker in self._workers.values())
        if num_lost > self._num_reported:
            log.warning("%d spans were lost: times and shares made of spans are short", num_lost - self._num_reported)
            self._num_reported = num_lost
