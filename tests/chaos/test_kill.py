"""Processes that are killed, stopped and fed nonsense: text unchanged, nothing hangs, nothing is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
import zmq

from seedmp import Engine, RequestHandle, RequestOutput, SamplingParams
from seedmp.errors import EngineDeadError

pytestmark = pytest.mark.chaos

CHECKOUT = Path(__file__).resolve().parents[2]
PROMPTS = [f"Question: Ann has {i} pens and buys {i + 3} more. How many pens has she?\nAnswer:" for i in range(4)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=80, seed=0, ignore_eos=True)
SHARED_MEMORY = Path("/dev/shm")
WAIT_S = 30.0
GONE_S = 5.0
REPLACED_S = 1.0
POLL_S = 0.005


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> float:
    """Seconds until the condition held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, f"{what}: not within {timeout_s} s"
        time.sleep(POLL_S)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(
        num_drafts=2, target_threads=1, kv_slots=1024, stall_timeout_s=2, max_restarts=30, validate=True
    ) as started:
        yield started


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[tuple[int, ...]]:
    return [output.token_ids for output in engine.generate(PROMPTS, GREEDY, timeout=WAIT_S)]


def drafts_ready(engine: Engine) -> bool:
    return {"draft-0.0", "draft-0.1", "verifier-0"} <= engine.worker_pids().keys()


def wait_until_replaced(engine: Engine, name: str, pid: int) -> float:
    """Seconds until another process of that name is ready."""
    return wait_until(lambda: engine.worker_pids().get(name, pid) != pid, f"{name} replaced")


def finish(handles: list[RequestHandle]) -> list[tuple[int, ...]]:
    outputs: list[RequestOutput] = [handle.result(WAIT_S) for handle in handles]
    return [output.token_ids for output in outputs]


# --- workers ------------------------------------------------------------------------------------


def test_killing_a_draft_changes_no_text(engine: Engine, expected: list[tuple[int, ...]]) -> None:
    rng = random.Random(5)
    times = []
    for _ in range(5):
        wait_until(lambda: drafts_ready(engine), "workers ready")
        num_lost = engine.stats()["workers_lost"]
        handles = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
        chunks = iter(handles[0])
        for _ in range(rng.randrange(12)):  # rounds until the kill; then somewhere within a round
            next(chunks)
        name = f"draft-0.{rng.randrange(2)}"
        pid = engine.worker_pids()[name]
        deadline = time.monotonic() + rng.random() * 0.01
        while time.monotonic() < deadline:
            pass
        os.kill(pid, signal.SIGKILL)
        times.append(wait_until_replaced(engine, name, pid))
        assert finish(handles) == expected
        assert engine.stats()["workers_lost"] == num_lost + 1
    print(f"\nreplaced after {', '.join(f'{1000 * t:.0f}' for t in times)} ms")
    assert max(times) < REPLACED_S
    stats = engine.stats()
    assert stats["target_slots_leased"] == stats["draft_slots_leased"] == 0


def test_killing_all_drafts_at_once(engine: Engine, expected: list[tuple[int, ...]]) -> None:
    wait_until(lambda: drafts_ready(engine), "workers ready")
    handles = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
    next(iter(handles[0]))
    for name, pid in engine.worker_pids().items():
        if name.startswith("draft"):
            os.kill(pid, signal.SIGKILL)
    assert finish(handles) == expected


def test_a_stopped_draft_is_replaced(engine: Engine, expected: list[tuple[int, ...]]) -> None:
    wait_until(lambda: drafts_ready(engine), "workers ready")
    pid = engine.worker_pids()["draft-0.1"]
    handles = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
    next(iter(handles[1]))
    os.kill(pid, signal.SIGSTOP)
    wait_until_replaced(engine, "draft-0.1", pid)
    assert finish(handles) == expected
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("num_rounds", [0, 1, 9])
def test_killing_the_verifier(engine: Engine, expected: list[tuple[int, ...]], num_rounds: int) -> None:
    """Requests complete with their text, or say that the engine died; soon, in both cases."""
    wait_until(lambda: drafts_ready(engine), "workers ready")
    pid = engine.worker_pids()["verifier-0"]
    handles = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
    chunks = iter(handles[0])
    for _ in range(num_rounds):
        next(chunks)
    os.kill(pid, signal.SIGKILL)
    assert finish(handles) == expected  # max_restarts was not reached: they must complete
    assert engine.worker_pids()["verifier-0"] != pid


def test_an_engine_that_may_not_restart_says_so() -> None:
    with Engine(num_drafts=1, target_threads=1, max_restarts=0) as engine:
        handles = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
        next(iter(handles[0]))
        os.kill(engine.worker_pids()["verifier-0"], signal.SIGKILL)
        start = time.monotonic()
        for handle in handles:
            with pytest.raises(EngineDeadError, match="verifier-0 died"):
                handle.result(WAIT_S)
        assert time.monotonic() - start < GONE_S
        with pytest.raises(EngineDeadError):
            engine.submit(PROMPTS[0], GREEDY)
        with pytest.raises(EngineDeadError):
            engine.stats()
    assert not engine.folder.exists()


def test_killing_the_supervisor() -> None:
    with Engine(num_drafts=1, target_threads=1) as engine:
        handle = engine.submit(PROMPTS[0], GREEDY)
        next(iter(handle))
        pids = engine.worker_pids()
        os.kill(pids["supervisor"], signal.SIGKILL)
        with pytest.raises(EngineDeadError):
            handle.result(WAIT_S)
        del pids["supervisor"]  # a zombie until close() reaps it
        wait_until(lambda: not any(map(psutil.pid_exists, pids.values())), "workers gone", GONE_S)
    assert not engine.folder.exists()


