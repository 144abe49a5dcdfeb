"""Finding the fastest settings for a pair of models, a workload and this node: what ``seedmp tune`` does.

1. Two engines run prompts of their own, chains and wide trees: what is accepted, and the verifier's overheads.
2. Both models, in this process: acceptance along the texts that these runs gave, and cost curves for each division of
   the cores.
3. Every policy, number of drafts and division of the cores gets its best trees (``tree_cost.choose_tree``), then the
   simulator's opinion.
4. The best few and plain decoding run for real: first the prompts of step 1, which says how fast this node is where
   the simulator thinks otherwise; with that each is predicted. Then, in turns, the prompts that count.

The prompts that count, and their seed, are in no measurement before step 4's last part.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from seedmp.benchmarks.harness import Progress, rotated
from seedmp.benchmarks.subjects import EnginePool, EngineSubject, submit_fresh
from seedmp.config import EngineConfig, Method, PolicyName, resolve_placement
from seedmp.engine import Engine
from seedmp.errors import ConfigError, SeedmpError
from seedmp.measure import Measurement, account, describe_node
from seedmp.models import pair
from seedmp.models.load import ModelSpec, load_config, load_tokenizer, max_positions
from seedmp.request import RequestOutput
from seedmp.sampling import SamplingParams
from seedmp.system import usable_cores
from seedmp.tasks.gsm8k import load_gsm8k
from seedmp.tasks.jsonl import FieldError, read_lines, read_problems, text_field
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.tree_cost import Fleet, RoundPolicy, choose_tree
from seedmp.tuning.acceptance import Acceptance, Drawing, Law, along_texts, from_stats
from seedmp.tuning.costs import Costs, load_costs
from seedmp.tuning.measure import BRANCHES, ROWS, LoadedPair, measure_costs, num_slots
from seedmp.tuning.plan import Figures, Plan
from seedmp.tuning.simulate import Workload, simulate

PAYS = 0.03  # speculation must gain so much over plain decoding to be the plan
UNSTEADY = 0.4  # (fastest - slowest repeat) ÷ median: beyond that people are warned
CHAIN, WIDE = (1, 1, 1, 1, 1), (4, 2, 2, 1)
MAX_CHILDREN = 8
MAX_LEVELS = 9
SIZES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
TREES_EACH = 4  # of a policy, number of drafts and division of the cores, that are simulated
FINALISTS_EACH = 2  # of the same, that are run
SEED_STEP = 7919  # between the seeds of calibration and measurement
KV_SLOTS, FORWARD_TOKENS = EngineConfig("", "").kv_slots, EngineConfig("", "").max_forward_tokens

Threads = tuple[int, int]  # of a target's forward, and of a draft's


@dataclass(frozen=True)
class Family:
    """A method: how children are drawn, and its name with trees that are no k_config."""

    drawing: Drawing
    with_growmap: str


FAMILIES = {
    "mcsd": Family(Drawing.WITHOUT_REPLACEMENT, "sequoia"),
    "sd": Family(Drawing.IID, "specinfer"),
    "coupled": Family(Drawing.COUPLED, "coupled"),
}


@dataclass(frozen=True)
class TuneOptions:
    """What is asked for.

    Args:
        target, draft: folder or hub id; None, both, are the bundled pair.
        data: prompts: ``.jsonl`` with a ``question`` or ``prompt`` a line, else one prompt a line; None: the GSM8K
            questions that are shipped.
        branches: requests at once.
        draft_top_p: a vector is measured for it too.
        drafts: numbers of draft processes to choose from.
        quick: fewer sizes and candidates.

    Raises:
        ConfigError: a value is out of range.
    """

    target: str | None = None
    draft: str | None = None
    target_shape: str | None = None
    draft_shape: str | None = None
    dtype: str = "auto"
    data: Path | None = None
    branches: int = 8
    temperature: float = 0.0
    max_tokens: int = 96
    method: str = "mcsd"
    draft_top_p: float = 0.9
    drafts: tuple[int, ...] = (1, 2, 3)
    repeats: int = 5
    quick: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"branches": (1, 1024), "max_tokens": (8, 4096), "repeats": (1, 1000), "seed": (0, 1 << 32)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"{name}={value!r}: must be a whole number from {low} to {high}")
        if not self.drafts or not all(type(num) is int and 1 <= num <= 64 for num in self.drafts):
            raise ConfigError(f"drafts={self.drafts!r}: must be whole numbers from 1 to 64")
        if self.method not in FAMILIES:
            raise ConfigError(f"method={self.method!r}: must be one of {', '.join(FAMILIES)}")
        if (self.target is None) != (self.draft is None):
            raise ConfigError("target and draft: name both, or neither for the bundled pair")
        SamplingParams(temperature=self.temperature)
        Law(draft_top_p=self.draft_top_p)

    @property
    def num_finalists(self) -> int:
        """Settings that run for real beside plain decoding."""
        return 2 if self.quick else 4

    @property
    def num_calibrations(self) -> int:
        """Runs of each of them, after one that warms up, before it is predicted."""
        return 2 if self.quick else 3

    @property
    def models(self) -> dict[str, Any]:
        """Settings that all engines share."""
        return {
            "target": self.target or str(pair.TARGET), "draft": self.draft or str(pair.DRAFT),
            "target_shape": self.target_shape, "draft_shape": self.draft_shape, "dtype": self.dtype,
        }  # fmt: skip

    def params(self, seed: int) -> SamplingParams:
        return SamplingParams(temperature=self.temperature, max_tokens=self.max_tokens, seed=seed, ignore_eos=True)


# --- prompts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Token ids of the prompts that count, and of those that everything before is measured with."""

    measured: tuple[tuple[int, ...], ...]
    calibration: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        return max(map(len, (*self.measured, *self.calibration)))


