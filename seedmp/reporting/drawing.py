"""Pictures as SVG text: the elements, the fonts and the colours that all drawings share. No library is needed.

Words are escaped here and nowhere else. What a function returns is markup, and ``inner`` and ``parts`` are markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

FONTS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
INK, PAPER = "#111111", "#ffffff"
GREY = "#666c77"  # small print: a contrast of 5 to 1 on white
MIST, FAINT, SHADE = "#858b95", "#dddddd", "#f1f2f4"  # lines of less weight, grids, areas behind others

BLUE, ROSE, GREEN, OCHRE, WINE, TEAL = "#4477aa", "#cc6677", "#117733", "#aa7711", "#882255", "#44aa99"
PURPLE, CYAN, SILVER, OLIVE, INDIGO, SAND = "#aa4499", "#88ccee", "#9aa0a8", "#999933", "#5f53b5", "#ddcc77"
# Neighbours differ in lightness too, so that print without colour keeps them apart.
PALETTE = (BLUE, ROSE, GREEN, OCHRE, WINE, TEAL, PURPLE, CYAN, SILVER, OLIVE, INDIGO, SAND)

_REFUSED = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # by XML 1.0, section 2.2


def document(
    width: float, height: float, parts: Iterable[str], *, title: str, description: str = "", font_size: float = 12
) -> str:
    """A whole picture on white paper, without external assets.

    Args:
        width: in CSS pixels, as the height is.
        title: what a screen reader says, and a browser shows.
    """
    width, height = round(width), round(height)
    return element(
        "svg",
        "\n".join(
            [
                "",
                element("title", escaped(title)),
                *([element("desc", escaped(description))] if description else []),
                rect(0, 0, width, height, fill=PAPER),
                *parts,
                "",
            ]
        ),
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width, height=height,
        role="img", font_family=FONTS, font_size=font_size,
    )  # fmt: skip


def element(tag: str, inner: str = "", /, **attributes: object) -> str:
    """One element.

    Args:
        inner: markup inside it.
        attributes: ``font_size`` is written ``font-size``, ``class_`` is written ``class``. Values are escaped,
            numbers rounded to two digits. None leaves the attribute out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items() if value is not None
    )  # fmt: skip
    return f"<{tag}{written}>{inner}</{tag}>" if inner else f"<{tag}{written}/>"


def text(x: float, y: float, words: str, **attributes: object) -> str:
    """Words on one line; ``y`` is the line that letters stand on."""
    return element("text", escaped(words), x=x, y=y, **{"fill": INK, **attributes})


def rect(x: float, y: float, width: float, height: float, inner: str = "", **attributes: object) -> str:
    """A rectangle; ``x`` and ``y`` are its upper left corner."""
    return element("rect", inner, x=x, y=y, width=width, height=height, **attributes)


def circle(x: float, y: float, radius: float, **attributes: object) -> str:
    """A circle round its middle."""
    return element("circle", cx=x, cy=y, r=radius, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> str:
    """A straight line between two points."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **{"stroke": INK, **attributes})


def polyline(points: Sequence[tuple[float, float]], **attributes: object) -> str:
    """Straight lines from point to point."""
    places = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
    return element("polyline", points=places, **{"fill": "none", **attributes})


def path(*steps: str | float, **attributes: object) -> str:
    """A line by SVG's own path commands: ``path("M", 0, 5, "h", 10)``."""
    d = " ".join(step if isinstance(step, str) else _number(step) for step in steps)
    return element("path", d=d, **{"fill": "none", **attributes})


def group(parts: Iterable[str], **attributes: object) -> str:
    """Elements that share attributes."""
    return element("g", "".join(parts), **attributes)


def tooltip(words: str) -> str:
    """What a browser shows when the mouse rests on the element around it."""
    return element("title", escaped(words))


def escaped(words: str) -> str:
    """Words as markup that shows them; a space for each character that XML refuses."""
    return escape(_REFUSED.sub(" ", words))


def _value(value: object) -> str:
    return _number(value) if isinstance(value, float) else escaped(str(value))


def _number(value: float) -> str:
    return f"{round(value, 2):.10g}"
