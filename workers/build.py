"""What the processes of an engine are built from: models, arenas, and the parts that each worker makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from seedmp.client.detokenize import Detokenizer
from seedmp.config import EngineConfig, Placement, resolve_placement
from seedmp.decoding.constraint import Constrainer, automaton_tokenizer
from seedmp.drafts.base import Drafter, DraftKind
from seedmp.drafts.registry import make_draft_kind
from seedmp.ipc.arena import (
    Layout,
    allocate_on,
    allocate_shared,
    attach_cuda,
    check_shared_memory,
    export_cuda,
    layout_for,
)
from seedmp.ipc.messages import CudaTensor
from seedmp.models.load import ModelSpec, eos_token_ids, load_config, load_model, load_tokenizer, max_positions
from seedmp.models.proof import prove
from seedmp.models.rope import route_ropes
from seedmp.models.runner import make_runner, pack_model
from seedmp.scheduler.scheduler import Scheduler
from seedmp.scheduler.state import Limits
from seedmp.workers.target import TargetRunner
from seedmp.workers.verifier import Verifier

SMALL_DRAFT = 1 << 20  # layers x hidden size squared; about 10 million weights in the layers
ARENA_PREFIX = "\0"  # no weight's name begins so


@dataclass(frozen=True)
class SharedDraft:
    """What the drafts of a group share.

    On a CPU the module and the arenas, inherited through fork; the verifier inherits the arenas, too. On a GPU only the
    layouts: the tensors are the verifier's and come by CUDA IPC.

    Args:
        layouts: of all arenas that drafts attach, by name.
        model: the module; None on a GPU, or if the draft has none.
        arenas: by name; empty on a GPU.
    """

    layouts: Mapping[str, Layout]
    model: Any = None
    arenas: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        """What verifier and draft compare when they meet."""
        return ", ".join(f"{name} {layout}" for name, layout in self.layouts.items())


class Build:
    """The models of one engine: where they run, with which dtypes, and what its drafts share.

    Args:
        config: of the engine.

    Raises:
        ConfigError: a device that this node does not have, or models that do not go together.

    Runs in: supervisor; its workers inherit it.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.placement = resolve_placement(config)
        self.target_spec = ModelSpec(config.target, config.target_shape)
        self.draft: DraftKind = make_draft_kind(config)
        self.vocab_size = self.draft.vocab_size()
        self.target_dtype, self.draft_dtype = resolve_dtypes(
            config, self.placement, load_config(self.target_spec), self.draft.model_config()
        )

    @property
    def is_on_cpu(self) -> bool:
        """Whether all models run on the CPU."""
        return self.placement.target == "cpu"

    # --- in the supervisor -------------------------------------------------------------------------

    def share_arenas(self) -> list[SharedDraft]:
        """One entry a group, before the verifiers are forked.

        Raises:
            ConfigError: the shared-memory disk has no room for all arenas.
        """
        groups = range(self.config.num_groups)
        layouts = self.draft.layouts(self.draft_dtype, self.target_dtype)
        if not self.is_on_cpu:
            return [SharedDraft(layouts) for _ in groups]
        target = layout_for(load_config(self.target_spec), self.config.kv_slots, self.target_dtype)
        check_shared_memory((target.size_bytes + sum(layout.size_bytes for layout in layouts.values())) * len(groups))
        return [
            SharedDraft(layouts, arenas={name: allocate_shared(layout) for name, layout in layouts.items()})
            for _ in groups
        ]

    def share_weights(self, shared: list[SharedDraft]) -> list[SharedDraft]:
        """The same with the drafts' module, loaded once for all groups, before the drafts are forked.

        Nobody writes to its pages, so all drafts read the same memory.
        """
        if not self.config.drafts_per_group or not self.is_on_cpu:
            return shared
        model = self.draft.load(self.draft_dtype, "cpu")
        if model is None:
            return shared
        self._prove_draft(model)
        packed = self.draft.pack(model)
        return [replace(one, model=packed) for one in shared]

    def _prove_draft(self, model: Any) -> None:
        """A head is no model of transformers: there is nothing that it could differ from."""
        if isinstance(model, PreTrainedModel):
            prove(self.config.draft, model, self.config.runner)

    # --- in a verifier -------------------------------------------------------------------------------

    def make_verifier(
        self, shared: SharedDraft, folder: Path, group: int, epoch: int, supervisor: Connection, secret: bytes
    ) -> Verifier:
        """Load the target and connect it with scheduler and sockets."""
        config, device = self.config, self.placement.target
        torch.set_num_threads(config.threads()[0])
        model = load_model(self.target_spec, self.target_dtype, device)
        prove(config.target, model, config.runner)
        arena = allocate_on(layout_for(model.config, config.kv_slots, self.target_dtype), device)
        arenas, exported = shared.arenas, _Exported()
        if config.drafts_per_group and device != "cpu":
            exported = self._export(shared, model)
            arenas = exported.arenas
        tokenizer = load_tokenizer(config.target)
        lengths = (max_positions(model.config), self.draft.max_positions())
        limits = Limits(
            min(length for length in lengths if length is not None),
            self.vocab_size,
            frozenset(eos_token_ids(self.target_spec)),
            route_ropes(model),
        )
        decode = None if tokenizer is None else Detokenizer(tokenizer).tail
        constrainer = None
        if tokenizer is not None:
            make_tokenizer = partial(automaton_tokenizer, tokenizer, sorted(limits.eos_token_ids))
            constrainer = Constrainer(make_tokenizer, self.vocab_size)
        tap = self.draft.tap(model, arenas)
        target = make_runner(config.runner, pack_model(config.runner, model), arena, self.vocab_size, tap)
        return Verifier(
            config, Scheduler(config, limits, decode), TargetRunner(target, constrainer, config.method.rule), folder,
            group, epoch, supervisor, str(shared), secret, exported.handles, exported,
        )  # fmt: skip

    def _export(self, shared: SharedDraft, target_model: Any) -> _Exported:
        """Make the drafts' module and arenas on their GPU, and handles of their tensors."""
        device = self.placement.drafts[0]
        model = self.draft.load(self.draft_dtype, device, target_model)
        self._prove_draft(model)
        arenas = {name: allocate_on(layout, device) for name, layout in shared.layouts.items()}
        torch.cuda.synchronize(device)
        named = {ARENA_PREFIX + name: arena for name, arena in arenas.items()}
        if model is not None:
            named |= {**dict(model.named_parameters()), **dict(model.named_buffers())}
        handles = tuple(export_cuda(name, tensor.detach()) for name, tensor in named.items())
        return _Exported(handles, arenas, model)

    # --- in a draft ----------------------------------------------------------------------------------

    def make_drafter(self, shared: SharedDraft, tensors: tuple[CudaTensor, ...]) -> Drafter:
        """What answers draft tasks in this process.

        Args:
            tensors: of ``DraftWelcome``; empty on a CPU.
        """
        model, arenas = shared.model, shared.arenas
        if tensors:
            model, arenas = attach(self.draft, self.draft_dtype, tensors)
        return self.draft.drafter(model, arenas, self.vocab_size)


