"""Shared KV arenas: allocated once, attached once, addressed by slots from then on.

Layout of one arena: [L, 2, S + 1, H, D] (layers, key and value, slots, KV heads, head size), so that the
KV of one token in one layer is one contiguous row. The last slot is never leased: rows that only fill up a
forward (ghosts, ``seedmp.models.buckets``) write there, and nobody reads it. One writer at a time: whoever
holds the lease of a slot (``seedmp.kv.slot_tree``); the verifier grants all leases. On a CPU the storage is a
torch.multiprocessing shared tensor inherited through fork; between GPUs' processes a CUDA IPC handle
travels as a typed message and the tensor is rebuilt from it.

A feature arena is [S, F] (slots of the target's arena, feature size): the target's hidden states that draft heads
continue. Its writer is the verifier alone, which writes a slot's KV and its feature in one forward; drafts read the
rows that a task names, and the verifier frees no such row before the task's answer.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from seedmp.errors import ConfigError, ProtocolError
from seedmp.ipc.messages import CudaTensor

SHARED_MEMORY_FOLDER = "/dev/shm"
NUM_GHOSTS = 1  # slots of an arena behind those that can be leased


class Layout(ABC):
    """Shape and dtype of a shared tensor."""

    dtype: str

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        result = getattr(torch, self.dtype)
        assert isinstance(result, torch.dtype)
        return result

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole arena."""
        return math.prod(self.shape) * self.torch_dtype.itemsize

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.dtype}"


@dataclass(frozen=True)
class ArenaLayout(Layout):
    """Shape and dtype of an arena; two processes that share one must agree on it."""

    num_layers: int
    num_slots: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """[L, 2, S + ghosts, H, D]."""
        return self.num_layers, 2, self.num_slots + NUM_GHOSTS, self.num_kv_heads, self.head_dim


@dataclass(frozen=True)
class FeatureLayout(Layout):
    """Shape and dtype of a feature arena: [S, F], S slots of the target's arena, F numbers a token."""

    num_slots: int
    feature_size: int
    dtype: str

    @property
    def shape(self) -> tuple[int, int]:
        """[S, F]."""
        return self.num_slots, self.feature_size


def layout_for(model_config: Any, num_slots: int, dtype: torch.dtype) -> ArenaLayout:
    """The arena that a transformers model needs.

    Args:
        model_config: configuration of a decoder-only model; what is smaller in some layer leaves room there.
    """
    text_config = model_config.get_text_config(decoder=True)
    num_layers = text_config.num_hidden_layers
    layers = [text_config]
    if getattr(text_config, "is_heterogeneous", False):
        layers = [text_config.per_layer_config[idx] for idx in range(num_layers)]
    kv_heads, head_dim = map(max, zip(*map(_kv_size, layers), strict=True))
    return ArenaLayout(num_layers, num_slots, kv_heads, head_dim, str(dtype).removeprefix("torch."))


def _kv_size(config: Any) -> tuple[int, int]:
    """KV heads and head size of layers with this configuration."""
    compressed = getattr(config, "kv_lora_rank", None)
    if compressed is not None:  # one vector for all heads, and what is rotated of the keys
        return 1, max(compressed, config.qk_rope_head_dim)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        kv_heads = 1
    return kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def check_shared_memory(size_bytes: int) -> None:
    """Refuse an arena that the shared-memory disk cannot hold: touching it would kill the process.

    Raises:
        ConfigError: names what is needed and what is free.
    """
    if not os.path.isdir(SHARED_MEMORY_FOLDER):
        return
    stat = os.statvfs(SHARED_MEMORY_FOLDER)
    free_bytes = stat.f_bavail * stat.f_frsize
    if size_bytes > free_bytes:
        raise ConfigError(
            f"{size_bytes / 2**20:.0f} MiB of shared memory are needed, {SHARED_MEMORY_FOLDER} has "
            f"{free_bytes / 2**20:.0f} MiB free: lower kv_slots, or give the container more (docker --shm-size)"
        )


def allocate_shared(layout: Layout) -> torch.Tensor:
    """A zero-filled arena in shared memory; pages are taken when they are first written.

    Raises:
        ConfigError: the shared-memory disk has no room.
    """
    check_shared_memory(layout.size_bytes)
    storage = torch.UntypedStorage._new_shared(layout.size_bytes)
    arena = torch.empty(0, dtype=layout.torch_dtype)
    return arena.set_(storage, 0, layout.shape)  # type: ignore[call-overload, no-any-return]


def allocate_on(layout: Layout, device: str) -> torch.Tensor:
    """A zero-filled arena in the memory of one process: shared on a CPU, exportable on a GPU."""
    return (
        allocate_shared(layout)
        if device == "cpu"
        else torch.zeros(layout.shape, dtype=layout.torch_dtype, device=device)
    )


def export_cuda(name: str, tensor: torch.Tensor) -> CudaTensor:
    """The CUDA IPC handle of a tensor. The exporter outlives every use, and synchronises before it announces."""
    _, args = reduce_tensor(tensor)
    (
        _,
        size,
        stride,
        offset,
        _,
        dtype,
        device,
        handle,
        size_bytes,
        offset_bytes,
        _,
        counter,
        counter_offset,
        event,
        sync,
    ) = args
    return CudaTensor(
        name, str(dtype).removeprefix("torch."), tuple(size), tuple(stride), offset, device, handle, size_bytes,
        offset_bytes, counter, counter_offset, event, sync,
    )  # fmt: skip


def attach_cuda(handle: CudaTensor) -> torch.Tensor:
    """The tensor behind a CUDA IPC handle.

    Raises:
        ProtocolError: the handle's dtype is unknown.
    """
    dtype = getattr(torch, handle.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ProtocolError(f"unknown dtype {handle.dtype!r}")
    tensor: torch.Tensor = rebuild_cuda_tensor(
        torch.Tensor, torch.Size(handle.size), handle.stride, handle.offset, torch.UntypedStorage, dtype,
        handle.device, handle.handle, handle.storage_size_bytes, handle.storage_offset_bytes, False,
        handle.ref_counter_handle, handle.ref_counter_offset, handle.event_handle, handle.event_sync_required,
    )  # fmt: skip
    return tensor


def publish_barrier(arena: torch.Tensor) -> None:
    """Wait until everything written to the arena is there for other processes to read."""
    if arena.is_cuda:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(arena.device))
        event.synchronize()
