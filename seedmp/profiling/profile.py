"""``with engine.profile("out/") as profile``: look at a run, then write what was seen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from seedmp.config import EngineConfig
from seedmp.errors import ConfigError, SeedmpError
from seedmp.profiling import chrome_trace, report, timeline
from seedmp.profiling.findings import diagnose
from seedmp.profiling.gpus import mps_state
from seedmp.profiling.sampler import PERIOD_S, ProcessRecord, Sampler
from seedmp.system import usable_cores

if TYPE_CHECKING:
    from seedmp.engine import Engine


@dataclass
class ProfileData:
    """A finished profile.

    Args:
        stats: growth of ``Engine.stats`` during the profile; empty if the engine was closed or died in it.
        shares_gpu: whether target and drafts are on one GPU.
    """

    start_ns: int
    end_ns: int
    processes: list[ProcessRecord]
    config: EngineConfig
    node: dict[str, Any]
    cores: float
    stats: dict[str, float] = field(default_factory=dict)
    shares_gpu: bool = False
    mps: str = "unknown"

    @property
    def wall_s(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    def of_kind(self, kind: str) -> list[ProcessRecord]:
        """Processes whose name begins so: engine, verifier, draft, supervisor."""
        return [process for process in self.processes if process.name.startswith(kind)]


class Profile:
    """A profile of one engine, while its ``with`` block runs. Afterwards ``data`` and ``summary`` are set.

    The files are written at the end of the block, also after an exception or Ctrl-C.

    Args:
        folder: made if it is not there; files of an earlier profile in it are replaced.

    Raises:
        ConfigError: the folder cannot be written; nothing has been run then.
    """

    def __init__(self, engine: Engine, folder: str | os.PathLike[str], *, period_s: float = PERIOD_S) -> None:
        self.engine = engine
        self.folder = check_folder(folder)
        self.period_s = period_s
        self.data: ProfileData | None = None
        self.summary = ""
        self.files: list[Path] = []
        self._sampler: Sampler | None = None
        self._before: dict[str, float] = {}

    def __enter__(self) -> Profile:
        self._before = self.engine.stats()
        sampler = Sampler(self.engine.folder, self.period_s)
        sampler.start()
        self._sampler = sampler
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the profile and write the files; a second call does nothing."""
        sampler, self._sampler = self._sampler, None
        if sampler is None:
            return
        processes = sampler.stop()
        stats: dict[str, float] = {}
        with suppress(SeedmpError):
            after = self.engine.stats()
            stats = {name: value - self._before.get(name, 0.0) for name, value in after.items()}
        from seedmp.measure import describe_node  # imports the engine

        config = self.engine.config
        self.data = ProfileData(
            sampler.start_ns, sampler.end_ns, processes, config, describe_node(), usable_cores(), stats,
            _shares_gpu(config), mps_state(),
        )  # fmt: skip
        self._write(self.data)

    def _write(self, data: ProfileData) -> None:
        findings = diagnose(data)
        self.summary = report.in_words(data, findings)
        picture = timeline.svg(data)
        files = {
            "trace.json": json.dumps(chrome_trace.events(data)),
            "profile.json": json.dumps(report.figures(data, findings), indent=1),
            "timeline.svg": picture,
            "summary.txt": self.summary,
            "report.html": report.page(data, self.summary, picture),
        }
        costs = report.costs(data)
        if costs is not None:
            files["costs.json"] = json.dumps(costs.to_plain(), indent=1)
        for name, text in files.items():
            self.files.append(self.folder / name)
            self.files[-1].write_text(text + "\n", encoding="utf-8")


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made and found writable.

    Raises:
        ConfigError: it is not.
    """
    path = Path(folder)
    probe = path / ".seedmp-probe"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written for a profile: {error.strerror}") from None
    return path


@contextmanager
def profile_engines(folder: str | os.PathLike[str], *, period_s: float = PERIOD_S) -> Iterator[list[Profile]]:
    """Profile every engine that is opened inside, each until it is closed: the first into ``folder``, others below it.

    Raises:
        ConfigError: the folder cannot be written.
    """
    from seedmp.engine import Engine

    path = check_folder(folder)
    profiles: list[Profile] = []

    def opened(engine: Engine) -> Any:
        place = path if not profiles else path / f"engine-{len(profiles) + 1}"
        profile = Profile(engine, place, period_s=period_s)
        profiles.append(profile)
        profile.__enter__()
        return profile.stop

    Engine.on_open.append(opened)
    try:
        yield profiles
    finally:
        Engine.on_open.remove(opened)
        for profile in profiles:
            profile.stop()


def _shares_gpu(config: EngineConfig) -> bool:
    from seedmp.config import resolve_placement

    placement = resolve_placement(config)
    return placement.target != "cpu" and placement.target in placement.drafts
