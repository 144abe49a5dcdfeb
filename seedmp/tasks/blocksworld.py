"""Blocksworld: states in words, a true simulator, and problems from a file or made by us.

The wording is that of the published problems: ``the blue block is clear, the hand is empty, the red
block is on top of the blue block and the blue block is on the table``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Any

from seedmp.checks import check_whole
from seedmp.errors import ConfigError
from seedmp.search.task import Ask, Defaults, Parsed, Task
from seedmp.search.thought_tree import Thought
from seedmp.tasks.chat import conversation, plain_lines, read_label
from seedmp.tasks.jsonl import FieldError, check_limit, read_problems, text_field

COLOURS = ("red", "blue", "orange", "yellow", "white")  # a problem of n blocks has the first n
MIN_BLOCKS = 3
DEFAULT_NUM_PROBLEMS = 8
MANY_STEPS = 10  # number of steps that "many" stands for; "Steps left" has no larger number
MAX_PATH_WORDS = 310  # of a prompt; where a path gets longer, its last state begins a new one, as in training

_FACT = re.compile(
    r"the (?:hand is (?P<hand>empty)"
    r"|hand is holding the (?P<held>\w+) block"
    r"|(?P<clear>\w+) block is clear"
    r"|(?P<table>\w+) block is on the table"
    r"|(?P<upper>\w+) block is on top of the (?P<lower>\w+) block)"
)
_ACTION = re.compile(
    r"(?:pick up|put down) the \w+ block"
    r"|stack the \w+ block on top of the \w+ block"
    r"|unstack the \w+ block from on top of the \w+ block"
)
_ACTION_LINE = re.compile(r"^Action: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class BlocksworldProblem:
    """One planning problem.

    Attributes:
        init_text: the state to begin with.
        goal_text: what has to hold at the end: one or more "on top of" facts.
        num_steps: length of the shortest plan, when known.
        problem_id: where it comes from.
    """

    init_text: str
    goal_text: str
    num_steps: int | None = None
    problem_id: str = ""

    @property
    def thought_prompt(self) -> str:
        """Prompt of the first thought: three lines follow (think, action, state)."""
        return thought_prompt(self.goal_text, self.init_text)


@dataclass(frozen=True)
class State:
    """Where each block is.

    Attributes:
        towers: from bottom to top; sorted, so that equal states compare equal.
        held: the block in the hand, or None.
    """

    towers: tuple[tuple[str, ...], ...]
    held: str | None = None

    def text(self) -> str:
        """The state in words: clear blocks, the hand, blocks on blocks, blocks on the table."""
        tops = [tower[-1] for tower in self.towers]
        facts = [f"the {block} block is clear" for block in _in_order(tops)]
        facts.append(f"the hand is holding the {self.held} block" if self.held else "the hand is empty")
        below = dict(self.on_facts())
        facts += [f"the {block} block is on top of the {below[block]} block" for block in _in_order(below)]
        facts += [f"the {block} block is on the table" for block in _in_order(t[0] for t in self.towers)]
        return _join(facts)

    def on_facts(self) -> Iterator[tuple[str, str]]:
        """(upper block, lower block) of each block that lies on another."""
        for tower in self.towers:
            yield from zip(tower[1:], tower, strict=False)

    def successors(self) -> Iterator[tuple[str, State]]:
        """(action in words, state after it) of each legal action."""
        for tower in self.towers:
            rest = [other for other in self.towers if other is not tower]
            if self.held is not None:
                stacked = make_state([*rest, (*tower, self.held)])
                yield f"stack the {self.held} block on top of the {tower[-1]} block", stacked
            elif len(tower) == 1:
                yield f"pick up the {tower[0]} block", make_state(rest, tower[0])
            else:
                action = f"unstack the {tower[-1]} block from on top of the {tower[-2]} block"
                yield action, make_state([*rest, tower[:-1]], tower[-1])
        if self.held is not None:
            yield f"put down the {self.held} block", make_state([*self.towers, (self.held,)])

    def after(self, action: str) -> State | None:
        """The state after an action in words, or None when it is not legal here."""
        return dict(self.successors()).get(action.strip().rstrip("."))

    def reaches(self, goal_text: str) -> bool:
        """Whether every fact of the goal holds."""
        return _goal_facts(goal_text) <= set(self.on_facts())


def make_state(towers: list[tuple[str, ...]], held: str | None = None) -> State:
    """A state; the order of the towers does not matter."""
    return State(tuple(sorted(towers)), held)


def parse_state(text: str) -> State:
    """Read a state in words; "clear" facts are implied by the others and may be missing.

    Raises:
        ConfigError: something in the text is no fact, or the facts contradict each other.
    """
    below: dict[str, str] = {}
    on_table: list[str] = []
    held: str | None = None
    clear: set[str] = set()
    for fact in _facts(text):
        if fact["upper"]:
            if fact["upper"] in below:
                raise ConfigError(f"state {text!r}: the {fact['upper']} block lies on two blocks")
            below[fact["upper"]] = fact["lower"]
        elif fact["table"]:
            on_table.append(fact["table"])
        elif fact["held"]:
            held = fact["held"]
        elif fact["clear"]:
            clear.add(fact["clear"])
    above = {lower: upper for upper, lower in below.items()}
    towers = []
    for block in on_table:
        tower = [block]
        while tower[-1] in above:
            tower.append(above.pop(tower[-1]))
        towers.append(tuple(tower))
    placed = [block for tower in towers for block in tower] + ([held] if held else [])
    mentioned = {*below, *below.values(), *on_table, *clear, *([held] if held else [])}
    tops = {tower[-1] for tower in towers}
    if len(placed) != len(set(placed)) or set(placed) != mentioned or not clear <= tops:
        raise ConfigError(f"state {text!r}: the facts contradict each other")
    return make_state(towers, held)


def thought_prompt(goal_text: str, state_text: str) -> str:
    """What the bundled pair is asked for a thought (without <bos>, which its tokenizer adds).

    The thought ends at the third newline; the next prompt is the path so far and ``Think:``.
    """
    return f"Blocksworld\nGoal: {goal_text}\nState: {state_text}\nThink:"


def evaluation_prompt(goal_text: str, state_text: str) -> str:
    """What the bundled pair is asked for a value: the next token is `` 0`` to `` 9`` or `` many``."""
    return f"Blocksworld\nGoal: {goal_text}\nState: {state_text}\nSteps left:"


def load_blocksworld(path: Path | None = None, limit: int | None = None) -> list[BlocksworldProblem]:
    """Load problems.

    Args:
        path: a file of one object a line with ``init_text`` and ``goal_text``; ``n_steps`` and ``id``
            are taken when there. None makes problems of 3 to 5 blocks, always the same.
        limit: problems at most; None for all (eight made ones).

    Raises:
        ConfigError: the file cannot be read, has another format or no problems; names file, line, field.
    """
    if path is not None:
        return read_problems(path, "Blocksworld", limit, _parse)
    check_limit(limit)
    return generate_blocksworld(DEFAULT_NUM_PROBLEMS if limit is None else limit)


def generate_blocksworld(
    num_problems: int, seed: int = 0, num_blocks: int | None = None, num_steps: int | None = None
) -> list[BlocksworldProblem]:
    """Make problems with their shortest plan's length; the same arguments give the same problems.

    Args:
        num_problems: how many; some may be equal when few exist.
        seed: of the choice.
        num_blocks: 3 to 5; None takes 3, 4, 5, 3, ... in turn.
        num_steps: length of the shortest plan, even; None takes 2, 4, 6, 2, ... in turn.

    Raises:
        ConfigError: a number is out of range, or no problem has such a plan.
    """
    allowed = range(MIN_BLOCKS, len(COLOURS) + 1)
    if num_blocks is not None and num_blocks not in allowed:
        raise ConfigError(f"num_blocks={num_blocks}: must be from {allowed[0]} to {allowed[-1]}")
    if num_steps is not None and (num_steps < 2 or num_steps % 2):
        raise ConfigError(f"num_steps={num_steps}: must be even and >= 2, the hand is empty at both ends")
    chance = random.Random(seed)
    problems = []
    for idx in range(num_problems):
        blocks = COLOURS[: num_blocks or allowed[idx % len(allowed)]]
        steps = num_steps or (2, 4, 6)[idx // len(allowed) % 3]
        problems.append(_make_problem(blocks, steps, chance, f"made-{seed}-{idx}"))
    return problems


def shortest_plan_len(init: State, goal_text: str) -> int | None:
    """Actions of the shortest plan, or None when the goal cannot be reached."""
    level, seen, num_steps = [init], {init}, 0
    while level:
        if any(state.reaches(goal_text) for state in level):
            return num_steps
        reached = {after for state in level for _, after in state.successors()} - seen
        seen |= reached
        level = list(reached)
        num_steps += 1
    return None


class Blocksworld(Task[BlocksworldProblem]):
    """For the bundled pair: a thought is a line of thinking, an action and the state after it, three lines.

    The search uses the states that the model writes. ``is_correct`` checks that the actions are legal and that the
    states follow from them.

    Args:
        depth: actions of a plan at most.

    Raises:
        ConfigError: the depth is below 1.
    """

    name = "blocksworld"
    value_labels: Mapping[str, float] = {f" {steps}": -float(steps) for steps in range(MANY_STEPS)} | {
        " many": -float(MANY_STEPS)
    }
    defaults = Defaults(num_thoughts=6, temperature=1.0, evaluate="score", beam=3)

    def __init__(self, depth: int = 7) -> None:
        self.depth = check_whole("depth", depth, 1)

    def load(self, path: Path | None = None, limit: int | None = None) -> list[BlocksworldProblem]:
        return load_blocksworld(path, limit)

    def describe(self, problem: BlocksworldProblem) -> str:
        return f"Goal: {problem.goal_text}\nState: {problem.init_text}"

    def root_state(self, problem: BlocksworldProblem) -> str:
        return parse_state(problem.init_text).text()

    def thought_ask(self, problem: BlocksworldProblem, path: Sequence[Thought]) -> Ask:
        # The first words of the line after a state end the text. They are two tokens, which are thrown away.
        stop = ("\nThink", "\nSteps left", "\nDone")
        return Ask(_path_prompt(problem, path), max_tokens=128, stop=stop)

    def read_thought(self, problem: BlocksworldProblem, path: Sequence[Thought], text: str) -> Parsed | None:
        lines = text.split("\n")[:3]
        if len(lines) < 3 or not lines[0].strip():
            return None
        if not lines[1].startswith("Action: ") or not lines[2].startswith("State: "):
            return None
        return self._parsed(problem, lines[1].removeprefix("Action: "), lines[2].removeprefix("State: "), lines[0])

    def value_ask(self, problem: BlocksworldProblem, path: Sequence[Thought]) -> Ask:
        """Ask for the steps left from the last state. The path before it does not matter."""
        state_text = path[-1].state if path else problem.init_text
        prompt = evaluation_prompt(problem.goal_text, state_text)
        return Ask(prompt, max_tokens=2, choices=tuple(self.value_labels))

    def answer(self, problem: BlocksworldProblem, path: Sequence[Thought]) -> str:
        """The plan, an action a line."""
        return "\n".join(plan_of(path))

    def is_correct(self, problem: BlocksworldProblem, path: Sequence[Thought]) -> bool:
        """Whether the plan, executed from the initial state, is legal and reaches the goal."""
        return is_plan(problem, plan_of(path))

    def score(self, problem: BlocksworldProblem, path: Sequence[Thought]) -> dict[str, Any]:
        """``num_actions`` of the plan, ``num_steps`` of the shortest one when that is known."""
        return {"num_actions": len(path), "num_steps": problem.num_steps}

    def _parsed(self, problem: BlocksworldProblem, action: str, state_text: str, think: str | None) -> Parsed | None:
        """A thought of these parts; None when they are no action and no state."""
        if not _ACTION.fullmatch(action):
            return None
        try:
            state = parse_state(state_text)
        except ConfigError:
            return None
        lines = ([] if think is None else [think]) + [f"Action: {action}", f"State: {state_text}"]
        return Parsed("\n".join(lines), state.text(), state.reaches(problem.goal_text), action)


_RULES = """You move blocks with one hand.
- "pick up the red block": the hand is empty, the block is clear and on the table.
- "unstack the red block from on top of the blue block": the hand is empty, the red block is clear.
- "put down the red block": the hand is holding it.
- "stack the red block on top of the blue block": the hand is holding the red block, the blue block is clear.
A block is clear when no block is on top of it and the hand is not holding it.
Answer with two lines, an action and the state after it, as in the example.

