"""What a supervisor's process does first: it comes from the engine, and no library is loaded yet.

``seedmp/client/launch.py`` starts ``python -c BOOTSTRAP CHECKOUT ARGUMENTS``, not ``python -m``. The latter would
search the current folder for libraries, and run a ``torch.py`` that somebody left there.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from seedmp.workers.janitor import Janitor
from seedmp.workers.owner import Owner


def main() -> None:
    """Fork the janitor while this process is small, load the libraries, then supervise."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--engine-in", type=int, required=True)
    parser.add_argument("--engine-out", type=int, required=True)
    parser.add_argument("--owner", type=int, required=True, help="pid of the user's process")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    owner = Owner(args.owner)
    janitor = Janitor(args.folder, owner)
    from seedmp.workers import supervisor  # takes seconds

    supervisor.main(args.folder, args.engine_in, args.engine_out, owner, janitor)
