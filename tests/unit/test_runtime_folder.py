"""The runtime folder: leftovers of killed engines go, folders in use and those of others stay; logs are bounded."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from seedmp.errors import ConfigError
from seedmp.ipc import folder as folders
from seedmp.ipc.folder import KEPT_LOG_BYTES, MAX_LOG_BYTES, RuntimeFolder, bound_log, last_log, log_path

ABANDONS = "import os; from seedmp.ipc.folder import RuntimeFolder; print(RuntimeFolder().path); os._exit(0)"


@pytest.fixture
def base(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEEDMP_RUNTIME_DIR", str(runtime_dir))
    return runtime_dir


def abandon() -> Path:
    """The folder of a process that ended without removing it."""
    done = subprocess.run([sys.executable, "-c", ABANDONS], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def test_a_folder_is_private_and_goes(base: Path) -> None:
    num_fds = len(os.listdir("/proc/self/fd"))
    folder = RuntimeFolder()
    assert folder.path.parent == base and stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    (folder.path / "supervisor.log").write_text("x")
    folder.remove()
    assert not folder.path.exists()
    assert len(os.listdir("/proc/self/fd")) == num_fds


def test_what_a_killed_process_left_is_removed_by_the_next_engine(base: Path) -> None:
    left = abandon()
    (left / "verifier-0.log").write_text("x")
    folder = RuntimeFolder()
    assert not left.exists()
    folder.remove()


def test_what_is_in_use_or_not_ours_to_remove_stays(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_use = RuntimeFolder()
    no_lock = base / "seedmp-user"
    no_lock.mkdir()
    (no_lock / "file").touch()
    (base / "seedmp-notes").write_text("a file")
    left = abandon()
    elsewhere = left.rename(base / "other-name")
    (base / "seedmp-link").symlink_to(elsewhere)
    linked_lock = base / "seedmp-linked"
    linked_lock.mkdir()
    (linked_lock / "lock").symlink_to(elsewhere / "lock")
    before = {path.name for path in base.iterdir()}
    second = RuntimeFolder()
    assert {path.name for path in base.iterdir()} - {second.path.name} == before
    foreign = elsewhere.rename(base / "seedmp-foreign")
    monkeypatch.setattr(os, "getuid", lambda: 1 + foreign.stat().st_uid)
    folders.remove_leftovers(base)
    assert foreign.exists()
    monkeypatch.undo()
    folders.remove_leftovers(base)
    assert not foreign.exists() and in_use.path.exists()
    second.remove()
    in_use.remove()


def test_a_lock_is_held_by_a_fork_as_long_as_it_lives(base: Path) -> None:
    """A forked child may still use what lies in the folder."""
    folder = RuntimeFolder()
    script = "import sys; sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, pass_fds=[folder._lock_fd])
    os.close(folder._lock_fd)
    folders.remove_leftovers(base)
    assert folder.path.exists()
    child.communicate(b"")
    folders.remove_leftovers(base)
    assert not folder.path.exists()


def test_a_folder_that_cannot_be_made_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDMP_RUNTIME_DIR", str(base / "absent"))
    with pytest.raises(ConfigError, match=r"no folder for sockets can be made in '.*absent'"):
        RuntimeFolder()
    deep = base / ("d" * 90)
    deep.mkdir()
    monkeypatch.setenv("SEEDMP_RUNTIME_DIR", str(deep))
    with pytest.raises(ConfigError, match=r"is too long \(\d+ bytes, 107 allowed\)"):
        RuntimeFolder()
    assert not list(deep.iterdir())


def test_a_log_keeps_its_end_while_it_is_written(base: Path) -> None:
    path = log_path(base, "verifier-0")
    with open(path, "a") as log:
        for number in range(MAX_LOG_BYTES // 8):
            log.write(f"line {number:09d}\n")
        log.flush()
        assert path.stat().st_size > MAX_LOG_BYTES
        bound_log(path)
        assert path.stat().st_size <= KEPT_LOG_BYTES
        log.write("the last line\n")
    text = path.read_text()
    assert text.startswith("line ") and text.endswith(f"line {MAX_LOG_BYTES // 8 - 1:09d}\nthe last line\n")
    size = path.stat().st_size
    bound_log(path)
    assert path.stat().st_size == size, "a short log is left alone"
    bound_log(base / "absent.log")


def test_the_last_lines_of_a_log(base: Path) -> None:
    assert last_log(base, "draft-0.0") == ""
    log_path(base, "draft-0.0").write_bytes(b"\xff" + b"x" * 9000 + "äöü\n".encode())
    assert len(last_log(base, "draft-0.0")) <= folders.LAST_LOG_CHARS
    assert last_log(base, "draft-0.0").endswith("xäöü")
