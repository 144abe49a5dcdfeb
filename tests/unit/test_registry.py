"""Parts by name: built-in ones, and ones of the user's own."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from seedmp.errors import ConfigError
from seedmp.registry import Registry, import_folder

PARTS: Registry[type] = Registry("part", {"ordered": "collections:OrderedDict"})


def test_a_built_in_part_is_imported_by_name() -> None:
    assert PARTS.load("ordered") is OrderedDict
    assert PARTS.names() == ("ordered",)
    assert import_folder("ordered") is None


def test_a_part_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_part_of_mine.py").write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert PARTS.load("own_part_of_mine:Mine").__name__ == "Mine"
        assert import_folder("own_part_of_mine:Mine") == str(tmp_path)
    finally:
        sys.modules.pop("own_part_of_mine", None)


def test_a_part_of_another_kind_is_refused() -> None:
    mappings: Registry[type] = Registry("mapping", {"ordered": "collections:OrderedDict"}, "collections.abc:Mapping")
    assert mappings.load("ordered") is OrderedDict
    for name in ("math:pi", "collections:deque"):
        with pytest.raises(ConfigError, match=f"mapping={name!r}: must be a class that extends .*Mapping"):
            mappings.load(name)
    with pytest.raises(ConfigError, match="the class must define __getitem__, __iter__, __len__"):
        mappings.load("collections.abc:Mapping")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("unordered", "must be one of ordered, or module:attribute"),
        (None, "must be one of ordered"),
        ("no_such_module_here:Part", "No module named"),
        ("collections:NoSuchPart", "no attribute"),
        ("__main__:Part", "a file of its own"),
    ],
)
def test_other_names_are_refused(name: object, why: str) -> None:
    with pytest.raises(ConfigError, match=f"part={name!r}.*{why}"):
        PARTS.load(name)
