"""The command ``seedmp demo``: a reasoning tree that grows before your eyes, then what scheduling bought.

A depth-2 tree, as in SEED's figure 1: three thoughts of one problem, then an evaluation of each,
drafted by three draft processes and verified by one target. The table after it serves the same
greedy prompts, three thoughts and three evaluations, by four schedules in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from seedmp import metrics
from seedmp.config import DTYPES
from seedmp.engine import Engine
from seedmp.errors import ConfigError
from seedmp.models.inflate import get_shape
from seedmp.request import RequestHandle, RequestOutput
from seedmp.sampling import SamplingParams
from seedmp.tasks import blocksworld, gsm8k

WIDTH = 3  # thoughts of a problem, and problems of the comparison
SHAPE = "134m"
K_CONFIG = (1, 1, 1)
PLAIN_COLUMNS = 110
REFRESH_PER_S = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``seedmp demo``."""
    parser.add_argument("--task", choices=("blocksworld", "gsm8k"), default="blocksworld")
    parser.add_argument("--data", type=Path, metavar="FILE", help="problems as published, one JSON object a line")
    parser.add_argument("--limit", type=int, default=9, metavar="N", help="problems to read (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--seed", type=int, default=0, help="of the tree's thoughts (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the tree's thoughts (default %(default)s)")
    parser.add_argument("--shape", default=SHAPE, help="what the bundled target is inflated to (default %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default %(default)s: equal texts")


def run(args: argparse.Namespace) -> int:
    """Grow the tree, then compare the schedules."""
    run_demo(
        DemoOptions(args.task, args.data, args.limit, args.json, args.seed, args.temperature, args.shape, args.dtype)
    )
    return 0


# --- what is asked -------------------------------------------------------------------------------


class DemoTask(Protocol):
    """Prompts of a problem, of its thoughts' evaluations, and what may be said about the outcome."""

    def title(self) -> str:
        """The problem in a line or two."""
        ...

    def thought(self) -> tuple[str, SamplingParams]:
        """Prompt and parameters (greedy) of a thought."""
        ...

    def clean(self, text: str) -> str:
        """A thought without what is not part of it."""
        ...

    def evaluation(self, thought: str) -> tuple[str, SamplingParams]:
        """Prompt and parameters (greedy) of a thought's evaluation."""
        ...

    def value(self, thought: str, evaluation: str) -> str:
        """What the evaluation says, and whether it is true."""
        ...


@dataclass(frozen=True)
class BlocksworldDemo:
    """A thought is one move; its evaluation tells how many more are needed."""

    problem: blocksworld.BlocksworldProblem

    def title(self) -> str:
        return f"Goal: {self.problem.goal_text}\nState: {self.problem.init_text}"

    def thought(self) -> tuple[str, SamplingParams]:
        stop = ("\nThink:", "\nSteps left:", "\nDone")  # what may follow the third line
        return self.problem.thought_prompt, SamplingParams(temperature=0, max_tokens=150, stop=stop)

    def clean(self, text: str) -> str:
        return "\n".join(text.split("\n")[:3]).strip()

    def evaluation(self, thought: str) -> tuple[str, SamplingParams]:
        prompt = blocksworld.evaluation_prompt(self.problem.goal_text, _line(thought, "State:"))
        return prompt, SamplingParams(temperature=0, max_tokens=4, stop=("\n",))

    def value(self, thought: str, evaluation: str) -> str:
        says = f"steps left: {evaluation.strip() or '?'}"
        state = blocksworld.parse_state(self.problem.init_text)
        after = state.after(_line(thought, "Action:"))
        if after is None:
            return f"{says} (simulator: the move is not legal)"
        left = blocksworld.shortest_plan_len(after, self.problem.goal_text)
        return f"{says} (simulator: legal, {left} left)"


