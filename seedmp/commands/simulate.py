"""The command ``seedmp simulate``: a table over settings, and where more drafts stop paying."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from seedmp.commands.arguments import read_list
from seedmp.config import POLICIES, EngineConfig, Schedule
from seedmp.errors import ConfigError
from seedmp.methods.registry import METHODS
from seedmp.simulation.costs import EXAMPLE, Costs, load_costs
from seedmp.simulation.simulate import HARDWARE, Outcome, Workload, simulate

PAYS = 0.03  # more drafts pay if they gain at least this
MAX_SETTINGS = 2000


@dataclass(frozen=True)
class Setting:
    """One row of the sweep."""

    policy: str
    k_config: tuple[int, ...]
    budget: int
    branches: int
    verifiers: int
    drafts: int


@dataclass(frozen=True)
class Row:
    """A setting and what it reached; ``over_ar`` is against plain decoding of the same requests."""

    setting: Setting
    outcome: Outcome
    over_ar: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``seedmp simulate``."""
    lists = "; several with commas"
    parser.add_argument("--costs", type=Path, metavar="FILE", help="costs.json of `seedmp profile`, or its folder")
    parser.add_argument("--drafts", default="1,2,3,4,6,8", metavar="N", help=f"drafts a verifier{lists}")
    parser.add_argument("--k-config", nargs="+", default=["1,1,1"], metavar="K,K,..", help="one or more, with blanks")
    parser.add_argument("--policy", default="fcfs,fcfs-batch", metavar="NAME", help=f"fcfs, fcfs-batch{lists}")
    parser.add_argument("--budget", default="512", metavar="ROWS", help=f"rows of a forward at most{lists}")
    parser.add_argument("--branches", default="8", metavar="N", help=f"requests at once{lists}")
    parser.add_argument("--verifiers", default="1", metavar="N", help=f"copies of the target, with drafts each{lists}")
    parser.add_argument("--method", choices=METHODS.names(), default="mcsd")
    parser.add_argument("--schedule", choices=("serial", "scheduled"), default="scheduled")
    parser.add_argument(
        "--hardware", choices=HARDWARE, default="cpu",
        help="cpu: all share the cores of the costs; gpu: a GPU for each verifier and its drafts, by turns; gpus: "
        "another one for the drafts; ideal: nothing is shared",
    )  # fmt: skip
    parser.add_argument("--cores", type=float, help="of the machine, instead of those in the costs")
    parser.add_argument(
        "--acceptance", metavar="P[,P..][/..]", help="of a child, by rank; depths with /; the last depth goes on"
    )
    parser.add_argument("--prompt", type=int, default=64, metavar="N", help="tokens of a prompt (default %(default)s)")
    parser.add_argument("--shared", type=int, default=0, metavar="N", help="of which all share so many")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of what is accepted (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings and outcomes here")


def run(args: argparse.Namespace) -> int:
    """Simulate every setting; print the table, and where more drafts stop paying."""
    costs = EXAMPLE if args.costs is None else load_costs(args.costs)
    if args.acceptance is not None:
        costs = costs.with_acceptance(read_acceptance(args.acceptance))
    if args.cores is not None:
        costs = replace(costs, cores=args.cores)
    numbers = [read_list(f"--{n}", getattr(args, n), int) for n in ("budget", "branches", "verifiers", "drafts")]
    settings = [
        Setting(policy, k_config, *sizes)
        for policy in read_list("--policy", args.policy, str)
        for k_config in [tuple(read_list("--k-config", text, int)) for text in args.k_config]
        for sizes in itertools.product(*numbers)
    ]
    for setting in settings:
        POLICIES.load(setting.policy)
    if len(settings) > MAX_SETTINGS:
        raise ConfigError(f"{len(settings)} settings: at most {MAX_SETTINGS} in one run")
    if args.json is not None:
        try:
            args.json.write_text("")
        except OSError as error:
            raise ConfigError(f"{args.json}: cannot be written: {error.strerror}") from None
    if args.costs is None:
        print(f"no --costs: an example price list, {EXAMPLE.where['what']}")
    work = {"prompt_len": args.prompt, "shared_len": args.shared, "max_tokens": args.max_tokens, "seed": args.seed}
    rows = sweep(settings, costs, work, args.method, args.schedule, args.hardware)
    print_rows(rows)
    for line in where_drafts_stop_paying(rows):
        print(line)
    if args.json is not None:
        report = {
            "rows": [{**asdict(r.setting), **asdict(r.outcome), "over_ar": r.over_ar} for r in rows],
            "workload": work,
            "settings": {"method": args.method, "schedule": args.schedule, "hardware": args.hardware},
            "costs": costs.to_plain(),
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def sweep(
    settings: Sequence[Setting], costs: Costs, work: dict[str, int], method: str, schedule: str, hardware: str
) -> list[Row]:
    """Simulate every setting, and plain decoding for each number of branches and verifiers."""
    plain: dict[tuple[int, int, int], float] = {}
    rows = []
    for s in settings:
        load = Workload(branches=s.branches, **work)

        def outcome_of(name: str, s: Setting = s, load: Workload = load, **more: Any) -> Outcome:
            config = _config(s, load, name, **more)
            return simulate(config, costs, load, hardware=hardware, num_verifiers=s.verifiers)

        key = s.branches, s.verifiers, s.budget
        if key not in plain:
            plain[key] = outcome_of("ar", policy="fcfs-batch").tokens_per_s
        outcome = outcome_of(method, schedule=schedule)
        rows.append(Row(s, outcome, outcome.tokens_per_s / plain[key]))
    return rows


def _config(s: Setting, work: Workload, method: str, **more: Any) -> EngineConfig:
    room = work.prompt_len + work.max_tokens + 2 + 2 * sum(itertools.accumulate(s.k_config, lambda a, b: a * b))
    per_verifier = -(-s.branches // max(1, s.verifiers))
    values: dict[str, Any] = {
        "policy": s.policy, "k_config": s.k_config, "max_forward_tokens": s.budget, "num_drafts": s.drafts,
        "kv_slots": max(64, room * (per_verifier + 1)), "method": method, "schedule": Schedule.SCHEDULED.value,
    }  # fmt: skip
    return EngineConfig(target="-", draft="-", **{**values, **more})


def print_rows(rows: Sequence[Row]) -> None:
    """The table for people."""
    print(
        f"{'policy':10} {'k':9} {'budget':>6} {'branches':>8} {'verifiers':>9} {'drafts':>6} {'tokens/s':>9} "
        f"{'x ar':>6} {'target':>7} {'draft':>6} {'wait ms':>8} {'at once':>7} {'length':>6}"
    )
    for r in rows:
        s, o = r.setting, r.outcome
        print(
            f"{s.policy:10} {','.join(map(str, s.k_config)):9} {s.budget:6} {s.branches:8} {s.verifiers:9} "
            f"{s.drafts:6} {o.tokens_per_s:9.1f} {r.over_ar:6.2f} {100 * o.verifier_busy:5.0f} % "
            f"{100 * o.draft_busy:4.0f} % {o.queue_wait_ms:8.1f} {o.branches_per_forward:7.1f} "
            f"{o.mean_accepted_len:6.2f}"
        )


def where_drafts_stop_paying(rows: Sequence[Row]) -> list[str]:
    """For each setting of the rest: the number of drafts beyond which no larger one gains PAYS."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        s = row.setting
        groups.setdefault((s.policy, s.k_config, s.budget, s.branches, s.verifiers), []).append(row)
    lines = []
    for (policy, k_config, budget, branches, verifiers), members in groups.items():
        members = sorted(members, key=lambda row: row.setting.drafts)
        if len(members) < 2:
            continue
        best = max(row.outcome.tokens_per_s for row in members)
        enough = next(row for row in members if row.outcome.tokens_per_s * (1 + PAYS) >= best)
        name = f"{policy}, k={','.join(map(str, k_config))}, {branches} branches"
        name += f", {verifiers} verifiers" if verifiers > 1 else ""
        name += f", {budget} rows" if len({row.setting.budget for row in rows}) > 1 else ""
        if enough is members[-1]:
            lines.append(f"{name}: up to {enough.setting.drafts} drafts each step pays")
        else:
            num = enough.setting.drafts
            lines.append(f"{name}: beyond {num} draft{'s' if num > 1 else ''} more gain less than {100 * PAYS:.0f} %")
    return lines


def read_acceptance(text: str) -> tuple[tuple[float, ...], ...]:
    """``0.6``, ``0.6,0.3`` for two children, ``0.7,0.3/0.6`` for two depths."""
    return tuple(tuple(read_list("--acceptance", row, float)) for row in text.split("/"))