Goal: the red block is on top of the blue block
State: the red block is clear, the blue block is clear, the hand is empty, the red block is on the table and the \
blue block is on the table

Action: pick up the red block
State: the blue block is clear, the hand is holding the red block and the blue block is on the table

Action: stack the red block on top of the blue block
State: the red block is clear, the hand is empty, the red block is on top of the blue block and the blue block is on \
the table

Now your task:
"""
_FIRST, _NEXT = "What is the first action, and the state after it?", "What is the next action, and the state after it?"
_JUDGE = """Is the last action allowed by the rules, is the state after it right, and does it bring the goal nearer? \
Answer with one word, good or bad."""


class BlocksworldChat(Blocksworld):
    """For chat models: actions and states as turns of one conversation; labels as in llm-reasoners."""

    value_labels: Mapping[str, float] = {" good": 1.0, " bad": 0.0}

    defaults = Defaults(num_thoughts=4, temperature=0.8, evaluate="score", beam=3)

    def thought_ask(self, problem: BlocksworldProblem, path: Sequence[Thought]) -> Ask:
        prompt = conversation(*self._turns(problem, path, _NEXT if path else _FIRST), answer_prefix="Action:")
        return Ask(prompt, max_tokens=224, stop=("\n\n", "\nAction"), regex=thought_regex(problem))

    def read_thought(self, problem: BlocksworldProblem, path: Sequence[Thought], text: str) -> Parsed | None:
        """The first two lines, without list marks and labels around them."""
        lines = [line.lower() for line in plain_lines(text, "action", "next action", "first action", "state", "step")]
        if len(lines) < 2:
            return None
        return self._parsed(problem, lines[0], lines[1], None)

    def value_ask(self, problem: BlocksworldProblem, path: Sequence[Thought]) -> Ask:
        prompt = conversation(*self._turns(problem, path, _JUDGE), answer_prefix="Evaluation:")
        return Ask(prompt, max_tokens=4, stop=("\n",), choices=tuple(self.value_labels))

    def read_value(self, text: str) -> float | None:
        return read_label(text, self.value_labels, "evaluation")

    def _turns(self, problem: BlocksworldProblem, path: Sequence[Thought], request: str) -> list[str]:
        """The conversation so far, so that a path extends its parent's; ``request`` ends it."""
        turns = [f"{_RULES}{self.describe(problem)}\n{_FIRST}"]
        for thought in path:
            turns += [thought.text, _NEXT]
        if path:
            turns[-1] = request
        return turns


