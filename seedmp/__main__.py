"""``python -m seedmp``: the command line."""

from __future__ import annotations

import sys

from seedmp.cli import main

sys.exit(main())
