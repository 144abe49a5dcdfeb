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
        self.slots: list[int] = []  # to be read only

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[int]:
        return iter(self.slots)

    def __getitem__(self, index: int) -> int:
        return self.slots[index]

    @property
    def tail(self) -> int:
        """The last slot, NO_SLOT of an empty path."""
        return self.slots[-1] if self.slots else NO_SLOT

    def share(self, tokens: Sequence[int]) -> int:
        """Go on along ``tokens`` through slots that are registered already, short of the last token.

        Returns:
            the number of slots gained.
        """
        before, tail = len(self.slots), self.tail
        while len(self.slots) < len(tokens) - 1:
            slot = self.tree.find_child(self.tail, tokens[len(self.slots)])
            if slot is None:
                break
            self.slots.append(slot)
        self._move_hold(tail)
        return len(self.slots) - before

    def extend(self, token_ids: Sequence[int], leased: Sequence[int]) -> list[int]:
        """Go on with tokens whose KV is in leased slots, which are registered.

        Returns:
            leased slots that were not needed, because the token was registered already; they stay leased.
        """
        tail, spare = self.tail, []
        for token_id, slot in zip(token_ids, leased, strict=True):
            known = self.tree.find_child(self.tail, token_id)
            if known is None:
                self.slots.append(self.tree.register(self.tail, token_id, slot))
            else:
                self.slots.append(known)
                spare.append(slot)
        self._move_hold(tail)
        return spare

    def pop(self) -> None:
        """Give up the tail."""
        tail = self.slots.pop()
        self._move_hold(tail)

    def pin(self, owner: Hashable, length: int | None = None) -> None:
        """Pin the first ``length`` slots, or all, for an owner, as ``SlotTree.pin``."""
        if self.slots:
            self.tree.pin(owner, self.slots[:length][-1])

    def drop(self) -> None:
        """Hold nothing more; the slots stay as a cached prefix until room is needed."""
        tail = self.tail
        self.slots.clear()
        self._move_hold(tail)

    def _move_hold(self, old_tail: int) -> None:
        if old_tail == self.tail:
            return
        if self.tail != NO_SLOT:
            self.tree.hold(self.tail)
        if old_tail != NO_SLOT:
            self.tree.release(old_tail)

    def validate(self) -> None:
        """Check every invariant but the number of holds, which ``SlotTree.validate`` compares.

        Raises:
            InvariantError: one does not hold.
        """
        before = NO_SLOT
        for index, slot in enumerate(self.slots):
            if not self.tree.is_below(slot, before):
                raise InvariantError(f"slot {slot} at {index} of a path is not registered below slot {before}")
            before = slot