def thought_regex(problem: BlocksworldProblem) -> str:
    """A regular expression of what may follow ``Action:``: any action and as many facts as a state can have."""
    blocks = sorted(set(re.findall(r"(\w+) block", problem.init_text)))
    num = len(blocks)
    block = f"the ({'|'.join(blocks)}) block"
    action = (
        f"(pick up {block}|put down {block}|stack {block} on top of {block}|unstack {block} from on top of {block})"
    )
    fact = f"({block} is (clear|on the table|on top of {block})|the hand is (empty|holding {block}))"
    return f" {action}\nState: {fact}(, {fact}){{{num - 1},{2 * num - 1}}} and {fact}"


def plan_of(path: Sequence[Thought]) -> list[str]:
    """The actions that thoughts say; an empty string where one says none."""
    return [found[1] if (found := _ACTION_LINE.search(thought.text)) else "" for thought in path]


def is_plan(problem: BlocksworldProblem, actions: Sequence[str]) -> bool:
    """Whether actions, executed one by one, are all legal and the goal holds after the last."""
    state = parse_state(problem.init_text)
    for action in actions:
        after = state.after(action)
        if after is None:
            return False
        state = after
    return state.reaches(problem.goal_text)


def _path_prompt(problem: BlocksworldProblem, path: Sequence[Thought]) -> str:
    """The path as one document. A new one begins where it would be longer than the pair's training texts."""
    prompt = thought_prompt(problem.goal_text, problem.init_text)
    num_words = _num_words(problem.goal_text, problem.init_text)
    for thought in path:
        num_words += _num_words(thought.text)
        if num_words < MAX_PATH_WORDS:
            prompt += f"{thought.text}\nThink:"
        else:
            prompt = thought_prompt(problem.goal_text, thought.state)
            num_words = _num_words(problem.goal_text, thought.state)
    return prompt


