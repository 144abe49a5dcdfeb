"""The slot tree keeps its invariants under any order of leases, registrations, holds and returns."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from seedmp.errors import InvariantError, OutOfSlotsError
from seedmp.kv.slot_tree import NO_SLOT, SlotTree

TOKENS = st.integers(0, 3)  # few, so that equal prefixes occur


def find_path(tree: SlotTree, token_ids: Sequence[int]) -> list[int]:
    """Slots of the longest registered prefix of ``token_ids``."""
    path: list[int] = []
    for token_id in token_ids:
        slot = tree.find_child(path[-1] if path else NO_SLOT, token_id)
        if slot is None:
            break
        path.append(slot)
    return path


class SlotTreeMachine(RuleBasedStateMachine):
    """Branches as the scheduler sees them: a token path whose tail is held, and slots on loan."""

    leased = Bundle("leased")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.tree = SlotTree(12)
        self.num_leased = 0
        self.paths: dict[int, list[tuple[int, ...]]] = {}  # tail slot -> token paths held there
        self.path_of: dict[int, tuple[int, ...]] = {NO_SLOT: ()}

    @initialize(target=held)
    def start(self) -> int:
        return NO_SLOT

    @rule(target=leased, num=st.integers(1, 6))
    def lease(self, num: int) -> object:
        free_before = self.tree.num_free
        try:
            slots = self.tree.lease(num)
        except OutOfSlotsError as error:
            assert error.requested == num > error.available >= free_before
            return multiple()
        assert len(set(slots)) == num
        self.num_leased += num
        return multiple(*slots)

    @rule(slot=consumes(leased))
    def give_back(self, slot: int) -> None:
        self.tree.give_back([slot])
        self.num_leased -= 1

    @rule(target=held, parent=held, slot=consumes(leased), token_id=TOKENS)
    def extend(self, parent: int, slot: int, token_id: int) -> int:
        """A fork of ``parent``, or a longer branch when ``parent`` is released later."""
        path = (*self.path_of[parent], token_id)
        known = self.tree.find_child(parent, token_id)
        got = self.tree.register(parent, token_id, slot)
        assert got == (slot if known is None else known)
        self.num_leased -= 1
        self.tree.hold(got)
        self.path_of[got] = path
        self.paths.setdefault(got, []).append(path)
        return got

    @rule(target=held, tail=held)
    def fork(self, tail: int) -> int:
        if tail != NO_SLOT:
            self.tree.hold(tail)
            self.paths[tail].append(self.path_of[tail])
        return tail

    @rule(tail=consumes(held))
    def release(self, tail: int) -> None:
        if tail != NO_SLOT:
            self.tree.release(tail)
            self.paths[tail].pop()

    @rule(owner=st.integers(0, 4), tail=held)
    def pin(self, owner: int, tail: int) -> None:
        if tail != NO_SLOT:
            self.tree.pin(owner, tail)

    @rule(owner=st.integers(0, 4), free=st.booleans())
    def unpin(self, owner: int, free: bool) -> None:
        self.tree.unpin(owner, free=free)

    @rule()
    def clear(self) -> None:
        self.tree.clear()

    @invariant()
    def holds(self) -> None:
        tails = [tail for tail, paths in self.paths.items() for _ in paths]
        self.tree.validate(tails)
        assert self.tree.num_leased == self.num_leased
        for tail, paths in self.paths.items():
            for path in paths:  # what is held is never evicted, nor moved
                assert find_path(self.tree, path)[-1] == tail
                assert len(find_path(self.tree, path)) == len(path)

    def teardown(self) -> None:
        """When all is released and given back, every slot can be had."""
        for tail, paths in self.paths.items():
            for _ in paths:
                self.tree.release(tail)
        self.tree.clear()
        assert self.tree.num_free == self.tree.num_slots - self.num_leased


TestSlotTree = SlotTreeMachine.TestCase
TestSlotTree.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


def test_the_least_recently_used_prefix_goes_first() -> None:
    tree = SlotTree(3)
    slots = tree.lease(3)
    for token_id, slot in enumerate(slots):
        tree.register(NO_SLOT, token_id, slot)
    tree.hold(slots[0])
    tree.release(slots[0])
    assert tree.lease(1) == [slots[1]]
    assert find_path(tree, [1]) == [] and find_path(tree, [0]) == [slots[0]]
    assert tree.num_evicted == 1


def registered_chain(tree: SlotTree, *token_ids: int) -> list[int]:
    """A cached prefix that nobody holds."""
    path: list[int] = []
    for token_id in token_ids:
        path.append(tree.register(path[-1] if path else NO_SLOT, token_id, tree.lease(1)[0]))
    return path


def test_what_is_pinned_is_evicted_last_and_then_from_its_end() -> None:
    tree = SlotTree(4)
    pinned = registered_chain(tree, 1, 2)
    tree.pin("branch", pinned[-1])
    other = registered_chain(tree, 7, 8)  # used later, pinned by nobody
    tree.lease(2)
    assert find_path(tree, [7, 8]) == [] and find_path(tree, [1, 2]) == pinned, other
    tree.lease(1)
    assert find_path(tree, [1, 2]) == pinned[:1] and tree.num_pinned == 1
    tree.validate()
    tree.lease(1)
    assert tree.num_pinned == 0
    tree.validate()


def test_an_owner_that_goes_frees_what_nobody_else_has() -> None:
    tree = SlotTree(8)
    prompt = registered_chain(tree, 1, 2)
    left, right = registered_chain(tree, 1, 2, 3, 4)[-1], registered_chain(tree, 1, 2, 5)[-1]
    tree.pin("prompt", prompt[-1])
    tree.pin("left", left)
    tree.hold(right)
    tree.unpin("left", free=True)
    assert find_path(tree, [1, 2, 3]) == prompt, "both of its own slots are free"
    tree.unpin("prompt", free=True)
    assert find_path(tree, [1, 2, 5]) == [*prompt, right], "somebody still has the prompt"
    tree.unpin("nobody", free=True)
    tree.validate()


def test_mistakes_of_callers_are_noticed() -> None:
    tree = SlotTree(3)
    slots = tree.lease(2)
    tree.register(NO_SLOT, 1, slots[0])
    with pytest.raises(InvariantError, match="released more often"):
        tree.release(slots[0])
    with pytest.raises(KeyError):
        tree.give_back([slots[0]])
    with pytest.raises(OutOfSlotsError, match="9 KV slots requested, 2 available"):
        tree.lease(9)
    tree.validate()
    tree._refs[slots[1]] = 1
    tree._leased.remove(slots[1])
    with pytest.raises(InvariantError, match="!= 3"):
        tree.validate()
