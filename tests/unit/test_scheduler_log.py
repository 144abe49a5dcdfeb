"""What the scheduler remembers of a branch, and that it stays small."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from seedmp.config import EngineConfig
from seedmp.errors import InvalidTransitionError
from seedmp.sampling import SamplingParams
from seedmp.scheduler import actions, events, log
from seedmp.scheduler.branches import BranchState
from seedmp.scheduler.log import EventLog
from seedmp.scheduler.scheduler import Scheduler
from seedmp.scheduler.state import Limits
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree

PARAMS = SamplingParams(temperature=0.0, max_tokens=8, seed=1)
TREE = TokenTree((1, 2), (NO_PARENT, 0), ProposalKind.DETERMINISTIC)


@pytest.fixture
def scheduler() -> Scheduler:
    """Two branches that share a draft worker; the first one's proposal has arrived."""
    config = EngineConfig(target="-", draft="-", num_drafts=1, k_config=(1, 1), policy="fcfs", validate=True)
    scheduler = Scheduler(config, Limits(64, 32, frozenset()))
    scheduler.handle(events.WorkerJoined(0, 0), 1)
    for branch_id in range(2):
        scheduler.handle(events.BranchSubmitted(branch_id, 0, (branch_id,) * 20, (), PARAMS), 10 + branch_id)
    scheduler.decide(20)
    rows = np.zeros((2, 4), dtype="<f4")
    scheduler.handle(events.ProposalArrived(0, 0, 0, 21, 29, TREE, rows, (0, -1)), 30)
    return scheduler


def test_a_story_has_the_events_of_a_branch_and_the_orders_for_it(scheduler: Scheduler) -> None:
    assert scheduler.story(0).splitlines() == [
        "#0 1 WorkerJoined(worker_id=0, epoch=0)",
        "#1 10 BranchSubmitted(branch_id=0, stream=0, prompt_ids=(0, 0, 0, 0, 0, 0, ... 20 in all), committed_ids=(), "
        "params=SamplingParams(temperature=0.0, max_tokens=8, seed=1))",
        "#3 20 decide",
        "    -> SendDraftTask 0",
        "    -> SendDraftTask 1",
        "    -> RunForward 0",
        "#4 30 ProposalArrived(worker_id=0, branch_id=0, round=0, started_ns=21, ready_ns=29, tree=<tree of 2>, "
        "payload=None, drafted_idx=(0, -1))",
    ]
    assert "BranchSubmitted(branch_id=0" not in scheduler.story(1) and "ProposalArrived" not in scheduler.story(1)


def test_orders_name_their_cause(scheduler: Scheduler) -> None:
    """A forward that ends causes what follows from it, a decision what it orders."""
    (forward,) = scheduler.forwards.in_flight or ()
    assert not forward.verify
    assert scheduler.handle(events.ForwardFinished(5, ()), 40) == []
    (order,) = scheduler.decide(41)
    assert isinstance(order, actions.RunForward) and order.cause == 6
    (failed,) = scheduler.handle(events.BranchCancelled(1), 42)
    assert isinstance(failed, actions.FailBranch) and failed.cause == 7
    assert scheduler.story(1).splitlines()[-2:] == ["#7 42 BranchCancelled(branch_id=1)", "    -> FailBranch 1"]


def test_an_impossible_transition_tells_the_story_even_in_another_process(scheduler: Scheduler) -> None:
    with pytest.raises(InvalidTransitionError, match="branch 0: proposed -> drafting") as info:
        scheduler.state.branches.move(scheduler.branches[0], BranchState.DRAFTING)
    error = pickle.loads(pickle.dumps(info.value))
    assert error.story == info.value.story == scheduler.story(0)
    assert str(error) == str(info.value) and str(error).endswith(scheduler.story(0))


def test_a_forward_that_nobody_ordered_tells_what_happened_last(scheduler: Scheduler) -> None:
    scheduler.handle(events.ForwardFinished(5, ()), 40)
    with pytest.raises(InvalidTransitionError, match="never ordered") as info:
        scheduler.handle(events.ForwardFinished(5, ()), 41)
    assert "#6 41 ForwardFinished(elapsed_ns=5, outcomes=())" in info.value.story


def test_draft_laws_are_not_kept(scheduler: Scheduler) -> None:
    (entry,) = [entry for entry in scheduler.log if isinstance(entry.event, events.ProposalArrived)]
    assert entry.event is not None and getattr(entry.event, "payload", 0) is None
    assert scheduler.branches[0].payload is not None


def test_decisions_about_nothing_are_not_kept() -> None:
    config = EngineConfig(target="-", draft="-")
    scheduler = Scheduler(config, Limits(64, 32, frozenset()))
    for now_ns in range(3):
        assert scheduler.decide(now_ns) == []
    assert list(scheduler.log) == []


def test_it_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "MAX_TOKENS", 100)
    monkeypatch.setattr(log, "MAX_ENTRIES", 8)
    some = EventLog()
    for branch_id in range(6):
        some.add(events.BranchSubmitted(branch_id, 0, (1,) * 30, (), PARAMS), branch_id)
    assert [entry.entry_id for entry in some] == [3, 4, 5] and not some.is_whole
    for now_ns in range(10):
        some.add(None, now_ns)
    assert [entry.entry_id for entry in some] == list(range(8, 16)) and some.cause == 15
