"""Attention of few rows over a KV arena, by the C part: which slots each row sees is said by lists, not by a matrix.

Letters: T rows, H heads, J KV heads, D head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seedmp.models.native.library import native_library
from seedmp.models.rows import BranchRows, Rows
from seedmp.token_tree.tree import NO_PARENT

MAX_CHAIN = 48  # tokens of a chain; longer ones are prompts, which matrix products serve better
MIN_SHARED = 64  # slots of a common prefix that are worth a tile of their own
MAX_GROUP = 32  # rows of branches that share tiles
MAX_DIM, LANES = 256, 16  # as in decode.c


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_rows", "num_heads", "num_kv_heads", "dim", "is_bf16")),
        *((name, ctypes.c_float) for name in ("scale", "epsilon")),
        *((name, ctypes.c_void_p) for name in ("q_norm", "k_norm")),
    ]


class _Plan(ctypes.Structure):
    _fields_ = [
        ("num_groups", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "group_tiles", "tile_slots", "tile_rows", "slots", "rows", "group_rows", "members", "row_tails",
                "tails", "own_slots", "cosine", "sine",
            )
        ),
    ]  # fmt: skip


class _Work(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("query", "sums", "maxima", "weights")]


@dataclass(frozen=True)
class Tile:
    """Slots that several rows see, with nobody else's between."""

    slots: np.ndarray
    rows: range | list[int]


def groups_of(branches: Sequence[BranchRows]) -> list[list[int]]:
    """Which branches are computed together: those that begin with the same MIN_SHARED slots, up to MAX_GROUP rows.

    Returns:
        indices of branches; each once, in groups.
    """
    groups: list[list[int]] = []
    newest: dict[bytes, tuple[list[int], int]] = {}  # by beginning: a group, and its rows
    for idx, branch in enumerate(branches):
        beginning = np.asarray(branch.context_slots[:MIN_SHARED], dtype=np.int64).tobytes()
        members, num_rows = newest.get(beginning, ([], MAX_GROUP))
        if len(branch.context_slots) < MIN_SHARED or num_rows + len(branch) > MAX_GROUP:
            members, num_rows = [], 0
            groups.append(members)
        members.append(idx)
        newest[beginning] = members, num_rows + len(branch)
    return groups


def shared_length(branches: Sequence[BranchRows]) -> int:
    """Slots that all contexts begin with."""
    contexts = [np.asarray(branch.context_slots) for branch in branches]
    length = min(map(len, contexts))
    for context in contexts[1:]:
        differs = contexts[0][:length] != context[:length]
        first = int(differs.argmax()) if length else 0
        length = first if length and differs[first] else length
    return length


def own_slots_of(branch: BranchRows) -> list[list[int]]:
    """What each row of a branch sees besides the context, its own slot included."""
    chain = list(branch.chain_slots)
    seen = [chain[: idx + 1] for idx in range(len(chain))]
    by_node: list[list[int]] = []
    for parent, slot in zip(branch.tree_parents, branch.tree_slots, strict=True):
        by_node.append([*(chain if parent == NO_PARENT else by_node[parent]), slot])
    return seen + by_node[branch.first_node :]


class NativePlan:
    """Who sees what in one forward, as the C part reads it.

    Args:
        rows: without ghosts.
        frequencies: [D / 2] float32 of the rotation.
        scaling: of cosines and sines.
    """

    def __init__(self, rows: Rows, frequencies: np.ndarray, scaling: float) -> None:
        starts = np.cumsum([0, *rows.lengths])
        tiles: list[Tile] = []
        group_tiles, group_rows, members = [0], [0], []
        for group in groups_of(rows.branches):
            of_branch = {idx: range(starts[idx], starts[idx + 1]) for idx in group}
            together = [row for idx in group for row in of_branch[idx]]
            shared = shared_length([rows.branches[idx] for idx in group]) if len(group) > 1 else 0
            if shared:
                tiles.append(Tile(np.asarray(rows.branches[group[0]].context_slots)[:shared], together))
            for idx in group:
                tiles.append(Tile(np.asarray(rows.branches[idx].context_slots)[shared:], of_branch[idx]))
            members += together
            group_tiles.append(len(tiles))
            group_rows.append(len(members))
        tails = [slots for branch in rows.branches for slots in own_slots_of(branch)]
        angles = np.multiply.outer(rows.positions.astype(np.float32), frequencies)
        self.num_rows = len(rows.token_ids)
        self._arrays = {  # kept alive while C reads them
            "group_tiles": _int32(group_tiles),
            "tile_slots": _ends(tile.slots for tile in tiles),
            "tile_rows": _ends(tile.rows for tile in tiles),
            "slots": np.concatenate([tile.slots for tile in tiles]).astype(np.int32),
            "rows": _int32([row for tile in tiles for row in tile.rows]),
            "group_rows": _int32(group_rows),
            "members": _int32(members),
            "row_tails": _ends(tails),
            "tails": _int32([slot for slots in tails for slot in slots]),
            "own_slots": np.ascontiguousarray(rows.slots, dtype=np.int64),
            "cosine": np.cos(angles) * np.float32(scaling),
            "sine": np.sin(angles) * np.float32(scaling),
        }
        self._struct = _Plan(len(group_tiles) - 1, *(array.ctypes.data for array in self._arrays.values()))
        self.address = ctypes.addressof(self._struct)