def read_texts(data: Path | None) -> list[tuple[str, str]]:
    """(before, after) halves of prompts: a number may come between them when one is used again.

    Raises:
        ConfigError: the file cannot be read, has another format or no prompts.
    """
    if data is None:
        return [("Question: ", f"{problem.question}\nAnswer:") for problem in load_gsm8k(None)]
    if data.suffix == ".jsonl":
        return read_problems(data, "prompt", None, _read_record)
    return read_lines(data, "prompt", None, lambda line: ("", line))


def _read_record(record: dict[str, Any]) -> tuple[str, str]:
    if "prompt" in record:
        return "", text_field(record, "prompt")
    if "question" not in record:
        raise FieldError(f"neither 'prompt' nor 'question'; there are {', '.join(map(repr, record)) or 'none'}")
    return "Question: ", f"{text_field(record, 'question')}\nAnswer:"


def divide(texts: Sequence[tuple[str, str]], num: int) -> tuple[list[str], list[str]]:
    """``num`` prompts that count and ``num`` to calibrate with: every other text each, from the first on again.

    One that comes again gets a number, so that it does not find its own KV. A single text serves for both.
    """

    def take(chosen: Sequence[tuple[str, str]]) -> list[str]:
        rounds = [(*chosen[i % len(chosen)], i // len(chosen) + 1) for i in range(num)]
        return [f"{before}{f'{again}. ' if again > 1 else ''}{after}" for before, after, again in rounds]

    return take(texts[0::2]), take(texts[1::2] or texts)


def read_prompts(options: TuneOptions) -> Prompts:
    """Everything that can be refused before a model is loaded.

    Raises:
        ConfigError: a model, its tokenizer or the prompts are not there, or do not fit.
    """
    texts = read_texts(options.data)
    config = EngineConfig(**options.models)
    specs = ModelSpec(config.target, config.target_shape), ModelSpec(config.draft, config.draft_shape)
    room = min(max_positions(load_config(spec)) for spec in specs)
    tokenizer = load_tokenizer(config.target)
    if tokenizer is None:
        raise ConfigError(f"target {config.target!r} has no tokenizer: its prompts cannot be read")
    resolve_placement(config)
    measured, calibration = (
        tuple(tuple(tokenizer(text).input_ids) for text in part) for part in divide(texts, options.branches)
    )
    prompts = Prompts(measured, calibration)
    if prompts.longest + options.max_tokens > room:
        raise ConfigError(
            f"a prompt of {prompts.longest} tokens and {options.max_tokens} more: the models have {room} positions"
        )
    return prompts


# --- candidates ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """Settings to choose from, and what is thought of them, in tokens/s.

    Args:
        settings: of ``Engine``, models left out.
        threads: whose prices it is simulated with.
        estimated: by the formulas of ``tree_cost``, which know no queue; 0 for plain decoding.
        simulated: by the simulator.
    """

    settings: Mapping[str, Any]
    threads: Threads
    estimated: float = 0.0
    simulated: float = 0.0

    @property
    def is_ar(self) -> bool:
        return bool(self.settings["method"] == Method.AR.value)

    @cached_property
    def tree(self) -> Growmap | None:
        return EngineConfig("-", "-", **self.settings).static_tree

    @property
    def name(self) -> str:
        """In a few words, for the table."""
        if self.is_ar:
            return "plain decoding (ar)"
        s = self.settings
        if "k_config" in s:
            tree = "k " + ",".join(map(str, s["k_config"]))
        else:
            assert self.tree is not None
            tree = f"{self.tree.num_nodes} tokens, depth {self.tree.depth}"
        threads = f", threads {s['target_threads']}+{s['draft_threads']}" if "target_threads" in s else ""
        plural = "s" if s["num_drafts"] > 1 else ""
        return f"{s['method']} {tree}; {s['policy']}, {s['num_drafts']} draft{plural}{threads}"


def tree_settings(method: str, growmap: Growmap) -> dict[str, Any]:
    """``k_config`` where all nodes of a level have as many children, else ``growmap`` and the method for it."""
    levels = growmap.branches[:-1]
    if all(len(set(level)) == 1 for level in levels):
        return {"method": method, "k_config": tuple(level[0] for level in levels)}
    return {"method": FAMILIES[method].with_growmap, "growmap": growmap.num_children}


def estimate(
    options: TuneOptions, acceptance: Acceptance, prices: Mapping[Threads, Costs], context_len: int
) -> list[Candidate]:
    """The best few trees of each policy, number of drafts and division of the cores, after so long a context."""
    alone = options.branches == 1
    policies = (RoundPolicy.FCFS_BATCH,) if alone else (RoundPolicy.FCFS_BATCH, RoundPolicy.FCFS)
    sizes = [size for size in SIZES if size * options.branches <= max(FORWARD_TOKENS, 2 * options.branches)]
    vector = acceptance.vector()
    found = []
    for threads, costs in prices.items():
        overhead_ms = costs.forward_overhead_ms + costs.branch_overhead_ms
        draft_time, target_time = (
            _seconds(costs.draft.at),
            _seconds(partial(costs.target_ms, context_len=context_len), overhead_ms),
        )
        for policy in policies:
            for drafts in sorted({min(num, options.branches) for num in options.drafts}):
                fleet = Fleet(options.branches, drafts)
                choice = choose_tree(vector, draft_time, target_time, policy, fleet, sizes, MAX_LEVELS)
                best = sorted(choice.options, key=lambda option: -option.tokens_per_s)
                for option in [option for option in best if option.growmap.num_nodes][:TREES_EACH]:
                    settings = tree_settings(options.method, option.growmap)
                    settings |= {"num_drafts": drafts, "policy": PolicyName(policy.value).value}
                    settings |= common_settings(options, threads if costs.cores else None)
                    found.append(Candidate(settings, threads, option.tokens_per_s))
    return found


def _seconds(ms_at: Callable[[float], float], more_ms: float = 0.0) -> Callable[[int], float]:
    return lambda rows: max(1e-6, (ms_at(rows) + more_ms) / 1e3)


def common_settings(options: TuneOptions, threads: Threads | None) -> dict[str, Any]:
    """Of every candidate: what differs from the defaults for this workload."""
    settings: dict[str, Any] = {"dtype": options.dtype}
    if threads is not None:
        settings |= {"target_threads": threads[0], "draft_threads": threads[1]}
    return settings


def finalists(candidates: Iterable[Candidate], num: int) -> list[Candidate]:
    """The best by the simulator; of one policy, number of drafts and division of the cores not all."""
    taken: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: -c.simulated):
        alike = [c for c in taken if _group(c) == _group(candidate)]
        if len(taken) < num and len(alike) < FINALISTS_EACH:
            taken.append(candidate)
    return taken


def _group(candidate: Candidate) -> tuple[Any, ...]:
    return candidate.settings["policy"], candidate.settings["num_drafts"], candidate.threads


# --- the run -------------------------------------------------------------------------------------


@dataclass
class Trial:
    """A candidate that ran.

    Args:
        calibrated: tokens/s on the prompts of calibration.
        predicted: tokens/s on the prompts that count, said before they were run.
        measured: tokens/s of each repeat.
    """

    candidate: Candidate
    calibrated: float = 0.0
    predicted: float = 0.0
    measured: list[float] = field(default_factory=list)
    token_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def figures(self) -> Figures:
        runs = [round(rate, 3) for rate in self.measured]
        return Figures(round(statistics.median(runs), 3), min(runs), max(runs), len(runs))

    @property
    def error(self) -> float:
        """Predicted ÷ measured − 1."""
        return self.predicted / self.figures.median - 1

    def gain_over(self, other: Trial) -> float:
        """Median ratio of the repeats, in which they took turns."""
        return statistics.median(own / base for own, base in zip(self.measured, other.measured, strict=True))


@dataclass(frozen=True)
class Tuned:
    """What came out.

    Args:
        acceptance: vectors by name; "plan" is the one that trees were chosen with.
        candidates: all that were simulated.
        trials: those that ran, plain decoding first.
        notes: what people should know.
    """

    plan: Plan
    acceptance: Mapping[str, Acceptance]
    prices: Mapping[Threads, Costs]
    candidates: tuple[Candidate, ...]
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()


class Tuner:
    """The steps; ``tune`` calls them in order."""

    def __init__(self, options: TuneOptions, prompts: Prompts, progress: Progress) -> None:
        self.options, self.prompts, self.progress = options, prompts, progress
        need = options.branches * (prompts.longest + options.max_tokens + 2 * max(SIZES))
        self.models = {**options.models, "kv_slots": max(KV_SLOTS, -(-need // 1024) * 1024)}
        self.config = EngineConfig(**self.models)
        self.before = options.params(options.seed + SEED_STEP)
        self.notes: list[str] = []

    # --- 1: what engines do ---

    def watch_engines(self) -> tuple[Acceptance, Costs, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
        """Acceptance in rounds, overheads, and texts that the target wrote."""
        drafts = min(max(self.options.drafts), self.options.branches)
        chain = {"method": self.options.method, "k_config": CHAIN, "num_drafts": drafts}
        self.progress.step("chains: what is accepted, and overheads")
        with tempfile.TemporaryDirectory() as folder:
            with self._subject(chain).start() as engine:
                submit_fresh(engine, self.prompts.calibration, self.before)
                with engine.profile(folder) as profile:
                    submit_fresh(engine, self.prompts.calibration, self.before)
            overheads = load_costs(folder)
        assert profile.data is not None
        self.progress.advance(2)
        self.progress.step("wide trees: what is accepted")
        with self._subject({**chain, "k_config": WIDE}).start() as engine:
            outputs = submit_fresh(engine, self.prompts.calibration, self.before)
            seen = from_stats(profile.data.stats, engine.stats())
        self.progress.advance()
        if seen is None:
            raise SeedmpError("no draft token was tried")
        return seen, overheads, [(output.prompt_token_ids, output.token_ids) for output in outputs]

    # --- 2: what the models do ---

    def measure_models(
        self, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], overheads: Costs
    ) -> tuple[dict[str, Acceptance], dict[Threads, Costs]]:
        """Teacher-forced acceptance, and prices for each division of the cores."""
        options = self.options
        rows = ROWS if not options.quick else (1, 4, 16, 64)
        branches = BRANCHES if not options.quick else (1, 4, 12)
        context_len = self._context_len()
        self.progress.step("loading both models")
        longest = self.prompts.longest + options.max_tokens
        loaded = LoadedPair.load(self.config, max(longest, num_slots(rows, branches, context_len)))
        self.progress.advance()
        self.progress.step("acceptance along texts")
        forced = along_texts(loaded.target, loaded.draft, texts, self._laws(), MAX_CHILDREN, options.seed)
        self.progress.advance()
        prices = {}
        for threads in self.divisions():
            self.progress.step(f"costs with threads {threads[0]}+{threads[1]}")
            config = replace(self.config, target_threads=threads[0], draft_threads=threads[1])
            costs = measure_costs(
                config, rows=rows, branches=branches, context_len=context_len, repeats=3 if options.quick else 7,
                temperature=options.temperature, loaded=loaded,
            )  # fmt: skip
            prices[threads] = costs.with_overheads(overheads)
            self.progress.advance()
        del loaded
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return forced, prices

    def _laws(self) -> dict[str, Law]:
        """Of the vectors along texts: greedy, stochastic, and the latter with the draft cut to its nucleus."""
        drawing, warm = FAMILIES[self.options.method].drawing, self.options.temperature or 1.0
        top_m = self.config.draft_top_m
        top_p = self.options.draft_top_p
        return {
            "greedy": Law(drawing, 0.0, draft_top_m=top_m),
            f"stochastic, temperature {warm:g}": Law(drawing, warm, draft_top_m=top_m),
            f"stochastic, temperature {warm:g}, draft top-p {top_p:g}": Law(drawing, warm, top_p, top_m),
        }

    def divisions(self) -> list[Threads]:
        """Threads of target and draft to choose from; on a GPU the default alone."""
        default = self.config.threads()
        if self.hardware != "cpu":
            return [default]
        cores = max(1, int(usable_cores()))
        if self.options.quick:
            return [(cores, 1)]
        found = [(cores, 1), (max(1, cores - 1), 1), (max(1, cores // 2), 1)]
        if cores >= 8:
            found.append((cores // 2, 2))
        return list(dict.fromkeys(found))

    @cached_property
    def hardware(self) -> str:
        """What the simulator lets processes compete for."""
        placement = resolve_placement(self.config)
        if placement.target == "cpu":
            return "cpu"
        return "gpu" if placement.target in placement.drafts else "gpus"

    def _context_len(self) -> int:
        """Tokens before a round's in the middle of a text."""
        return self.prompts.longest + self.options.max_tokens // 2

    # --- 3: what the simulator says ---

    def choose(
        self, acceptance: Acceptance, prices: Mapping[Threads, Costs]
    ) -> tuple[list[Candidate], list[Candidate]]:
        """All candidates, simulated, and those that are to run: plain decoding first."""
        self.prices = {threads: costs.with_acceptance(acceptance.rates) for threads, costs in prices.items()}
        threads = next(iter(prices))
        plain = Candidate({"method": Method.AR.value, **common_settings(self.options, None)}, threads)
        self.progress.step("simulating")
        estimated = estimate(self.options, acceptance, prices, self._context_len())
        candidates = [self._simulated(c) for c in (plain, *estimated)]
        self.progress.advance()
        return candidates, [candidates[0], *finalists(candidates[1:], self.options.num_finalists)]

    def _simulated(self, candidate: Candidate) -> Candidate:
        return replace(candidate, simulated=self.simulate(candidate, self.prompts.calibration))

    def simulate(self, candidate: Candidate, prompts: Sequence[Sequence[int]]) -> float:
        """Tokens/s of these prompts, by the simulator."""
        mean_len = round(statistics.mean(map(len, prompts)))
        work = Workload(len(prompts), mean_len, 0, self.options.max_tokens)
        config = EngineConfig("-", "-", kv_slots=self.config.kv_slots, **candidate.settings)
        return simulate(config, self.prices[candidate.threads], work, hardware=self.hardware).tokens_per_s

    # --- 4: what is true ---

    def run(self, chosen: Sequence[Candidate]) -> list[Trial]:
        """Calibrate, predict, then measure in turns; plain decoding first."""
        with EnginePool() as pool:
            self.progress.step("starting engines")
            subjects = [self._subject(candidate.settings) for candidate in chosen]
            started = pool.prepare(subjects, self.progress.advance)
            running: list[tuple[Trial, Engine]] = []
            for candidate, subject in zip(chosen, subjects, strict=True):
                engine = started[subject]
                if isinstance(engine, SeedmpError):
                    if candidate.is_ar:
                        raise engine
                    self.notes.append(f"not run: {candidate.name}: {str(engine).splitlines()[0]}")
                    continue
                running.append((Trial(candidate), engine))
            self._calibrate(running)
            for repeat in range(self.options.repeats):
                for trial, engine in rotated(running, repeat):
                    self.progress.step(f"{repeat + 1}/{self.options.repeats} {trial.candidate.name}")
                    measured = self._measure(engine, self.prompts.measured, self.options.params(self.options.seed))
                    trial.measured.append(measured.tokens_per_s)
                    trial.token_ids = measured.token_ids
                    self.progress.advance()
        return [trial for trial, _ in running]

    def _calibrate(self, running: Sequence[tuple[Trial, Engine]]) -> None:
        """Warm up, see in turns how fast each is with the prompts of calibration, and predict those that count."""
        rates: dict[int, list[float]] = {id(trial): [] for trial, _ in running}
        for repeat in range(self.options.num_calibrations + 1):
            for trial, engine in rotated(running, repeat):
                self.progress.step(f"calibrating {trial.candidate.name}")
                measured = self._measure(engine, self.prompts.calibration, self.before)
                if repeat:
                    rates[id(trial)].append(measured.tokens_per_s)
                self.progress.advance()
        for trial, _ in running:
            trial.calibrated = statistics.median(rates[id(trial)])
            pace = trial.calibrated / trial.candidate.simulated
            trial.predicted = pace * self.simulate(trial.candidate, self.prompts.measured)

    def _measure(self, engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> Measurement:
        def job() -> list[RequestOutput]:
            return submit_fresh(engine, prompts, params)

        return account(engine, job)

    def _subject(self, settings: Mapping[str, Any]) -> EngineSubject:
        return EngineSubject(tuple(sorted({**self.models, **settings}.items())))


def num_steps(options: TuneOptions) -> int:
    """Of the progress display, about: runs, starts and measurements."""
    trials = options.num_finalists + 1
    return 3 + 2 + (1 if options.quick else 3) + 1 + trials * (2 + options.num_calibrations + options.repeats)


def tune(options: TuneOptions, progress: Progress) -> Tuned:
    """Measure, choose, and make the plan.

    Raises:
        ConfigError: something is wrong with the options; no model was loaded.
    """
    tuner = Tuner(options, read_prompts(options), progress)
    seen, overheads, texts = tuner.watch_engines()
    forced, prices = tuner.measure_models(texts, overheads)
    along = forced["greedy"] if options.temperature == 0 else list(forced.values())[1]
    acceptance = seen.filled(along)
    candidates, chosen = tuner.choose(acceptance, prices)
    trials = tuner.run(chosen)
    if len(trials) < 2:
        tuner.notes.append("no speculation could be run")
    spread = max((trial.figures.high - trial.figures.low) / trial.figures.median for trial in trials)
    if spread > UNSTEADY:
        tuner.notes.append(
            f"the repeats of a setting differ by {100 * spread:.0f} %: something else uses this machine, and the plan "
            "and its figures are worth little; tune again when it is quiet"
        )
    vectors = {"plan": acceptance, "dynamic": seen, **{f"along texts, {name}": a for name, a in forced.items()}}
    plan = make_plan(options, tuner, trials)
    return Tuned(plan, vectors, prices, tuple(candidates), tuple(trials), tuple(tuner.notes))


def make_plan(options: TuneOptions, tuner: Tuner, trials: Sequence[Trial]) -> Plan:
    """The fastest that was measured; plain decoding if it does not gain PAYS over that.

    The fastest is the one of the best ratio to plain decoding in the same repeat: the node's own ups and downs are
    in both.
    """
    plain, *others = trials
    best = max(others, key=lambda trial: trial.gain_over(plain), default=plain)
    gain = best.gain_over(plain)
    pays = gain >= 1 + PAYS and best.figures.median > plain.figures.median
    chosen = best if pays else plain
    settings = dict(chosen.candidate.settings)
    if tuner.config.kv_slots != KV_SLOTS:
        settings["kv_slots"] = tuner.config.kv_slots
    workload = {
        "branches": options.branches, "temperature": options.temperature, "max_tokens": options.max_tokens,
        "prompts": options.data.name if options.data is not None else "GSM8K questions of our own",
        "prompt_len": round(statistics.mean(map(len, tuner.prompts.measured))), "seed": options.seed,
    }  # fmt: skip
    return Plan(
        settings, round(chosen.predicted, 3), chosen.figures, plain.figures, round(gain, 4), options.target,
        options.draft, options.target_shape, options.draft_shape, workload, describe_node(),
    )  # fmt: skip
