"""Rows of a forward: what is packed, where it stands, and what each row may attend to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seedmp.models.buckets import Buckets
from seedmp.models.eagle_runner import head_rows
from seedmp.models.rows import BranchRows, Rows, pack_rows
from seedmp.token_tree.tree import NO_PARENT


@st.composite
def branches_of(draw: st.DrawFn) -> list[BranchRows]:
    """Branches with slots of their own, some of whose nodes were run before."""
    free = draw(st.permutations(range(80)))
    branches = []
    for _ in range(draw(st.integers(1, 3))):
        num_context, num_chain, num_nodes = (draw(st.integers(0, 8)) for _ in range(3))
        num_chain = max(num_chain, num_context == 0 or num_nodes == 0)
        parents = [draw(st.integers(NO_PARENT, node_idx - 1)) for node_idx in range(num_nodes)]
        first_node = draw(st.integers(0, num_nodes)) if num_chain == 0 and num_nodes else 0
        if num_nodes and first_node == num_nodes:
            first_node -= 1
        context, chain, nodes = free[:num_context], free[8 : 8 + num_chain], free[16 : 16 + num_nodes]
        free = free[26:]
        num_rows = num_chain + num_nodes - first_node
        branches.append(
            BranchRows(
                context, range(num_chain), chain, range(20, 20 + num_nodes), parents, nodes, first_node,
                draw(st.integers(0, num_rows)),
            )
        )  # fmt: skip
    return branches


@given(branches_of())
def test_a_row_sees_context_chain_and_ancestors(branches: list[BranchRows]) -> None:
    rows = pack_rows(branches)
    at = 0
    positions = {}
    for b in branches:
        context, chain = list(b.context_slots), list(b.chain_slots)
        positions.update({slot: place for place, slot in enumerate(context + chain)})
        paths = [context + chain[: i + 1] for i in range(len(chain))]
        ids = list(b.chain_ids)
        for node_idx, slot in enumerate(b.tree_slots):
            above, ancestor = [slot], b.tree_parents[node_idx]
            while ancestor != NO_PARENT:
                above.append(b.tree_slots[ancestor])
                ancestor = b.tree_parents[ancestor]
            path = context + chain + above[::-1]
            positions[slot] = len(path) - 1
            if node_idx >= b.first_node:
                paths.append(path)
                ids.append(b.tree_ids[node_idx])
        assert rows.token_ids[at : at + len(b)].tolist() == ids
        for row, path in enumerate(paths, at):
            assert np.flatnonzero(rows.allowed[row]).tolist() == sorted(path)
            assert rows.slots[row] == path[-1] and rows.positions[row] == len(path) - 1
        at += len(b)
    assert rows.lengths == tuple(map(len, branches)) and sum(rows.lengths) == at == len(rows.token_ids)
    ends = np.cumsum(rows.lengths)
    assert rows.wanted.tolist() == [
        row for b, end in zip(branches, ends, strict=True) for row in range(end - b.num_wanted, end)
    ]
    known = rows.slot_positions(100)
    assert all(known[slot] == place for slot, place in positions.items())


def test_a_tree_that_grows_is_the_tree_that_is_run_at_once() -> None:
    parents, slots = [NO_PARENT, NO_PARENT, 0, 0, 2], [9, 3, 4, 12, 1]
    whole = pack_rows([BranchRows([5, 6], [1], [7], range(5), parents, slots, num_wanted=6)])
    for first, end in ((0, 2), (2, 4), (4, 5)):
        layer = pack_rows([BranchRows([5, 6, 7], (), (), range(end), parents[:end], slots[:end], first, end - first)])
        at = slice(1 + first, 1 + end)
        width = layer.allowed.shape[1]
        assert (whole.allowed[at, :width] == layer.allowed).all() and not whole.allowed[at, width:].any()
        assert (whole.positions[at] == layer.positions).all() and (whole.slots[at] == layer.slots).all()


def shape_of(rows: Rows) -> tuple[int, int, int]:
    return len(rows.token_ids), rows.allowed.shape[1], len(rows.wanted)


def test_ghosts_fill_up_and_write_where_nobody_reads() -> None:
    rows = pack_rows([BranchRows([5, 6], [1, 2, 3], [7, 8, 9], num_wanted=1)])
    filled = Buckets(rows=(2, 4, 6), columns=(8,)).fill(rows, ghost_slot=64)
    assert shape_of(rows) == (3, 10, 1) and shape_of(filled) == (4, 10, 2)
    assert filled.slots.tolist() == [7, 8, 9, 64] and filled.wanted.tolist() == [2, 2]
    assert (filled.allowed[3] == rows.allowed[2]).all()
    buckets = Buckets(rows=(2,), columns=(8,))
    assert shape_of(buckets.fill(rows, 64)) == (3, 10, 2)  # larger than the largest: as it is
    assert [buckets.num_columns(num) for num in (1, 8, 9)] == [8, 8, 9]


def test_a_head_has_no_row_for_the_first_token_and_stands_one_earlier() -> None:
    branches = [BranchRows((), [1, 2, 3], [7, 8, 9], num_wanted=1), BranchRows([4, 5], [6], [3], num_wanted=1)]
    rows, kept = head_rows(pack_rows(branches))
    assert kept.tolist() == [1, 2, 3] and rows.token_ids.tolist() == [2, 3, 6]
    assert rows.positions.tolist() == [0, 1, 1] and rows.wanted.tolist() == [1, 2]
    assert [np.flatnonzero(seen).tolist() for seen in rows.allowed] == [[8], [8, 9], [3, 5]]
    with pytest.raises(AssertionError, match="first token alone"):
        head_rows(pack_rows([BranchRows((), [1], [7], num_wanted=1)]))


def test_rows_are_what_torch_takes_without_a_copy() -> None:
    rows = pack_rows([BranchRows([5, 6], [1, 2], [7, 8], num_wanted=1)])
    for array in (rows.token_ids, rows.positions, rows.slots, rows.wanted):
        assert torch.from_numpy(array).dtype == torch.int64
