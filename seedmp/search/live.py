"""A search in the terminal while it runs: thoughts as they appear, values, tokens/s, time left.

Without a terminal it prints a line for each thought that has an outcome, and no control codes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from seedmp import metrics
from seedmp.search.showing import children_of, one_line, show_value, solution_path
from seedmp.search.thought_tree import ROOT_ID, Status, Thought, ThoughtTree

REFRESH_PER_S = 8
MIN_LINES = 6
LINES_AROUND = 5  # of the screen: title, bar, figures, and room for the cursor
PLAIN_TEXT = 100  # characters of a thought where there is no terminal
MIN_PROGRESS = 0.02  # below this progress, the time left would be a guess

SIGNS = {
    Status.RUNNING: ("…", "yellow"),
    Status.OPEN: ("○", "default"),
    Status.CHOSEN: ("●", "cyan"),
    Status.PRUNED: ("-", "bright_black"),
    Status.FINAL: ("★", "bold green"),
    Status.MERGED: ("=", "bright_black"),
    Status.FAILED: ("x", "red"),
    Status.CANCELLED: ("/", "bright_black"),
}


class LiveView:
    """Shows a growing tree from ``__enter__`` to ``finish`` or ``__exit__``.

    ``update`` may be called from any thread, at any rate. On a terminal it only notes what to draw. The thread of
    ``rich.live`` draws it, at most eight times a second. That thread reads the tree while the search goes on, so a
    frame may show a half-changed thought; the next frame is right.

    Args:
        console: where to; None makes one for standard output.
        title: above the tree.
        clock: seconds, monotonic.
    """

    def __init__(
        self, console: Console | None = None, title: str = "", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console()
        self._title = one_line(title)
        self._clock = clock
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._started_s = clock()
        self._tree: ThoughtTree | None = None
        self._tokens = 0
        self._progress: float | None = None
        self._frame: RenderableType = Text()
        self._num_seen = 0  # without a terminal: number of the tree's thoughts that were looked at
        self._waiting: list[Thought] = []  # of these, the ones without an outcome

    def __enter__(self) -> LiveView:
        """Begin to draw."""
        self._started_s = self._clock()
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=REFRESH_PER_S,
                transient=True,
                vertical_overflow="crop",
            )
            self._live.start()
        elif self._title:
            self._say(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing; the last tree stays on the screen."""
        self._stop()

    def update(self, tree: ThoughtTree, *, tokens: int, progress: float | None) -> None:
        """The tree changed.

        Args:
            tree: the same object in each call; read until the view ends.
            tokens: generated so far, for thoughts and values.
            progress: share of the search that is done, 0 to 1; None when it is unknown.
        """
        with self._lock:
            self._tree, self._tokens, self._progress = tree, tokens, progress
            if not self._console.is_terminal:
                self._say_outcomes(tree)

    def finish(self, tree: ThoughtTree, message: str) -> None:
        """Draw the tree as it is in the end, then a message."""
        with self._lock:
            self._tree, self._tokens = tree, max(self._tokens, tree.num_tokens)
            if not self._console.is_terminal:
                self._say_outcomes(tree, is_over=True)
        self._stop()
        with self._lock:
            self._say(self._figures(tree, is_over=True))
            if message:
                self._say(message)

    # --- a terminal -----------------------------------------------------------------------------

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is None:
            return
        live.stop()
        with self._lock:
            if self._tree is not None:
                self._console.print(Group(self._heading(), self._outline(self._tree, is_over=True)))

    def _render(self) -> RenderableType:
        with self._lock:
            if self._tree is None:
                return self._heading()
            with suppress(RuntimeError):  # a thought was added while they were listed (no GIL): next frame
                self._frame = self._draw(self._tree)
            return self._frame

    def _draw(self, tree: ThoughtTree) -> RenderableType:
        parts: list[RenderableType] = [self._heading()]
        if self._progress is not None:
            parts.append(ProgressBar(total=1.0, completed=min(1.0, max(0.0, self._progress)), width=40))
            parts.append(Text())  # the bar does not end its line
        parts.append(Text(self._figures(tree), no_wrap=True, overflow="ellipsis", style="bright_black"))
        parts.append(self._outline(tree))
        return Group(*parts)

    def _heading(self) -> Text:
        return Text(self._title, style="bold", no_wrap=True, overflow="ellipsis")

    def _outline(self, tree: ThoughtTree, *, is_over: bool = False) -> RenderableType:
        thoughts = list(tree.thoughts.values())
        children = children_of(thoughts)
        bold = {thought.thought_id for thought in solution_path(tree)} if is_over else set()
        room = max(MIN_LINES, self._console.size.height - LINES_AROUND)
        shown = choose_lines(thoughts, room, first=bold)
        grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        grid.add_column(justify="right", no_wrap=True, min_width=5)
        grid.add_column(no_wrap=True, min_width=9)
        hidden = sum(child.thought_id not in shown for child in children.get(ROOT_ID, []))
        if hidden:
            grid.add_row(Text(f"+{hidden} more on the first level", style="bright_black"), "", "")
        self._add_rows(grid, children, shown, bold, ROOT_ID, "")
        return grid

    def _add_rows(
        self,
        grid: Table,
        children: dict[str, list[Thought]],
        shown: set[str],
        bold: set[str],
        parent_id: str,
        indent: str,
    ) -> None:
        below = [child for child in children.get(parent_id, []) if child.thought_id in shown]
        for number, thought in enumerate(below):
            last = number == len(below) - 1
            sign, style = SIGNS[thought.status]
            style = f"bold {style}" if thought.thought_id in bold and "bold" not in style else style
            hidden = sum(child.thought_id not in shown for child in children.get(thought.thought_id, []))
            text = Text.assemble(
                (f"{indent}{'└ ' if last else '├ '}", "bright_black"),
                (f"{sign} ", style),
                (f"{thought.thought_id} ", "bright_black"),
                (f"(+{hidden}) " if hidden else "", "magenta"),
                (one_line(thought.short or thought.note), style),
            )
            grid.add_row(text, Text(show_value(thought.value), style=style), Text(thought.status.value, style=style))
            self._add_rows(grid, children, shown, bold, thought.thought_id, indent + ("  " if last else "│ "))

    def _figures(self, tree: ThoughtTree, *, is_over: bool = False) -> str:
        elapsed_s = self._clock() - self._started_s
        parts = [f"{elapsed_s:.0f} s" if elapsed_s >= 10 else f"{elapsed_s:.1f} s"]
        progress = self._progress
        if not is_over and progress is not None and MIN_PROGRESS <= progress < 1:
            parts.append(f"about {elapsed_s * (1 - progress) / progress:.0f} s left")
        parts.append(f"{len(tree)} thought{'' if len(tree) == 1 else 's'}")
        statuses = [thought.status for thought in list(tree.thoughts.values())]
        if not is_over and Status.RUNNING in statuses:
            parts.append(f"{statuses.count(Status.RUNNING)} running")
        speed = metrics.tokens_per_s(self._tokens, elapsed_s)
        parts.append(f"{self._tokens} tokens, {speed:.0f} tokens/s")
        return "   ".join(parts)

    # --- no terminal ----------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        text = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _say_outcomes(self, tree: ThoughtTree, *, is_over: bool = False) -> None:
        """A line for each thought that is not running any more, once."""
        new = list(islice(tree.thoughts.values(), self._num_seen, None))
        self._num_seen += len(new)
        self._waiting += [thought for thought in new if thought.thought_id != ROOT_ID]
        waiting = []
        for thought in self._waiting:
            if thought.status is Status.RUNNING and not is_over:
                waiting.append(thought)
                continue
            elapsed_s = self._clock() - self._started_s
            value = show_value(thought.value)
            # Whether it is chosen or pruned is decided later: this line shows the thought's own outcome.
            quiet = thought.status in (Status.OPEN, Status.CHOSEN, Status.PRUNED)
            word = "" if quiet and not is_over else f" {thought.status.value}"
            note = f" ({one_line(thought.note, 60)})" if thought.note else ""
            says = one_line(thought.short, PLAIN_TEXT)
            self._say(f"[{elapsed_s:6.1f} s] {thought.thought_id}{word}{f' = {value}' if value else ''}: {says}{note}")
        self._waiting = waiting


def choose_lines(thoughts: Sequence[Thought], room: int, *, first: set[str] | None = None) -> set[str]:
    """Ids of the thoughts to show in ``room`` lines, each with the way to it.

    Args:
        thoughts: of a tree, the root among them (it takes no line).
        room: lines.
        first: shown before all others.

    Returns:
        Those asked for first, then running ones, then what changed last.
    """
    first = first or set()
    parents = {thought.thought_id: thought.parent_id for thought in thoughts}
    last_s = {t.thought_id: max(t.started_s, t.finished_s, t.valued_s) for t in thoughts}
    newest = sorted(
        enumerate(thoughts),
        key=lambda row: (
            row[1].thought_id in first,
            row[1].status is Status.RUNNING,
            last_s[row[1].thought_id],
            row[0],
        ),
        reverse=True,
    )
    shown: set[str] = set()
    for _, thought in newest:
        way: list[str] = []
        at: str | None = thought.thought_id
        while at is not None and at != ROOT_ID and at not in shown:
            way.append(at)
            at = parents[at]
        if len(shown) + len(way) <= room:
            shown.update(way)
        if len(shown) == room:
            break
    return shown
