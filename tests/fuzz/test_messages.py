"""Mutated messages: the decoder answers with a message or a ProtocolError, and an engine serves on beside them.

``FUZZ_MESSAGES`` is the number of messages at the decoder, ``FUZZ_LIVE`` that on live sockets, ``FUZZ_SEED`` the seed.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zmq

from seedmp import Engine, SamplingParams
from seedmp.errors import ProtocolError
from seedmp.ipc import codec
from seedmp.ipc import messages as m
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
BENIGN_SHARE = 0.25  # rounds with drafts that spoil what they send, of NUM_LIVE
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
    with Engine(num_drafts=2, target_threads=1, kv_slots=2048, max_restarts=1 << 20, stall_timeout_s=20) as started:
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
    assert engine.worker_pids() == pids and after["workers_lost"] == before["workers_lost"]
    assert longest_s < MAX_STALL_S


@pytest.mark.alone
def test_a_draft_that_nobody_started(
    engine: Engine, expected: list[tuple[int, ...]], context: zmq.Context[Any]
) -> None:
    """It says hello as a draft does, before those that the supervisor will start: they are not kept out."""
    path, layout = sockets(engine)[1], draft_layout(engine)
    peers = [
        (worker_id, epoch, Peer(context, path, f"draft-0.{worker_id}-{epoch}{token}".encode()))
        for worker_id in (0, 1, 9)
        for epoch in range(4)
        for token in ("", f"-{0:016x}")
    ]
    before, done = engine.stats(), threading.Event()

    def say_hello() -> None:
        while not done.wait(0.01):
            for worker_id, epoch, peer in peers:
                peer.send(frames_of(m.DraftHello(worker_id, epoch, m.PROTOCOL_VERSION, layout)))

    thread, watch = threading.Thread(target=say_hello), Watch(engine)
    watch.start()
    thread.start()
    for kills, worker_id in enumerate((0, 1, 0), 1):
        pids = engine.worker_pids()
        os.kill(pids[f"draft-0.{worker_id}"], signal.SIGKILL)
        outputs = engine.generate(PROMPTS, GREEDY, timeout=WAIT_S)
        assert [output.token_ids for output in outputs] == expected
        wait_for_drafts(engine, before["workers_lost"] + kills)
    done.set()
    thread.join()
    longest_s, after = watch.stop(), engine.stats()
    for _, _, peer in peers:
        assert not peer.receive()
        peer.socket.close()
    assert after["malformed_messages"] > before["malformed_messages"]
    assert longest_s < MAX_STALL_S
    wait_for_slots(engine)


def wait_for_drafts(engine: Engine, num_lost: float) -> None:
    """So many were lost so far, and all were replaced."""
    deadline = time.monotonic() + WAIT_S
    while (stats := engine.stats())["workers_lost"] < num_lost or stats["drafts_alive"] < engine.config.num_drafts:
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)
    assert stats["workers_lost"] == num_lost


def draft_layout(engine: Engine) -> str:
    """What drafts of this engine say that they share."""
    from seedmp.workers.build import Build, SharedDraft

    build = Build(engine.config)
    return str(SharedDraft(build.draft.layouts(build.draft_dtype, build.target_dtype)))


def wait_for_slots(engine: Engine) -> None:
    """All that was lent comes back."""
    deadline = time.monotonic() + WAIT_S
    while (stats := engine.stats())["draft_slots_leased"] or stats["target_slots_leased"]:
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)


@pytest.mark.alone
@pytest.mark.timeout(900)
def test_drafts_that_spoil_what_they_send(expected: list[tuple[int, ...]]) -> None:
    """Real draft processes, which mutate what they send or say something odd; who did it three times is replaced."""
    print(f"\nFUZZ_LIVE={NUM_LIVE}")
    with Engine(
        method=RogueSpecInfer(), num_drafts=2, target_threads=1, kv_slots=2048, max_restarts=1 << 20,
        stall_timeout_s=3, validate=True,
    ) as engine:  # fmt: skip
        pid, watch = engine.worker_pids()["verifier-0"], Watch(engine)
        watch.start()
        slowest_s, num_texts = 0.0, 0
        while (rounds := engine.stats()["rounds"]) < NUM_LIVE * BENIGN_SHARE:
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
