"""The tree of thoughts: what was generated, what it is worth, what it cost; saved and loaded as JSON."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from seedmp.errors import ConfigError
from seedmp.plain_json import parse_json

FORMAT = "seedmp-thought-tree"
VERSION = 1
ROOT_ID = "root"
TIMINGS = ("started_s", "finished_s", "valued_s")


class Status(enum.Enum):
    """What became of a thought."""

    RUNNING = "running"  # being generated or valued
    OPEN = "open"  # valued, may be continued
    CHOSEN = "chosen"  # continued by the search
    PRUNED = "pruned"  # valued, but not continued
    FINAL = "final"  # claims to be a solution
    MERGED = "merged"  # equal to another thought, which goes on for both
    FAILED = "failed"  # not in the task's format, or its request failed; ``note`` says why
    CANCELLED = "cancelled"  # a budget ran out first


@dataclass
class Thought:
    """One node.

    Attributes:
        thought_id: ``root``, or the way down from it: ``0.2`` is the third child of the first child.
        parent_id: of the thought that it continues; None at the root.
        text: what the model wrote, cut where the task says.
        label: a few words, for places without room for the text. Empty: the text's beginning is shown.
        state: the situation after the thought, as the task defines it. Thoughts of equal state are merged.
        value: higher is better; None when not valued.
        status: see ``Status``.
        is_final: whether it claims to be a solution.
        note: why it failed; what it was merged into.
        num_tokens: generated for the text.
        num_value_tokens: generated or scored for the value (0 when it was known already).
        started_s, finished_s, valued_s: since the search began; -1 when it did not happen.
    """

    thought_id: str
    parent_id: str | None
    text: str = ""
    label: str = ""
    state: str = ""
    value: float | None = None
    status: Status = Status.RUNNING
    is_final: bool = False
    note: str = ""
    num_tokens: int = 0
    num_value_tokens: int = 0
    started_s: float = -1.0
    finished_s: float = -1.0
    valued_s: float = -1.0

    @property
    def short(self) -> str:
        """The label, or else the text."""
        return self.label or self.text

    @property
    def depth(self) -> int:
        """0 at the root."""
        return 0 if self.thought_id == ROOT_ID else self.thought_id.count(".") + 1

    @property
    def order(self) -> tuple[int, ...]:
        """Sort key: the order in which thoughts were asked for, not in which they finished."""
        return () if self.thought_id == ROOT_ID else tuple(int(part) for part in self.thought_id.split("."))

    def child_id(self, index: int) -> str:
        """Id of the ``index``-th child."""
        return str(index) if self.thought_id == ROOT_ID else f"{self.thought_id}.{index}"


@dataclass
class ThoughtTree:
    """All thoughts of one search, in the order of their ids within a level.

    Attributes:
        task, problem: what was to be solved, in words.
        search: settings of the search, in words.
        thoughts: by id; the root is always there.
    """

    task: str = ""
    problem: str = ""
    search: str = ""
    thoughts: dict[str, Thought] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if ROOT_ID not in self.thoughts:
            self.thoughts[ROOT_ID] = Thought(ROOT_ID, None, status=Status.CHOSEN)

    @property
    def root(self) -> Thought:
        """Where every path begins; has no text."""
        return self.thoughts[ROOT_ID]

    def add(self, parent: Thought, index: int, started_s: float) -> Thought:
        """The ``index``-th child of a thought, running."""
        thought = Thought(parent.child_id(index), parent.thought_id, started_s=started_s)
        self.thoughts[thought.thought_id] = thought
        return thought

    def path(self, thought: Thought) -> list[Thought]:
        """From the root's child down to the thought; empty for the root."""
        path: list[Thought] = []
        while thought.parent_id is not None:
            path.append(thought)
            thought = self.thoughts[thought.parent_id]
        return path[::-1]

    def children(self, thought: Thought) -> list[Thought]:
        """In the order that they were asked for."""
        return sorted((t for t in self.thoughts.values() if t.parent_id == thought.thought_id), key=lambda t: t.order)

    def levels(self) -> list[list[Thought]]:
        """Thoughts by depth, the root's level first."""
        levels: list[list[Thought]] = []
        for thought in self:
            while len(levels) <= thought.depth:
                levels.append([])
            levels[thought.depth].append(thought)
        return levels

    def __iter__(self) -> Iterator[Thought]:
        """Level by level, each in the order asked for."""
        return iter(sorted(self.thoughts.values(), key=lambda t: (t.depth, t.order)))

    def __len__(self) -> int:
        """Thoughts without the root."""
        return len(self.thoughts) - 1

    def count(self, status: Status) -> int:
        """Thoughts of one status."""
        return sum(thought.status is status for thought in self.thoughts.values())

    @property
    def num_tokens(self) -> int:
        """Tokens generated for thoughts and values."""
        return sum(thought.num_tokens + thought.num_value_tokens for thought in self.thoughts.values())

    def to_plain(self, *, timings: bool = True) -> dict[str, Any]:
        """A JSON-able dictionary; without timings it is a function of the seed alone.

        Values then have two decimals, because the sixth decimal depends on which rows were packed into a forward.
        """
        rows = []
        for thought in self:
            row = asdict(thought) | {"status": thought.status.value}
            if not timings:
                row = {name: row[name] for name in row if name not in TIMINGS}
                row["value"] = None if thought.value is None else round(thought.value, 2) + 0.0
            rows.append(row)
        head = {"format": FORMAT, "version": VERSION, "task": self.task, "problem": self.problem, "search": self.search}
        return head | {"thoughts": rows}

    def to_json(self, *, timings: bool = True) -> str:
        """``to_plain`` as text, the same bytes for the same tree."""
        return json.dumps(self.to_plain(timings=timings), indent=1, ensure_ascii=False)

    def save(self, path: str | Path, *, timings: bool = True) -> None:
        """Write JSON."""
        Path(path).write_text(self.to_json(timings=timings) + "\n", "utf-8")

    @classmethod
    def from_plain(cls, plain: Any) -> ThoughtTree:
        """The inverse of ``to_plain``.

        Raises:
            ConfigError: not such a dictionary; the message says what is wrong.
        """
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise ConfigError(f"no thought tree: 'format' must be {FORMAT!r}")
        if plain.get("version") != VERSION:
            raise ConfigError(f"thought tree of version {plain.get('version')!r}: only {VERSION} is known")
        known = {f.name for f in fields(Thought)}
        thoughts: dict[str, Thought] = {}
        for number, row in enumerate(plain.get("thoughts", ())):
            try:
                thought = Thought(**{name: row[name] for name in row if name in known})
                thought.status = Status(thought.status)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"thought {number} of the tree: {error}") from None
            if thought.parent_id is not None and thought.parent_id not in thoughts:
                raise ConfigError(f"thought {thought.thought_id!r}: no parent {thought.parent_id!r} before it")
            thoughts[thought.thought_id] = thought
        if ROOT_ID not in thoughts:
            raise ConfigError("a thought tree without a root")
        return cls(plain.get("task", ""), plain.get("problem", ""), plain.get("search", ""), thoughts)

    @classmethod
    def load(cls, path: str | Path) -> ThoughtTree:
        """Read what ``save`` wrote.

        Raises:
            ConfigError: the file cannot be read or is no thought tree.
        """
        try:
            return cls.from_plain(parse_json(Path(path).read_bytes()))
        except (OSError, ValueError) as error:  # ConfigError too
            raise ConfigError(f"{path}: {error}") from None


def states(path: Sequence[Thought]) -> list[str]:
    """States along a path."""
    return [thought.state for thought in path]


def ids_of(path: Iterable[Thought]) -> list[str]:
    """Ids along a path."""
    return [thought.thought_id for thought in path]
