"""Finding the fastest settings for a pair of models, a workload and this node: what ``seedmp tune`` does.

1. Two engines run prompts of their own, chains and wide trees: what is accepted, and the verifier's overheads.
2. Both models, in this process: acceptance along the texts that these runs gave, and cost curves for each division of
   the cores.
3. Every policy, number of drafts and division of the cores gets its best trees (``tree_cost.choose_tree``), then the
   simulator's opinion.
4. The best few and plain decoding run for real. First they run the prompts of step 1. Measured ÷ simulated speed
   corrects the simulator and gives each a prediction for the evaluation prompts. Then they run these, in turns.

The evaluation prompts, and their seed, are in no measurement before the last part of step 4.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from seedmp.config import EngineConfig, resolve_placement
from seedmp.engine import Engine
from seedmp.errors import SeedmpError
from seedmp.measuring.account import Measurement, account, rotated
from seedmp.measuring.engines import EnginePool, EngineSubject, submit_fresh
from seedmp.measuring.node import describe_node
from seedmp.measuring.progress import Progress
from seedmp.plan import Figures, Plan
from seedmp.request import RequestOutput
from seedmp.sampling import SamplingParams
from seedmp.simulation.costs import Costs, load_costs
from seedmp.simulation.simulate import Workload, simulate
from seedmp.system import usable_cores
from seedmp.tuning.acceptance import Acceptance, Law, along_texts, from_stats
from seedmp.tuning.candidates import SIZES, Candidate, Threads, common_settings, estimate, finalists
from seedmp.tuning.measure import BRANCHES, ROWS, LoadedPair, measure_costs, num_slots
from seedmp.tuning.options import FAMILIES, TuneOptions
from seedmp.tuning.prompts import Prompts, read_prompts

PAYS = 0.03  # speculation must gain this much over plain decoding to become the plan
UNSTEADY = 0.4  # (fastest - slowest repeat) ÷ median: beyond that people are warned
CHAIN, WIDE = (1, 1, 1, 1, 1), (4, 2, 2, 1)
MAX_CHILDREN = 8
SEED_STEP = 7919  # between the seeds of calibration and measurement
KV_SLOTS = EngineConfig("-", "-").kv_slots


@dataclass
class Trial:
    """A candidate that ran.

    Args:
        calibrated: tokens/s on the prompts of calibration.
        predicted: tokens/s on the evaluation prompts, computed before these were run.
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
        notes: warnings and remarks for the user.
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
        """Run engines. Gives acceptance in rounds, overheads, and texts that the target wrote."""
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
        """What processes compete for in the simulator."""
        placement = resolve_placement(self.config)
        if placement.target == "cpu":
            return "cpu"
        return "gpu" if placement.target in placement.drafts else "gpus"

    def _context_len(self) -> int:
        """Tokens before a round in the middle of a text."""
        return self.prompts.longest + self.options.max_tokens // 2

    # --- 3: what the simulator says ---

    def choose(
        self, acceptance: Acceptance, prices: Mapping[Threads, Costs]
    ) -> tuple[list[Candidate], list[Candidate]]:
        """All candidates, simulated, and those that are to run: plain decoding first."""
        self.prices = {threads: costs.with_acceptance(acceptance.rates) for threads, costs in prices.items()}
        threads = next(iter(prices))
        plain = Candidate({"method": "ar", **common_settings(self.options, None)}, threads)
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
        """Warm up, measure each with the calibration prompts, in turns, and predict it for the evaluation prompts."""
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
    """Number of steps of the progress display, estimated: runs, starts and measurements."""
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

    The fastest is the one with the best ratio to plain decoding in the same repeat. When the node gets faster or
    slower, both change.
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
