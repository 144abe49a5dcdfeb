"""A process is seen to end, by the kernel's help or without; its children do not count."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from seedmp.workers.owner import Owner

DEADLINE_S = 10.0


@pytest.fixture(params=["pidfd", "polling"])
def process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[bytes]:
    if request.param == "polling":

        def refuse(pid: int) -> int:
            raise OSError

        monkeypatch.setattr(os, "pidfd_open", refuse)
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    request.addfinalizer(started.communicate)
    request.addfinalizer(started.kill)
    return started


def test_an_end_is_seen_before_anybody_reaps(process: subprocess.Popen[bytes]) -> None:
    owner = Owner(process.pid)
    assert not owner.is_gone()
    owner.wait(0.05)
    assert not owner.is_gone()
    process.kill()
    start = time.monotonic()
    owner.wait(DEADLINE_S)
    assert owner.is_gone() and time.monotonic() - start < DEADLINE_S
    process.wait()
    assert owner.is_gone()
    assert Owner(process.pid).is_gone(), "nobody has this number now"
    if owner.pidfd is not None:
        os.close(owner.pidfd)


def test_a_wait_ends_when_the_descriptor_is_readable(process: subprocess.Popen[bytes]) -> None:
    owner = Owner(process.pid)
    read, write = os.pipe()
    os.close(write)
    start = time.monotonic()
    owner.wait(DEADLINE_S, read)
    assert time.monotonic() - start < DEADLINE_S and not owner.is_gone()
    os.close(read)
    if owner.pidfd is not None:
        os.close(owner.pidfd)
