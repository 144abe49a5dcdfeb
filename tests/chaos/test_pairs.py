"""Workers killed within milliseconds of each other, or before they are ready: no text changes, nothing grows."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from seedmp import Engine
from seedmp.errors import EngineDeadError
from seedmp.ipc.folder import MAX_LOG_BYTES
from tests.chaos.test_kill import GREEDY, PROMPTS, WAIT_S, drafts_ready, finish, wait_until

pytestmark = pytest.mark.chaos

NAMES = ("verifier-0", "draft-0.0", "draft-0.1")
GROUPS = [group for size in (2, 3) for group in itertools.permutations(NAMES, size)]
SETTLED_S = 10.0


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(num_drafts=2, target_threads=1, kv_slots=1024, max_restarts=10_000, validate=True) as started:
        yield started


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[tuple[int, ...]]:
    return [output.token_ids for output in engine.generate(PROMPTS, GREEDY, timeout=WAIT_S)]


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # the supervisor was faster
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("victims", GROUPS, ids=" then ".join)
def test_workers_killed_within_milliseconds(
    engine: Engine, expected: list[tuple[int, ...]], victims: tuple[str, ...]
) -> None:
    rng = random.Random(" ".join(victims))
    for pause_s in (0.0, 0.001, 0.003, 0.01):
        wait_until(lambda: drafts_ready(engine), "workers ready")
        pids = engine.worker_pids()
        handles = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
        chunks = iter(handles[0])
        for _ in range(rng.randrange(6)):
            next(chunks)
        for name in victims:
            kill(pids[name])
            time.sleep(pause_s)
        assert finish(handles) == expected
    assert engine.worker_pids()["supervisor"] == pids["supervisor"]


def next_children(supervisor: psutil.Process, known: set[int]) -> set[int]:
    """Wait for children that are not known."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        new = {child.pid for child in supervisor.children()} - known
        if new:
            return new
    raise AssertionError("no replacement came")


def test_replacements_killed_before_they_are_ready(engine: Engine, expected: list[tuple[int, ...]]) -> None:
    """They are replaced, too: only an engine that never served gives up at once."""
    for victim in NAMES:
        wait_until(lambda: drafts_ready(engine), "workers ready")
        pids = engine.worker_pids()
        supervisor, known = psutil.Process(pids["supervisor"]), set(pids.values())
        handles = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
        kill(pids[victim])
        for _ in range(4):
            new = next_children(supervisor, known)
            known |= new
            for pid in new:
                kill(pid)
        assert finish(handles) == expected


def test_a_folder_does_not_grow_with_deaths(engine: Engine, expected: list[tuple[int, ...]]) -> None:
    def is_settled() -> bool:
        return drafts_ready(engine) and len(list(engine.folder.glob("*.spans"))) == 2 + len(NAMES)

    def files() -> list[str]:
        return sorted(path.name.rpartition("-")[0] or path.name for path in engine.folder.iterdir())

    wait_until(is_settled, "rings of the dead are gone", SETTLED_S)
    before, fds = files(), psutil.Process(engine.worker_pids()["supervisor"]).num_fds()
    for victim in NAMES * 2:
        wait_until(lambda: drafts_ready(engine), "workers ready")
        kill(engine.worker_pids()[victim])
        assert finish([engine.submit(PROMPTS[0], GREEDY)]) == expected[:1]
    wait_until(is_settled, "rings of the dead are gone", SETTLED_S)
    assert len(files()) == len(before)
    wait_until(lambda: psutil.Process(engine.worker_pids()["supervisor"]).num_fds() == fds, "descriptors are closed")


def test_a_log_does_not_grow_without_end(engine: Engine) -> None:
    log = engine.folder / "verifier-0.log"
    with open(log, "a") as file:
        file.write("noise\n" * MAX_LOG_BYTES)
    wait_until(lambda: log.stat().st_size < MAX_LOG_BYTES, "the log is bounded")


def test_the_last_log_lines_of_a_supervisor_that_dies_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    (tmp_path / "msgpack.py").write_text("raise ImportError('this msgpack is broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineDeadError, match=r"(?s)supervisor process is gone.*this msgpack is broken"):
        Engine(num_drafts=1, target_threads=1)
