"""Errors of seedmp, named by the party at fault (docs/operations.md lists what to do about each)."""

from __future__ import annotations


class SeedmpError(Exception):
    """Base of every error that seedmp raises on purpose."""


class ConfigError(SeedmpError, ValueError):
    """A setting is wrong; raised before any process starts."""


class PolicyError(ConfigError):
    """A policy is none, or decided something impossible; raised in the verifier, whose engine then ends."""


class RequestError(SeedmpError):
    """One request failed; the engine is usable."""


class RejectedError(RequestError, ValueError):
    """The request can never be served as it stands (empty prompt, too long, bad parameter)."""


class NumericalError(RequestError):
    """The model's output for this request is not finite; other requests are not touched by it."""


class CancelledError(RequestError):
    """The request was cancelled by its owner."""


class RequestTimeoutError(RequestError, TimeoutError):
    """The request did not finish within the time its owner gave it; it has been cancelled."""


class EngineClosedError(SeedmpError):
    """The engine was closed by its owner."""


class EngineDeadError(SeedmpError):
    """The engine died; ``__cause__`` or the message says why."""


class WorkerError(SeedmpError):
    """A worker process failed.

    Attributes:
        worker: name of the worker, such as ``draft-0`` or ``verifier-0``.
        last_log: the last lines that it wrote, possibly empty.
    """

    def __init__(self, message: str, worker: str = "", last_log: str = "") -> None:
        super().__init__(message, worker, last_log)
        self.worker = worker
        self.last_log = last_log

    def __str__(self) -> str:
        text = str(self.args[0])
        return f"{text}\n--- last log lines of {self.worker} ---\n{self.last_log}" if self.last_log else text


class WorkerStartError(WorkerError):
    """A worker never became ready."""


class IpcError(SeedmpError):
    """Something is wrong between two processes."""


class ProtocolError(IpcError):
    """A message could not be decoded, or is not one that may be sent here."""


class CacheError(SeedmpError):
    """Base of errors of the KV arenas."""


class OutOfSlotsError(CacheError):
    """An arena has no room; the scheduler handles it by letting the branch wait.

    Attributes:
        requested: slots asked for.
        available: slots that could be had.
    """

    def __init__(self, requested: int, available: int) -> None:
        super().__init__(requested, available)
        self.requested = requested
        self.available = available

    def __str__(self) -> str:
        return f"{self.requested} KV slots requested, {self.available} available"


class InternalError(SeedmpError):
    """A bug in seedmp: please report it."""


class InvalidTransitionError(InternalError):
    """The scheduler saw an event that its state does not allow.

    Attributes:
        story: what happened to the branch before, a line for each event; possibly empty.
    """

    def __init__(self, message: str, story: str = "") -> None:
        super().__init__(message, story)
        self.story = story

    def __str__(self) -> str:
        return f"{self.args[0]}\n{self.story}" if self.story else str(self.args[0])


class InvariantError(InternalError):
    """An invariant of seedmp's own data does not hold."""
