"""What limited a run, in words, with the numbers behind the words and what to try."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seedmp import metrics
from seedmp.config import Schedule
from seedmp.profiling.data import ProfileData
from seedmp.profiling.sampler import ProcessRecord
from seedmp.trace import Activity, Span

BOUND = 0.8  # a process that works more than this limits the run
SLACK = 0.5  # a process that works less has time to spare
BUSY_CORES = 0.9  # share of the cores in use at which processes wait for one another
SWITCHES_PER_S = 20.0  # of all processes together: how often another process takes their core
STARVED = 0.7  # CPU time of a working process ÷ time that it works; less means that it waits for a core
OVERHEAD = 0.2  # of the verifier's work, outside forwards
WORK = (Activity.SCHEDULE, Activity.IPC, Activity.COMMIT, Activity.RESAMPLE)


@dataclass(frozen=True)
class Finding:
    """One statement about a run.

    Args:
        kind: ``verifier-bound``, ``draft-bound``, ``queue``, ``overhead``, ``core-contention``, ``gpu-time-slicing``,
            ``little-work``, ``idle``, ``lost-spans``.
        numbers: what the statement rests on.
        advice: what to try; empty if nothing is to be done.
    """

    kind: str
    text: str
    numbers: dict[str, float]
    advice: str = ""


@dataclass(frozen=True)
class Busy:
    """What each kind of process did, as shares of the time from the first draft or forward to the last one."""

    active_s: float
    forward: float  # verifiers, the mean
    verifier: float  # the same with all their work
    draft: float  # drafts, the mean
    busiest_draft: float
    overhead: float  # of the verifiers' work outside forwards
    overlap: float  # a draft and a verifier at once
    mean_wait_ms: float
    mean_forward_ms: float
    mean_draft_ms: float
    branches_per_forward: float


def measure_busy(data: ProfileData) -> Busy:
    """The shares that ``diagnose`` judges by."""
    verifiers, drafts = data.of_kind("verifier"), data.of_kind("draft")
    start, end = active_window(data)
    active_s = max(end - start, 1) / 1e9

    def share(process: ProcessRecord, *activities: Activity) -> float:
        rows = process.spans[np.isin(process.spans[:, 0], activities)]
        rows = rows[(rows[:, 3] >= start) & (rows[:, 4] <= end)]
        return float((rows[:, 4] - rows[:, 3]).sum()) / 1e9 / active_s

    forward = _mean([share(p, Activity.VERIFY) for p in verifiers])
    outside = _mean([share(p, *WORK) for p in verifiers])
    drafting = [share(p, Activity.DRAFT, Activity.IPC) for p in drafts]
    forwards, rounds = _of(verifiers, Activity.VERIFY), _of(drafts, Activity.DRAFT)
    waits = np.concatenate([p.waits for p in verifiers]) if verifiers else forwards[:0]
    resampled = _of(verifiers, Activity.RESAMPLE)
    with_work = resampled[resampled[:, 2] > 0]
    return Busy(
        active_s, forward, forward + outside, _mean(drafting), max(drafting, default=0.0),
        metrics.share(outside, forward + outside),
        metrics.overlap_s([*_spans(forwards, "verify"), *_spans(rounds, "draft")]) / active_s,
        _mean_ms(waits), _mean_ms(forwards), _mean_ms(rounds),
        float(with_work[:, 2].mean()) if len(with_work) else 0.0,
    )  # fmt: skip


def active_window(data: ProfileData) -> tuple[int, int]:
    """The time from the first draft or forward to the last one. Before and after it nothing was requested."""
    rows = np.concatenate([_of(data.processes, Activity.VERIFY), _of(data.processes, Activity.DRAFT)])
    return (int(rows[:, 3].min()), int(rows[:, 4].max())) if len(rows) else (data.start_ns, data.end_ns)


def diagnose(data: ProfileData) -> list[Finding]:
    """What limited the run, the most telling first."""
    busy = measure_busy(data)
    if not len(_of(data.of_kind("verifier"), Activity.VERIFY)):
        return [Finding("idle", "nothing was generated while the profile ran", {})]
    findings = [_bound(data, busy)]
    for more in (_queue(data, busy), _overhead(busy), _cores(data), _gpu(data), _start_and_end(data, busy)):
        if more is not None and "cpu_while_working" in more.numbers:
            findings.insert(0, more)  # it makes all other findings doubtful
        elif more is not None:
            findings.append(more)
    lost = sum(process.num_lost for process in data.processes)
    if lost:
        text = f"{lost} spans were overwritten before they were read, so shares are too small"
        findings.append(Finding("lost-spans", text, {"lost": lost}, "profile with a shorter period"))
    return findings


def _bound(data: ProfileData, busy: Busy) -> Finding:
    numbers = {"verifier_busy": busy.verifier, "draft_busy": busy.draft, "overlap": busy.overlap}
    told = f"the verifier worked {_percent(busy.verifier)} of the time, drafts {_percent(busy.draft)} each"
    has_drafts = bool(data.of_kind("draft"))
    if busy.verifier >= BOUND:
        advice = "more drafts will not help; "
        if has_drafts and data.config.policy == "fcfs":
            advice += "policy='fcfs-batch' verifies several proposals in one forward"
        elif data.config.method.has_drafts:
            advice += "larger token trees raise what a forward commits (`seedmp growmap`), a smaller dtype its price"
        else:
            advice = "with a draft each forward commits several tokens: method='mcsd'"
        return Finding("verifier-bound", f"limited by the target: {told}", numbers, advice)
    if has_drafts and busy.busiest_draft >= BOUND:
        advice = "more drafts if there are branches for them (num_drafts), shallower trees, or a smaller draft"
        return Finding("draft-bound", f"limited by drafting: {told}", numbers, advice)
    if data.config.schedule is Schedule.SERIAL:
        text = f"one request at a time, so target and draft wait for each other: {told}"
        return Finding("little-work", text, numbers, "schedule='scheduled' with several requests at once")
    if has_drafts and busy.overlap < 0.1 and busy.verifier + busy.draft > BOUND:
        text = f"target and drafts take turns and hardly overlap ({_percent(busy.overlap)} of the time): {told}"
        advice = "more branches at once make two groups that alternate; policy='fcfs' overlaps with few branches"
        return Finding("little-work", text, numbers, advice)
    advice = "more branches at once would fill both" if has_drafts else "more requests at once would fill it"
    return Finding("little-work", f"nobody is at the limit, processes wait for work: {told}", numbers, advice)


def _queue(data: ProfileData, busy: Busy) -> Finding | None:
    if busy.mean_wait_ms <= busy.mean_forward_ms:
        return None
    text = (
        f"proposals wait {busy.mean_wait_ms:.1f} ms for a forward of {busy.mean_forward_ms:.1f} ms, "
        f"{busy.branches_per_forward:.1f} served at once"
    )
    numbers = {"mean_wait_ms": busy.mean_wait_ms, "mean_forward_ms": busy.mean_forward_ms}
    if data.config.policy == "fcfs":
        advice = "policy='fcfs-batch' serves the whole queue at once"
    else:
        advice = "a larger max_forward_tokens if forwards are full, else a second verifier (schedule='parallel')"
    return Finding("queue", text, numbers, advice)


def _overhead(busy: Busy) -> Finding | None:
    if busy.overhead < OVERHEAD:
        return None
    text = (
        f"{_percent(busy.overhead)} of the verifier's work is not the model: scheduling, messages, accept rule, commit"
    )
    advice = "usual with a model this small; a larger target hides it, larger trees share it among more tokens"
    return Finding("overhead", text, {"overhead": busy.overhead}, advice)


def _cores(data: ProfileData) -> Finding | None:
    workers = [p for p in data.processes if not p.name.startswith("supervisor")]
    used = sum(process.cpu_share() for process in workers)
    switches = sum(p.counts.involuntary for p in workers) / max(data.wall_s, 1e-9)
    numbers = {"cores_used": used, "cores": data.cores, "involuntary_switches_per_s": switches}
    if switches < SWITCHES_PER_S:
        return None
    target_threads, draft_threads = data.config.threads()
    if used < BUSY_CORES * data.cores:
        got = _cpu_while_working(data)
        if got >= STARVED or (data.config.placement != "cpu" and data.node.get("gpus")):
            return None
        text = (
            f"the workers got {got:.2f} s of CPU for each second in which they worked, though they use {used:.1f} of "
            f"{data.cores:g} cores: something else on this machine takes the rest; times here say little"
        )
        return Finding("core-contention", text, {**numbers, "cpu_while_working": got}, "run it again when it is quiet")
    text = (
        f"processes compete for cores: {used:.1f} of {data.cores:g} in use, "
        f"{switches:.0f} times a second one was made to leave its core"
    )
    advice = (
        f"target_threads={max(1, target_threads - draft_threads)} leaves the drafts a core; fewer drafts; "
        "nothing else on this machine"
    )
    return Finding("core-contention", text, numbers, advice)


def _cpu_while_working(data: ProfileData) -> float:
    """CPU seconds per second that verifiers and drafts were not idle."""
    cpu_s = worked_s = 0.0
    for process in [*data.of_kind("verifier"), *data.of_kind("draft")]:
        cpu_s += process.cpu_share() * process.wall_s
        worked_s += process.wall_s - process.seconds().get(Activity.IDLE, 0.0)
    return cpu_s / worked_s if worked_s > 0 else 1.0


def _gpu(data: ProfileData) -> Finding | None:
    if not data.shares_gpu or data.mps == "on":
        return None
    text = f"target and drafts share one GPU and MPS is {data.mps}: without it their kernels take turns, not overlap"
    advice = "start nvidia-cuda-mps-control -d before the engine, or give the drafts a GPU of their own"
    return Finding("gpu-time-slicing", text, {"num_drafts": data.config.num_drafts}, advice)


def _start_and_end(data: ProfileData, busy: Busy) -> Finding | None:
    outside = 1 - busy.active_s / data.wall_s if data.wall_s > 0 else 0.0
    if outside < 0.2:
        return None
    text = f"{_percent(outside)} of the profile lies before the first draft or forward, or after the last"
    return Finding("idle", text, {"outside": outside}, "shares of the whole profile are small for that reason alone")


def _of(processes: list[ProcessRecord], activity: Activity) -> np.ndarray:
    rows = [process.spans[process.spans[:, 0] == activity] for process in processes]
    return np.concatenate(rows) if rows else np.empty((0, 5), dtype=np.int64)


def _spans(rows: np.ndarray, kind: str) -> list[Span]:
    return [Span(kind, 0, 0, start, end) for start, end in rows[:, 3:].tolist()]


def _mean_ms(rows: np.ndarray) -> float:
    return float((rows[:, 4] - rows[:, 3]).mean()) / 1e6 if len(rows) else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