def live_sockets(folder: Path) -> list[Path]:
    """The sockets of the last verifier; dead ones may have left their files."""
    epochs = {path: int(path.name.split("-")[2]) for path in folder.iterdir() if path.is_socket()}
    return [path for path, epoch in epochs.items() if epoch == max(epochs.values())]


# --- nonsense on the wire -------------------------------------------------------------------------


def test_nonsense_on_every_socket_is_counted_and_dropped(engine: Engine, expected: list[tuple[int, ...]]) -> None:
    wait_until(lambda: drafts_ready(engine), "workers ready")
    rng = random.Random(7)
    nonsense: list[list[bytes]] = [[rng.randbytes(rng.randrange(200))] for _ in range(60)]
    nonsense += [[rng.randbytes(20) for _ in range(rng.randrange(2, 5))] for _ in range(20)]
    shapes: list[object] = [
        None, 7, "submit", [], {}, [1], ["no such tag"], ["submit"], ["submit", 1, 2, 3, 4, 5],
        ["submit", "1", 0, [5], [], [1.0, None, 1.0, 0, 4, [], [], False, 3, 1]],
        ["submit", 1, 0, [5], [], [-1.0, None, 1.0, 0, 4, [], [], False, 3, 1]],
        ["cancel", 1.5], ["cancel"], ["stats-query", 1, "yes"], ["engine-hello", []], ["shutdown", 1],
        ["draft-hello", 0, 0, 1], ["proposal", 0, 0, 0], ["score", 1, [1], [2], [[3]]],
        ["proposal", 0, 0, 0, 1, 2, 1, [5], [3], "iid", ["<i4", [0, 0]], ["<f4", [0, 0]]],
        ["proposal", 0, 0, 0, 1, 2, 1, [5], [-1], "iid", ["<i4", [-1, 4]], ["<f4", [1, 1]]],
    ]  # fmt: skip
    nonsense += [[msgpack.packb(shape, use_bin_type=True)] for shape in shapes]
    unwanted = [["shutdown"], ["welcome"], ["committed", 1, [5]], ["draft-welcome", []]]  # valid, but not here
    nonsense += [[msgpack.packb(message, use_bin_type=True)] for message in unwanted]
    sockets = live_sockets(engine.folder)
    assert len(sockets) == 2
    handles = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
    context = zmq.Context()
    sent = 0
    try:
        for path in sockets:
            dealer = context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.LINGER, 2000)
            dealer.setsockopt(zmq.IDENTITY, b"stranger")
            dealer.connect(f"ipc://{path}")
            for frames in nonsense:
                dealer.send_multipart(frames)
                sent += 1
            dealer.close()
    finally:
        context.term()
    lost = engine.stats()["workers_lost"]
    wait_until(lambda: engine.stats()["malformed_messages"] >= sent, f"{sent} counted")
    assert finish(handles) == expected
    assert engine.stats()["malformed_messages"] == sent
    assert engine.stats()["workers_lost"] == lost
    assert drafts_ready(engine)


# --- the user's process ---------------------------------------------------------------------------

SCRIPT = """
from seedmp import Engine, SamplingParams
engine = Engine(num_drafts=2, target_threads=1, kv_slots=1024)
handle = engine.submit("Question: how?", SamplingParams(temperature=1, max_tokens=900, seed=0, ignore_eos=True))
next(iter(handle))
print(engine.folder, flush=True)
for chunk in handle:
    pass
while True:
    engine.generate("Question: why?", SamplingParams(temperature=1, max_tokens=500, seed=0, ignore_eos=True))
"""


def shared_memory() -> set[str]:
    return {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_ending_the_users_process_leaves_nothing(signum: signal.Signals) -> None:
    before = shared_memory()
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert script.stdout is not None
        folder = Path(script.stdout.readline().strip())  # in the middle of generating
        family = psutil.Process(script.pid).children(recursive=True)
        assert len(family) == 4 and folder.is_dir()
        script.send_signal(signum)
        script.communicate(timeout=WAIT_S)
        assert script.returncode == -signum
    finally:
        script.kill()
        script.communicate()

    def is_gone() -> bool:
        alive = any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
        return not alive and not folder.exists()

    wait_until(is_gone, "processes and folder gone", GONE_S)
    left = {name for name in shared_memory() - before if any(str(p.pid) in name for p in family)}
    assert not left


# --- ending -----------------------------------------------------------------------------------------


def test_two_engines_at_once(engine: Engine, expected: list[tuple[int, ...]]) -> None:
    wait_until(lambda: drafts_ready(engine), "workers ready")
    with Engine(num_drafts=1, target_threads=1) as second:
        handles = [other.submit(prompt, GREEDY) for other in (engine, second) for prompt in PROMPTS]
        assert finish(handles) == expected * 2
        assert second.folder != engine.folder
        pids = second.worker_pids()
    assert not any(map(psutil.pid_exists, pids.values()))
    assert finish([engine.submit(PROMPTS[0], GREEDY)]) == expected[:1]


def test_close_twice_leaves_nothing() -> None:
    before = shared_memory()
    num_fds = psutil.Process().num_fds()
    engine = Engine(num_drafts=1, target_threads=1)
    pids = engine.worker_pids()
    assert len(pids) == 3
    engine.close()
    engine.close()
    assert not any(map(psutil.pid_exists, pids.values()))
    assert not engine.folder.exists()
    assert not {name for name in shared_memory() - before if any(str(pid) in name for pid in pids.values())}
    assert psutil.Process().num_fds() <= num_fds
