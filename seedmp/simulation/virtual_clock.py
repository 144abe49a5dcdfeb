"""Time that passes when it is told to: what happens next, and jobs that slow each other down."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from seedmp.errors import InternalError

MAX_EVENTS = 50_000_000


@dataclass
class Resource:
    """Cores or a GPU. All jobs run at the same speed, which is capacity ÷ demand if that is less than 1.

    While one of the jobs has several threads, all run at the speed of the fullest core, because such a job waits for
    its slowest thread. This is right for whole cores and few other jobs. With a fraction of a core, or with many
    cores, it is too slow.
    """

    capacity: float
    demand: int = 0
    teams: int = 0  # jobs of several threads
    progress_ms: float = 0.0  # work that a job present all the time would have done
    at_ms: float = 0.0
    version: int = 0  # number of the current rate; completions planned at an older rate are void
    jobs: list[tuple[float, int, int, Callable[[], None]]] = field(default_factory=list)  # by the end's progress

    def advance(self, now_ms: float) -> None:
        self.progress_ms += (now_ms - self.at_ms) * self.rate
        self.at_ms = now_ms

    @property
    def rate(self) -> float:
        if self.demand <= self.capacity:
            return 1.0
        return 1.0 / math.ceil(self.demand / self.capacity) if self.teams else self.capacity / self.demand


class VirtualClock:
    """Virtual time: what happens next, and work whose end depends on other work at the same time."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self.num_events = 0

    @property
    def now_ns(self) -> int:
        return int(self.now_ms * 1e6)

    def resource(self, capacity: float) -> Resource:
        return Resource(capacity)

    def at(self, when_ms: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._due, (max(when_ms, self.now_ms), self._order, what))

    def work(self, resource: Resource, threads: int, cost_ms: float, done: Callable[[], None]) -> None:
        """Call ``done`` when this amount of work is done."""
        resource.advance(self.now_ms)
        self._order += 1
        heapq.heappush(resource.jobs, (resource.progress_ms + cost_ms, self._order, threads, done))
        resource.demand += threads
        resource.teams += threads > 1
        self._plan(resource)

    def run(self) -> None:
        while self._due:
            self.now_ms, _, what = heapq.heappop(self._due)
            what()
            self.num_events += 1
            if self.num_events > MAX_EVENTS:
                raise InternalError("the simulation does not end")

    def _plan(self, resource: Resource) -> None:
        resource.version += 1
        if resource.jobs:
            left_ms = (resource.jobs[0][0] - resource.progress_ms) / resource.rate
            version = resource.version
            self.at(self.now_ms + left_ms, lambda: self._finish(resource, version))

    def _finish(self, resource: Resource, version: int) -> None:
        if version != resource.version:
            return
        resource.advance(self.now_ms)
        _, _, threads, done = heapq.heappop(resource.jobs)
        resource.demand -= threads
        resource.teams -= threads > 1
        self._plan(resource)
        done()
