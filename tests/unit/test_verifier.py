"""What the verifier makes of messages that are no good: sockets and a scheduler, no models, no processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import numpy as np
import pytest
import torch
import zmq

from seedmp.config import EngineConfig
from seedmp.ids import Incarnation, WorkerName
from seedmp.ipc import codec
from seedmp.ipc import messages as m
from seedmp.ipc.channel import receive_on_pipe, send_on_pipe
from seedmp.ipc.endpoints import draft_endpoint, draft_identity, engine_endpoint
from seedmp.sampling import SamplingParams
from seedmp.scheduler import actions, events
from seedmp.scheduler.scheduler import Scheduler
from seedmp.scheduler.state import Limits
from seedmp.token_tree.tree import NO_PARENT, ProposalKind
from seedmp.workers.verifier import Verifier

T = TypeVar("T")
VOCAB_SIZE = 8
WAIT_MS = 10_000
PARAMS = SamplingParams(temperature=0.0, max_tokens=3, seed=1)
SECRET = b"the supervisor's"
NO_ROWS = np.empty((0, 0))


class FakeRunner:
    """A target that always says 1."""

    vocab_size = VOCAB_SIZE
    busy_ns = 0

    def forward(self, segments: Sequence[actions.Segment]) -> torch.Tensor:
        return torch.zeros(1)

    def decide(self, segments: Sequence[actions.Segment], logits: torch.Tensor) -> Any:
        return [events.Outcome(s.branch_id, (), 1) for s in segments if s.verify], {}


class Peer:
    """Somebody at one of the verifier's sockets."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, identity: bytes) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.connect(endpoint)

    def send(self, msg: Any) -> None:
        self.socket.send_multipart(codec.encode(msg))

    def send_plain(self, *fields: Any) -> None:
        self.socket.send(msgpack.packb(list(fields)))

    def next(self, kind: type[T]) -> T:
        """The next message of a kind."""
        while self.socket.poll(WAIT_MS):
            msg = codec.decode(self.socket.recv_multipart())
            if isinstance(msg, kind):
                return msg
        raise AssertionError(f"no {kind.__name__} came")

    def figures(self) -> dict[str, float]:
        self.send(m.StatsQuery(1))
        reply = self.next(m.StatsReply)
        return dict(zip(reply.names, reply.values, strict=True))


def name_of(worker_id: int, epoch: int, group: int = 0, secret: bytes = SECRET) -> bytes:
    """The identity of a draft's socket."""
    return draft_identity(Incarnation(WorkerName(group, worker_id), epoch), secret)


