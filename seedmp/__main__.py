"""``python -m seedmp``: the command line."""

from __future__ import annotations

import sys

# `-m` has put the current folder before every library, a file `html.py` in it included. What is of the user's own may
# still be found there, after everything else.
if not getattr(sys.flags, "safe_path", False):
    sys.path.append(sys.path.pop(0))

from seedmp.commands.main import main

sys.exit(main())