@dataclass(frozen=True)
class Gsm8kDemo:
    """A thought is a worked solution up to its answer; its evaluation is the answer that it leads to."""

    problem: gsm8k.Gsm8kProblem

    def title(self) -> str:
        return f"Question: {self.problem.question}"

    def thought(self) -> tuple[str, SamplingParams]:
        return self.problem.prompt, SamplingParams(temperature=0, max_tokens=72, stop=("####",))

    def clean(self, text: str) -> str:
        return text.strip()

    def evaluation(self, thought: str) -> tuple[str, SamplingParams]:
        prompt = f"{self.problem.prompt} {thought}\n####"
        return prompt, SamplingParams(temperature=0, max_tokens=12, stop=("\n",))

    def value(self, thought: str, evaluation: str) -> str:
        right = gsm8k.final_number(f"#### {evaluation}") == self.problem.gold
        return f"leads to {evaluation.strip() or '?'} ({'right' if right else f'wrong, it is {self.problem.gold}'})"


TASKS: dict[str, Callable[[Path | None, int | None], list[DemoTask]]] = {
    "blocksworld": lambda path, limit: [BlocksworldDemo(p) for p in blocksworld.load_blocksworld(path, limit)],
    "gsm8k": lambda path, limit: [Gsm8kDemo(p) for p in gsm8k.load_gsm8k(path, limit)],
}


def _line(text: str, label: str) -> str:
    """What follows a label at the beginning of a line; empty when there is none."""
    return next((line[len(label) :].strip() for line in text.split("\n") if line.startswith(label)), "")


# --- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True)
class RowPlan:
    """One line of the table: a name and the engine that it needs; seconds are a first guess for the time left."""

    name: str
    settings: dict[str, Any]
    guess_s: float


ROWS = (
    RowPlan("AR serial", {"method": "ar", "schedule": "serial"}, 9),
    RowPlan("SD serial", {"method": "mcsd", "schedule": "serial"}, 6),
    RowPlan("scheduled fcfs", {"method": "mcsd", "schedule": "scheduled", "policy": "fcfs"}, 5),
    RowPlan("scheduled fcfs-batch", {"method": "mcsd", "schedule": "scheduled", "policy": "fcfs-batch"}, 4),
)
START_GUESS_S, TREE_GUESS_S = 7.0, 6.0


@dataclass
class Row:
    """Figures of one schedule; ``--json`` writes these fields."""

    name: str
    tokens_per_s: float
    speedup: float
    acceptance_rate: float
    mean_accepted_len: float
    overlap_s: float
    verifier_busy: float
    text_equals_ar: bool
    kept_tokens: int
    wall_s: float
    start_s: float


@dataclass(frozen=True)
class Measured:
    """A row before it is compared."""

    outputs: list[RequestOutput]
    wall_s: float
    start_s: float
    overlap_s: float
    verifier_busy: float

    @property
    def token_ids(self) -> list[tuple[int, ...]]:
        return [output.token_ids for output in self.outputs]

    def row(self, name: str, ar: Measured) -> Row:
        """The figures, compared with plain decoding."""
        accepted = sum(out.metrics.accepted for out in self.outputs)
        drafted = sum(out.metrics.drafted for out in self.outputs)
        rounds = sum(out.metrics.rounds for out in self.outputs)
        kept, kept_ar = (sum(map(len, measured.token_ids)) for measured in (self, ar))
        speed = metrics.tokens_per_s(kept, self.wall_s)
        return Row(
            name, round(speed, 2), round(speed / metrics.tokens_per_s(kept_ar, ar.wall_s), 3),
            round(metrics.acceptance_rate(accepted, drafted), 4), round(metrics.mean_accepted_len(accepted, rounds), 4),
            round(self.overlap_s, 4), round(self.verifier_busy, 4), self.token_ids == ar.token_ids,
            kept, round(self.wall_s, 4), round(self.start_s, 2),
        )  # fmt: skip


# --- what is shown -------------------------------------------------------------------------------


@dataclass
class Thought:
    """A thought and its evaluation, while they grow."""

    text: str = ""
    evaluation: str = ""
    value: str = ""


@dataclass
class Stage:
    """A piece of the demo, for the time left."""

    name: str
    guess_s: float
    started_s: float | None = None
    took_s: float | None = None


