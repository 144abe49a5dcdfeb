"""The draft worker: a process that answers draft tasks until it is told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from seedmp.draft_order import DraftOrder
from seedmp.drafts.base import Drafter
from seedmp.errors import ProtocolError
from seedmp.ids import Incarnation, WorkerName
from seedmp.ipc.channel import DealerChannel
from seedmp.ipc.endpoints import draft_endpoint, draft_identity
from seedmp.ipc.messages import (
    PROTOCOL_VERSION,
    ContextReady,
    DraftHello,
    DraftTask,
    DraftWelcome,
    Shutdown,
)
from seedmp.ipc.span_ring import SpanRing, ring_path
from seedmp.trace import Activity

POLL_MS = 500


class DraftServer:
    """Serves tasks from a socket until it is told to stop.

    Runs in: draft process, main thread.
    """

    def __init__(
        self, folder: Path, name: WorkerName, epoch: int, verifier_epoch: int, layout: str, secret: bytes
    ) -> None:
        assert name.draft is not None, f"{name} is no draft"
        worker_id = name.draft
        self.context = zmq.Context()
        process = Incarnation(name, epoch)
        endpoint = draft_endpoint(folder, name.group, verifier_epoch)
        self.channel = DealerChannel(self.context, endpoint, draft_identity(process, secret))
        self.worker_id = worker_id
        self.epoch = epoch
        self.early: list[Any] = []  # what came with the welcome
        self.ring = SpanRing(ring_path(folder, str(process)))
        self.channel.send(DraftHello(worker_id, epoch, PROTOCOL_VERSION, layout))

    def welcome(self, timeout_s: float, beat: Callable[[], None]) -> DraftWelcome:
        """Wait for the verifier's answer.

        Raises:
            ProtocolError: none came in time, or something else came.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            beat()
            if self.channel.poll(POLL_MS):
                msg, *self.early = self.channel.receive_all() or [None]
                if isinstance(msg, DraftWelcome):
                    return msg
                if msg is not None:
                    raise ProtocolError(f"expected a welcome, got {type(msg).__name__}")
        raise ProtocolError(f"no welcome from the verifier within {timeout_s:.0f} s")

    def serve(self, drafter: Drafter, beat: Callable[[], None]) -> None:
        """Draft until Shutdown comes."""
        while True:
            beat()
            self.ring.count_bytes(self.channel.bytes_in, self.channel.bytes_out)
            self.ring.enter(Activity.IDLE)
            if not self.early and not self.channel.poll(POLL_MS):
                continue
            self.ring.enter(Activity.IPC)
            received, self.early = self.early or self.channel.receive_all(), []
            tasks = []
            for msg in received:
                if isinstance(msg, Shutdown):
                    self.close()
                    return
                if isinstance(msg, DraftTask):
                    tasks.append(msg.order)
            if not tasks:
                continue
            self.ring.enter(Activity.DRAFT, tasks[0].branch_id if len(tasks) == 1 else -1, len(tasks))
            proposals = drafter.draft(tasks, self._announce)
            self.ring.enter(Activity.IPC)
            for proposal in proposals:
                self.channel.send(proposal)

    def _announce(self, task: DraftOrder) -> None:
        self.channel.send(ContextReady(task.branch_id, task.round, task.epoch))

    def close(self) -> None:
        self.channel.close()
        self.ring.close()
        self.context.term()
