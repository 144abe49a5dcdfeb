"""A path holds itself, whatever is done with it."""

from __future__ import annotations

import pytest

from seedmp.errors import InvariantError
from seedmp.kv.held_path import HeldPath
from seedmp.kv.slot_tree import NO_SLOT, SlotTree


def path_of(tree: SlotTree, *token_ids: int) -> HeldPath:
    """A path of new slots."""
    path = HeldPath(tree)
    assert path.extend(token_ids, tree.lease(len(token_ids))) == []
    return path


def check(tree: SlotTree, *paths: HeldPath) -> None:
    for path in paths:
        path.validate()
    tree.validate(path.tail for path in paths if path)


def test_a_path_is_held_until_it_is_dropped() -> None:
    tree = SlotTree(4)
    path = path_of(tree, 1, 2, 3)
    check(tree, path)
    assert tree.num_free == 1 and len(path) == 3 and path[0] == path.slots[0] and path.tail == path[2]
    path.pop()
    check(tree, path)
    assert tree.lease(2) and tree.num_evicted == 1, "what it gave up alone can be had"
    path.drop()
    check(tree, path)
    assert path.tail == NO_SLOT and not path


def test_equal_tokens_meet_and_the_copies_stay_leased() -> None:
    tree = SlotTree(8)
    first, second = path_of(tree, 1, 2), HeldPath(tree)
    leased = tree.lease(3)
    assert second.extend([1, 2, 9], leased) == leased[:2]
    assert second.slots == [*first.slots, leased[2]] and tree.num_leased == 2
    check(tree, first, second)


def test_sharing_ends_before_the_last_token() -> None:
    tree = SlotTree(8)
    known, path = path_of(tree, 1, 2, 3), HeldPath(tree)
    assert path.share([1, 2, 3]) == 2 and path.slots == known.slots[:2]
    assert path.share([1, 2, 3, 4]) == 1 and path.share([1, 2, 3, 4]) == 0
    check(tree, known, path)
    known.drop()
    check(tree, path)


def test_a_pinned_part_is_evicted_last() -> None:
    tree = SlotTree(4)
    path, other = path_of(tree, 1, 2), path_of(tree, 7, 8)
    HeldPath(tree).pin("nobody")
    path.pin("owner", 1)
    path.drop()
    other.drop()
    tree.lease(3)
    assert tree.find_child(NO_SLOT, 1) is not None and tree.num_pinned == 1
    check(tree)


def test_a_hold_that_was_lost_is_found() -> None:
    tree = SlotTree(4)
    path = path_of(tree, 1, 2)
    tree.release(path.tail)
    with pytest.raises(InvariantError, match=r"refs 0, 0 \+ 1 known"):
        tree.validate([path.tail])
    path.slots.append(3)
    with pytest.raises(InvariantError, match="slot 3 at 2 of a path is not registered below"):
        path.validate()


def test_kv_of_another_kind_is_never_shared_nor_lost() -> None:
    tree = SlotTree(8)
    path, other = path_of(tree, 1, 2, 3), HeldPath(tree)
    other.become(7)
    assert other.share([1, 2, 3, 4]) == 0
    assert other.extend([1, 2], tree.lease(2)) == []
    check(tree, path, other)
    assert set(path).isdisjoint(other)
    path.become(7)
    assert len(path) == 0 and path.share([1, 2, 3]) == 2 and list(path) == list(other)
    path.become(7)
    assert len(path) == 2
    other.drop()
    path.become(0)
    assert path.share([1, 2, 3, 4]) == 3  # it was still there
    path.drop()
    tree.clear()
    check(tree)
    assert tree.num_free == 8
