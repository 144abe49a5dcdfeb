"""Handles: a listener that comes late misses nothing; an end is an end."""

from __future__ import annotations

import pytest

from seedmp.errors import CancelledError, EngineDeadError, RequestTimeoutError
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
