"""The page in a real browser; skipped where there is no Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from seedmp.search.page import save_html
from seedmp.search.thought_tree import Status, ThoughtTree

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
OPEN_S = 2.0  # a page of 500 thoughts


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.alone
def test_page_of_500_thoughts_opens(tmp_path: Path) -> None:
    tree = ThoughtTree("blocksworld", "Goal: red on blue", "bfs")
    parents = [tree.root]
    while len(tree) < 500:
        parent = parents.pop(0)
        for index in range(5):
            thought = tree.add(parent, index, float(len(tree)))
            thought.text, thought.status, thought.value = f"<i>{len(tree)}</i>", Status.OPEN, 0.5
            parents.append(thought)
    save_html(tree, tmp_path / "tree.html")
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    url = (tmp_path / "tree.html").as_uri()
    page = subprocess.run([*command, url], capture_output=True, text=True, timeout=60, check=True).stdout
    ready = re.search(r'data-ready-ms="([\d.]+)"', page)
    assert ready is not None, "the page's script did not come to its end"
    assert float(ready[1]) < OPEN_S * 1000
    assert page.count('role="treeitem"') == 501
    assert "&lt;i&gt;1&lt;/i&gt;" in page and "<i>1</i>" not in page
