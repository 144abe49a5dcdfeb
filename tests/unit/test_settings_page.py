"""docs/settings.md has every setting, as the docstrings describe it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from seedmp.methods.registry import METHODS
from tests.helpers.settings_page import PAGE, SETTINGS, described, described_with_bases, fill


def test_the_page_is_as_the_docstrings() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page) == page, "run: python -m tests.helpers.settings_page"


@pytest.mark.parametrize("settings", SETTINGS.values())
def test_every_setting_is_described(settings: type[Any]) -> None:
    assert set(described(settings)) == {field.name for field in dataclasses.fields(settings)}


@pytest.mark.parametrize("name", METHODS.names())
def test_every_setting_of_a_method_is_described(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(METHODS.load(name))}
    assert fields <= set(described_with_bases(METHODS.load(name)))