@dataclass(frozen=True)
class _Exported:
    """What a verifier made for its drafts on a GPU."""

    handles: tuple[CudaTensor, ...] = ()
    arenas: Mapping[str, torch.Tensor] = field(default_factory=dict)
    model: Any = None


def attach(
    draft: DraftKind, dtype: torch.dtype, tensors: tuple[CudaTensor, ...]
) -> tuple[Any, dict[str, torch.Tensor]]:
    """A module whose weights are another process's, and the arenas by name."""
    attached = {handle.name: attach_cuda(handle) for handle in tensors}
    arenas = {
        name.removeprefix(ARENA_PREFIX): attached.pop(name) for name in list(attached) if name.startswith(ARENA_PREFIX)
    }
    device = next((tensor.device for tensor in (*arenas.values(), *attached.values())), None)
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    if not attached:
        return None, arenas
    model = draft.skeleton(dtype)
    for name, tensor in attached.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        if leaf in owner._parameters:
            owner._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[leaf] = tensor
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model.eval(), arenas


def resolve_dtypes(
    config: EngineConfig, placement: Placement, target_config: Any, draft_config: Any
) -> tuple[torch.dtype, torch.dtype]:
    """Dtypes of target and drafts.

    They are the same, but a small draft on a CPU is float32: there, converting bfloat16 costs more than it saves.

    Args:
        draft_config: transformers configuration of the draft; None without a model.
    """
    dtype = _resolve_dtype(config, placement, target_config)
    if draft_config is None or placement.target != "cpu":
        return dtype, dtype
    sizes = draft_config.get_text_config(decoder=True)
    is_small = sizes.num_hidden_layers * sizes.hidden_size**2 < SMALL_DRAFT
    return dtype, torch.float32 if is_small else dtype


def _resolve_dtype(config: EngineConfig, placement: Placement, target_config: Any) -> torch.dtype:
    name = config.dtype
    if name == "auto":
        if placement.target == "cpu":
            return torch.float32
        checkpoint = getattr(target_config, "dtype", None)
        return checkpoint if isinstance(checkpoint, torch.dtype) else torch.bfloat16
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def preload(model_config: Any) -> None:
    """Import the model's code once, before the forks."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    AutoModelForCausalLM._model_mapping[type(model_config)]
