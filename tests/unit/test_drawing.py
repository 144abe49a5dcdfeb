"""SVG elements: words stay words, numbers are short, a document is well-formed."""

from __future__ import annotations

from xml.etree import ElementTree

from seedmp.reporting import drawing

EVIL = "</text><script>alert(1)</script> \"double\" 'single' & \x00\x1b\ud800 é"
SHOWN = EVIL.translate(dict.fromkeys((0, 0x1B, 0xD800), " "))


def test_words_are_never_markup() -> None:
    parts = [
        drawing.text(0, 1, EVIL, data_name=EVIL),
        drawing.rect(0, 0, 1, 1, drawing.tooltip(EVIL)),
        drawing.group([drawing.text(0, 0, "inside")], class_="row"),
    ]
    root = ElementTree.fromstring(drawing.document(20, 10, parts, title=EVIL, description=EVIL))
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert tags == ["svg", "title", "desc", "rect", "text", "rect", "title", "g", "text"]
    assert [root[0].text, root[1].text, root[3].text, root[4][0].text] == [SHOWN] * 4
    assert root[3].get("data-name") == SHOWN and root[5].get("class") == "row"


def test_attributes_are_short_and_none_is_left_out() -> None:
    assert drawing.line(0, 1 / 3, 1e4 + 0.25, -2.0) == '<line x1="0" y1="0.33" x2="10000.25" y2="-2" stroke="#111111"/>'
    assert drawing.path("M", 1.0, 2.5, "h", 3, stroke_dasharray=None) == '<path d="M 1 2.5 h 3" fill="none"/>'
    assert drawing.polyline([(0.004, 1.0), (2, 3)], fill="red") == '<polyline points="0,1 2,3" fill="red"/>'
    assert drawing.circle(1, 2, 3, font_size=4) == '<circle cx="1" cy="2" r="3" font-size="4"/>'


def test_a_picture_has_a_size_and_paper() -> None:
    root = ElementTree.fromstring(drawing.document(99.6, 50, [], title="empty"))
    assert (root.get("width"), root.get("height"), root.get("viewBox")) == ("100", "50", "0 0 100 50")
    assert root[1].get("fill") == drawing.PAPER and root.get("font-family") == drawing.FONTS


def test_colours_are_told_apart() -> None:
    assert len(set(drawing.PALETTE)) == len(drawing.PALETTE) == 12
