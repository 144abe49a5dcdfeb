"""Settings of an engine: frozen, validated once, before any process starts."""

from __future__ import annotations

import dataclasses
import enum
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from seedmp.errors import ConfigError
from seedmp.models.runner import RUNNERS
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.growmap_file import parse_growmap
from seedmp.token_tree.k_config import MAX_TREE_NODES, parse_k_config
from seedmp.token_tree.ngram import NgramShape
from seedmp.token_tree.opt_tree import AdaptiveShape, eagle2, opt_tree
from seedmp.token_tree.tree import ProposalKind


class Method(enum.Enum):
    """How proposals are made; every method is lossless."""

    AR = "ar"  # target only
    SD = "sd"  # independent samples (SpecInfer's rule)
    MCSD = "mcsd"  # samples without replacement (Sequoia's rule)
    SPECINFER = "specinfer"  # independent samples in any static tree
    SEQUOIA = "sequoia"  # samples without replacement in any static tree
    OPT_TREE = "opt-tree"  # a tree that follows the draft's confidence
    NGRAM = "ngram"  # what came after these words before: no draft model
    EAGLE = "eagle"  # a head that continues the target's hidden states
    COUPLED = "coupled"  # drafts share the target's noise: the text is that of ``ar``


class Schedule(enum.Enum):
    """Who may be served at once."""

    SERIAL = "serial"  # one request at a time
    SCHEDULED = "scheduled"  # SEED: n drafts, one target
    PARALLEL = "parallel"  # n replicas of the target, with a draft each


class PolicyName(enum.Enum):
    """What one target forward verifies."""

    FCFS = "fcfs"  # one proposal, the paper
    FCFS_BATCH = "fcfs-batch"  # the first-come prefix of the queue, up to a token budget


_WITHOUT_DRAFTS = (Method.AR, Method.NGRAM)
_WITH_K_CONFIG = (Method.SD, Method.MCSD, Method.SPECINFER, Method.COUPLED)
_SAMPLING = (Method.SD, Method.MCSD, Method.SPECINFER, Method.SEQUOIA)
# Which methods look at a setting that is None unless it is given.
_USED_BY = {
    "growmap": (Method.SPECINFER, Method.SEQUOIA, Method.COUPLED),
    "nodes": (Method.OPT_TREE, Method.NGRAM, Method.EAGLE),
    "max_depth": (Method.OPT_TREE, Method.NGRAM, Method.EAGLE),
    "threshold": (Method.OPT_TREE, Method.EAGLE),
    "top_k": (Method.EAGLE,),
}
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Placement:
    """Devices: one for the target, one for each draft; such as ``cpu`` or ``cuda:0``."""

    target: str
    drafts: tuple[str, ...]


