"""``with engine.profile("out/") as profile``: look at a run, then write what was seen."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from seedmp.client.observers import ObservedEngine
from seedmp.config import EngineConfig, resolve_placement
from seedmp.errors import SeedmpError
from seedmp.measuring.node import describe_node
from seedmp.profiling import chrome_trace, report, timeline
from seedmp.profiling.data import ProfileData
from seedmp.profiling.findings import diagnose
from seedmp.profiling.gpus import mps_state
from seedmp.profiling.sampler import PERIOD_S, Sampler
from seedmp.reporting.output import check_folder
from seedmp.system import usable_cores


class Profile:
    """A profile of one engine, while its ``with`` block runs. Afterwards ``data`` and ``summary`` are set.

    The files are written at the end of the block, also after an exception or Ctrl-C.

    Args:
        folder: made if it is not there; files of an earlier profile in it are replaced.

    Raises:
        ConfigError: the folder cannot be written; nothing has been run then.
    """

    def __init__(self, engine: ObservedEngine, folder: str | os.PathLike[str], *, period_s: float = PERIOD_S) -> None:
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


def _shares_gpu(config: EngineConfig) -> bool:
    placement = resolve_placement(config)
    return placement.target != "cpu" and placement.target in placement.drafts
