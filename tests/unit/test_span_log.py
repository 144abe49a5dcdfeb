"""The engine's spans, gathered from rings that processes write."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedmp.ipc import span_log
from seedmp.ipc.span_log import SpanLog
from seedmp.ipc.span_ring import NUM_SPANS, PROFILE, SpanReader, SpanRing, ring_path
from seedmp.trace import Activity, Span


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SpanLog]:
    log = SpanLog(tmp_path)
    yield log
    log.close()


def make_ring(folder: Path, name: str, first_ns: int = 0) -> SpanRing:
    clock = itertools.count(first_ns, 10)
    return SpanRing(ring_path(folder, name), lambda: next(clock))


def test_work_of_every_worker_on_one_clock(tmp_path: Path, log: SpanLog) -> None:
    verifier, draft = make_ring(tmp_path, "verifier-0-0"), make_ring(tmp_path, "draft-0.2-1", 1000)
    make_ring(tmp_path, "supervisor").enter(Activity.WATCH)
    draft.enter(Activity.DRAFT, 7, 1)  # nobody records yet
    assert log.spans(reset=True) == []
    draft.enter(Activity.IPC)
    draft.enter(Activity.DRAFT, -1, 3)
    draft.enter(Activity.IPC)
    for activity in (Activity.VERIFY, Activity.RESAMPLE):
        verifier.enter(activity, 5, 9)
    verifier.note(Activity.QUEUE, 5, 9, 3, 8)
    verifier.enter(Activity.COMMIT)
    queued = Span("queue", -1, 5, 3, 8)
    verified = Span("verify", -1, 5, 10, 30)  # with the accept rule
    drafted = [Span("draft", 2, 7, 1010, 1020, 1), Span("draft", 2, -1, 1030, 1040, 3)]
    # A span that had begun before is told of from its beginning.
    assert log.spans() == log.spans(reset=True) == [queued, verified, *drafted]
    assert log.spans() == []
    assert log.num_lost == 0


def test_a_replaced_worker_is_read_too(tmp_path: Path, log: SpanLog) -> None:
    make_ring(tmp_path, "draft-0.0-0")
    log.spans()
    ring = make_ring(tmp_path, "draft-0.0-1")
    log.spans()
    ring.enter(Activity.DRAFT, 1, 1)
    ring.enter(Activity.IPC)
    assert [span.branch_id for span in log.spans()] == [1]


def test_what_is_lost_is_told(tmp_path: Path, log: SpanLog, caplog: pytest.LogCaptureFixture) -> None:
    ring = make_ring(tmp_path, "draft-0.0-0")
    log.spans()
    with log._lock:  # its thread cannot read meanwhile
        for i in range(NUM_SPANS + 50):
            ring.note(Activity.DRAFT, i, 1, i, i + 1)
    with caplog.at_level(logging.WARNING):
        spans = log.spans()
    assert log.num_lost + len(spans) == NUM_SPANS + 50 and log.num_lost >= 50
    assert "spans were lost" in caplog.text


def test_more_than_can_be_kept_is_told_too(tmp_path: Path, log: SpanLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_log, "MAX_ROWS", 100)
    ring = make_ring(tmp_path, "draft-0.0-0")
    log.spans()
    for i in range(130):
        ring.note(Activity.DRAFT, i, 1, i, i + 1)
    assert [span.branch_id for span in log.spans()] == list(range(30, 130))
    assert log.num_lost == 30


def test_a_profile_may_read_beside_it(tmp_path: Path, log: SpanLog) -> None:
    ring = make_ring(tmp_path, "draft-0.0-0")
    log.spans()
    profile = SpanReader(ring_path(tmp_path, "draft-0.0-0"), PROFILE)
    assert not profile.is_recording
    profile.record(True)
    profile.record(False)
    ring.note(Activity.DRAFT, 4, 1, 0, 1)
    assert ring.is_recording and len(log.spans()) == 1
    log.close()
    assert not ring.is_recording and len(log.spans()) == 1
