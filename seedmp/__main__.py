"""``python -m seedmp``: the command line."""

from __future__ import annotations

import sys

# `-m` has put the current folder before every library, a `torch.py` that somebody left there included. The command
# `seedmp` does not look there either: a part of the user's own is found by PYTHONPATH.
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

from seedmp.commands.main import main

sys.exit(main())
