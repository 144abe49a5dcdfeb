"""The page, the picture and the terminal: every thought is there, and none of its text is obeyed."""

from __future__ import annotations

import io
import json
import math
import re
import threading
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from seedmp.errors import ConfigError
from seedmp.search.live import LiveView, choose_lines
from seedmp.search.page import save_html, to_html
from seedmp.search.picture import save_svg, svg, tidy_rows
from seedmp.search.showing import children_of, one_line, show_value, solution_path
from seedmp.search.thought_tree import Status, Thought, ThoughtTree

EVIL = "</script><b>bold</b> <!-- \"quoted\" & 'single' \x1b[31mred\x00 \ud800 ]]> é"
NAMESPACE = "{http://www.w3.org/2000/svg}"


def grown(num_thoughts: int, width: int = 3) -> ThoughtTree:
    """A tree of that size, level by level, with every status in it."""
    tree = ThoughtTree("blocksworld", "Goal: red on blue", "bfs")
    statuses = [Status.CHOSEN, Status.PRUNED, Status.OPEN, Status.MERGED, Status.FAILED, Status.CANCELLED, Status.FINAL]
    parents = [tree.root]
    while len(tree) < num_thoughts:
        parent = parents.pop(0)
        for index in range(width):
            if len(tree) == num_thoughts:
                break
            number = len(tree)
            thought = tree.add(parent, index, number * 0.5)
            thought.text, thought.status = f"Action: move {number}", statuses[number % len(statuses)]
            thought.finished_s = thought.started_s + 0.4
            if thought.status in (Status.MERGED, Status.FAILED):
                thought.note = "why"
            else:
                thought.value, thought.valued_s = number / num_thoughts, thought.finished_s + 0.1
            thought.num_tokens, thought.num_value_tokens = 20, 2
            parents.append(thought)
    return tree


def odd() -> ThoughtTree:
    """Everything that a view may stumble over."""
    tree = ThoughtTree(EVIL, EVIL, EVIL)
    running = tree.add(tree.root, 0, 1.0)
    running.text = EVIL
    for index, value in enumerate((math.inf, -math.inf, math.nan, -1.5, 1e9, 1e-9), start=1):
        thought = tree.add(tree.root, index, -1.0)
        thought.value, thought.status, thought.text, thought.note = value, Status.FINAL, EVIL * 20, EVIL
    failed = tree.add(running, 0, 0.0)
    failed.status, failed.note = Status.FAILED, EVIL
    merged = tree.add(running, 1, 0.0)
    merged.status = Status.MERGED
    return tree


