"""Engines to measure on: started by their settings, kept as long as there is memory, and given fresh prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from seedmp.config import EngineConfig, Schedule
from seedmp.engine import Engine
from seedmp.errors import ConfigError, SeedmpError
from seedmp.measuring.account import memory_by_process
from seedmp.methods.siblings import MAX_ENDED
from seedmp.models.inflate import SHAPES
from seedmp.request import RequestOutput
from seedmp.sampling import SamplingParams

TIMEOUT_S = 1800.0
STARTS_AT_ONCE = 2  # importing torch is most of a start, and keeps one core busy
PROCESS_GIB = 0.15  # what a process has besides weights; measured: 0.65 GiB an engine at the 134M shape
CUDA_PROCESS_GIB = 0.6
NO_HEAD = "the bundled target's EAGLE head is not in this installation"
NO_HEAD_GIVEN = "no EAGLE head for this target: give --head"
FREE_SHARE = 0.8  # of what is free; KV, activations and others need the rest


class NotRunError(SeedmpError):
    """A row cannot run here. The message says why, and the report shows it instead of figures."""


class Subject(Protocol):
    """What a row is measured on: an engine, or a peer. It is started when it is first needed.

    Rows whose subjects are equal share one.
    """

    def start(self) -> Any:
        """Start it.

        Raises:
            NotRunError: it cannot run here.
        """
        ...

    def need_gib(self) -> float:
        """About the memory that it takes."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class EngineSubject:
    """An engine by its settings, as sorted pairs, so that equal ones are shared."""

    settings: tuple[tuple[str, Any], ...]

    def start(self) -> Engine:
        """Start its processes."""
        settings = dict(self.settings)
        if settings.get("method") == "eagle" and settings["draft"] is None:
            raise NotRunError(NO_HEAD if settings["target"] is None else NO_HEAD_GIVEN)
        return Engine(settings.pop("target"), settings.pop("draft"), **settings)

    def need_gib(self) -> float:
        """A target and its KV a group, one set of draft weights, and each process."""
        import torch

        settings = dict(self.settings)
        num_drafts = settings.get("num_drafts", 1)
        groups = num_drafts if settings.get("schedule") == Schedule.PARALLEL.value else 1
        size_bytes = 4 if settings["dtype"] == "float32" else 2
        need_gib = weights_gib(settings["draft_shape"], size_bytes) + groups * weights_gib(
            settings["target_shape"], size_bytes
        )
        if settings["target_shape"] is not None:
            shape = SHAPES[settings["target_shape"]]
            token_bytes = 2 * shape.num_layers * shape.num_heads * shape.head_dim * size_bytes
            need_gib += groups * settings.get("kv_slots", EngineConfig("-", "-").kv_slots) * token_bytes / 2**30
        process_gib = CUDA_PROCESS_GIB if torch.cuda.is_available() else PROCESS_GIB
        return float(need_gib + process_gib * (groups + num_drafts + 1))  # and the supervisor


def weights_gib(shape: str | None, size_bytes: int) -> float:
    """Size of an inflated model. 0 for others: their size is unknown before they are loaded."""
    return 0.0 if shape is None else SHAPES[shape].num_parameters * size_bytes / 2**30


class EnginePool:
    """Starts subjects and keeps them; a context manager that closes all.

    Arena pages are allocated on first write, so free memory overstates what is left. Each subject that is kept is
    charged the most that it may take.
    """

    def __init__(self) -> None:
        self._started: dict[Subject, Any] = {}  # least recently used first
        self._budget_gib = 0.0  # what was free when nothing was started

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for started in self._started.values():
            started.close()
        self._started.clear()

    def prepare(self, subjects: Sequence[Subject], on_started: Callable[[], object]) -> dict[Subject, Any]:
        """Started subjects, or the error of those that cannot run here; others are closed when room is needed.

        Raises:
            ConfigError: a setting is wrong.
        """
        result: dict[Subject, Any] = {}
        for subject in subjects:
            if subject in self._started:
                result[subject] = self._started[subject] = self._started.pop(subject)
        missing = [subject for subject in subjects if subject not in result]
        free_gib = self._make_room(missing, keep=set(subjects))
        with ThreadPoolExecutor(STARTS_AT_ONCE) as threads:
            futures = {}
            for subject in missing:
                if subject.need_gib() > free_gib:
                    result[subject] = NotRunError(
                        f"needs about {subject.need_gib():.1f} GiB, {max(0.0, free_gib):.1f} GiB are left for it"
                    )
                    continue
                free_gib -= subject.need_gib()
                futures[subject] = threads.submit(subject.start)
            try:
                for subject, future in futures.items():
                    with _error_into(result, subject):
                        result[subject] = self._started[subject] = future.result()
                    on_started()
            except BaseException:
                for subject, future in futures.items():
                    if not future.cancel() and subject not in result:
                        with contextlib.suppress(SeedmpError):
                            self._started[subject] = future.result()  # is closed with the others
                raise
        return result

    def _make_room(self, missing: Sequence[Subject], keep: set[Subject]) -> float:
        """Close what is not needed now, as far as must be; GiB that may be given away."""
        need_gib = sum(subject.need_gib() for subject in missing)
        promised_gib = {subject: self._promised_gib(subject) for subject in self._started}
        if not promised_gib:
            self._budget_gib = _free_gib()

        def room_gib() -> float:
            return FREE_SHARE * min(_free_gib(), self._budget_gib - sum(promised_gib.values()))

        for subject in [subject for subject in self._started if subject not in keep]:
            if need_gib <= room_gib():
                break
            self._started.pop(subject).close()
            del promised_gib[subject]
        return room_gib()

    def _promised_gib(self, subject: Subject) -> float:
        return max(subject.need_gib(), sum(self.memory_mib(subject).values()) / 2**10)

    def memory_mib(self, subject: Subject) -> dict[str, float]:
        """PSS by process; of peers nothing is known, they live in the benchmark's own process."""
        started = self._started.get(subject)
        if not isinstance(started, Engine):
            return {}
        with contextlib.suppress(psutil.Error):
            return {name: round(sizes["pss"], 1) for name, sizes in memory_by_process(started).items()}
        return {}


@contextlib.contextmanager
def _error_into(result: dict[Subject, Any], subject: Subject) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except SeedmpError as error:
        result[subject] = error


def _free_gib() -> float:
    """Memory that a new engine could have: the GPU's, or the node's."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0] / 2**30)
    return float(psutil.virtual_memory().available / 2**30)


# --- prompts whose KV is forgotten ---------------------------------------------------------------


def submit_fresh(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams, *, own_noise: bool = False
) -> list[RequestOutput]:
    """Outputs of prompts, whose KV is freed as each ends; with ``own_noise`` each draws from a stream of its own."""
    branch_ids = [engine.new_branch_id() for _ in prompts]
    try:
        handles = [
            engine.submit_all(
                tuple(prompt), params, first_stream=number if own_noise else 0, children=[branch_ids[number]]
            )[0]
            for number, prompt in enumerate(prompts)
        ]
        return engine.wait_for(handles, TIMEOUT_S)
    finally:
        for branch_id in branch_ids:
            engine.drop_branch(branch_id, free=True)


def forget_texts(engine: Engine) -> None:
    """Push earlier texts out of those that ``ngram`` searches. Otherwise a repeat would find its own answer there."""
    if engine.config.method.name == "ngram":
        short = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, seed=0)
        submit_fresh(engine, [(0,)] * MAX_ENDED, short)
