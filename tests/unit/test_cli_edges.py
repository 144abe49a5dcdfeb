"""The command line at its edges: no text, nobody who reads, no place to write, files with the names of libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from seedmp.client.launch import BOOTSTRAP, CHECKOUT, _environment, hold_standard_descriptors
from seedmp.commands import main as cli

ENV = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": ""}
DOCTOR = ["doctor"]  # it loads torch


def seedmp(words: Sequence[str | bytes], redirect: str = "", **settings: object) -> subprocess.CompletedProcess[bytes]:
    """Run the command; ``redirect`` is for the shell."""
    command = ["bash", "-c", f'exec "$@" {redirect}', "-", sys.executable, "-m", "seedmp", *words]
    return subprocess.run(command, env=ENV, stderr=subprocess.PIPE, timeout=60, **settings)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("words", [["generate", b"a\xff"], ["growmap", "show", b"\xff.pt"], [b"\x80"]])
def test_words_that_are_no_text(words: list[str | bytes]) -> None:
    done = seedmp(words)
    assert done.returncode == cli.EXIT_ERROR
    assert b"must be valid UTF-8" in done.stderr and b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("redirect", ["< <(printf 'a\\xff')", "<&-"])
def test_input_that_is_no_text(redirect: str) -> None:
    done = seedmp(["generate", "-"], redirect, stdout=subprocess.DEVNULL)
    assert done.returncode == cli.EXIT_ERROR
    assert b"Traceback" not in done.stderr and done.stderr.count(b"\n") == 1, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written(unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENV, "PYTHONUNBUFFERED", unbuffered)
    done = seedmp(DOCTOR, "> /dev/full")
    assert done.returncode == cli.EXIT_ERROR
    assert b"No space left on device" in done.stderr and done.stderr.count(b"\n") == 1, done.stderr
    help_ = seedmp(["--help"], "> /dev/full")  # argparse may keep the error for itself
    assert help_.returncode in (cli.EXIT_OK, cli.EXIT_ERROR) and b"Traceback" not in help_.stderr
    assert b"ignored" not in help_.stderr
    assert seedmp(DOCTOR, "> /dev/full 2> /dev/full").returncode == cli.EXIT_ERROR
    closed = seedmp(["--version"], ">&-")
    assert closed.returncode == cli.EXIT_OK and b"Traceback" not in closed.stderr


def test_an_error_that_nobody_can_read_keeps_its_status() -> None:
    for redirect in ("2> /dev/full", "2>&-"):
        assert seedmp(["growmap", "show", "no such"], redirect, stdout=subprocess.DEVNULL).returncode == cli.EXIT_ERROR


PLANTED = ("html", "zmq", "torch", "numpy", "json", "pathlib", "socket", "seedmp", "transformers", "msgpack", "triton")


@pytest.fixture
def shared_folder(tmp_path: Path) -> Path:
    """A folder in which somebody left files with the names of libraries."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write('{name} ')\n")
    return tmp_path


@pytest.mark.parametrize("path", ["", f":{CHECKOUT}", "."])
def test_a_supervisor_runs_no_file_of_the_current_folder(
    shared_folder: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one from an empty entry of PYTHONPATH. A folder that the user names there is the user's wish."""
    monkeypatch.chdir(shared_folder)
    monkeypatch.setenv("PYTHONPATH", path)
    modules = "html, zmq, json, socket, msgpack, numpy, pathlib, seedmp.workers.start"
    code = BOOTSTRAP.replace("from seedmp.workers.start import main; main()", f"import {modules}")
    assert code != BOOTSTRAP
    command = [sys.executable, "-c", code, str(CHECKOUT)]
    done = subprocess.run(command, env=_environment(), stderr=subprocess.PIPE, timeout=60)
    executed = shared_folder / "executed"
    if path != ".":
        assert done.returncode == 0 and not executed.exists(), (done.stderr, executed.exists() and executed.read_text())


@pytest.mark.parametrize("words", [DOCTOR, ["--version"]])
def test_the_command_runs_no_file_of_the_current_folder(shared_folder: Path, words: list[str]) -> None:
    (shared_folder / "seedmp.py").unlink()  # `-m` itself looks there
    command = [sys.executable, "-m", "seedmp", *words]
    done = subprocess.run(command, env=ENV, cwd=shared_folder, capture_output=True, timeout=60)
    assert done.returncode == 0 and not (shared_folder / "executed").exists(), done.stderr


def test_the_launcher_guards_standard_descriptors() -> None:
    code = (
        "import os; os.close(0); os.close(1); from seedmp.client.launch import hold_standard_descriptors as h; "
        "h(); h();"
        "assert all(os.fstat(fd) for fd in (0, 1, 2)); assert os.dup(2) == 3"
    )
    assert subprocess.run([sys.executable, "-c", code], env=ENV, timeout=60, close_fds=True).returncode == 0
    before = len(os.listdir("/proc/self/fd"))
    hold_standard_descriptors()
    assert len(os.listdir("/proc/self/fd")) == before
