"""The command ``seedmp``: its parser, and what becomes of errors."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from seedmp import __version__
from seedmp.errors import SeedmpError

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
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        status: int = args.run(args)
        return status
    except SeedmpError as error:
        print(f"seedmp: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("seedmp: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


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