class Group:
    """A verifier in a thread, and those around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.supervisor, theirs = Pipe()
        self.context = zmq.Context()
        self.thread = threading.Thread(target=self._serve, args=(theirs,))
        self.thread.start()
        self.peers: list[Peer] = []
        self.engine = self.peer(engine_endpoint(folder, 0, 0), b"engine-1-00")
        self.engine.send(m.EngineHello(m.PROTOCOL_VERSION))
        self.engine.next(m.EngineWelcome)

    def _serve(self, pipe: Any) -> None:
        config = EngineConfig(target="-", draft="-", num_drafts=2, k_config=(1, 1), kv_slots=256, validate=True)
        scheduler = Scheduler(config, Limits(64, VOCAB_SIZE, frozenset()))
        runner: Any = FakeRunner()
        Verifier(config, scheduler, runner, self.folder, 0, 0, pipe, "layout", SECRET).serve(lambda: None)

    def peer(self, endpoint: str, identity: bytes) -> Peer:
        self.peers.append(Peer(self.context, endpoint, identity))
        return self.peers[-1]

    def draft(self, worker_id: int = 0, epoch: int = 0, *, is_welcome: bool = True, identity: bytes = b"") -> Peer:
        peer = self.peer(draft_endpoint(self.folder, 0, 0), identity or name_of(worker_id, epoch))
        before = self.engine.figures()["malformed_messages"]
        peer.send(m.DraftHello(worker_id, epoch, m.PROTOCOL_VERSION, "layout"))
        if is_welcome:
            peer.next(m.DraftWelcome)
        else:
            self.wait_for_more("malformed_messages", before)
        return peer

    def wait_for_more(self, name: str, before: float) -> None:
        """Until a counter has grown."""
        deadline = time.monotonic() + WAIT_MS / 1000
        while self.engine.figures()[name] == before:
            assert time.monotonic() < deadline, f"{name} is still {before}"

    def submit(self, request_id: int = 5) -> None:
        self.engine.send(m.Submit(request_id, 0, (1,), (), PARAMS))

    def close(self) -> None:
        send_on_pipe(self.supervisor, m.Shutdown())
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.supervisor.close()
        for peer in self.peers:
            peer.socket.close()
        self.context.term()


@pytest.fixture
def group(runtime_dir: Path) -> Iterator[Group]:
    group = Group(runtime_dir)
    yield group
    group.close()


def answer(task: m.DraftTask, **changed: Any) -> m.Proposal:
    """A good one, but for what is changed."""
    order = task.order
    values: dict[str, Any] = {
        "branch_id": order.branch_id, "round": order.round, "epoch": order.epoch, "started_ns": 0, "ready_ns": 0,
        "forward_ns": 0, "token_ids": (2, 3), "parents": (NO_PARENT, 0), "kind": order.kind,
        "row_ids": NO_ROWS.astype("<i4"), "row_probs": NO_ROWS.astype("<f4"), "drafted_idx": (-1, -1),
    }  # fmt: skip
    return m.Proposal(**(values | changed))


# --- requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("submit", 5, -1, [1], [], None), "Submit: -1: must be from 0"),
        (("submit", 5, 0, [1], [], [float("nan")]), "must be a finite number"),
        (("submit", 5), "Submit: expected 5 to 9 fields"),
        (("submit", 5, 0, [2**64 - 1], [], []), "must be from"),
        (("score", 5, [1], [2], [[1]]), "Score: expected an array"),
        (("score", 5, [1], [2], [2]), "each must have at least one"),
    ],
)
def test_a_request_that_cannot_be_read_fails_with_the_reason(group: Group, fields: Any, text: str) -> None:
    group.engine.send_plain(*fields)
    failed = group.engine.next(m.Failed)
    assert (failed.request_id, failed.kind) == (5, "RejectedError") and text in failed.text
    group.draft()
    group.submit(5)  # the id is free


def test_a_broken_copy_fails_nobody(group: Group) -> None:
    draft = group.draft()
    group.submit()
    task = draft.next(m.DraftTask)
    group.engine.send_plain("submit", 5, "x")
    assert group.engine.figures()["malformed_messages"] == 1
    draft.send(answer(task))
    assert group.engine.next(m.Committed).request_id == 5


# --- drafts ------------------------------------------------------------------------------------------

ODD: dict[str, Callable[[m.DraftTask], m.Proposal]] = {
    "a token beyond the vocabulary": lambda task: answer(task, token_ids=(2, VOCAB_SIZE)),
    "a tree larger than any": lambda task: answer(
        task, token_ids=(1,) * 999, parents=(NO_PARENT,) * 999, drafted_idx=(-1,) * 999
    ),
    "no tree": lambda task: answer(task, parents=(1, 0)),
    "another kind": lambda task: answer(task, kind=ProposalKind.IID, row_ids=np.array([[2], [3]], "<i4"),
                                        row_probs=np.ones((2, 1), "<f4")),
    "two levels where one is of use": lambda task: answer(
        task, token_ids=(1,) * 3, parents=(NO_PARENT, 0, 1), drafted_idx=(-1,) * 3
    ),
    "another round": lambda task: answer(task, round=task.order.round + 9),
    "another branch": lambda task: answer(task, branch_id=99),
    "another epoch": lambda task: answer(task, epoch=4),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_proposal_is_drafted_elsewhere(group: Group, name: str) -> None:
    drafts = [group.draft(0), group.draft(1)]
    group.submit()
    poller = zmq.Poller()
    for draft in drafts:
        poller.register(draft.socket, zmq.POLLIN)
    ((socket, _),) = poller.poll(WAIT_MS)
    first, second = drafts if socket is drafts[0].socket else drafts[::-1]
    first.send(ODD[name](first.next(m.DraftTask)))
    second.send(answer(second.next(m.DraftTask)))
    assert group.engine.next(m.Committed).request_id == 5


def test_noise_of_a_draft_is_an_answer_that_was_lost(group: Group) -> None:
    drafts = [group.draft(0), group.draft(1)]
    group.submit()
    poller = zmq.Poller()
    for draft in drafts:
        poller.register(draft.socket, zmq.POLLIN)
    ((socket, _),) = poller.poll(WAIT_MS)
    first, second = drafts if socket is drafts[0].socket else drafts[::-1]
    late = answer(first.next(m.DraftTask))
    first.send_plain("nonsense")
    second.send(answer(second.next(m.DraftTask)))
    first.send(late)
    assert group.engine.next(m.Committed).request_id == 5


def test_three_odd_answers_and_the_supervisor_is_asked(group: Group) -> None:
    draft = group.draft()
    group.submit()
    for _ in range(3):
        draft.send(answer(draft.next(m.DraftTask), token_ids=(9, 9)))
    assert group.supervisor.poll(WAIT_MS / 1000)
    order = receive_on_pipe(group.supervisor)
    assert isinstance(order, m.ReplaceWorker)
    assert (order.worker, order.epoch) == ("draft-0.0", 0) and "token id 9" in order.reason
    assert group.engine.next(m.Committed).request_id == 5  # the round went on without a draft
    before = group.engine.figures()
    draft.send(m.DraftHello(0, 0, m.PROTOCOL_VERSION, "layout"))  # it is shut out
    group.wait_for_more("malformed_messages", before["malformed_messages"])
    assert group.engine.figures()["drafts_alive"] == 0
    send_on_pipe(group.supervisor, m.WorkerLost("draft-0.0", 0, -9))
    group.draft(0, 1)


def test_who_may_say_hello(group: Group) -> None:
    group.draft(0, 1)
    group.draft(0, 0, is_welcome=False)  # an older one
    for worker_id, epoch in ((1, 0), (0, 2), (7, 0)):  # to come, to come next, never to come
        for identity in (
            f"draft-0.{worker_id}-{epoch}".encode(),
            f"draft-0.{worker_id}-{epoch}-{0:016x}".encode(),
            name_of(worker_id, epoch, secret=b"another engine's"),
            name_of(worker_id, epoch + 1),
            name_of(worker_id + 1, epoch),
            name_of(worker_id, epoch, group=7),
            b"\xff\x01-%d-%d" % (worker_id, epoch),
        ):
            group.draft(worker_id, epoch, is_welcome=False, identity=identity)
    assert group.engine.figures()["drafts_alive"] == 1
    group.draft(0, 2)  # it may say hello before the supervisor tells of the death of the one before it
    send_on_pipe(group.supervisor, m.WorkerLost("draft-0.0", 1, -9))
    group.draft(1, 0)
    assert group.engine.figures()["drafts_alive"] == 2


def test_an_identity_belongs_to_the_first(group: Group) -> None:
    draft = group.draft()
    group.submit()
    thief = group.peer(draft_endpoint(group.folder, 0, 0), name_of(0, 0))
    thief.send_plain("nonsense")
    draft.send(answer(draft.next(m.DraftTask)))
    assert group.engine.next(m.Committed).request_id == 5
    assert not thief.socket.poll(0)
    assert group.engine.figures()["malformed_messages"] == 0
