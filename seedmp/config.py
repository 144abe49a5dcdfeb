"""Settings of an engine: frozen, validated once, before any process starts."""

from __future__ import annotations

import dataclasses
import enum
import sys
from dataclasses import InitVar, dataclass
from typing import Any

from seedmp.checks import (
    MAX_TIMEOUT_S,
    check_flag,
    check_number,
    check_one_of,
    check_path,
    check_text,
    check_texts,
    check_whole,
)
from seedmp.errors import ConfigError
from seedmp.methods.base import Method
from seedmp.methods.registry import METHODS, make_method, method_from_plain, method_to_plain, name_of
from seedmp.models.runner import RUNNERS
from seedmp.registry import Registry, import_folder
from seedmp.system import affinity_cores


class Schedule(enum.Enum):
    """Who may be served at once."""

    SERIAL = "serial"  # one request at a time
    SCHEDULED = "scheduled"  # SEED: n drafts, one target
    PARALLEL = "parallel"  # n replicas of the target, with a draft each


# Who is served first; a class of your own is named module:Class.
POLICIES: Registry[Any] = Registry(
    "policy",
    {
        "fcfs": "seedmp.scheduler.policies:Fcfs",  # one proposal a forward, the paper
        "fcfs-batch": "seedmp.scheduler.policies:FcfsBatch",  # the first of the queue, up to a token budget
        "priority": "seedmp.scheduler.policies:Priority",  # the most urgent first
        "fair": "seedmp.scheduler.policies:Fair",  # the user with the fewest tokens first
    },
)


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
        target: folder or hub id of the target.
        draft: the same for the draft; must share the target's vocabulary. For ``eagle`` a head.
        target_shape: name of a shape that a Llama target is inflated to (benchmarks).
        draft_shape: the same for the draft.
        num_drafts: draft processes (replicas, with ``parallel``).
        method: ``ar``, ``sd``, ``mcsd``, ``specinfer``, ``sequoia``, ``opt-tree``, ``ngram``, ``eagle``, ``coupled``,
            ``module:attribute`` for one of your own, or a ready ``Method``. Afterwards it is a ``Method``.
        k_config, growmap, nodes, max_depth, threshold, top_k, rule: settings of the method, described in its file
            in ``seedmp/methods/``. They become fields of ``method``.
        schedule: ``serial``, ``scheduled`` or ``parallel``.
        policy: ``fcfs``, ``fcfs-batch``, ``priority`` or ``fair``, or ``module:Class`` of your own.
        dtype: ``auto`` is float32 on a CPU and the checkpoint's on a GPU.
        placement: ``auto``, one device for all, or a Placement.
        runner: how forwards are run: ``eager`` calls the transformers model as it is; ``fused`` runs Llama-like models
            in fewer, larger operations; ``auto`` is ``fused`` where that is possible on a CPU, else ``eager``; or
            ``module:attribute`` of a runner of your own.
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
    method: Method = "mcsd"  # type: ignore[assignment]  # a name becomes a Method
    k_config: InitVar[Any] = None
    growmap: InitVar[Any] = None
    nodes: InitVar[int | None] = None
    max_depth: InitVar[int | None] = None
    threshold: InitVar[float | None] = None
    top_k: InitVar[int | None] = None
    rule: InitVar[str | None] = None
    schedule: Schedule = Schedule.SCHEDULED
    policy: str = "fcfs-batch"
    dtype: str = "auto"
    placement: str | Placement = "auto"
    runner: str = "auto"
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

    def __post_init__(
        self,
        k_config: Any,
        growmap: Any,
        nodes: int | None,
        max_depth: int | None,
        threshold: float | None,
        top_k: int | None,
        rule: str | None,
    ) -> None:
        given = {
            "k_config": k_config, "growmap": growmap, "nodes": nodes, "max_depth": max_depth, "threshold": threshold,
            "top_k": top_k, "rule": rule,
        }  # fmt: skip
        for name, value in self._checked(given).items():
            object.__setattr__(self, name, value)
        if self.draft_noise and not self.method.samples:
            allowed = ", ".join(name for name in METHODS.names() if METHODS.load(name).samples)
            raise ConfigError(f"draft_noise is not used by method={self.method.name}: only by {allowed}")
        self.method.check(self)

    def _checked(self, given: dict[str, Any]) -> dict[str, Any]:
        """Every field as Python and JSON know it; a field that is not here reaches no worker."""
        POLICIES.load(self.policy)
        runner = check_text("runner", self.runner)
        if runner not in RUNNERS.names():  # built-in ones are imported where they run
            RUNNERS.load(runner)
        whole = {
            "num_drafts": (1, 64), "kv_slots": (64, 1 << 26), "max_forward_tokens": (16, 1 << 16),
            "draft_top_m": (1, 1 << 20), "max_restarts": (0, 1 << 20),
        }  # fmt: skip
        optional = {"target_threads": (1, 1024), "draft_threads": (1, 1024), "draft_kv_slots": (64, 1 << 26)}
        whole |= {name: limits for name, limits in optional.items() if getattr(self, name) is not None}
        shapes = {name: getattr(self, name) for name in ("target_shape", "draft_shape")}
        times = ("ready_timeout_s", "stall_timeout_s")
        return {
            "target": check_path("target", self.target),
            "draft": check_path("draft", self.draft),
            **{name: None if shape is None else check_text(name, shape) for name, shape in shapes.items()},
            "schedule": _member(Schedule, "schedule", self.schedule),
            "policy": check_text("policy", self.policy),
            "runner": runner,
            "method": make_method(self.method, given),
            "dtype": check_one_of("dtype", self.dtype, DTYPES),
            "placement": _placement(self.placement),
            **{name: check_whole(name, getattr(self, name), low, high) for name, (low, high) in whole.items()},
            **{name: check_number(name, getattr(self, name), 0, MAX_TIMEOUT_S, above=True) for name in times},
            "draft_noise": check_number("draft_noise", self.draft_noise, 0, 1),
            "validate": check_flag("validate", self.validate),
        }

    @property
    def num_groups(self) -> int:
        """Verifier processes."""
        return self.num_drafts if self.schedule is Schedule.PARALLEL else 1

    @property
    def drafts_per_group(self) -> int:
        """Draft processes that serve one verifier."""
        if not self.method.has_drafts:
            return 0
        return 1 if self.schedule is Schedule.PARALLEL else self.num_drafts

    @property
    def num_draft_slots(self) -> int:
        """Slots of the drafts' arena."""
        return self.kv_slots if self.draft_kv_slots is None else self.draft_kv_slots

    def threads(self) -> tuple[int, int]:
        """CPU threads of a verifier and of a draft."""
        return self.target_threads or max(1, affinity_cores() // self.num_groups), self.draft_threads or 1

    def to_plain(self) -> dict[str, Any]:
        """A JSON-able dictionary that ``from_plain`` reads back."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if isinstance(self.placement, Placement):
            plain["placement"] = dataclasses.asdict(self.placement)
        return plain | {
            "method": method_to_plain(self.method),
            "schedule": self.schedule.value,
            "import_folders": self.import_folders(),
        }

    def import_folders(self) -> list[str]:
        """Folders that parts of the user's own were imported from, so that workers find the same files."""
        names = [name_of(self.method), self.method.draft_kind, self.method.rule, self.policy, self.runner]
        folders = [import_folder(name) for name in names if name is not None]
        return list(dict.fromkeys(folder for folder in folders if folder is not None))

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> EngineConfig:
        """The inverse of ``to_plain``."""
        plain = dict(plain)
        # At the end: a file of the user's must not stand before a library's.
        sys.path += [folder for folder in plain.pop("import_folders") if folder not in sys.path]
        placement = plain["placement"]
        if isinstance(placement, dict):
            placement = Placement(placement["target"], tuple(placement["drafts"]))
        return cls(**{**plain, "placement": placement, "method": method_from_plain(plain["method"])})


def _member(kind: type[enum.Enum], name: str, value: Any) -> enum.Enum:
    if isinstance(value, kind):
        return value
    return kind(check_one_of(name, value, [item.value for item in kind]))


def _placement(value: Any) -> str | Placement:
    if not isinstance(value, Placement):
        return check_text("placement", value)
    return Placement(check_text("placement.target", value.target), check_texts("placement.drafts", value.drafts))


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