class NativeAttention:
    """Attention of all layers of a model.

    Args:
        num_heads: H.
        num_kv_heads: J.
        head_dim: D.
        dtype: of queries and arena.
        scale: of scores.
        epsilon: of the norms of heads.
    """

    def __init__(
        self, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, scale: float, epsilon: float
    ) -> None:
        self._library: Any = native_library()
        self._num_heads, self._head_dim = num_heads, head_dim
        self._is_bf16 = dtype == torch.bfloat16
        self._shape = _Shape(0, num_heads, num_kv_heads, head_dim, self._is_bf16, scale, epsilon, None, None)
        self._memory = np.empty(0, dtype=np.float32)
        self._work = _Work()
        self._num_threads = 1

    @staticmethod
    def serves(head_dim: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether the C part is there, and computes this."""
        is_fit = head_dim % LANES == 0 and head_dim <= MAX_DIM and dtype in (torch.float32, torch.bfloat16)
        return device.type == "cpu" and is_fit and native_library() is not None

    def begin(self, num_rows: int) -> None:
        """Before the layers of a forward of so many rows."""
        pairs = num_rows * self._num_heads
        if len(self._memory) < pairs * (2 * self._head_dim + 2):
            self._memory = np.empty(pairs * (2 * self._head_dim + 2), dtype=np.float32)
        ends = np.cumsum([0, pairs * self._head_dim, pairs * self._head_dim, pairs]) * 4
        self._work = _Work(*(self._memory.ctypes.data + int(at) for at in ends))
        self._shape.num_rows = num_rows
        self._num_threads = torch.get_num_threads()

    def attend(
        self,
        qkv: torch.Tensor,
        arena: torch.Tensor,
        plan: NativePlan,
        head_norms: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """Rotate, write K and V into the arena, and attend.

        Args:
            qkv: [T, (H + 2 J) * D] contiguous.
            arena: [2, S, J, D] of the layer, contiguous.
            plan: of the forward.
            head_norms: [D] float32 weights for queries and keys, or None.

        Returns:
            [T, H * D].
        """
        out = qkv.new_empty(len(qkv), self._num_heads * self._head_dim)
        if head_norms is not None:
            self._shape.q_norm, self._shape.k_norm = (weight.data_ptr() for weight in head_norms)
        keys = arena.data_ptr()
        self._library.seedmp_attend(
            qkv.data_ptr(), keys, keys + arena.stride(0) * arena.element_size(), out.data_ptr(),
            ctypes.addressof(self._shape), plan.address, ctypes.addressof(self._work), self._num_threads,
        )  # fmt: skip
        return out

    def rms_norm(self, rows: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """[T, size] normalised and weighted by [size] float32."""
        out = torch.empty_like(rows)
        self._library.seedmp_rms_norm(
            rows.data_ptr(), weight.data_ptr(), out.data_ptr(), len(rows), rows.shape[1], epsilon, self._is_bf16
        )
        return out


def _int32(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def _ends(parts: Any) -> np.ndarray:
    """[parts + 1] where each part begins in their concatenation, and where the last one ends."""
    return np.cumsum([0, *map(len, parts)], dtype=np.int32)
