"""Groups without processes: a source whose news a test writes, and verifiers that a test drives."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import zmq

from seedmp.client.launch import GroupEvent
from seedmp.errors import EngineDeadError
from seedmp.ipc.channel import RouterChannel
from seedmp.ipc.messages import Finished
from seedmp.metrics import RequestCounters

DEADLINE_S = 10.0
T = TypeVar("T")


class FakeGroups:
    """A ``GroupSource`` whose news a test writes."""

    def __init__(self, num_groups: int) -> None:
        self.num_groups = num_groups
        self.num_closed = 0
        self.on_receive: Callable[[], object] = lambda: None
        self._news: deque[GroupEvent | None] = deque()
        self._is_handled = threading.Event()
        self._read, self._write = os.pipe()

    def tell(self, *news: GroupEvent | None) -> None:
        """Give news; None ends them."""
        self._news += news
        self._is_handled.clear()
        os.write(self._write, b"x")

    def wait_until_handled(self) -> None:
        """Until the connection has dealt with all news."""
        assert self._is_handled.wait(DEADLINE_S)

    def fileno(self) -> int:
        if not self._news:  # it asks anew what to wait for
            self._is_handled.set()
        return self._read

    def receive(self) -> list[GroupEvent]:
        self.on_receive()
        os.read(self._read, 4096)
        news = [self._news.popleft() for _ in range(len(self._news))]
        if None in news:
            raise EngineDeadError("nobody looks after the groups")
        return [event for event in news if event is not None]

    def close(self) -> None:
        self.num_closed += 1
        os.close(self._read)
        os.close(self._write)


class FakeVerifier:
    """The other side of the link to a group, driven by the test."""

    def __init__(self, context: zmq.Context[Any], endpoint: str) -> None:
        self.endpoint = endpoint
        self.channel = RouterChannel(context, endpoint)
        self.engine = b""
        self._unread: deque[Any] = deque()

    def next(self, kind: type[T]) -> T:
        """The next message, which must be of this kind."""
        while not self._unread:
            assert self.channel.socket.poll(1000 * DEADLINE_S), f"no {kind.__name__} came"
            for peer, msg in self.channel.receive_all():
                self.engine = peer
                self._unread.append(msg)
        msg = self._unread.popleft()
        assert isinstance(msg, kind), msg
        return msg

    def send(self, msg: Any) -> None:
        self.channel.send(self.engine, msg)

    def finish(self, request_id: int, reason: str = "length", stop: str = "") -> None:
        counters = RequestCounters(rounds=2, drafted=4, accepted=2, target_prefill_tokens=3, draft_prefill_tokens=3)
        self.send(Finished(request_id, reason, stop, finished_ns=0, counters=counters))

    def close(self) -> None:
        self.channel.close()
