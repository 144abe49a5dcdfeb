"""The C part, compiled for this machine's CPU when it is first needed, and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("decode.c")
FLAGS = (
    "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-fopenmp", "-Wno-psabi",
)  # fmt: skip
WIDE = "-mprefer-vector-width=512"  # x86 alone
COMPILE_S = 120.0
SWITCH = "SEEDMP_NATIVE"  # 0: never


@lru_cache(maxsize=1)
def native_library() -> ctypes.CDLL | None:
    """The library, or None, with a note in the log, where it cannot be made: runners then use torch alone.

    A C compiler with OpenMP is needed: ``cc``, or what the environment's CC names.
    """
    if os.environ.get(SWITCH, "1") == "0":
        return None
    if sys.platform != "linux":
        log.info("no native operations on %s: torch's are used", sys.platform)
        return None
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
        if shutil.which(compiler[0]) is None:
            log.warning("no C compiler %r: attention of few rows is computed by torch, which takes longer", compiler[0])
            return None
        return _declared(ctypes.CDLL(str(_compiled(compiler))))
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: a quote in CC is not closed
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        log.warning("native operations cannot be compiled, torch's are used: %s", told[-1] if told else error)
        return None


def cache_folder() -> Path:
    """What is made once and kept: ``seedmp`` in the user's cache folder.

    Raises:
        OSError: there is no home folder.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "seedmp"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _compiled(compiler: list[str]) -> Path:
    """The library's file, compiled unless there is one of this source, compiler and CPU."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    command = [*compiler, *FLAGS, *([WIDE] if is_x86 else []), str(SOURCE)]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=COMPILE_S, check=True)
    parts = (SOURCE.read_text(), *command[:-1], version.stdout, _cpu())
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    folder = cache_folder()
    file = folder / f"decode-{name}.so"
    if not file.is_file():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / file.name
            subprocess.run(
                [*command, "-o", str(made), "-lm"], capture_output=True, text=True, timeout=COMPILE_S, check=True
            )
            made.replace(file)  # whoever compiled it at the same time made the same
    return file


def _cpu() -> str:
    """What the instructions that may be used follow from."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    address, number = ctypes.c_void_p, ctypes.c_int64
    library.seedmp_rms_norm.argtypes = [address, address, address, number, number, ctypes.c_float, ctypes.c_int]
    library.seedmp_rms_norm.restype = None
    library.seedmp_attend.argtypes = [address] * 7 + [number]
    library.seedmp_attend.restype = None
    return library
