"""Starting and ending: what a launch on this machine hears and leaves, and an engine on groups of somebody else."""

from __future__ import annotations

import os
import subprocess
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import pytest

from seedmp.client.launch import LocalLaunch
from seedmp.client.observers import OBSERVERS, ObservedEngine, observing
from seedmp.config import EngineConfig
from seedmp.engine import Engine
from seedmp.errors import ConfigError, EngineClosedError, EngineDeadError
from seedmp.ipc.channel import receive_on_pipe, send_on_pipe
from seedmp.ipc.messages import EngineDown, GroupStarted, Shutdown, WorkerReady
from tests.helpers.groups import FakeGroups

READY = WorkerReady("verifier-0", 0, 41)
DOWN = EngineDown("ConfigError", "ConfigError: wrong", "", "")


class FakeSupervisor:
    """A process that ends when it is told to, or not even then."""

    pid = 41

    def __init__(self, *, obeys: bool) -> None:
        self.is_running = True
        self.obeys = obeys
        read_theirs, write_ours = os.pipe()
        read_ours, write_theirs = os.pipe()
        self.from_engine, self.to_engine = Pipe(read_theirs, writable=False), Pipe(write_theirs, readable=False)
        self.launch = LocalLaunch(self, Pipe(write_ours, readable=False), Pipe(read_ours, writable=False), 1)  # type: ignore[arg-type]

    def wait(self, timeout: float | None = None) -> int:
        if self.is_running and timeout is not None:
            if not self.obeys:
                raise subprocess.TimeoutExpired("supervisor", timeout)
            self.is_running = False
            assert receive_on_pipe(self.from_engine) == Shutdown()
        return 0

    def kill(self) -> None:
        self.is_running = False

    def close(self) -> None:
        for pipe in (self.from_engine, self.to_engine):
            pipe.close()
        self.launch.close()


def test_a_launch_tells_what_the_supervisor_says_until_it_is_gone() -> None:
    supervisor = FakeSupervisor(obeys=True)
    launch = supervisor.launch
    assert launch.receive() == []
    send_on_pipe(supervisor.to_engine, READY)
    send_on_pipe(supervisor.to_engine, DOWN)
    supervisor.to_engine.close()
    assert launch.receive() == [READY, DOWN], "the end comes after what was said"
    with pytest.raises(EngineDeadError, match="the supervisor process is gone"):
        launch.receive()
    assert launch.pids == {"supervisor": 41}
    launch.stop()
    supervisor.close()


@pytest.mark.parametrize("obeys", [True, False])
def test_stop_asks_then_kills(obeys: bool) -> None:
    supervisor = FakeSupervisor(obeys=obeys)
    for _ in range(2):
        supervisor.launch.stop()
        assert not supervisor.is_running
    supervisor.close()


class FakeLaunch(FakeGroups):
    """Groups that are there already; nobody answers in them. Its own launcher."""

    def __init__(self, *news: Any) -> None:
        super().__init__(1)
        self.tell(*news)
        self.pids = {"nobody": 41}
        self.num_stopped = 0

    def start(self, config: EngineConfig, folder: Path) -> FakeLaunch:
        self.folder = folder
        return self

    def stop(self) -> None:
        assert self.folder.is_dir(), "the folder outlives the launch"
        self.num_stopped += 1


def test_an_engine_needs_no_process_of_its_own(tmp_path: Path) -> None:
    launch = FakeLaunch(READY, GroupStarted(0, 0, f"ipc://{tmp_path}/nobody"))
    seen: list[str] = []

    def observer(engine: ObservedEngine) -> Any:
        seen.append(engine.config.method.name)
        return lambda: seen.append("closes")

    with observing(observer):
        engine = Engine(method="ar", num_drafts=1, launcher=launch)
    assert not OBSERVERS
    assert engine.worker_pids() == {"verifier-0": 41, "nobody": 41}
    handle = engine.submit((1, 2))
    assert seen == ["ar"]
    for _ in range(2):
        engine.close()
        assert seen == ["ar", "closes"]
        assert launch.num_stopped == 1
        assert not launch.folder.exists()
    with pytest.raises(EngineClosedError):
        handle.result(0)


def test_an_engine_that_does_not_start_leaves_nothing() -> None:
    launch = FakeLaunch(DOWN)
    with observing(lambda engine: pytest.fail("it never served")), pytest.raises(ConfigError, match=r"^wrong$"):
        Engine(method="ar", num_drafts=1, launcher=launch)
    assert launch.num_stopped == 1
    assert not launch.folder.exists()