class Scripts(HTMLParser):
    """Elements of a page, the text of its scripts, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, str] = {}
        self.fetched: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.inside = tag if tag in ("script", "title") and found.get("type") is None else found.get("id") or ""
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, text: str) -> None:
        self.texts[self.inside] = self.texts.get(self.inside, "") + text


def read(page: str) -> tuple[Scripts, Any]:
    parser = Scripts()
    parser.feed(page)
    parser.close()
    return parser, json.loads(parser.texts["data"])


# --- the page ------------------------------------------------------------------------------------


def test_page_holds_every_thought() -> None:
    tree = grown(30)
    _, data = read(to_html(tree, summary={"solved": "yes", "tokens/s": "41.0"}))
    assert [row["id"] for row in data["thoughts"]] == [thought.thought_id for thought in tree]
    assert data["summary"] == [["solved", "yes"], ["tokens/s", "41.0"]]
    for number, (row, thought) in enumerate(zip(data["thoughts"], tree, strict=True)):
        assert row["parent"] < number  # parents come first
        assert (row["parent"] == -1) == (thought.parent_id is None)
        if row["parent"] >= 0:
            assert data["thoughts"][row["parent"]]["id"] == thought.parent_id
        assert (row["text"], row["value"], row["status"]) == (thought.text, thought.value, thought.status.value)
        assert row["times"] == [thought.started_s, thought.finished_s, thought.valued_s]


def test_page_obeys_no_text_of_a_model() -> None:
    plain, _ = read(to_html(ThoughtTree()))
    page, data = read(to_html(odd(), title=EVIL, summary={EVIL: EVIL}))
    assert page.tags == plain.tags  # no text became an element
    assert data["thoughts"][1]["text"] == EVIL
    assert page.texts["title"] == EVIL
    assert all(row["value"] is None or math.isfinite(row["value"]) for row in data["thoughts"])


def test_script_never_makes_markup_of_text() -> None:
    script = read(to_html(ThoughtTree()))[0].texts["script"]
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert name not in script


def test_page_is_self_contained(tmp_path: Path) -> None:
    save_html(grown(30), tmp_path / "tree.html")
    page = (tmp_path / "tree.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"'<]*", page)) == {"http://www.w3.org/2000/svg"}
    assert set(read(page)[0].fetched) == {"data:,"}
    assert "default-src 'none'" in page
    assert "@import" not in page and "url(" not in page


def test_odd_text_is_written(tmp_path: Path) -> None:
    save_html(odd(), tmp_path / "odd.html", title=EVIL)
    assert (tmp_path / "odd.html").read_text(encoding="utf-8")


def test_page_of_a_thousand_thoughts_is_written_in_a_second(tmp_path: Path) -> None:
    tree = grown(1000)
    began_s = time.perf_counter()
    save_html(tree, tmp_path / "tree.html")
    assert time.perf_counter() - began_s < 1


def test_solution_is_the_best_final_thought_unless_named() -> None:
    tree = grown(30)
    finals = [thought for thought in tree if thought.status is Status.FINAL]
    best = max(finals, key=lambda thought: thought.value or 0.0)
    assert solution_path(tree) == tree.path(best)
    assert solution_path(tree, "0.1") == tree.path(tree.thoughts["0.1"])
    assert solution_path(ThoughtTree()) == []
    _, data = read(to_html(tree, answer_id="0.1"))
    assert [data["thoughts"][number]["id"] for number in data["solution"]] == ["0", "0.1"]
    with pytest.raises(ConfigError, match="answer_id"):
        to_html(tree, answer_id="9.9")


# --- the picture ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [ThoughtTree(), grown(1), grown(30), grown(250, 5), odd()], ids=len)
@pytest.mark.parametrize("width", [10, 960])
def test_picture_has_a_group_for_each_thought(tree: ThoughtTree, width: int, tmp_path: Path) -> None:
    root = ElementTree.fromstring(svg(tree, width=width))
    groups = [group for group in root.iter(f"{NAMESPACE}g") if (group.get("class") or "").startswith("thought ")]
    assert sorted(group.get("data-id") or "" for group in groups) == sorted(set(tree.thoughts) - {"root"})
    for group in groups:
        assert group.get("class") == f"thought {tree.thoughts[group.get('data-id') or ''].status.value}"
    save_svg(tree, tmp_path / "tree.svg")
    assert ElementTree.parse(tmp_path / "tree.svg")


def test_picture_drops_labels_where_it_is_crowded() -> None:
    def num_labels(tree: ThoughtTree) -> int:
        root = ElementTree.fromstring(svg(tree))
        boxes = [group for group in root.iter(f"{NAMESPACE}g") if group.find(f"{NAMESPACE}rect") is not None]
        return sum(group.find(f"{NAMESPACE}text") is not None for group in boxes if group.get("data-id"))

    assert num_labels(grown(30)) == 31
    assert num_labels(grown(250, 5)) < 40  # two levels of four


def test_rows_of_a_level_do_not_touch() -> None:
    tree = grown(200, 4)
    rows = tidy_rows(children_of(tree.thoughts.values()))
    assert min(rows.values()) == pytest.approx(0)
    for level in tree.levels():
        places = [rows[thought.thought_id] for thought in level]
        assert all(b - a >= 1 - 1e-9 for a, b in pairwise(places))


def test_picture_has_no_text_when_none_is_wanted() -> None:
    assert "Action: move 1<" not in re.sub(r"<title>.*?</title>", "", svg(grown(8), max_text=0))
    assert "Action: move 1<" in re.sub(r"<title>.*?</title>", "", svg(grown(8)))


# --- the terminal --------------------------------------------------------------------------------


def plain_console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=60), out


def terminal(height: int = 20) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=80, height=height, force_terminal=True, legacy_windows=False, _environ={})
    return console, out


def test_without_a_terminal_each_thought_is_a_line_once() -> None:
    console, out = plain_console()
    tree = ThoughtTree("t", "p")
    with LiveView(console, "Problem 1", clock=lambda: 3.0) as view:
        view.update(tree, tokens=0, progress=None)
        first = tree.add(tree.root, 0, 0.0)
        second = tree.add(tree.root, 1, 0.0)
        view.update(tree, tokens=5, progress=0.1)
        assert "first thought" not in out.getvalue()
        first.text, first.value, first.status = "first thought", 0.5, Status.OPEN
        view.update(tree, tokens=9, progress=0.5)
        view.update(tree, tokens=9, progress=0.5)
        first.status = Status.CHOSEN
        second.text, second.status, second.note = "second\nthought", Status.FAILED, "no move"
        view.update(tree, tokens=12, progress=0.9)
        late = tree.add(first, 0, 0.0)
        late.text = "never done"
        view.finish(tree, "solved: yes")
    lines = out.getvalue().splitlines()
    assert lines == [
        "Problem 1",
        "[   0.0 s] 0 = 0.5: first thought",
        "[   0.0 s] 1 failed: second thought (no move)",
        "[   0.0 s] 0.0 running: never done",
        "0.0 s   3 thoughts   12 tokens, 0 tokens/s",
        "solved: yes",
    ]


def test_without_a_terminal_no_control_codes() -> None:
    console, out = plain_console()
    with LiveView(console, EVIL) as view:
        view.update(odd(), tokens=1, progress=None)
        view.finish(odd(), EVIL)
    assert all(char.isprintable() or char == "\n" for char in out.getvalue())
    assert "running" in out.getvalue() and "∞" in out.getvalue()


@pytest.mark.parametrize("tree", [ThoughtTree(), grown(1), grown(300), odd()], ids=len)
def test_on_a_terminal_the_tree_fits_the_screen(tree: ThoughtTree) -> None:
    console, out = terminal()
    times = iter(range(10_000))
    view = LiveView(console, "Problem 1", clock=lambda: float(next(times)))
    with view:
        view.update(tree, tokens=100, progress=0.5)
        lines = console.render_lines(view._render(), pad=False)
        assert len(lines) <= 20
        text = "\n".join("".join(segment.text for segment in line) for line in lines)
        assert "left" in text and "tokens/s" in text and "\x1b" not in text
        view.finish(tree, "done")
    assert "\x1b[31mred" not in out.getvalue()
    assert out.getvalue().rstrip().endswith("done")


def test_running_and_newest_thoughts_are_shown_first() -> None:
    tree = grown(100)
    running = tree.thoughts["2.1"]
    running.status = Status.RUNNING
    shown = choose_lines(list(tree.thoughts.values()), 8)
    newest = list(tree.thoughts)[-1]
    assert {"2", "2.1", newest} <= shown
    assert len(shown) <= 8
    assert all(tree.thoughts[name].parent_id in shown | {"root"} for name in shown)
    assert choose_lines([tree.root], 8) == set()


def test_updates_come_from_another_thread() -> None:
    console, out = terminal()
    tree = ThoughtTree("t", "p")
    errors: list[BaseException] = []

    def search(view: LiveView) -> None:
        try:
            parent = tree.root
            for number in range(2000):
                thought = tree.add(parent, number % 5, 0.0)
                thought.text, thought.status = f"thought {number}", Status.OPEN
                parent = thought if number % 400 == 4 else parent
                view.update(tree, tokens=number, progress=number / 2000)
        except BaseException as error:
            errors.append(error)

    with LiveView(console, "Problem 1") as view:
        thread = threading.Thread(target=search, args=(view,))
        thread.start()
        while thread.is_alive():
            console.render_lines(view._render())
        thread.join()
        view.finish(tree, "done")
    assert not errors
    assert "1999 tokens" in out.getvalue()


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0, "0"), (0.5, "0.5"), (-1.25, "−1.25"), (12345.0, "12345"), (1e9, "1.0e+09"), (-1e-9, "−1.0e−09"),
     (math.inf, "∞"), (-math.inf, "−∞"), (math.nan, "NaN"), (2 / 3, "0.667")],
)  # fmt: skip
def test_values_are_short(value: float | None, text: str) -> None:
    assert show_value(value) == text
    assert len(text) <= 8


def test_one_line() -> None:
    assert one_line(" a\n\tb\x1b[0m ") == "a b [0m"
    assert one_line("abcdef", 4) == "abc…"
    assert one_line("abcd", 4) == "abcd"
    assert one_line("", 0) == ""


def test_children_are_those_of_the_tree() -> None:
    tree = grown(40)
    children = children_of(tree.thoughts.values())
    for thought in tree:
        assert children.get(thought.thought_id, []) == tree.children(thought)
    assert isinstance(children["root"][0], Thought)