def _num_words(*texts: str) -> int:
    """About the tokens of a state or a thought: words, and what stands between them."""
    return len(" ".join(texts).split()) + 12


def _make_problem(
    blocks: tuple[str, ...], num_steps: int, chance: random.Random, problem_id: str
) -> BlocksworldProblem:
    """A goal is every "on top of" fact of a random state, as in the published problems."""
    states = _all_states(blocks)
    for goal in chance.sample(states, len(states)):
        goal_text = _join([f"the {up} block is on top of the {low} block" for up, low in sorted(
            goal.on_facts(), key=lambda fact: COLOURS.index(fact[0])
        )])  # fmt: skip
        if not goal_text:
            continue
        for init in chance.sample(states, min(len(states), 40)):
            if shortest_plan_len(init, goal_text) == num_steps:
                return BlocksworldProblem(init.text(), goal_text, num_steps, problem_id)
    raise ConfigError(f"num_steps={num_steps}: no problem of {len(blocks)} blocks has such a shortest plan")


@cache
def _all_states(blocks: tuple[str, ...]) -> tuple[State, ...]:
    """Every state of these blocks with an empty hand, sorted."""
    found = set()
    for order in permutations(blocks):
        for cuts in product((False, True), repeat=len(blocks) - 1):
            towers: list[tuple[str, ...]] = [(order[0],)]
            for block, cut in zip(order[1:], cuts, strict=True):
                if cut:
                    towers.append((block,))
                else:
                    towers[-1] += (block,)
            found.add(make_state(towers))
    return tuple(sorted(found, key=lambda state: state.towers))


