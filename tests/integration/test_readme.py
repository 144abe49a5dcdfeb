"""The Python of the README, docs/search.md and docs/extending.md runs as written, anywhere, on the bundled pair."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = ("README.md", "docs/search.md", "docs/extending.md")
BLOCKS = [(page, block) for page in PAGES for block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))]
RUN_S = 90


def test_there_are_blocks() -> None:
    assert {page for page, _ in BLOCKS} == set(PAGES)
    assert len(BLOCKS) >= 4


@pytest.mark.timeout(RUN_S + 30)
@pytest.mark.parametrize(
    "block", [block for _, block in BLOCKS], ids=[f"{page}-{i}" for i, (page, _) in enumerate(BLOCKS)]
)
def test_block_runs_as_written(block: str, tmp_path: Path, runtime_dir: Path) -> None:
    """As a script without a main guard, in a folder that is not the checkout, and nothing is left behind."""
    (tmp_path / "example.py").write_text(block, encoding="utf-8")
    env = {**os.environ, "SEEDMP_RUNTIME_DIR": str(runtime_dir)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not list(runtime_dir.iterdir())
