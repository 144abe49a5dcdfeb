"""The slots of a token sequence in one arena, as a path that holds itself."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from seedmp.errors import InvariantError
from seedmp.kv.slot_tree import NO_SLOT, SlotTree


class HeldPath:
    """Slots from the first token on; nothing of it is evicted until ``drop``.

    Invariants (``validate``): each slot is registered below the one before it; the tail is held, once by this path.
    """

    def __init__(self, tree: SlotTree) -> None:
        self.tree = tree
        self.kind = 0  # of KV: paths of unequal kind share nothing; to be read only
        self.slots: list[int] = []  # to be read only

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[int]:
        return iter(self.slots)

    def __getitem__(self, index: int) -> int:
        return self.slots[index]

    @property
    def tail(self) -> int:
        """The last slot; the parent of the first one, NO_SLOT or less, of an empty path."""
        return self.slots[-1] if self.slots else NO_SLOT - self.kind

    def become(self, kind: int) -> None:
        """Begin anew with KV of another kind, if it is another."""
        if kind != self.kind:
            self.drop()
            self.kind = kind

    def share(self, tokens: Sequence[int]) -> int:
        """Go on along ``tokens`` through slots that are registered already, short of the last token.

        Returns:
            the number of slots gained.
        """
        slots, end = self.slots, len(tokens) - 1
        before, old_tail = len(slots), self.tail
        tail = old_tail
        while len(slots) < end:
            known = self.tree.find_child(tail, tokens[len(slots)])
            if known is None:
                break
            slots.append(known)
            tail = known
        self._move_hold(old_tail, tail)
        return len(slots) - before

    def extend(self, token_ids: Sequence[int], leased: Sequence[int]) -> list[int]:
        """Go on with tokens whose KV is in leased slots, which are registered.

        Returns:
            leased slots that were not needed, because the token was registered already; they stay leased.
        """
        old_tail, spare = self.tail, []
        tail = old_tail
        for token_id, slot in zip(token_ids, leased, strict=True):
            known = self.tree.find_child(tail, token_id)
            if known is None:
                known = self.tree.register(tail, token_id, slot)
            else:
                spare.append(slot)
            self.slots.append(known)
            tail = known
        self._move_hold(old_tail, tail)
        return spare

    def pop(self) -> None:
        """Give up the tail."""
        self._move_hold(self.slots.pop(), self.tail)

    def pin(self, owner: Hashable, length: int | None = None) -> None:
        """Pin the first ``length`` slots, or all, for an owner, as ``SlotTree.pin``."""
        if self.slots:
            self.tree.pin(owner, self.slots[:length][-1])

    def drop(self) -> None:
        """Hold nothing more; the slots stay as a cached prefix until room is needed."""
        self._move_hold(self.tail, NO_SLOT)
        self.slots.clear()

    def _move_hold(self, old_tail: int, tail: int) -> None:
        if old_tail == tail:
            return
        if tail >= 0:
            self.tree.hold(tail)
        if old_tail >= 0:
            self.tree.release(old_tail)

    def validate(self) -> None:
        """Check every invariant but the number of holds, which ``SlotTree.validate`` compares.

        Raises:
            InvariantError: one does not hold.
        """
        before = NO_SLOT - self.kind
        for index, slot in enumerate(self.slots):
            if not self.tree.is_below(slot, before):
                raise InvariantError(f"slot {slot} at {index} of a path is not registered below slot {before}")
            before = slot
