"""Blocksworld documents: plans with a line of thought before each action, and values of states.

A plan (``Steps left`` stands after a state with probability 0.7)::

    Blocksworld
    Goal: the orange block is on top of the yellow block
    State: the yellow block is clear, the hand is empty, the red block is on top of the orange block, ...
    Steps left: 7
    Think: orange on yellow; over orange: red blue yellow; over yellow: none
    Action: unstack the yellow block from on top of the blue block
    State: the blue block is clear, the hand is holding the yellow block, ...
    ...
    Done

The thought names a goal that is open while its support is in place, the block in the hand if there is
one, and what lies on either block, from bottom to top. The action follows from these words alone
(``_action_for``): a model of this size learns that, but not to look several actions ahead.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from recipes.pair.documents import DECISION, GIVEN, PLAIN, RESULT, UNTRAINED, Document
from seedmp.tasks.blocksworld import COLOURS, State, load_blocksworld, make_state, parse_state

Fact = tuple[str, str]  # (upper block, lower block)
Goal = frozenset[Fact]

NUM_BLOCKS = {3: 0.22, 4: 0.6, 5: 0.18}  # about the mix of the published problems of up to 8 steps
NUM_FACTS = {1: 0.28, 2: 0.45, 3: 0.22, 4: 0.05}
MAX_DISTANCE = 10
MANY = 10  # this many steps and more are "many"
MAX_WORDS = 400  # of a document, about its tokens
VALUE_SHARE_IN_PATH = 0.7
STRAYING = 0.35  # documents with random actions, and the share of those actions there
RANDOM_ACTION = 0.25
RANDOM_WEIGHT = 0.5  # a little, so that sampled thoughts differ and a search has something to choose


class Space:
    """Every state of some blocks and every action between them.

    Attributes:
        states: by index.
        texts: the state in words.
        moves: (action in words, index of the state after it).
        goals: goal facts of a random hand-empty state, grouped by their number.
    """

    def __init__(self, blocks: tuple[str, ...]) -> None:
        self.states = [make_state([(block,) for block in blocks])]
        self.index = {self.states[0]: 0}
        self.moves: list[list[tuple[str, int]]] = []
        for state in self.states:  # grows while it is walked
            for _, after in state.successors():
                if after not in self.index:
                    self.index[after] = len(self.states)
                    self.states.append(after)
            self.moves.append([(action, self.index[after]) for action, after in state.successors()])
        self.texts = [state.text() for state in self.states]
        self.goals: dict[int, list[Goal]] = {}
        for goal in sorted({frozenset(s.on_facts()) for s in self.states if s.held is None}, key=sorted):
            if goal:
                self.goals.setdefault(len(goal), []).append(goal)

    @lru_cache(maxsize=2000)  # noqa: B019 (spaces live as long as the program)
    def distances(self, goal: Goal) -> list[int]:
        """Least number of actions from each state to the goal; every action can be undone."""
        found = [0 if goal <= set(state.on_facts()) else -1 for state in self.states]
        level = [idx for idx, steps in enumerate(found) if steps == 0]
        for idx in level:  # grows while it is walked
            for _, after in self.moves[idx]:
                if found[after] < 0:
                    found[after] = found[idx] + 1
                    level.append(after)
        return found


@cache
def space(num_blocks: int) -> Space:
    """The states of the first colours."""
    return Space(COLOURS[:num_blocks])


class BlocksworldSource:
    """Endless documents about random problems.

    Args:
        chance: consumed; the same state gives the same documents.
        excluded: (state, goal) that must not occur anywhere in a document.
    """

    def __init__(self, chance: random.Random, excluded: frozenset[tuple[State, Goal]]) -> None:
        self._chance = chance
        self._excluded = excluded

    def plans(self) -> Iterator[Document]:
        """Plans: shortest ones, a part of them with random actions on the way."""
        while True:
            world, goal, goal_text, steps = self._problem()
            path = [self._start(world, steps)]
            straying = RANDOM_ACTION if self._chance.random() < STRAYING else 0.0
            thoughts: list[tuple[str, str, float]] = []
            while steps[path[-1]] and len(path) < 2 * MAX_DISTANCE:
                think, action, after = self._thought(world, path[-1], goal_text, steps)
                weight = DECISION
                if self._chance.random() < straying:
                    action, after = self._chance.choice(world.moves[path[-1]])
                    weight = DECISION if steps[after] < steps[path[-1]] else RANDOM_WEIGHT
                thoughts.append((think, action, weight))
                path.append(after)
            if not any((world.states[idx], goal) in self._excluded for idx in path):
                yield from self._write(world, goal_text, steps, path, thoughts)

    def values(self) -> Iterator[Document]:
        """``Steps left`` of up to three states that are one action apart: on a good path and off it."""
        while True:
            world, goal, goal_text, steps = self._problem()
            near = self._start(world, steps)
            document = Document([(f"Blocksworld\nGoal: {goal_text}\n", GIVEN)], end_weight=UNTRAINED)
            for _ in range(self._chance.choice((1, 1, 1, 2, 3))):
                state = near if self._chance.random() < 0.3 else self._chance.choice(world.moves[near])[1]
                if (world.states[state], goal) not in self._excluded:
                    document.add(f"State: {world.texts[state]}\n", GIVEN)
                    document.add_label("Steps left", steps_label(steps[state]))
            if len(document.pieces) > 1:
                yield document

    def _problem(self) -> tuple[Space, Goal, str, list[int]]:
        """(space, goal, goal in words, distance of each state)."""
        world = space(_weighted(self._chance, NUM_BLOCKS))
        num_facts = _weighted(self._chance, {n: p for n, p in NUM_FACTS.items() if n in world.goals})
        goal = self._chance.choice(world.goals[num_facts])
        facts = sorted(goal, key=lambda fact: COLOURS.index(fact[0]))
        if self._chance.random() < 0.3:
            self._chance.shuffle(facts)
        texts = [f"the {upper} block is on top of the {lower} block" for upper, lower in facts]
        goal_text = " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else texts[0]
        return world, goal, goal_text, world.distances(goal)

    def _start(self, world: Space, steps: list[int]) -> int:
        """A state whose distance is drawn uniformly, more often with an empty hand."""
        distance = self._chance.randint(1, min(max(steps), MAX_DISTANCE))
        found = [idx for idx, far in enumerate(steps) if far == distance]
        empty = [idx for idx in found if world.states[idx].held is None]
        return self._chance.choice(empty if empty and self._chance.random() < 0.5 else found)

    def _thought(self, world: Space, idx: int, goal_text: str, steps: list[int]) -> tuple[str, str, int]:
        """(line of thought, action, state after it): the first open goal whose action is on a shortest plan."""
        after = dict(world.moves[idx])
        best = [action for action, far in world.moves[idx] if steps[far] < steps[idx]]
        goals = open_goals(world.states[idx], goal_text)
        for fact in goals:
            action = _action_for(world.states[idx], fact)
            if action in best:
                return _think(world.states[idx], fact), action, after[action]
        action = self._chance.choice(best)
        return _think(world.states[idx], goals[0]), action, after[action]

    def _write(
        self,
        world: Space,
        goal_text: str,
        steps: list[int],
        path: list[int],
        thoughts: list[tuple[str, str, float]],
    ) -> Iterator[Document]:
        """The path as a document; where it gets too long, the last state begins the next one."""
        document = Document()
        num_words = MAX_WORDS
        for number, idx in enumerate(path):
            state_text = world.texts[idx]
            if number:
                think, action, weight = thoughts[number - 1]
                document.add(f"Think: {think}\n", DECISION)
                document.add("Action:", DECISION)
                document.add(f" {action}", weight)
                document.add("\n", DECISION)
                document.add(f"State: {state_text}\n", RESULT)
                num_words += len(f"{think} {action} {state_text}".split()) + 12
            if num_words >= MAX_WORDS - 90 and steps[idx]:
                if document.pieces:
                    document.end_weight = UNTRAINED
                    yield document
                document = Document([(f"Blocksworld\nGoal: {goal_text}\nState: {state_text}\n", GIVEN)])
                num_words = len(f"{goal_text} {state_text}".split()) + 12
            if self._chance.random() < VALUE_SHARE_IN_PATH:
                document.add_label("Steps left", steps_label(steps[idx]))
        if steps[path[-1]]:
            document.end_weight = UNTRAINED
        else:
            document.add("Done\n", PLAIN)
        yield document


def load_excluded(folder: Path) -> frozenset[tuple[State, Goal]]:
    """(state, goal) of every published problem in ``blocksworld/step_*.jsonl``."""
    found = set()
    for file in sorted((folder / "blocksworld").glob("step_*.jsonl")):
        for problem in load_blocksworld(file):
            found.add((parse_state(problem.init_text), frozenset(goal_facts(problem.goal_text))))
    return frozenset(found)


def steps_label(num_steps: int) -> str:
    """One token: ``0`` to ``9`` or ``many``."""
    return str(num_steps) if num_steps < MANY else "many"


def goal_facts(goal_text: str) -> list[Fact]:
    """The facts of a goal in the order of the text."""
    return re.findall(r"the (\w+) block is on top of the (\w+) block", goal_text)


def open_goals(state: State, goal_text: str) -> list[Fact]:
    """Goal facts that do not hold while the lower block is where the goal wants it, in the text's order."""
    facts = goal_facts(goal_text)
    support, on = dict(facts), set(state.on_facts())

    def in_place(block: str) -> bool:
        return block not in support or ((block, support[block]) in on and in_place(support[block]))

    return [fact for fact in facts if fact not in on and in_place(fact[1])]


def _over(state: State, block: str) -> tuple[str, ...]:
    for tower in state.towers:
        if block in tower:
            return tower[tower.index(block) + 1 :]
    return ()


def _think(state: State, fact: Fact) -> str:
    parts = [f"{fact[0]} on {fact[1]}"]
    if state.held:
        parts.append(f"holding {state.held}")
    parts += [f"over {block}: {' '.join(_over(state, block)) or 'none'}" for block in fact]
    return "; ".join(parts)


def _action_for(state: State, fact: Fact) -> str:
    """The next action towards a fact: clear the lower block, then the upper one, then move it."""
    upper, lower = fact
    if state.held:
        if state.held == upper and not _over(state, lower):
            return f"stack the {upper} block on top of the {lower} block"
        return f"put down the {state.held} block"
    taken = (*_over(state, lower)[-1:], *_over(state, upper)[-1:], upper)[0]
    below = dict(state.on_facts())
    if taken in below:
        return f"unstack the {taken} block from on top of the {below[taken]} block"
    return f"pick up the {taken} block"


def _weighted(chance: random.Random, weights: dict[int, float]) -> int:
    return chance.choices(list(weights), list(weights.values()))[0]
