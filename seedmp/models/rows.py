"""The rows of a forward: a row a token, of several branches, and which slots each row may attend to.

Target, drafts and EAGLE heads pack their rows with one function, ``pack_rows``. Letters: T rows, B branches,
S columns (slots of the arena, up to the last one that is needed), W rows whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from seedmp.token_tree.tree import NO_PARENT


@dataclass(frozen=True)
class BranchRows:
    """One branch's part of a forward: a chain of tokens after its context, then nodes of a token tree.

    The chain's first token stands at position ``len(context_slots)``. The tree hangs below the chain's last token,
    or below the context's if there is no chain. A row sees the context, the chain up to its own token, and for a
    node all of the chain and its ancestors. A tree may grow over several forwards: nodes before ``first_node`` were
    run by earlier ones, and have no row in this one.

    Args:
        context_slots: slots of the tokens before the chain, in order of position.
        chain_ids: tokens of the chain.
        chain_slots: their slots.
        tree_ids: token of each node; those before ``first_node`` are not read.
        tree_parents: index of each node's parent, which comes before it; NO_PARENT below the chain.
        tree_slots: slot of each node.
        first_node: the first node that this forward runs.
        num_wanted: the logits of the last so many rows of this branch are wanted.
        rope_len: its rows have the angles of a text of at least so many tokens (``RopeBorder``).
    """

    context_slots: Sequence[int] | np.ndarray
    chain_ids: Sequence[int] = ()
    chain_slots: Sequence[int] = ()
    tree_ids: Sequence[int] = ()
    tree_parents: Sequence[int] = ()
    tree_slots: Sequence[int] = ()
    first_node: int = 0
    num_wanted: int = 0
    rope_len: int = 0

    def __len__(self) -> int:
        return len(self.chain_ids) + len(self.tree_ids) - self.first_node

    def positions(self) -> list[int]:
        """Of the chain's tokens and of all nodes, those before ``first_node`` too."""
        start, num_chain = len(self.context_slots), len(self.chain_ids)
        positions = list(range(start, start + num_chain))
        for parent in self.tree_parents:
            positions.append(start + num_chain if parent == NO_PARENT else positions[num_chain + parent] + 1)
        return positions


@dataclass(frozen=True)
class Rows:
    """What a forward is made of.

    Args:
        token_ids: [T] int64.
        positions: [T] int64, of each token in its branch.
        slots: [T] int64, where K and V of each row go.
        wanted: [W] int64, rows whose logits are wanted; none runs for K and V alone.
        lengths: [B] rows of each branch, in order. Branches that share little may be attended for one by one.
        branches: what was packed.
        matrix: ``allowed``, where it does not follow from the branches alone.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    wanted: np.ndarray
    lengths: tuple[int, ...]
    branches: tuple[BranchRows, ...]
    matrix: np.ndarray | None = None

    @cached_property
    def allowed(self) -> np.ndarray:
        """[T, S] bool; row t may attend to slot s. Its own slot is among them. Made when it is first asked for."""
        return _allowed(self.branches) if self.matrix is None else self.matrix

    def slot_positions(self, num_slots: int) -> np.ndarray:
        """[num_slots] int64 position of the token in each slot that a row sees; 0 for other slots."""
        result = np.zeros(num_slots, dtype=np.int64)
        for b in self.branches:
            result[list(b.context_slots)] = np.arange(len(b.context_slots))
            result[[*b.chain_slots, *b.tree_slots]] = b.positions()
        return result

    def rope_lens(self, border: int) -> np.ndarray:
        """[T] int64 length of the text whose angles each row has; 0 up to ``border`` tokens."""
        own = np.repeat([b.rope_len for b in self.branches], [len(b) for b in self.branches])
        lens = np.maximum(self.positions + 1, np.pad(own, (0, len(self.positions) - len(own)), mode="edge"))
        return np.where(lens > border, lens, 0)


def pack_rows(branches: Sequence[BranchRows]) -> Rows:
    """The rows of several branches, one branch after the other: its chain, then its nodes."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    wanted: list[int] = []
    for b in branches:
        num_chain, num_earlier = len(b.chain_ids), b.first_node
        own = b.positions()
        if num_earlier:
            del own[num_chain : num_chain + num_earlier]
        token_ids += b.chain_ids
        token_ids += b.tree_ids[num_earlier:]
        positions += own
        slots += b.chain_slots
        slots += b.tree_slots[num_earlier:]
        wanted += range(len(token_ids) - b.num_wanted, len(token_ids))
    return Rows(
        _int64(token_ids), _int64(positions), _int64(slots), _int64(wanted), tuple(map(len, branches)), tuple(branches)
    )


def _allowed(branches: Sequence[BranchRows]) -> np.ndarray:
    """[T, S] bool which slots each row sees."""
    contexts = [np.asarray(b.context_slots, dtype=np.int64) for b in branches]
    last_slot = 0
    for b, context in zip(branches, contexts, strict=True):
        last_slot = max(last_slot, int(context.max(initial=0)), *b.chain_slots, *b.tree_slots)
    allowed = np.zeros((sum(map(len, branches)), 1 + last_slot), dtype=bool)
    end = 0
    for b, context in zip(branches, contexts, strict=True):
        end += len(b)
        _see(b, context, allowed[end - len(b) : end])
    return allowed


def _see(b: BranchRows, context: np.ndarray, rows: np.ndarray) -> None:
    """Fill a branch's part of ``allowed``."""
    num_chain = len(b.chain_ids)
    rows[:, context] = True
    if num_chain > 1:
        rows[:num_chain, b.chain_slots] = np.tri(num_chain, dtype=bool)
        rows[num_chain:, b.chain_slots] = True
    elif num_chain:
        rows[:, b.chain_slots[0]] = True
    for node_idx, row in enumerate(rows[num_chain:], b.first_node):
        row[b.tree_slots[node_idx]] = True
        ancestor = b.tree_parents[node_idx]
        if ancestor >= b.first_node:
            row |= rows[num_chain + ancestor - b.first_node]
            continue
        while ancestor != NO_PARENT:
            row[b.tree_slots[ancestor]] = True
            ancestor = b.tree_parents[ancestor]


def _int64(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)