def _facts(text: str) -> list[re.Match[str]]:
    facts = []
    for part in re.split(r", and |, | and ", text.strip().rstrip(".")):
        fact = _FACT.fullmatch(part.strip())
        if fact is None:
            raise ConfigError(f"state {text!r}: {part!r} is no fact about blocks")
        facts.append(fact)
    return facts


def _goal_facts(goal_text: str) -> set[tuple[str, str]]:
    facts = _facts(goal_text)
    if not all(fact["upper"] for fact in facts):
        raise ConfigError(f"goal {goal_text!r}: must consist of 'on top of' facts")
    return {(fact["upper"], fact["lower"]) for fact in facts}


def _parse(record: dict[str, Any]) -> BlocksworldProblem:
    init_text, goal_text = text_field(record, "init_text"), text_field(record, "goal_text")
    for name, check in (("init_text", parse_state), ("goal_text", _goal_facts)):
        try:
            check(record[name])
        except ConfigError as error:
            raise FieldError(f"field {name!r}: {error}") from None
    num_steps = record.get("n_steps")
    if num_steps is not None and not (isinstance(num_steps, int) and num_steps >= 0):
        raise FieldError(f"field 'n_steps' is {num_steps!r}: must be a whole number")
    return BlocksworldProblem(init_text, goal_text, num_steps, str(record.get("id", "")))


def _in_order(blocks: Any) -> list[str]:
    return sorted(blocks, key=lambda block: (COLOURS.index(block) if block in COLOURS else 99, block))


def _join(facts: list[str]) -> str:
    return " and ".join([", ".join(facts[:-1]), facts[-1]]) if len(facts) > 1 else "".join(facts)
