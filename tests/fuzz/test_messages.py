"""Mutated messages: the decoder answers with a message or a ProtocolError, and an engine serves on beside them.

``FUZZ_MESSAGES`` is the number of messages at the decoder, ``FUZZ_LIVE`` that on live sockets, ``FUZZ_SEED`` the seed.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from seedmp import Engine, SamplingParams
from seedmp.errors import ProtocolError
from seedmp.ipc import codec
from seedmp.ipc import messages as m
from seedmp.token_tree.tree import ProposalKind
from tests.golden.test_messages import INSTANCES
from tests.helpers.mutate import mutate
from tests.helpers.rogue import RogueSpecInfer
from tests.helpers.same import same

NUM_MESSAGES = int(os.environ.get("FUZZ_MESSAGES", "20000"))
NUM_LIVE = int(os.environ.get("FUZZ_LIVE", "1500"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
MAX_DECODE_S = 0.25
MAX_STALL_S = 1.0
WAIT_S = 60.0
GOLDEN = [[bytes(frame) for frame in codec.encode(msg)] for msg in INSTANCES]
PROMPTS = [f"Question: Ann has {i} pens and buys {i + 3} more. How many pens has she?\nAnswer:" for i in range(4)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, seed=0, ignore_eos=True)


def frames_of(msg: Any) -> list[bytes]:
    return [bytes(frame) for frame in codec.encode(msg)]


# --- the decoder -----------------------------------------------------------------------------------


def test_the_decoder() -> None:
    print(f"\nFUZZ_SEED={SEED} FUZZ_MESSAGES={NUM_MESSAGES}")
    rng = random.Random(SEED)
    num_valid, slowest_s = 0, 0.0
    gc.freeze()  # as workers do: what this process has imported is not looked at for each message
    for index in range(NUM_MESSAGES):
        frames = mutate(rng.choice(GOLDEN), rng)
        start = time.process_time()
        try:
            msg = codec.decode(frames)
        except ProtocolError as error:
            codec.peek(frames, str(error))
            msg = None
        except BaseException as error:
            raise AssertionError(f"message {index} of seed {SEED}: {frames!r:.2000}") from error
        slowest_s = max(slowest_s, time.process_time() - start)
        if msg is not None:
            num_valid += 1
            assert same(codec.decode(frames_of(msg)), msg), f"message {index} of seed {SEED}"
    print(f"{num_valid} were messages all the same, slowest {1e3 * slowest_s:.1f} ms")
    assert 0 < num_valid < NUM_MESSAGES
    assert slowest_s < MAX_DECODE_S


# --- live sockets ----------------------------------------------------------------------------------


def sockets(engine: Engine) -> tuple[Path, Path]:
    """Of the engines and of the drafts, of the verifier that lives."""
    epochs = {path: int(path.name.split("-")[2]) for path in engine.folder.iterdir() if path.is_socket()}
    live = [path for path, epoch in epochs.items() if epoch == max(epochs.values())]
    drafts = next(path for path in live if "drafts" in path.name)
    return next(path for path in live if path != drafts), drafts


class Watch(threading.Thread):
    """Asks an engine for its counters again and again: the longest wait is the longest stall of its verifier."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self.engine = engine
        self.done = threading.Event()
        self.longest_s = 0.0

    def run(self) -> None:
        while not self.done.wait(0.01):
            start = time.monotonic()
            self.engine.stats()
            self.longest_s = max(self.longest_s, time.monotonic() - start)

    def stop(self) -> float:
        self.done.set()
        self.join()
        return self.longest_s


@dataclass
class Peer:
    """A process of ours that talks to a verifier as an engine or as a draft would."""

    context: zmq.Context[Any]
    path: Path
    identity: bytes
    received: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 5000)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.IDENTITY, self.identity)
        self.socket.connect(f"ipc://{self.path}")

    def send(self, frames: list[bytes]) -> None:
        self.socket.send_multipart(frames or [b""])

    def receive(self, timeout_ms: int = 0) -> list[Any]:
        result = []
        while self.socket.poll(timeout_ms):
            result.append(codec.decode(self.socket.recv_multipart()))
            timeout_ms = 0
        self.received.update(type(msg).__name__ for msg in result)
        return result


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(num_drafts=2, target_threads=1, kv_slots=2048, max_restarts=0, stall_timeout_s=20) as started:
        yield started


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[tuple[int, ...]]:
    return [output.token_ids for output in engine.generate(PROMPTS, GREEDY, timeout=WAIT_S)]


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context = zmq.Context()
    yield context
    context.term()


