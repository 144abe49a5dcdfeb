"""What rows are measured on: our engines, kept alive from group to group as long as there is memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil

from seedmp.benchmarks.harness import NotRunError, Subject
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.summary import Result, Texts
from seedmp.config import EngineConfig, Method, Schedule
from seedmp.engine import Engine
from seedmp.errors import ConfigError, SeedmpError
from seedmp.measure import account, memory_by_process
from seedmp.models.inflate import SHAPES
from seedmp.models.load import load_tokenizer
from seedmp.request import RequestOutput
from seedmp.sampling import SamplingParams
from seedmp.scheduler.siblings import MAX_ENDED

TIMEOUT_S = 1800.0
STARTS_AT_ONCE = 2  # importing torch is most of a start, and keeps one core busy
PROCESS_GIB = 0.15  # what a process has besides weights; measured: 0.65 GiB an engine at the 134M shape
CUDA_PROCESS_GIB = 0.6
NO_HEAD = "the bundled target's EAGLE head is not in this installation"
NO_HEAD_GIVEN = "no EAGLE head for this target: give --head"
FREE_SHARE = 0.8  # of what is free; KV, activations and others need the rest


@dataclass(frozen=True)
class EngineSubject:
    """An engine by its settings, as sorted pairs, so that equal ones are shared."""

    settings: tuple[tuple[str, Any], ...]

    def start(self) -> Engine:
        """Start its processes."""
        settings = dict(self.settings)
        if settings.get("method") == Method.EAGLE.value and settings["draft"] is None:
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
            need_gib += groups * settings.get("kv_slots", EngineConfig("", "").kv_slots) * token_bytes / 2**30
        process_gib = CUDA_PROCESS_GIB if torch.cuda.is_available() else PROCESS_GIB
        return float(need_gib + process_gib * (groups + num_drafts + 1))  # and the supervisor


def weights_gib(shape: str | None, size_bytes: int) -> float:
    """Size of an inflated model. 0 for others: their size is unknown before they are loaded."""
    return 0.0 if shape is None else SHAPES[shape].num_parameters * size_bytes / 2**30


def engine_subject(options: Options, **settings: Any) -> EngineSubject:
    """An engine with the common models.

    ``serial`` always has one draft, because it serves one request at a time. Names of methods and the like are
    strings. ``eagle`` drafts with the bundled or the given head. The head is never inflated: it continues the small
    target's hidden states, and an inflated target has the same ones.
    """
    if settings.get("schedule") == Schedule.SERIAL.value:
        settings["num_drafts"] = 1
    if settings.get("method") in (Method.AR.value, Method.NGRAM.value):
        settings.pop("k_config", None)
    if settings.get("method") == Method.EAGLE.value:
        settings |= {"draft": options.eagle_head, "draft_shape": None}
    return EngineSubject(tuple(sorted({**options.engine_settings(), **settings}.items())))


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
        """Close subjects that are not needed now, until there is room. Returns the GiB that a new subject may take."""
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
        """PSS by process. Empty for peers: they run in the benchmark's own process."""
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


# --- jobs ----------------------------------------------------------------------------------------


def continue_all(engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> Result:
    """Continue prompts at once and forget them: no repeat finds the KV or the texts of an earlier one.

    transformers computes each prompt anew, so we do too.
    """
    forget_texts(engine)
    outputs: list[RequestOutput] = []

    def job() -> list[RequestOutput]:
        outputs[:] = submit_fresh(engine, prompts, params)
        return outputs

    measured = account(engine, job)
    return Result.of(measured, **latencies(outputs))


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
    if engine.config.method is Method.NGRAM:
        short = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, seed=0)
        submit_fresh(engine, [(0,)] * MAX_ENDED, short)


def latencies(outputs: Sequence[RequestOutput]) -> dict[str, float]:
    """Mean time to the first token, and median and longest time of a request."""
    elapsed = sorted(output.metrics.elapsed_s for output in outputs)
    first = [output.metrics.first_token_s for output in outputs]
    return {
        "first_token_s": sum(first) / len(first), "latency_s": elapsed[len(elapsed) // 2], "latency_max_s": elapsed[-1],
    }  # fmt: skip


def greedy_texts(engine: Engine, prompts: Sequence[Sequence[int]], max_tokens: int) -> Texts:
    """What the engine makes of prompts without chance."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, seed=0)
    return tuple(output.token_ids for output in submit_fresh(engine, prompts, params))


class Encoder:
    """Prompts as token ids: by the chat template where the target has one, else as they are."""

    def __init__(self, options: Options) -> None:
        tokenizer = load_tokenizer(options.target_spec.path)
        if tokenizer is None:
            raise ConfigError(f"{options.target_spec.path}: has no tokenizer, which the prompts need")
        self.tokenizer: Any = tokenizer

    @property
    def has_chat(self) -> bool:
        """Whether prompts are conversations."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def prompt(self, text: str, question: str | None = None) -> tuple[int, ...]:
        """Text to continue; for a chat model ``question`` instead, as what the user says."""
        if self.has_chat:
            return self.conversation([question or text])
        return tuple(self.tokenizer(text, add_special_tokens=True, verbose=False).input_ids)

    def conversation(self, turns: Sequence[str]) -> tuple[int, ...]:
        """User and assistant in turn, by the chat template."""
        messages = [
            {"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(turns)
        ]
        return tuple(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def plain(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, its first special token included."""
        return tuple(self.tokenizer(text, add_special_tokens=True, verbose=False).input_ids)
