"""However a user's process and its supervisor end, nothing of the engine is left, and nobody else's is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from seedmp import Engine, SamplingParams
from tests.chaos.test_kill import CHECKOUT, GONE_S, WAIT_S, shared_memory, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.long]

GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
BEGIN = """
import multiprocessing, os, signal, sys, time
from seedmp import Engine, SamplingParams
from seedmp.errors import EngineClosedError
SHORT = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
LONG = SamplingParams(temperature=1, max_tokens=900, ignore_eos=True)

def opened():
    engine = Engine(num_drafts=1, target_threads=1, kv_slots=1024)
    say(engine.worker_pids()["supervisor"])
    return engine

def say(*words):
    print(*words, flush=True)

def serve(engine):
    while True:
        engine.generate("Question: why?", LONG)
"""


class Script:
    """A user's process whose engine lies in a runtime folder of its own."""

    def __init__(self, body: str, runtime: Path, *, redirect: str = "") -> None:
        self.runtime = runtime
        self.before = shared_memory()
        command = ["bash", "-c", f'exec "$@" {redirect}', "-", sys.executable, "-c", BEGIN + body]
        env = {**os.environ, "SEEDMP_RUNTIME_DIR": str(runtime), "PYTHONPATH": str(CHECKOUT)}
        self.process = subprocess.Popen(
            command,
            env=env,
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> int:
        """The next number that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return int(line)

    def end(self) -> int:
        """Wait; the exit code."""
        self.process.communicate(timeout=WAIT_S)
        return self.process.returncode

    def family(self) -> list[psutil.Process]:
        """Processes of its engine: their command lines name its folder."""
        found = []
        for process in psutil.process_iter():
            try:
                named = any(str(self.runtime) in word for word in process.cmdline())
                if named and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def check_nothing_is_left(self) -> None:
        def is_gone() -> bool:
            return not self.family() and not list(self.runtime.iterdir())

        try:
            wait_until(is_gone, "processes and folder gone", GONE_S)
        except AssertionError as error:
            left = [(p.pid, p.ppid(), p.status()) for p in self.family()]
            raise AssertionError(f"{error}: {left}, {list(self.runtime.iterdir())}") from None
        assert not shared_memory() - self.before

    def clean(self) -> None:
        """After a test that failed, too."""
        self.process.kill()
        self.process.communicate()
        for process in self.family():
            process.kill()


@pytest.fixture
def start(runtime_dir: Path) -> Iterator[Callable[..., Script]]:
    scripts: list[Script] = []

    def start(body: str, *, redirect: str = "") -> Script:
        scripts.append(Script(body, runtime_dir, redirect=redirect))
        return scripts[-1]

    yield start
    for script in scripts:
        script.clean()


@pytest.fixture(scope="module")
def bystander() -> Iterator[Engine]:
    with Engine(num_drafts=1, target_threads=1, kv_slots=1024) as engine:
        yield engine


@pytest.fixture(autouse=True)
def nobody_else_is_touched(bystander: Engine) -> Iterator[None]:
    pids = bystander.worker_pids()
    yield
    assert bystander.worker_pids() == pids
    assert bystander.generate("Question: who?", GREEDY, timeout=WAIT_S)
    assert bystander.folder.is_dir()


# --- the process ends by itself -------------------------------------------------------------------------

ENDS = {
    "close": ("opened().close()", 0),
    "with": ("with opened() as engine: engine.generate('a', SHORT)", 0),
    "end of script": ("engine = opened(); handle = engine.submit('a', LONG)", 0),
    "exception": ("engine = opened(); 1 / 0", 1),
    "sys.exit": ("engine = opened(); sys.exit(3)", 3),
    "os._exit": ("engine = opened(); os._exit(4)", 4),
    "exec": ("engine = opened(); os.execv('/bin/true', ['true'])", 0),
    "close with the supervisor stopped": (
        "engine = opened(); os.kill(engine.worker_pids()['supervisor'], signal.SIGSTOP); engine.close()", 0,
    ),
    "end with all stopped": (
        "engine = opened(); [os.kill(pid, signal.SIGSTOP) for pid in engine.worker_pids().values()]; os._exit(0)", 0,
    ),
    "error at the start": ("Engine(num_drafts=1, kv_slots=1 << 26, target_threads=1)", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_a_process_that_ends(name: str, start: Callable[..., Script]) -> None:
    body, exitcode = ENDS[name]
    script = start(body)
    assert script.end() == exitcode
    script.check_nothing_is_left()


@pytest.mark.parametrize("redirect", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(redirect: str, start: Callable[..., Script]) -> None:
    script = start(
        "engine = Engine(num_drafts=1, target_threads=1)\n"
        "num = len(engine.generate('a', SHORT, timeout=30))\nos._exit(10 + num)",
        redirect=redirect,
    )
    assert script.end() == 11
    script.check_nothing_is_left()


# --- somebody ends it -----------------------------------------------------------------------------------

KILL, STOP, TERM, INT = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT
SIGNALS: dict[str, list[tuple[str, signal.Signals]]] = {
    "SIGKILL": [("user", KILL)],
    "SIGTERM": [("user", TERM)],
    "SIGINT": [("user", INT)],
    "SIGINT twice": [("user", INT), ("user", INT)],
    "user and supervisor": [("user", KILL), ("supervisor", KILL)],
    "supervisor and user": [("supervisor", KILL), ("user", KILL)],
    "user, supervisor stopped": [("supervisor", STOP), ("user", KILL)],
    "user with SIGTERM, supervisor stopped": [("supervisor", STOP), ("user", TERM)],
    "user with SIGINT twice, supervisor stopped": [("supervisor", STOP), ("user", INT), ("user", INT)],
    "group": [("group", KILL)],
}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_process_that_is_ended(name: str, start: Callable[..., Script]) -> None:
    script = start("serve(opened())")
    pids = {"user": script.process.pid, "supervisor": script.hear()}
    assert len(script.family()) >= 4
    for who, signum in SIGNALS[name]:
        if who == "group":
            os.killpg(pids["supervisor"], signum)
            script.process.kill()
        else:
            os.kill(pids[who], signum)
        time.sleep(0.02)  # the second of two comes while the first is dealt with
    assert script.end() != 0
    script.check_nothing_is_left()


def test_a_supervisor_that_is_killed_while_its_user_lives(start: Callable[..., Script]) -> None:
    script = start("engine = opened(); sys.stdin.read()")
    os.kill(script.hear(), KILL)
    script.check_nothing_is_left()
    assert script.end() == 0


STARTING = [("user", 0.0), ("both", 0.0), ("SIGINT twice", 0.0), ("user, supervisor stopped", 0.0)]
STARTING += [("user", 1.5), ("supervisor", 1.5), ("both", 1.5), ("SIGINT twice", 1.5)]


@pytest.mark.parametrize(("who", "after_s"), STARTING)
def test_ends_during_the_start(who: str, after_s: float, start: Callable[..., Script]) -> None:
    """From a tenth of a second on, when the janitor is there; before, only the next engine clears up."""
    script = start("opened()")
    wait_until(lambda: len(script.family()) > 1, "supervisor and janitor start")
    time.sleep(after_s)
    supervisor = min(script.family(), key=lambda process: process.create_time())
    if "stopped" in who:
        supervisor.suspend()
    if who in ("supervisor", "both"):
        supervisor.kill()
    if who != "supervisor":
        script.process.send_signal(INT if "SIGINT" in who else KILL)
    if "SIGINT" in who:
        time.sleep(0.1)
        script.process.send_signal(INT)
    script.end()
    script.check_nothing_is_left()


# --- forks ----------------------------------------------------------------------------------------------

FORKS = {
    "sys.exit": "pid = os.fork()\nif pid == 0: sys.exit(5)\n",
    "with": "pid = os.fork()\nif pid == 0:\n    with engine: pass\n    sys.exit(5)\n",
    "use": """
pid = os.fork()
if pid == 0:
    for use in (lambda: engine.submit('a', SHORT), engine.stats, lambda: engine.open('a').generate(SHORT)):
        try:
            use()
        except EngineClosedError as error:
            assert 'belongs to process' in str(error), error
        else:
            sys.exit(6)
    sys.exit(5)
""",
    "multiprocessing": """
child = multiprocessing.get_context('fork').Process(target=lambda: sys.exit(5))
child.start()
pid = child.pid
""",
}


@pytest.mark.parametrize("name", FORKS)
def test_a_fork_that_ends_leaves_the_engine_to_its_owner(name: str, start: Callable[..., Script]) -> None:
    script = start(
        f"engine = opened()\nhandle = engine.submit('a', LONG)\n{FORKS[name]}\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "handle.cancel(); engine.generate('a', SHORT, timeout=30); say(status)\n"
        "engine.close()"
    )
    script.hear()
    assert script.hear() == 5
    assert script.end() == 0
    script.check_nothing_is_left()


@pytest.mark.parametrize("stop_supervisor", [False, True])
@pytest.mark.parametrize("way", ["os.fork", "multiprocessing"])
def test_a_fork_that_lives_keeps_no_engine(way: str, stop_supervisor: bool, start: Callable[..., Script]) -> None:
    fork = {
        "os.fork": "pid = os.fork()\nif pid == 0: time.sleep(60); os._exit(0)\n",
        "multiprocessing": "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)); "
        "child.start(); pid = child.pid\n",
    }[way]
    script = start(f"engine = opened()\n{fork}\nsay(pid)\nserve(engine)")
    supervisor, child = script.hear(), psutil.Process(script.hear())
    try:
        if stop_supervisor:
            os.kill(supervisor, STOP)
        script.process.kill()
        script.process.wait()
        script.check_nothing_is_left()
        assert child.is_running()
    finally:
        child.kill()