def serve_while(engine: Engine, expected: list[tuple[int, ...]], thread: threading.Thread) -> int:
    """Serve until the thread has ended; every text must be what it was."""
    num_texts = 0
    while thread.is_alive() or not num_texts:
        outputs = engine.generate(PROMPTS, GREEDY, timeout=WAIT_S)
        assert [output.token_ids for output in outputs] == expected
        num_texts += len(outputs)
    thread.join()
    return num_texts


def is_harmless(frames: list[bytes]) -> bool:
    """Not one more text to generate for nobody: that would be work, not noise."""
    try:
        return not isinstance(codec.decode(frames), m.Submit | m.Score)
    except ProtocolError:
        return True


@pytest.mark.parametrize("to_drafts", [False, True], ids=["engines", "drafts"])
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_noise_from_a_valid_peer(
    engine: Engine, expected: list[tuple[int, ...]], context: zmq.Context[Any], to_drafts: bool
) -> None:
    """From an engine's identity, and from those of drafts: one that is there, and one that says hello besides."""
    print(f"\nFUZZ_SEED={SEED} FUZZ_LIVE={NUM_LIVE}")
    path = sockets(engine)[to_drafts]
    pids, before = engine.worker_pids(), engine.stats()
    num_sent = 0

    def send() -> None:
        nonlocal num_sent
        rng = random.Random(SEED)
        names = [b"draft-0.0-0", b"draft-0.9-0", b"draft-0.1-7", b"\xff\x01"] if to_drafts else [b"engine-1-abcdef01"]
        peers = [Peer(context, path, name) for name in names]
        peers[0].send(frames_of(m.EngineHello(m.PROTOCOL_VERSION)))
        while num_sent < NUM_LIVE:
            frames = mutate(rng.choice(GOLDEN), rng)
            if is_harmless(frames) or rng.random() < 0.01:
                rng.choice(peers).send(frames)
                num_sent += 1
            if not num_sent % 50:
                for peer in peers:
                    peer.receive()
                time.sleep(0.005)
        for peer in peers:
            peer.socket.close()
        print([dict(peer.received) for peer in peers])

    thread, watch = threading.Thread(target=send), Watch(engine)
    watch.start()
    thread.start()
    num_texts = serve_while(engine, expected, thread)
    longest_s = watch.stop()
    after = engine.stats()
    print(
        f"{num_sent} messages, {after['malformed_messages'] - before['malformed_messages']:.0f} malformed, "
        f"{num_texts} texts, longest stall {longest_s:.3f} s"
    )
    assert engine.worker_pids() == pids and after["workers_lost"] == 0
    assert longest_s < MAX_STALL_S


@pytest.mark.alone
@pytest.mark.timeout(900)
def test_a_draft_that_nobody_started(
    engine: Engine, expected: list[tuple[int, ...]], context: zmq.Context[Any]
) -> None:
    """It says hello as a draft does, is given tasks, and answers oddly; it is shut out, and comes back."""
    print(f"\nFUZZ_SEED={SEED} FUZZ_LIVE={NUM_LIVE}")
    rng = random.Random(SEED)
    path = sockets(engine)[1]
    layout = draft_layout(engine)
    pids, before = engine.worker_pids(), engine.stats()
    deadline = time.monotonic() + max(10.0, NUM_LIVE / 100)
    counts: Counter[str] = Counter()

    def draft() -> None:
        epoch = 0
        while counts["answers"] < NUM_LIVE / 5 and time.monotonic() < deadline:
            peer = Peer(context, path, f"draft-0.9-{epoch}".encode())
            peer.send(frames_of(m.DraftHello(9, epoch, m.PROTOCOL_VERSION, layout)))
            last_s = time.monotonic()
            while time.monotonic() - last_s < 0.1 and time.monotonic() < deadline:  # no task so long: it is shut out
                for msg in peer.receive(20):
                    if isinstance(msg, m.DraftTask):
                        last_s = time.monotonic()
                        for frames in odd_answers(msg.order, rng):
                            peer.send(frames)
                            counts["answers"] += 1
            counts["incarnations"] += 1
            counts.update(peer.received)
            peer.socket.close()
            epoch += 1

    thread, watch = threading.Thread(target=draft), Watch(engine)
    watch.start()
    thread.start()
    num_texts = serve_while(engine, expected, thread)
    longest_s = watch.stop()
    after = engine.stats()
    print(f"{dict(counts)}, {num_texts} texts, longest stall {longest_s:.3f} s")
    assert counts["DraftTask"] > 0 and counts["incarnations"] > 1
    assert engine.worker_pids() == pids and after["workers_lost"] == before["workers_lost"] == 0
    assert longest_s < MAX_STALL_S
    wait_for_slots(engine)


