"""Sockets and pipes that carry messages. Each is made, used and closed in one thread."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import zmq

from seedmp.errors import ProtocolError
from seedmp.ipc import codec

log = logging.getLogger(__name__)

MAX_AT_ONCE = 256  # messages that are read before others have their turn
MAX_MESSAGE_BYTES = 1 << 28
MAX_LOGGED = 50  # malformed messages of a channel that are logged; all are counted


class RouterChannel:
    """A ROUTER socket: many peers, addressed by the identity they chose.

    An identity belongs to the first who comes with it, while that one is there. Malformed messages are counted in
    ``num_malformed`` and logged, the first of them.
    """

    def __init__(self, context: zmq.Context[Any], endpoint: str) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self.socket.bind(endpoint)
        self.num_malformed = 0
        self.bytes_in = self.bytes_out = 0

    def receive_all(self) -> list[tuple[bytes, Any]]:
        """Messages that are there now, with the sender's identity; never waits.

        At most 256: the socket stays readable. One that is malformed is a ``Refused``.
        """
        result: list[tuple[bytes, Any]] = []
        while len(result) < MAX_AT_ONCE:
            try:
                peer, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self.bytes_in += sum(map(len, frames))
            try:
                result.append((peer, codec.decode(frames)))
            except ProtocolError as error:
                self.count_malformed(str(error))
                result.append((peer, codec.peek(frames, str(error))))
        return result

    def count_malformed(self, why: str) -> None:
        """A message is not one that may be sent here."""
        self.num_malformed += 1
        _log_malformed(self.num_malformed, why)

    def send(self, peer: bytes, msg: Any) -> None:
        """Queue a message for a peer; a peer that is gone gets nothing."""
        frames = codec.encode(msg)
        self.bytes_out += sum(map(len, frames))
        self.socket.send_multipart([peer, *frames], copy=True)

    def close(self) -> None:
        self.socket.close()


class DealerChannel:
    """A DEALER socket to one ROUTER."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, identity: bytes) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.connect(endpoint)
        self.num_malformed = 0
        self.bytes_in = self.bytes_out = 0

    def receive_all(self) -> list[Any]:
        """All messages that are there now; never waits."""
        result: list[Any] = []
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return result
            self.bytes_in += sum(map(len, frames))
            try:
                result.append(codec.decode(frames))
            except ProtocolError as error:
                self.num_malformed += 1
                _log_malformed(self.num_malformed, str(error))

    def poll(self, timeout_ms: int) -> bool:
        """Whether a message is there within the time."""
        return bool(self.socket.poll(timeout_ms))

    def send(self, msg: Any) -> None:
        self.send_frames(codec.encode(msg))

    def send_frames(self, frames: Sequence[bytes | memoryview]) -> None:
        """Send a message that was encoded before, perhaps in another thread."""
        self.bytes_out += sum(map(len, frames))
        self.socket.send_multipart(frames, copy=True)

    def close(self) -> None:
        self.socket.close()


def _log_malformed(count: int, why: str) -> None:
    if count <= MAX_LOGGED:
        log.warning("refused a malformed message: %s%s", why, "; no more are logged" if count == MAX_LOGGED else "")


def send_on_pipe(pipe: Connection, msg: Any) -> None:
    """Send a message without arrays on a pipe (length-prefixed bytes, not pickled)."""
    (frame,) = codec.encode(msg)
    pipe.send_bytes(bytes(frame))


def receive_on_pipe(pipe: Connection) -> Any:
    """The next message on a pipe.

    Raises:
        EOFError: the other side is gone.
    """
    return codec.decode([pipe.recv_bytes()])