@dataclass
class Screen:
    """Shows the tree and how far the demo is: live on a terminal, as plain lines elsewhere.

    Written by the main thread and the engine's; drawn by the thread of ``rich.live``.
    """

    console: Console
    stages: list[Stage]
    title: str = ""
    thoughts: list[Thought] = field(default_factory=list)
    current: str = ""
    num_tokens: int = 0
    tokens_since_s: float | None = None
    started_s: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)
    live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw from here to the end of the block."""
        if not self.console.is_terminal:
            yield
            return
        self.live = Live(
            console=self.console, get_renderable=self.render, refresh_per_second=REFRESH_PER_S, transient=True
        )
        try:
            with self.live:
                yield
        finally:
            self.live = None

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, highlight=False)

    def step(self, text: str) -> None:
        """A line of progress; a terminal has the live display instead."""
        if self.live is None:
            self.say(f"[{time.monotonic() - self.started_s:5.1f} s] {text}")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        stage = next(s for s in self.stages if s.name == name)
        with self.lock:
            self.current, self.num_tokens, self.tokens_since_s = name, 0, None
        stage.started_s = time.monotonic()
        yield
        stage.took_s = time.monotonic() - stage.started_s

    def count(self, num_tokens: int) -> None:
        """Tokens were committed."""
        with self.lock:
            if self.tokens_since_s is None:
                self.tokens_since_s = time.monotonic()
            self.num_tokens += num_tokens

    def left_s(self) -> float:
        """Seconds left: guesses, scaled by how the finished stages compared with theirs."""
        done = [s for s in self.stages if s.took_s is not None]
        guessed = sum(s.guess_s for s in done)
        scale = sum(s.took_s or 0.0 for s in done) / guessed if guessed else 1.0
        now = time.monotonic()
        left = 0.0
        for s in self.stages:
            if s.took_s is None:
                elapsed = 0.0 if s.started_s is None else now - s.started_s
                left += max(0.0, s.guess_s * scale - elapsed)
        return left

    def render(self) -> RenderableType:
        with self.lock:
            elapsed_s, left_s = time.monotonic() - self.started_s, self.left_s()
            status = f"{self.current}   {elapsed_s:.0f} s, about {left_s:.0f} s left"
            if self.tokens_since_s is not None and time.monotonic() - self.tokens_since_s > 0.2:
                speed = metrics.tokens_per_s(self.num_tokens, time.monotonic() - self.tokens_since_s)
                status += f"   {self.num_tokens} tokens, {speed:.0f} tokens/s"
            bar = ProgressBar(total=elapsed_s + left_s or 1.0, completed=elapsed_s, width=40)
            return Group(bar, Text(status, no_wrap=True), Text(), self.tree())  # a low terminal cuts the end off

    def tree(self) -> Tree:
        """The reasoning tree so far."""
        root = Tree(Text(self.title, style="bold"))
        for number, thought in enumerate(self.thoughts, start=1):
            node = root.add(Text.assemble((f"thought {number}: ", "cyan"), thought.text.strip()))
            if thought.evaluation or thought.value:
                says = thought.value or thought.evaluation.strip()
                node.add(Text.assemble((f"evaluation {number}: ", "green"), says))
        return root


# --- the demo ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DemoOptions:
    """What ``seedmp demo`` was asked for.

    Args:
        task: ``blocksworld`` or ``gsm8k``.
        data: a problem file as published; None takes the project's own problems.
        limit: problems read at most; the last is for the tree, the first three for the comparison.
        json_path: where the figures are written.
        seed: of the tree's thoughts.
        temperature: of the tree's thoughts; the comparison is greedy.
        shape: what the bundled target is inflated to.
        dtype: of both models.
    """

    task: str = "blocksworld"
    data: Path | None = None
    limit: int = 9
    json_path: Path | None = None
    seed: int = 0
    temperature: float = 0.8
    shape: str = SHAPE
    dtype: str = "float32"


def run_demo(options: DemoOptions, console: Console | None = None) -> list[Row]:
    """Grow the tree, then compare the schedules.

    Raises:
        ConfigError: an option or the data file is wrong; no process was started.
        SeedmpError: an engine failed.
    """
    problems = TASKS[options.task](options.data, options.limit)
    get_shape(options.shape)
    sampling = SamplingParams(temperature=options.temperature, seed=options.seed)
    path = options.json_path
    if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.resolve().parent, os.W_OK)):
        raise ConfigError(f"--json {path}: no file can be written there")
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_COLUMNS)
    screen = Screen(console, _stages(), title=problems[-1].title())
    _announce(screen, options, problems)
    measured: dict[str, Measured] = {}
    with screen.shown():
        evaluations: list[tuple[str, SamplingParams]] = []
        for plan in (ROWS[-1], *ROWS[:-1]):  # the tree grows on the last row's engine, so that one starts first
            with _engine(screen, plan, options) as (engine, start_s):
                if plan is ROWS[-1]:
                    with screen.stage("tree"):
                        _grow_tree(engine, problems[-1], screen, sampling)
                    _say_tree(screen)
                with screen.stage(plan.name):
                    measured[plan.name] = _measure(engine, problems, evaluations, screen, start_s)
                took = measured[plan.name]
                kept = sum(map(len, took.token_ids))
                screen.step(f"{plan.name}: {kept} tokens in {took.wall_s:.2f} s")
    ar = measured[ROWS[0].name]
    rows = [measured[plan.name].row(plan.name, ar) for plan in ROWS]
    _print_table(console, rows, measured)
    screen.say(f"Done in {time.monotonic() - screen.started_s:.0f} s.")
    if options.json_path is not None:
        _write_json(options, rows)
    return rows


def _stages() -> list[Stage]:
    stages = [Stage(f"starting: {ROWS[-1].name}", START_GUESS_S), Stage("tree", TREE_GUESS_S)]
    stages.append(Stage(ROWS[-1].name, ROWS[-1].guess_s))
    for plan in ROWS[:-1]:
        stages += [Stage(f"starting: {plan.name}", START_GUESS_S), Stage(plan.name, plan.guess_s)]
    return stages


def _announce(screen: Screen, options: DemoOptions, problems: Sequence[DemoTask]) -> None:
    own = "problems of the project's own" if options.data is None else str(options.data)
    screen.say(
        f"{options.task}: {own}; {WIDTH} thoughts and {WIDTH} evaluations on {WIDTH} drafts,\n"
        f"which propose chains of {len(K_CONFIG)} tokens.\n"
        f"The bundled target (5.8M parameters) is embedded exactly in a {options.shape} shape, {options.dtype}: "
        "text and acceptance are\nthe small model's, the time of a forward is the big one's."
    )
    if len(problems) <= WIDTH:
        screen.say(f"Only {len(problems)} problem(s): the comparison repeats prompts, whose work is shared.")


@contextmanager
def _engine(screen: Screen, plan: RowPlan, options: DemoOptions) -> Iterator[tuple[Engine, float]]:
    """An engine and the seconds that its start took; ended with the block."""
    with screen.stage(f"starting: {plan.name}"):
        began_s = time.monotonic()
        engine = Engine(
            target_shape=options.shape, dtype=options.dtype, k_config=K_CONFIG, num_drafts=WIDTH, **plan.settings
        )
        start_s = time.monotonic() - began_s
    screen.step(f"{plan.name}: processes ready after {start_s:.1f} s")
    with engine:
        yield engine, start_s


def _grow_tree(engine: Engine, task: DemoTask, screen: Screen, sampling: SamplingParams) -> None:
    """Thoughts of one problem, then an evaluation of each, shown while they come."""
    prompt, greedy = task.thought()
    params = SamplingParams(
        temperature=sampling.temperature, seed=sampling.seed, n=WIDTH, max_tokens=greedy.max_tokens, stop=greedy.stop
    )
    screen.thoughts = [Thought() for _ in range(WIDTH)]
    handles = engine.submit_all(prompt, params)
    for handle, thought in zip(handles, screen.thoughts, strict=True):
        _follow(handle, screen, thought, "text")
    for handle, thought in zip(handles, screen.thoughts, strict=True):
        thought.text = task.clean(handle.result().text)
    handles = [engine.submit(*task.evaluation(thought.text)) for thought in screen.thoughts]
    for handle, thought in zip(handles, screen.thoughts, strict=True):
        _follow(handle, screen, thought, "evaluation")
    for handle, thought in zip(handles, screen.thoughts, strict=True):
        thought.evaluation = handle.result().text
        thought.value = task.value(thought.text, thought.evaluation)


def _follow(handle: RequestHandle, screen: Screen, thought: Thought | None = None, attribute: str = "") -> None:
    """Count a request's tokens, and append its text to a thought (called on the engine's thread)."""

    def listen(chunk: Any) -> None:
        if chunk is None:
            return
        screen.count(len(chunk.token_ids))
        if thought is not None and not handle.done():
            setattr(thought, attribute, getattr(thought, attribute) + chunk.text)

    handle.listen(listen)


def _say_tree(screen: Screen) -> None:
    screen.console.print(screen.tree())
    screen.title, screen.thoughts = "The same prompts by each schedule, greedy", []


def _measure(
    engine: Engine,
    problems: Sequence[DemoTask],
    evaluations: list[tuple[str, SamplingParams]],
    screen: Screen,
    start_s: float,
) -> Measured:
    """Serve the thoughts of three problems, then their evaluations.

    ``evaluations`` are made from the thoughts of the first row that runs, and the same for all.
    """
    tasks = [problems[i % len(problems)] for i in range(WIDTH)]
    warm_prompt, _ = problems[-1].thought()
    engine.generate([warm_prompt] * WIDTH, SamplingParams(temperature=0, max_tokens=8))
    engine.spans(reset=True)
    began_s = time.monotonic()
    outputs = _serve(engine, [task.thought() for task in tasks], screen)
    if not evaluations:
        thoughts = [task.clean(output.text) for task, output in zip(tasks, outputs, strict=True)]
        evaluations += [task.evaluation(thought) for task, thought in zip(tasks, thoughts, strict=True)]
    outputs += _serve(engine, evaluations, screen)
    wall_s = time.monotonic() - began_s
    spans = engine.spans()
    return Measured(outputs, wall_s, start_s, metrics.overlap_s(spans), metrics.verifier_busy(spans, wall_s))


def _serve(engine: Engine, requests: Sequence[tuple[str, SamplingParams]], screen: Screen) -> list[RequestOutput]:
    handles = [engine.submit(prompt, params) for prompt, params in requests]
    for handle in handles:
        _follow(handle, screen)
    return [handle.result() for handle in handles]


def _print_table(console: Console, rows: Sequence[Row], measured: dict[str, Measured]) -> None:
    num_tokens = sum(map(len, measured[ROWS[0].name].token_ids))
    table = Table(
        title=f"{WIDTH} thoughts + {WIDTH} evaluations, temperature 0, {num_tokens} tokens",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    table.add_column("schedule", no_wrap=True)
    for name in (
        "tokens\n/s",
        "speed-\nup",
        "accept-\nance",
        "mean\nlength",
        "overlap\ns",
        "verifier\nbusy",
        "text\n= AR",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        drafts = row.name != ROWS[0].name
        table.add_row(
            row.name, f"{row.tokens_per_s:.1f}", f"{row.speedup:.2f}x",
            f"{row.acceptance_rate:.2f}" if drafts else "-", f"{row.mean_accepted_len:.2f}",
            f"{row.overlap_s:.2f}" if drafts else "-", f"{row.verifier_busy:.0%}",
            "yes" if row.text_equals_ar else "NO",
        )  # fmt: skip
    console.print(table)
    console.print(
        "tokens/s: kept tokens ÷ wall time. overlap: seconds in which a draft and the verifier were busy at once\n"
        "(fcfs-batch waits for proposals that come soon and verifies them in one forward: less overlap, more width).",
        markup=False, highlight=False,
    )  # fmt: skip
    different = [row.name for row in rows if not row.text_equals_ar]
    if different:
        console.print(
            f"Not the text of AR: {', '.join(different)}. Forwards of different width round differently, and a tie "
            "of two tokens can turn: expected in bfloat16 now and then, not in float32.", markup=False,
        )  # fmt: skip


def describe_node() -> dict[str, Any]:
    """The machine and the versions that figures were taken with."""
    import torch
    import transformers

    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": num_cores,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }


def _write_json(options: DemoOptions, rows: Sequence[Row]) -> None:
    assert options.json_path is not None
    report = {
        "rows": [asdict(row) for row in rows],
        "node": describe_node(),
        "seed": options.seed,
        "shape": options.shape,
        "dtype": options.dtype,
        "task": options.task,
        "temperature": 0.0,
        "k_config": K_CONFIG,
    }
    options.json_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
