"""A profile as figures (``profile.json``), as words, as a page, and as a price list for the simulator."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from seedmp import metrics
from seedmp.profiling import memory_chart
from seedmp.profiling.data import ProfileData
from seedmp.profiling.findings import Finding, measure_busy
from seedmp.profiling.sampler import ProcessRecord
from seedmp.reporting.pages import render
from seedmp.simulation.costs import Costs, Curve, chain_acceptance
from seedmp.trace import Activity

FORMAT = 1
NOTE = (
    "switches: how often another process took the core. PSS: memory, shared pages divided among those who share them. "
    "engine: your process."
)


def figures(data: ProfileData, findings: list[Finding]) -> dict[str, Any]:
    """Everything as a JSON-able dictionary; memory in MiB, times in seconds, shares of one core or of the time."""
    stats = data.stats
    rates = {
        "tokens_per_s": metrics.tokens_per_s(int(stats.get("committed_tokens", 0)), data.wall_s),
        "acceptance_rate": metrics.acceptance_rate(int(stats.get("accepted", 0)), int(stats.get("drafted", 0))),
        "mean_accepted_len": metrics.mean_accepted_len(int(stats.get("accepted", 0)), int(stats.get("rounds", 0))),
    }
    return {
        "format": FORMAT,
        "wall_s": data.wall_s,
        **rates,
        "busy": asdict(measure_busy(data)),
        "processes": [_process(process) for process in data.processes],
        "findings": [asdict(finding) for finding in findings],
        "stats": stats,
        "cores": data.cores,
        "mps": data.mps,
        "settings": data.config.to_plain(),
        "node": data.node,
    }


def _process(process: ProcessRecord) -> dict[str, Any]:
    seconds = process.seconds()
    counts = process.counts
    return {
        "name": process.name,
        "pid": process.pid,
        "wall_s": process.wall_s,
        "spans_s": {activity.name.lower(): value for activity, value in seconds.items()},
        "spans_over_wall": metrics.share(sum(seconds.values()), process.wall_s),
        "spans_lost": process.num_lost,
        "cpu_share": process.cpu_share(),
        "rss_mib": _most(process, "rss_bytes"),
        "uss_mib": _most(process, "uss_bytes"),
        "pss_mib": _most(process, "pss_bytes"),
        "shared_mib": _most(process, "shared_bytes"),
        "gpu_mib": _most(process, "gpu_bytes"),
        "gpu_share": max((sample.gpu_share for sample in process.samples), default=0.0),
        "context_switches": {"voluntary": counts.voluntary, "involuntary": counts.involuntary},
        "page_faults": {"minor": counts.minor_faults, "major": counts.major_faults},
        "socket_bytes": {"in": process.bytes_in, "out": process.bytes_out},
        "num_samples": len(process.samples),
    }


def _most(process: ProcessRecord, name: str) -> float:
    values = [getattr(sample, name) for sample in process.samples]
    return float(max(values, default=0)) / memory_chart.MIB


def in_words(data: ProfileData, findings: list[Finding]) -> str:
    """The summary that is printed: a table of the processes, then what limited the run."""
    plain = figures(data, findings)
    lines = [
        f"{data.wall_s:.1f} s, {plain['tokens_per_s']:.1f} tokens/s, acceptance {plain['acceptance_rate']:.2f}, "
        f"{plain['mean_accepted_len']:.2f} tokens a round",
        "",
        f"{'process':14} {'CPU':>6} {'busy':>6} {'draft':>6} {'verify':>6} {'resample':>8} {'commit':>6} {'other':>6} "
        f"{'PSS MiB':>8} {'switches':>9} {'KiB in':>8} {'out':>8}",
    ]
    for process, row in zip(data.processes, plain["processes"], strict=True):
        lines.append(_line(process, row))
    lines += ["", NOTE, ""]
    for finding in findings:
        lines.append(f"* {finding.text}.")
        if finding.advice:
            lines.append(f"  Try: {finding.advice}.")
    return "\n".join(lines)


def _line(process: ProcessRecord, row: dict[str, Any]) -> str:
    seconds = process.seconds()
    wall_s = process.wall_s or 1.0

    def share(*activities: Activity) -> str:
        return f"{100 * sum(seconds.get(a, 0.0) for a in activities) / wall_s:.0f} %"

    busy = [a for a in seconds if a is not Activity.IDLE]
    return (
        f"{process.name:14} {100 * row['cpu_share']:4.0f} % {share(*busy):>6} {share(Activity.DRAFT):>6} "
        f"{share(Activity.VERIFY):>6} {share(Activity.RESAMPLE):>8} {share(Activity.COMMIT):>6} "
        f"{share(Activity.IPC, Activity.SCHEDULE, Activity.WATCH):>6} {row['pss_mib']:8.1f} "
        f"{row['context_switches']['involuntary']:9d} {process.bytes_in / 1024:8.0f} {process.bytes_out / 1024:8.0f}"
    )


# --- for the simulator -----------------------------------------------------------------------------


def costs(data: ProfileData) -> Costs | None:
    """What the run paid for its steps; None if it had no forward, or no draft.

    A run knows only the sizes that occurred in it. Its times contain the competition for cores. So these prices give
    the simulator no cores to share, or the competition would count twice. ``seedmp.tuning.measure`` measures each
    model alone.
    """
    verifiers, drafts = data.of_kind("verifier"), data.of_kind("draft")
    tree = data.config.method.static_tree
    if not verifiers or not drafts or tree is None:
        return None
    rows_per_layer = (1 + tree.num_drafted) / tree.depth  # of one branch
    target = Curve.from_samples(_samples(verifiers, Activity.VERIFY, 1))
    rounds_of = _samples(drafts, Activity.DRAFT, tree.depth)
    draft = Curve.from_samples([(round(num * rows_per_layer), ms) for num, ms in rounds_of])
    if target is None or draft is None:
        return None
    by_forward_ms, by_branch_ms = _verifier_overheads(verifiers)
    in_drafts_ms = sum(ms for _, ms in _samples(drafts, Activity.IPC, 1)) / len(rounds_of)
    threads = data.config.threads()
    accepted = chain_acceptance(data.stats.get("accepted", 0.0) / max(1.0, data.stats.get("rounds", 1.0)), tree.depth)
    return Costs(
        target, draft, by_forward_ms, by_branch_ms, in_drafts_ms, target_threads=threads[0], draft_threads=threads[1],
        acceptance=((round(accepted, 4),),), where=data.node,
    )  # fmt: skip


def _verifier_overheads(verifiers: list[ProcessRecord]) -> tuple[float, float]:
    """(ms for a forward, ms for each branch in it) that the verifier works between two forwards."""
    branches: list[float] = []
    times: list[float] = []
    for process in verifiers:
        of_run = False  # from the first forward on
        for kind, _, num, start, end in process.spans.tolist():
            if kind == Activity.RESAMPLE:
                of_run = True
                branches.append(num)
                times.append(0.0)
            if of_run and kind in (Activity.RESAMPLE, Activity.COMMIT, Activity.SCHEDULE, Activity.IPC):
                times[-1] += (end - start) / 1e6
    if len(set(branches)) > 1:
        by_branch, by_forward = statistics.linear_regression(branches, times)
        if by_branch >= 0 and by_forward >= 0:
            return by_forward, by_branch
    return 0.0, sum(times) / max(1.0, sum(branches))


def _samples(processes: list[ProcessRecord], activity: Activity, parts: int) -> list[tuple[int, float]]:
    """(size, ms) of the spans of an activity, as one of ``parts`` equal parts."""
    return [
        (num, (end - start) / 1e6 / parts)
        for process in processes
        for kind, _, num, start, end in process.spans.tolist()
        if kind == activity
    ]


# --- the page --------------------------------------------------------------------------------------


def page(data: ProfileData, summary: str, timeline: str) -> str:
    """One self-contained HTML page: words, the picture of ``timeline.svg``, memory over time."""
    node = ", ".join(f"{name} {value}" for name, value in data.node.items() if value)
    return render("profile", summary=summary, timeline=timeline, memory=memory_chart.svg(data), node=node)
