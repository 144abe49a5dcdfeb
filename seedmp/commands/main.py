"""The command ``seedmp``: its parser, and what becomes of errors."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from seedmp import __version__
from seedmp.errors import ConfigError, SeedmpError

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 2, 130

# name -> (module, help). A module has ``add_arguments(parser)`` and ``run(args)``, and is imported when its
# command is asked for.
COMMANDS = {
    "demo": ("seedmp.commands.demo", "grow a reasoning tree, then compare the schedules"),
    "generate": ("seedmp.commands.generate", "continue a prompt"),
    "bench": ("seedmp.benchmarks.command", "measure this machine, with what it shows and does not"),
    "growmap": ("seedmp.commands.growmap", "show, make and convert shapes of static token trees"),
    "solve": ("seedmp.commands.solve", "search trees of thoughts for the problems of a task"),
    "profile": ("seedmp.commands.profile", "run a command or script and see where its time goes"),
    "simulate": ("seedmp.commands.simulate", "what other numbers of drafts, trees and policies would reach"),
    "tune": ("seedmp.commands.tune", "measure this machine, and write the fastest settings as a plan"),
    "doctor": ("seedmp.commands.doctor", "what this machine has, and how it would be used"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        the exit status: 0, 2 after an error that is told in one line, 130 after Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        try:
            _check_text(words)
            args = parse(words)
            status: int = args.run(args)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # else a full disk is met when nobody can tell of it
        return status
    except SeedmpError as error:
        _tell(f"seedmp: {error}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        _tell("seedmp: interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        _drop(sys.stdout)
        return EXIT_OK
    except (OSError, UnicodeError) as error:  # a full disk, a file that is not there, text that is none
        _drop(sys.stdout)
        _tell(f"seedmp: {error}")
        return EXIT_ERROR


def _check_text(words: Sequence[str]) -> None:
    """Raises ConfigError: a word of the command line is not valid UTF-8."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"argument {word!r}: must be valid UTF-8") from None


def _tell(text: str) -> None:
    """Print an error, where somebody reads errors."""
    if sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            _drop(sys.stderr)


def _drop(stream: TextIO | None) -> None:
    """What is in the buffer of a stream goes nowhere; else the interpreter's end would fail on it."""
    with contextlib.suppress(OSError):  # it is no file
        if stream is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; ``run`` among them runs it.

    Raises:
        SystemExit: after ``--help`` or ``--version``, or arguments that argparse refuses.
    """
    parser = argparse.ArgumentParser(prog="seedmp", description="Reasoning trees by scheduled speculative decoding.")
    parser.add_argument("--version", action="version", version=f"seedmp {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    asked_for = next((word for word in argv if not word.startswith("-")), None)
    for name, (module_name, help_line) in COMMANDS.items():
        command = commands.add_parser(name, help=help_line)
        if name == asked_for:
            module = importlib.import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(run=module.run, main=main)  # main: ``profile`` runs another command
    return parser.parse_args(argv)