def draft_layout(engine: Engine) -> str:
    """What drafts of this engine say that they share."""
    from seedmp.workers.build import Build, SharedDraft

    build = Build(engine.config)
    return str(SharedDraft(build.draft.layouts(build.draft_dtype, build.target_dtype)))


PROBS = [0.0, 1.0, 0.5, float("nan"), float("inf"), -1.0]


def odd_answers(order: Any, rng: random.Random) -> list[list[bytes]]:
    """What a rogue draft says to a task: one thing, or several."""
    size = rng.choice([0, 1, 2, 3, 10, 11, 500, 5000, 70_000])
    now = time.monotonic_ns()
    tokens = tuple(rng.randrange(rng.choice([1, 500, 2**31])) for _ in range(size))
    parents = tuple(rng.randrange(-1, index) if rng.random() < 0.5 else index - 1 for index in range(size))
    width = rng.choice([0, 1, 2, 64, 65])
    num_rows = rng.choice([0, 1, size and len({*parents})]) if size <= 500 else 1
    answer = m.Proposal(
        order.branch_id + rng.choice([0, 0, 0, 0, 1, 2**40]), order.round + rng.choice([0, 0, 0, 0, 1, 1000]),
        order.epoch, rng.choice([0, now, -(2**63)]), rng.choice([now, -(2**63), 2**63 - 1, 0]),
        rng.choice([0, 2**63 - 1, -(2**63)]), tokens, parents,
        rng.choice([order.kind, *ProposalKind]),
        np.array(rng.choices(range(500), k=num_rows * width), "<i4").reshape(num_rows, width),
        np.array(rng.choices(PROBS, k=num_rows * width), "<f4").reshape(num_rows, width),
        tuple(rng.choice([-1, 0, index, 2**31 - 1]) for index in range(size)), rng.choice([(), (0,), tokens[:9]]),
    )  # fmt: skip
    frames = frames_of(answer)
    return [mutate(frames, rng) if rng.random() < 0.3 else frames for _ in range(rng.choice([1, 1, 2]))]


def wait_for_slots(engine: Engine) -> None:
    """All that was lent comes back."""
    deadline = time.monotonic() + WAIT_S
    while (stats := engine.stats())["draft_slots_leased"] or stats["target_slots_leased"]:
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)


@pytest.mark.alone
@pytest.mark.timeout(900)
def test_drafts_that_spoil_what_they_send() -> None:
    """Real draft processes; those that did it three times are replaced."""
    print(f"\nFUZZ_LIVE={NUM_LIVE}")
    settings: dict[str, Any] = {"target_threads": 1, "kv_slots": 2048, "dtype": "float32"}
    with Engine(method="ar", **settings) as engine:
        expected = [output.token_ids for output in engine.generate(PROMPTS, GREEDY, timeout=WAIT_S)]
    with Engine(
        method=RogueSpecInfer(), num_drafts=2, max_restarts=1 << 20, stall_timeout_s=20, validate=True, **settings
    ) as engine:
        pid, watch = engine.worker_pids()["verifier-0"], Watch(engine)
        watch.start()
        slowest_s, num_texts = 0.0, 0
        while (rounds := engine.stats()["rounds"]) < NUM_LIVE:
            start = time.monotonic()
            outputs = engine.generate(PROMPTS, GREEDY, timeout=WAIT_S)
            slowest_s = max(slowest_s, time.monotonic() - start)
            assert [output.token_ids for output in outputs] == expected
            num_texts += len(outputs)
        longest_s, stats = watch.stop(), engine.stats()
        print(
            f"{rounds:.0f} rounds, {stats['malformed_messages']:.0f} malformed, {stats['stale_proposals']:.0f} stale, "
            f"{stats['workers_lost']:.0f} drafts replaced, {num_texts} texts, the slowest four in {slowest_s:.2f} s, "
            f"longest stall {longest_s:.3f} s"
        )
        assert engine.worker_pids()["verifier-0"] == pid
        assert longest_s < MAX_STALL_S
        wait_for_slots(engine)
