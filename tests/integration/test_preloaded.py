"""Engines of these tests have a supervisor like a user's, and leave as little behind."""

from __future__ import annotations

import os

import psutil

from seedmp import Engine


def test_a_forked_supervisor_is_a_process_of_its_own_and_goes_with_its_engine() -> None:
    with Engine(num_drafts=1, target_threads=1) as first, Engine(method="ar", target_threads=1) as second:
        pids = [engine.worker_pids() for engine in (first, second)]
        for engine, supervisor in ((first, pids[0]["supervisor"]), (second, pids[1]["supervisor"])):
            assert os.getsid(supervisor) == supervisor != os.getsid(0)
            assert psutil.Process(supervisor).environ().keys() >= {"HF_DEACTIVATE_ASYNC_LOAD", "GOMP_SPINCOUNT"}
            logs = {os.readlink(f"/proc/{supervisor}/fd/{fd}") for fd in (1, 2)}
            assert logs == {str(engine.folder / "supervisor.log")}
        assert not pids[0].items() & pids[1].items()
        first.close()
        assert not any(map(psutil.pid_exists, pids[0].values())) and not first.folder.exists()
        assert all(map(psutil.pid_exists, pids[1].values()))
    assert not any(map(psutil.pid_exists, pids[1].values())) and not second.folder.exists()
