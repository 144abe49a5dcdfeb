"""Engines of these tests start faster; scripts, commands and the tests of ``tests/chaos`` start theirs as users do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.preloaded import Preloaded

STARTS = "seedmp.client.launch"  # the module that starts supervisors


@pytest.fixture(scope="package", autouse=True)
def preloaded() -> Iterator[None]:
    """One process with the libraries of all supervisors."""
    preloaded = Preloaded()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{STARTS}.subprocess", preloaded)
        yield
    preloaded.close()
