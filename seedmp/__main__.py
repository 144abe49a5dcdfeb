"""``python -m seedmp``: the command line."""

from __future__ import annotations

import sys

from seedmp.commands.main import main

sys.exit(main())