@dataclass(frozen=True)
class EngineConfig:
    """Everything that the processes of one engine need to know.

    Args:
        target: folder or hub id of the target; None is the bundled one.
        draft: the same for the draft; must share the target's vocabulary. For ``eagle`` a head.
        target_shape: name of a shape that a Llama target is inflated to (benchmarks).
        draft_shape: the same for the draft.
        num_drafts: draft processes (replicas, with ``parallel``).
        method: ``ar``, ``sd``, ``mcsd``, ``specinfer``, ``sequoia``, ``opt-tree``, ``ngram``, ``eagle`` or
            ``coupled``.
        k_config: children per node, level by level, for ``sd`` and ``mcsd``, and where there is no growmap for
            ``specinfer`` and ``coupled``.
        growmap: any other static tree, for ``specinfer``, ``sequoia`` (which needs one) and ``coupled``: the path
            of a .pt or .json file, "KxD" for K chains of D tokens, or child counts. Kept as the child counts of all
            nodes, so that no process needs the file.
        nodes: draft tokens in a tree at most, for ``opt-tree`` (None: 50), ``ngram`` (None: 16) and ``eagle``
            (None: 59).
        max_depth: draft tokens on a path at most, for the same (None: 10, 8 and 8).
        threshold: ``opt-tree`` stops drafting when a layer adds this much or less to the tokens that it expects
            (None: 0.5); 0 goes on to ``max_depth``. With ``eagle`` it makes the tree an OPT-Tree (None: EAGLE-2's).
        top_k: nodes of a layer that ``eagle`` drafts further, and children that each may get (None: 10, with a
            threshold ``nodes``); 1 makes chains.
        schedule: ``serial``, ``scheduled`` or ``parallel``.
        policy: ``fcfs`` or ``fcfs-batch``.
        dtype: ``auto`` is float32 on a CPU and the checkpoint's on a GPU.
        placement: ``auto``, one device for all, or a Placement.
        runner: how forwards are run: ``eager``, or ``module:attribute`` of a runner of your own.
        kv_slots: tokens whose KV fits in the target's arena.
        draft_kv_slots: the same for the drafts' arena; None is ``kv_slots``.
        max_forward_tokens: rows of one target forward; longer prompts are prefilled in chunks.
        draft_top_m: draft proposals come from the m most probable tokens, renormalised.
        draft_noise: share of the draft's law that is uniform over those tokens (benchmarks: a worse draft, just as
            lossless); for methods that sample.
        target_threads: CPU threads of a target forward; None divides the cores.
        draft_threads: the same for each draft; None is 1.
        ready_timeout_s: start-up deadline.
        stall_timeout_s: a worker silent for so long is taken for dead.
        max_restarts: worker deaths in a minute before the engine gives up.
        validate: check all invariants after each event (tests).

    Raises:
        ConfigError: a value is wrong; the message names it and what is allowed.
    """

    target: str
    draft: str
    target_shape: str | None = None
    draft_shape: str | None = None
    num_drafts: int = 3
    method: Method = Method.MCSD
    k_config: tuple[int, ...] = (2, 2, 1)
    growmap: str | os.PathLike[str] | Growmap | tuple[Any, ...] | None = None
    nodes: int | None = None
    max_depth: int | None = None
    threshold: float | None = None
    top_k: int | None = None
    schedule: Schedule = Schedule.SCHEDULED
    policy: PolicyName = PolicyName.FCFS_BATCH
    dtype: str = "auto"
    placement: str | Placement = "auto"
    runner: str = "eager"
    kv_slots: int = 8192
    draft_kv_slots: int | None = None
    max_forward_tokens: int = 512
    draft_top_m: int = 64
    draft_noise: float = 0.0
    target_threads: int | None = None
    draft_threads: int | None = None
    ready_timeout_s: float = 180.0
    stall_timeout_s: float = 60.0
    max_restarts: int = 5
    validate: bool = False

    def __post_init__(self) -> None:
        for name, kind in {"method": Method, "schedule": Schedule, "policy": PolicyName}.items():
            object.__setattr__(self, name, _member(kind, name, getattr(self, name)))
        object.__setattr__(self, "k_config", parse_k_config(self.k_config))
        limits = {"num_drafts": (1, 64), "kv_slots": (64, 1 << 26), "max_forward_tokens": (16, 1 << 16)}
        limits |= {"draft_top_m": (1, 1 << 20), "max_restarts": (0, 1 << 20)}
        limits |= {name: (1, 1024) for name in ("target_threads", "draft_threads")}
        limits |= {"draft_kv_slots": (64, 1 << 26)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is None and name in ("target_threads", "draft_threads", "draft_kv_slots"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"{name}={value!r}: must be a whole number from {low} to {high}")
        for name in ("ready_timeout_s", "stall_timeout_s"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > 0:
                raise ConfigError(f"{name}={value!r}: must be a number of seconds > 0")
        noise = self.draft_noise
        if not isinstance(noise, int | float) or isinstance(noise, bool) or not 0 <= noise <= 1:
            raise ConfigError(f"draft_noise={noise!r}: must be a number from 0 to 1")
        if noise and self.method not in _SAMPLING:
            allowed = ", ".join(method.value for method in _SAMPLING)
            raise ConfigError(f"draft_noise is not used by method={self.method.value}: only by {allowed}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r}: must be one of {', '.join(DTYPES)}")
        if self.runner not in RUNNERS.names():  # built-in ones are imported where they run
            RUNNERS.load(self.runner)
        self._check_tree()

    def _check_tree(self) -> None:
        for name, methods in _USED_BY.items():
            if getattr(self, name) is not None and self.method not in methods:
                allowed = ", ".join(method.value for method in methods)
                raise ConfigError(f"{name} is not used by method={self.method.value}: only by {allowed}")
        if self.growmap is not None:
            given = self.growmap
            try:
                growmap = parse_growmap(given)
            except ConfigError as error:
                raise ConfigError(f"growmap={given!r}: {error}") from error
            if not 1 <= growmap.num_nodes <= MAX_TREE_NODES:
                raise ConfigError(
                    f"growmap={given!r}: {growmap.num_nodes} draft tokens; must be 1 to {MAX_TREE_NODES}, "
                    "the root not counted"
                )
            if growmap.max_children > self.draft_top_m:
                raise ConfigError(
                    f"growmap={given!r}: a node has {growmap.max_children} children, but draft_top_m={self.draft_top_m}"
                )
            object.__setattr__(self, "growmap", growmap.num_children)
        elif self.method is Method.SEQUOIA:
            raise ConfigError(
                'growmap=None: method=sequoia needs one: the path of a .pt or .json file, "KxD", or child counts '
                "(`seedmp growmap make` writes one; mcsd is the same with a k_config)"
            )
        if self.method in _WITH_K_CONFIG and self.growmap is None and max(self.k_config) > self.draft_top_m:
            raise ConfigError(f"k_config={self.k_config}: no k may exceed draft_top_m={self.draft_top_m}")
        if self.draft_shape is not None and self.method is Method.EAGLE:
            raise ConfigError(f"draft_shape={self.draft_shape!r}: a head has the shape that its target asks for")
        threshold = self.threshold
        if threshold is not None and (not isinstance(threshold, int | float) or isinstance(threshold, bool)):
            raise ConfigError(f"threshold={threshold!r}: must be a finite number >= 0")
        _ = self.adaptive_shape, self.ngram_shape  # their values are checked where they are made

    @cached_property
    def static_tree(self) -> Growmap | None:
        """The shape of every proposal, for methods that have one."""
        if self.growmap is not None:
            return parse_growmap(self.growmap)
        return Growmap.from_k_config(self.k_config) if self.method in _WITH_K_CONFIG else None

    @cached_property
    def adaptive_shape(self) -> AdaptiveShape | None:
        """When a draft stops growing a tree, and what it keeps, for methods that follow its confidence."""
        if self.method is Method.EAGLE:
            shape = eagle2()
            nodes = shape.nodes if self.nodes is None else self.nodes
            width = shape.layer_width if self.threshold is None else nodes
            top_k = width if self.top_k is None else self.top_k
            max_depth = shape.max_depth if self.max_depth is None else self.max_depth
            return AdaptiveShape(nodes, top_k, max_depth, self.threshold)
        if self.method is not Method.OPT_TREE:
            return None
        return opt_tree(**self._given("nodes", "threshold", "max_depth"))

    @cached_property
    def ngram_shape(self) -> NgramShape | None:
        """What is looked up, without a draft."""
        return NgramShape(**self._given("nodes", "max_depth")) if self.method is Method.NGRAM else None

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def max_tree_nodes(self) -> int:
        """Draft tokens of the largest proposal: target slots that a round takes besides the text's."""
        if self.static_tree is not None:
            return self.static_tree.num_nodes
        shape = self.adaptive_shape or self.ngram_shape
        return shape.nodes if shape is not None else 0

    @property
    def max_drafted(self) -> int:
        """Draft tokens that a draft runs forward at most: draft slots that a round takes besides the text's."""
        if self.static_tree is not None:
            return self.static_tree.num_drafted
        return self.adaptive_shape.max_drafted if self.adaptive_shape is not None else 0

    @property
    def num_groups(self) -> int:
        """Verifier processes."""
        return self.num_drafts if self.schedule is Schedule.PARALLEL else 1

    @property
    def drafts_per_group(self) -> int:
        """Draft processes that serve one verifier."""
        if self.method in _WITHOUT_DRAFTS:
            return 0
        return 1 if self.schedule is Schedule.PARALLEL else self.num_drafts

    @property
    def num_draft_slots(self) -> int:
        """Slots of the drafts' arena."""
        return self.kv_slots if self.draft_kv_slots is None else self.draft_kv_slots

    def proposal_kind(self, draft_temperature: float) -> ProposalKind:
        """How children are chosen at a draft temperature: at 0 the draft's top candidates, without chance.

        With ``coupled`` the noise is the target's own, so to the rule the tree is fixed.
        """
        if draft_temperature == 0 or self.method in (
            Method.OPT_TREE,
            Method.NGRAM,
            Method.EAGLE,
            Method.COUPLED,
        ):
            return ProposalKind.DETERMINISTIC
        independent = self.method in (Method.SD, Method.SPECINFER)
        return ProposalKind.IID if independent else ProposalKind.WITHOUT_REPLACEMENT

    def threads(self) -> tuple[int, int]:
        """CPU threads of a verifier and of a draft."""
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.target_threads or max(1, num_cores // self.num_groups), self.draft_threads or 1

    def to_plain(self) -> dict[str, Any]:
        """A JSON-able dictionary that ``from_plain`` reads back."""
        plain = dataclasses.asdict(self)
        for name in ("method", "schedule", "policy"):
            plain[name] = getattr(self, name).value
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> EngineConfig:
        """The inverse of ``to_plain``."""
        placement = plain["placement"]
        if isinstance(placement, dict):
            placement = Placement(placement["target"], tuple(placement["drafts"]))
        return cls(**{**plain, "placement": placement, "k_config": tuple(plain["k_config"])})


def needs_draft(method: object) -> bool:
    """Whether a method, or its name, has a draft model."""
    return method not in _WITHOUT_DRAFTS and method not in [without.value for without in _WITHOUT_DRAFTS]


def _member(kind: type[enum.Enum], name: str, value: Any) -> enum.Enum:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(str(item.value) for item in kind)
        raise ConfigError(f"{name}={value!r}: must be one of {allowed}") from None


def resolve_placement(config: EngineConfig) -> Placement:
    """Devices of target and drafts.

    ``auto``: the CPU without a GPU; one GPU for all; with several the target on the first, the drafts on the second.
    All drafts share one device, because they share one arena.

    Raises:
        ConfigError: a device that this node does not have.
    """
    import torch

    num_gpus = torch.cuda.device_count()
    num_drafts = config.num_groups * config.drafts_per_group
    placement = config.placement
    if placement == "auto":
        if num_gpus == 0:
            placement = Placement("cpu", ("cpu",) * num_drafts)
        else:
            placement = Placement("cuda:0", ("cuda:1" if num_gpus > 1 else "cuda:0",) * num_drafts)
    elif isinstance(placement, str):
        placement = Placement(placement, (placement,) * num_drafts)
    if len(placement.drafts) != num_drafts:
        raise ConfigError(f"placement names {len(placement.drafts)} draft devices, {num_drafts} drafts are asked for")
    allowed = {"cpu", *(f"cuda:{i}" for i in range(num_gpus))}
    for device in (placement.target, *placement.drafts):
        if device not in allowed:
            raise ConfigError(f"placement: no device {device!r} here; this node has {', '.join(sorted(allowed))}")
    if len(set(placement.drafts)) > 1:
        raise ConfigError(f"placement: drafts share one KV arena, so one device; got {sorted(set(placement.drafts))}")
    if (placement.target == "cpu") != all(device == "cpu" for device in placement.drafts):
        raise ConfigError(f"placement {placement}: target and drafts must all be on the CPU or all on GPUs")
    return placement
