"""Why a supervisor cannot go on."""

from __future__ import annotations

from seedmp.errors import SeedmpError
from seedmp.ipc.messages import WorkerFailed
from seedmp.workers.lifecycle import WorkerSpec


class Down(SeedmpError):
    """Nothing can be served any more.

    Attributes:
        kind: name of the error that the user gets.
        spec: the worker that it is about.
    """

    kind = "WorkerError"

    def __init__(self, spec: WorkerSpec, text: str) -> None:
        super().__init__(text)
        self.spec = spec


class StartFailed(Down):
    """A worker never became ready; it is not restarted blindly.

    Args:
        failure: what it said itself, if it could.
        exitcode: None: it has not ended, but the time is over.
    """

    def __init__(self, spec: WorkerSpec, failure: WorkerFailed | None, exitcode: int | None) -> None:
        why = "was not ready in time" if exitcode is None else f"ended before it was ready (exit code {exitcode})"
        super().__init__(spec, f"{spec.name} {why}{_told(failure)}")
        is_config = failure is not None and failure.kind == "ConfigError"
        self.kind = "ConfigError" if is_config else "WorkerStartError"


class GaveUp(Down):
    """Workers die too often: ``num_deaths`` in ``window_s`` seconds."""

    def __init__(
        self, spec: WorkerSpec, failure: WorkerFailed | None, exitcode: int, num_deaths: int, window_s: float
    ) -> None:
        super().__init__(
            spec,
            f"{spec.name} died (exit code {exitcode}){_told(failure)}; "
            f"{num_deaths} deaths in {window_s:.0f} s are more than max_restarts allows",
        )


def _told(failure: WorkerFailed | None) -> str:
    return "" if failure is None else f": {failure.kind}: {failure.text}"
