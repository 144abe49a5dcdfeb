"""Every causal architecture of transformers is served right or refused: none wrong, none dead.

A run tries all variants and a part of the model types, another one each day: the name of the part is printed.
ARCHITECTURES=all tries all (make test-all).
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from tests.helpers.architectures import EQUAL, MODEL_TYPES, NAMES, REFUSED, UNBUILT, VARIANTS, try_one

NUM_PARTS = 4
PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
PART = os.environ.get("ARCHITECTURES") or str(datetime.date.today().toordinal() % NUM_PARTS)
CHOSEN = NAMES if PART == "all" else (*MODEL_TYPES[int(PART) :: NUM_PARTS], *VARIANTS)


def table() -> dict[str, str]:
    """Verdicts of docs/models.md by name."""
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return {row[0].removeprefix("| "): row[1] for row in rows[1:]}


def test_the_page_names_every_architecture() -> None:
    assert list(table()) == list(NAMES)
    assert set(table().values()) <= {EQUAL, REFUSED, UNBUILT}


@pytest.mark.parametrize("name", CHOSEN)
def test_equal_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    verdict, why = try_one(name, tmp_path / "model")
    expected = table()[name]
    assert verdict == expected, f"part {PART}: {verdict}: {why}; docs/models.md says {expected}"
