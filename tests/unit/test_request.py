"""Handles: a listener that comes late misses nothing; an end is an end."""

from __future__ import annotations

import pytest

from seedmp.errors import CancelledError, EngineDeadError, RejectedError, RequestTimeoutError
from seedmp.request import RequestHandle, StreamChunk


def test_late_listener_gets_every_chunk_and_the_end() -> None:
    handle = RequestHandle(1, lambda _: None)
    handle.push(StreamChunk("a", (1,)))
    seen: list[StreamChunk | None] = []
    handle.listen(seen.append)
    handle.push(StreamChunk("b", (2,)))
    handle.finish(CancelledError("gone"))
    assert [chunk and chunk.text for chunk in seen] == ["a", "b", None]
    very_late: list[StreamChunk | None] = []
    handle.listen(very_late.append)
    assert [chunk and chunk.text for chunk in very_late] == ["a", "b", None]


def test_first_end_counts() -> None:
    handle = RequestHandle(1, lambda _: None)
    handle.finish(CancelledError("first"))
    handle.finish(EngineDeadError("second"))
    with pytest.raises(CancelledError, match="first"):
        handle.result(0)
    with pytest.raises(CancelledError):
        list(handle)


def test_timeout_cancels() -> None:
    cancelled: list[int] = []
    handle = RequestHandle(7, cancelled.append)
    with pytest.raises(RequestTimeoutError, match="request 7 did not finish within 0 s"):
        handle.result(0)
    assert cancelled == [7]


def test_a_timeout_that_is_none_is_refused_and_cancels_nothing() -> None:
    cancelled: list[int] = []
    handle = RequestHandle(7, cancelled.append)
    for timeout in (-1, "5", True, float("nan")):
        with pytest.raises(RejectedError, match=r"timeout=.*: must be a finite number of seconds"):
            handle.result(timeout)  # type: ignore[arg-type]
    assert cancelled == []


def test_a_listener_that_raises_is_told_once_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    handle = RequestHandle(1, lambda _: None)
    seen: list[StreamChunk | None] = []

    def fail(chunk: StreamChunk | None) -> None:
        raise KeyboardInterrupt

    handle.listen(fail)
    handle.listen(seen.append)
    handle.push(StreamChunk("a", (1,)))
    handle.finish(CancelledError("gone"))
    assert [chunk and chunk.text for chunk in seen] == ["a", None]
    assert len(caplog.records) == 1
    with pytest.raises(RejectedError, match="listener=5: must be a function"):
        handle.listen(5)  # type: ignore[arg-type]


def test_a_future_that_its_owner_cancelled_ends_the_stream() -> None:
    cancelled: list[int] = []
    handle = RequestHandle(7, cancelled.append)
    assert handle.future.cancel() and cancelled == [7]
    handle.push(StreamChunk("a", (1,)))
    handle.finish(EngineDeadError("late"))
    with pytest.raises(CancelledError):
        list(handle)
