"""A plan: the engine settings that ``seedmp tune`` found fastest on a node, with what they reached, as a JSON file."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from seedmp.config import EngineConfig
from seedmp.errors import ConfigError
from seedmp.methods.base import NO_DRAFT
from seedmp.methods.registry import method_class
from seedmp.models import pair
from seedmp.plain_json import parse_json
from seedmp.system import affinity_cores

log = logging.getLogger(__name__)

FORMAT, VERSION = "seedmp_plan", 1
MAX_FILE_BYTES = 4 * 2**20
# Of EngineConfig: what a plan may set.
SETTINGS = (
    "method", "k_config", "growmap", "num_drafts", "schedule", "policy", "dtype", "kv_slots", "max_forward_tokens",
    "target_threads", "draft_threads",
)  # fmt: skip
_TREE = {"method", "k_config", "growmap"}  # these belong together: they are taken from a plan all or none
_MODELS = ("target", "draft", "target_shape", "draft_shape")


@dataclass(frozen=True)
class Figures:
    """Tokens per second over interleaved repeats."""

    median: float
    low: float
    high: float
    repeats: int

    def __post_init__(self) -> None:
        numbers = (self.low, self.median, self.high)
        if not all(_is_number(value) for value in numbers) or not 0 <= self.low <= self.median <= self.high:
            raise ConfigError(f"tokens/s {numbers}: must be numbers >= 0, low, median, high")
        if type(self.repeats) is not int or self.repeats < 1:
            raise ConfigError(f"repeats {self.repeats!r}: must be a whole number >= 1")


@dataclass(frozen=True)
class Plan:
    """Settings for one pair of models, one workload and one node.

    Args:
        settings: of ``Engine``, by name; those of SETTINGS.
        target, draft: path or hub id; None is the bundled pair's.
        target_shape, draft_shape: what they are inflated to, or None.
        workload: branches, temperature, max_tokens, prompts: what it was measured with.
        predicted: tokens/s that were expected before ``measured`` was known.
        measured: tokens/s of these settings.
        ar: tokens/s of plain decoding, measured in turns with them.
        gain: median ratio to plain decoding of the fastest speculation that was measured. If ``method`` is ar, this
            gain was too small.
        node: what it was measured on.

    Raises:
        ConfigError: a setting is unknown or wrong, or a figure is no number.
    """

    settings: Mapping[str, Any]
    predicted: float
    measured: Figures
    ar: Figures
    gain: float
    target: str | None = None
    draft: str | None = None
    target_shape: str | None = None
    draft_shape: str | None = None
    workload: Mapping[str, Any] = field(default_factory=dict)
    node: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("settings", "workload", "node"):
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be an object")
        for name in _MODELS:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigError(f"{name} {value!r}: must be a name, or null for the bundled pair's")
        if (self.target is None) != (self.draft is None):
            raise ConfigError(f"target {self.target!r} and draft {self.draft!r}: both bundled or neither")
        for name in ("predicted", "gain"):
            if not _is_number(getattr(self, name)) or getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be a number >= 0")
        unknown = sorted(set(self.settings) - set(SETTINGS))
        if unknown or "method" not in self.settings:
            what = f"unknown setting {unknown[0]!r}" if unknown else "no method"
            raise ConfigError(f"{what}: a plan has {', '.join(SETTINGS)}")
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.settings.items()
        }
        EngineConfig(target="-", draft="-", **settings)
        object.__setattr__(self, "settings", settings)  # as it was before it went through JSON

    @property
    def pays(self) -> bool:
        """Whether speculation is faster than plain decoding here."""
        return bool(self.settings["method"] != "ar")

    @property
    def in_words(self) -> str:
        """One sentence: whether speculation pays, with the figures."""
        ar, own = self.ar.median, self.measured.median
        if self.pays:
            return f"speculation pays here: {own:.1f} tokens/s, plain decoding {ar:.1f} (x{self.gain:.2f})"
        return (
            f"speculation does not pay here: the fastest that was measured reached x{self.gain:.2f} of plain "
            f"decoding's {ar:.1f} tokens/s; the plan is plain decoding"
        )

    def settings_for(
        self, target: str | None, draft: str | None, given: Mapping[str, Any]
    ) -> tuple[str | None, str | None, dict[str, Any]]:
        """Target, draft and settings for an engine. Those that the user gives have priority over the plan's.

        A method, k_config or growmap that is given replaces the plan's tree as a whole.

        Raises:
            ConfigError: the models are not those that the plan was made for.
        """
        for what, name in (("target", target), ("draft", draft)):
            if name is not None and (what == "target" or self.pays) and not _is_same(name, getattr(self, what), what):
                raise ConfigError(
                    f"the plan was made for {self._describe(what)}, not for {what} {name!r}: run `seedmp tune` for it"
                )
        for name in ("target_shape", "draft_shape"):
            if name in given and given[name] != getattr(self, name) and (name == "target_shape" or self.pays):
                what = name.partition("_")[0]
                raise ConfigError(
                    f"the plan was made for {self._describe(what)}, not for {name}={given[name]!r}: run `seedmp tune` "
                    "for it"
                )
        cores = self.node.get("cores")
        if isinstance(cores, int) and cores != affinity_cores():
            log.warning(
                "the plan was measured with %d cores, here are %d: `seedmp tune` finds one for this node",
                cores, affinity_cores(),
            )  # fmt: skip
        dropped = _TREE if _TREE & set(given) else set[str]()
        defaults = {name: value for name, value in self.settings.items() if name not in dropped}
        shapes = {name: shape for name in ("target_shape", "draft_shape") if (shape := getattr(self, name))}
        if draft is None and method_class(given.get("method", self.settings["method"])).draft_kind != NO_DRAFT:
            draft = self.draft
        return self.target, draft, {**shapes, **defaults, **given}

    def _describe(self, what: str) -> str:
        name, shape = getattr(self, what), getattr(self, f"{what}_shape")
        words = f"the bundled {what}" if name is None else f"{what} {name!r}"
        return f"{words} inflated to {shape}" if shape else words

    # --- files ---

    def to_plain(self) -> dict[str, Any]:
        """A JSON-able dictionary that ``from_plain`` reads back."""
        plain = asdict(self)
        plain["pays"] = self.pays  # for people; it follows from the method
        return {FORMAT: VERSION, **plain}

    @classmethod
    def from_plain(cls, plain: object) -> Plan:
        """The inverse of ``to_plain``.

        Raises:
            ConfigError: says what is missing or wrong.
        """
        if not isinstance(plain, dict) or FORMAT not in plain:
            raise ConfigError(f"no plan: must be an object with the key {FORMAT!r}; `seedmp tune` writes one")
        if plain[FORMAT] != VERSION or isinstance(plain[FORMAT], bool):
            raise ConfigError(f"plan of version {plain[FORMAT]!r}: this seedmp reads version {VERSION}")
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(plain) - known - {FORMAT, "pays"})
        missing = sorted({"settings", "predicted", "measured", "ar", "gain"} - set(plain))
        if unknown or missing:
            raise ConfigError(f"plan: {f'unknown key {unknown[0]!r}' if unknown else f'lacks {missing[0]!r}'}")
        values = {name: plain[name] for name in known & set(plain)}
        for name in ("measured", "ar"):
            try:
                values[name] = Figures(**values[name])
            except TypeError as error:
                raise ConfigError(f"plan: {name} {values[name]!r}: {error}") from None
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"plan: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, in one go.

        Raises:
            ConfigError: it cannot be written.
        """
        file = Path(path)
        part = file.with_name(file.name + ".part")
        try:
            part.write_text(json.dumps(self.to_plain(), indent=1) + "\n", "utf-8")
            os.replace(part, file)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read what ``Plan.save`` wrote.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"larger than {MAX_FILE_BYTES} bytes")
        return Plan.from_plain(parse_json(file.read_bytes()))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # ConfigError too
        text = str(error) if isinstance(error, ConfigError) else f"no plan: not JSON ({error})"
        raise ConfigError(f"{file}: {text}") from None


def read_plan(plan: Plan | str | os.PathLike[str]) -> Plan:
    """A plan, or the one in a file."""
    return plan if isinstance(plan, Plan) else load_plan(plan)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max  # False for NaN; huge ints do not overflow


def _is_same(name: str, planned: str | None, what: str) -> bool:
    """Whether a model that a user named is the plan's."""
    known = planned if planned is not None else str(pair.TARGET if what == "target" else pair.DRAFT)
    return name == known or (os.path.exists(name) and os.path.realpath(name) == os.path.realpath(known))
