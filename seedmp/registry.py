"""Parts that have names: methods, accept rules, policies, draft kinds, runners.

A built-in part is one line in the table of its registry and is imported on first use. A part of the user's own
is named ``module:attribute``; nothing needs to be registered. It must lie in a file that can be imported,
because worker processes import it, too.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Generic, TypeVar

from seedmp.checks import shown
from seedmp.errors import ConfigError

PartT = TypeVar("PartT")


class Registry(Generic[PartT]):
    """The parts of one kind, by name.

    Args:
        setting: what the kind is called in settings and messages, such as ``policy``.
        table: ``module:attribute`` of each built-in part, by name.
        extends: ``module:Class`` that every part extends; None: a part may be any object.
    """

    def __init__(self, setting: str, table: dict[str, str], extends: str | None = None) -> None:
        self.setting = setting
        self.table = table
        self.extends = extends

    def names(self) -> tuple[str, ...]:
        """Names of the built-in parts."""
        return tuple(self.table)

    def load(self, name: Any) -> PartT:
        """The part of this name, imported now if it was not.

        Raises:
            ConfigError: no part has this name, it cannot be imported, or it is not a class of this kind.
        """
        where = self.table.get(name, name) if isinstance(name, str) else ""
        module_name, colon, attribute = where.partition(":")
        if not (colon and module_name and attribute):
            raise ConfigError(
                f"{self.setting}={shown(name)}: must be one of {', '.join(self.table)}, "
                "or module:attribute for a part of your own"
            )
        if module_name == "__main__":
            raise ConfigError(
                f"{self.setting}={shown(name)}: worker processes cannot import __main__: "
                "put the part into a file of its own"
            )
        try:
            found = _import(module_name, attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{self.setting}={shown(name)}: {error}") from error
        if self.extends is not None:
            base_module, _, base = self.extends.partition(":")
            if not (isinstance(found, type) and issubclass(found, _import(base_module, base))):
                raise ConfigError(f"{self.setting}={shown(name)}: must be a class that extends {base_module}.{base}")
            missing = sorted(getattr(found, "__abstractmethods__", ()))
            if missing:
                raise ConfigError(f"{self.setting}={shown(name)}: the class must define {', '.join(missing)}")
        part: PartT = found
        return part


def _import(module_name: str, attribute: str) -> Any:
    return getattr(importlib.import_module(module_name), attribute)


def import_folder(name: str) -> str | None:
    """The folder from which the module of a ``module:attribute`` name was imported; None for a built-in name.

    Worker processes append it to their search path, so that they find the same file.
    """
    top = name.partition(":")[0].partition(".")[0] if ":" in name else ""
    file = getattr(sys.modules.get(top), "__file__", None)
    if file is None:
        return None
    path = Path(file).resolve()
    return str(path.parent.parent if path.stem == "__init__" else path.parent)
