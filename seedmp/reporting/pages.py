"""HTML pages from the templates beside this file. Every value is escaped, pictures of our own drawing apart."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from seedmp.reporting.drawing import FONTS


def render(name: str, /, **values: object) -> str:
    """A page that needs no other file and no network.

    Args:
        name: of a template: ``bench`` or ``profile``.
        values: what the template uses; a missing one is an error.
    """
    return _environment().get_template(f"{name}.html").render(fonts=FONTS, **values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("seedmp.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
