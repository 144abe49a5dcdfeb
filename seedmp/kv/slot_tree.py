"""Who may see which KV slot: the tokens of an arena as one tree, with reference counts.

Every token whose KV is in the arena has a slot and a parent slot. What it may attend to is its
chain of ancestors, so forking is sharing the parent, and equal prefixes meet in the same slots.
Nothing is ever copied: rolling back frees slots.

A slot is in one of four states: free; leased (being written, unknown to others); registered and
held (a branch's tail or an ancestor of one); registered and idle (a cached prefix that is evicted,
least recently used first, when room is needed). Idle prefixes that somebody has pinned are evicted last.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable

from seedmp.errors import InvariantError, OutOfSlotsError

NO_SLOT = -1  # parent of the first token; smaller ones are those of KV of another kind, which is never shared


class SlotTree:
    """Slot allocator and prefix tree of one arena of ``num_slots`` slots.

    Invariants:
        each slot has exactly one state; ``refs`` of a registered slot is the number of holders
        whose tail it is plus its registered children; a slot is idle iff its refs are 0; every
        owner has one registered slot.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots))  # a heap: low slots first keeps the used range short
        self._leased: set[int] = set()
        self._parent = [NO_SLOT] * num_slots
        self._token = [0] * num_slots
        self._refs = [0] * num_slots
        self._child: dict[tuple[int, int], int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._pinned_idle: OrderedDict[int, None] = OrderedDict()  # the same, but somebody pinned them
        self._owners: dict[int, set[Hashable]] = {}  # slot -> who pinned it
        self._pinned_slot: dict[Hashable, int] = {}  # the inverse
        self.num_evicted = 0

    @property
    def num_free(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    @property
    def num_pinned(self) -> int:
        """Keepers that have a slot."""
        return len(self._pinned_slot)

    @property
    def num_leased(self) -> int:
        """Slots that are being written."""
        return len(self._leased)

    def find_child(self, parent: int, token_id: int) -> int | None:
        """The slot of ``token_id`` below ``parent`` (NO_SLOT: first token), if registered."""
        return self._child.get((parent, token_id))

    def is_below(self, slot: int, parent: int) -> bool:
        """Whether ``slot`` is registered below ``parent``."""
        return self._child.get((parent, self._token[slot])) == slot

    def lease(self, num: int) -> list[int]:
        """Take ``num`` slots to write into, evicting idle prefixes when needed.

        Raises:
            OutOfSlotsError: not enough; nothing was taken (idle prefixes may be gone).
        """
        while len(self._free) < num and (self._idle or self._pinned_idle):
            self._evict(next(iter(self._idle or self._pinned_idle)))
        if len(self._free) < num:
            raise OutOfSlotsError(num, len(self._free))
        slots = [heapq.heappop(self._free) for _ in range(num)]
        self._leased.update(slots)
        return slots

    def give_back(self, slots: Iterable[int]) -> None:
        """Return leased slots unused."""
        for slot in slots:
            self._leased.remove(slot)
            heapq.heappush(self._free, slot)

    def register(self, parent: int, token_id: int, slot: int) -> int:
        """Make a leased slot known as ``token_id`` below ``parent``; it is idle until held.

        Returns:
            the slot that now stands for the token: an equal one that was there before wins,
            and the leased one is given back.
        """
        known = self._child.get((parent, token_id))
        if known is not None:
            self.give_back([slot])
            return known
        self._leased.remove(slot)
        self._child[parent, token_id] = slot
        self._parent[slot], self._token[slot] = parent, token_id
        self._idle[slot] = None
        if parent >= 0:
            self.hold(parent)
        return slot

    def hold(self, slot: int) -> None:
        """Protect ``slot`` and its ancestors from eviction until ``release``."""
        self._refs[slot] += 1
        self._idle.pop(slot, None)
        self._pinned_idle.pop(slot, None)

    def release(self, slot: int) -> None:
        """Undo one ``hold``; what nobody holds stays as a cached prefix until room is needed."""
        if self._refs[slot] <= 0:
            raise InvariantError(f"slot {slot} released more often than held")
        self._refs[slot] -= 1
        if self._refs[slot] == 0:
            self._lru_of(slot)[slot] = None

    def pin(self, owner: Hashable, slot: int) -> None:
        """Evict ``slot`` and its ancestors only when nothing else is left; an owner has one slot at a time.

        When a pinned slot is evicted after all, its parent is pinned instead.
        """
        self._forget_owner(owner)
        self._pinned_slot[owner] = slot
        self._owners.setdefault(slot, set()).add(owner)
        if self._idle.pop(slot, NO_SLOT) is None:
            self._pinned_idle[slot] = None

    def unpin(self, owner: Hashable, *, free: bool) -> None:
        """Undo ``pin``; with ``free``, slots of the path that nobody holds or has pinned are freed at once."""
        slot = self._forget_owner(owner)
        while free and slot >= 0 and slot in self._idle:
            parent = self._parent[slot]
            self._evict(slot)
            slot = parent

    def clear(self) -> None:
        """Forget every idle prefix, pinned or not."""
        while self._idle or self._pinned_idle:
            self._evict(next(iter(self._idle or self._pinned_idle)))

    def _lru_of(self, slot: int) -> OrderedDict[int, None]:
        return self._pinned_idle if slot in self._owners else self._idle

    def _forget_owner(self, owner: Hashable) -> int:
        """Take away what an owner keeps; its slot, or NO_SLOT."""
        slot = self._pinned_slot.pop(owner, NO_SLOT)
        if slot != NO_SLOT:
            self._owners[slot].discard(owner)
            if not self._owners[slot]:
                del self._owners[slot]
                if self._pinned_idle.pop(slot, NO_SLOT) is None:
                    self._idle[slot] = None
        return slot

    def _evict(self, slot: int) -> None:
        del self._lru_of(slot)[slot]
        parent = self._parent[slot]
        del self._child[parent, self._token[slot]]
        heapq.heappush(self._free, slot)
        self.num_evicted += 1
        for owner in self._owners.pop(slot, ()):
            del self._pinned_slot[owner]
            if parent >= 0:
                self._pinned_slot[owner] = parent
                self._owners.setdefault(parent, set()).add(owner)
        if parent >= 0:
            self.release(parent)
            if self._refs[parent] == 0:
                self._lru_of(parent).move_to_end(parent, last=False)

    def validate(self, tails: Iterable[int] | None = None) -> None:
        """Check every invariant.

        Args:
            tails: slots that are held, as often as they are; None leaves out to count holds.

        Raises:
            InvariantError: one does not hold; the message says which.
        """
        registered = set(self._child.values())
        free = set(self._free)
        if len(free) + len(self._leased) + len(registered) != self.num_slots:
            raise InvariantError(
                f"{len(free)} free + {len(self._leased)} leased + {len(registered)} registered != {self.num_slots}"
            )
        if free & self._leased or free & registered or self._leased & registered:
            raise InvariantError("a slot has two states")
        children = dict.fromkeys(registered, 0)
        for (parent, _), slot in self._child.items():
            if parent != self._parent[slot] or (parent >= 0 and parent not in registered):
                raise InvariantError(f"slot {slot} has parent {parent}, which is not registered as such")
            if parent >= 0:
                children[parent] += 1
        for slot in registered:
            if self._refs[slot] < children[slot] or (self._refs[slot] == 0) != (slot in self._lru_of(slot)):
                raise InvariantError(f"slot {slot}: refs {self._refs[slot]}, children {children[slot]}")
        if tails is not None:
            held = Counter(tails)
            for slot in registered:
                if self._refs[slot] != children[slot] + held[slot]:
                    raise InvariantError(f"slot {slot}: refs {self._refs[slot]}, {children[slot]} + {held[slot]} known")
        if len(self._idle.keys() | self._pinned_idle.keys()) != sum(self._refs[slot] == 0 for slot in registered):
            raise InvariantError("an idle list names slots that are not idle")
        pinned = {owner: slot for slot, owners in self._owners.items() for owner in owners}
        if pinned != self._pinned_slot or not set(self._owners) <= registered:
            raise InvariantError("an owner's slot is not registered, or is not its own")
