"""Which group gets what, and who may ask for what."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from seedmp.client.in_flight import Job, Pending, PendingJob, PendingScore, Routes
from seedmp.errors import RejectedError
from seedmp.ipc.messages import Score
from seedmp.request import RequestHandle
from seedmp.sampling import SamplingParams


def job(**more: Any) -> Job:
    return Job(None, (1, 2), SamplingParams(seed=0), **more)


def loads(*counts: int) -> list[Pending]:
    """Requests in flight, so many in each group; one of them a score."""
    pending: list[Pending] = [
        PendingJob(job(), RequestHandle(0, lambda _: None), 0, group)
        for group, count in enumerate(counts)
        for _ in range(count)
    ]
    if pending:
        pending[0] = PendingScore(Future(), Score(0, (1,), (2,), (1,)), pending[0].group)
    return pending


def test_a_continuation_goes_where_the_fewest_are() -> None:
    routes = Routes(3)
    assert routes.for_job(job(), loads(0, 0, 0)) == 0
    assert routes.for_job(job(), loads(2, 1, 1)) == 1
    assert routes.for_job(job(), loads(2, 2, 1)) == 2
    assert len(routes) == 0, "without branches there is nothing to remember"


def test_of_equally_loaded_groups_the_one_that_holds_the_branch() -> None:
    routes = Routes(3)
    assert routes.for_job(job(branch=5), loads(1, 1, 0)) == 2
    assert routes.for_job(job(branch=5), loads(1, 1, 1)) == 2
    assert routes.for_job(job(branch=5), loads(1, 1, 2)) == 0
    assert routes.for_job(job(branch=5), loads(1, 1, 1)) == 2, "the first that used it"


def test_a_score_follows_its_branch_whatever_the_load() -> None:
    routes = Routes(2)
    assert routes.for_job(job(branch=5, child=6), loads(1, 0)) == 1
    for branch in (5, 6):
        assert routes.for_score(branch, loads(0, 9)) == 1
    assert routes.for_score(7, loads(0, 9)) == 0
    assert routes.for_score(7, loads(9, 0)) == 0, "it was computed there"
    assert routes.for_score(0, loads(9, 0)) == 1
    routes.inherit(8, 6)
    routes.inherit(9, 77)  # nobody knows where that is
    assert routes.for_score(8, loads(0, 9)) == 1


def test_what_was_dropped_is_forgotten() -> None:
    routes = Routes(2)
    routes.for_job(job(branch=5, child=6), loads(1, 0))
    for branch in (5, 6, 6, 99):
        routes.forget(branch)
    assert len(routes) == 0
    assert routes.for_score(6, loads(0, 1)) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"priority": 1001}, r"priority=1001.*from -1000 to 1000"),
        ({"priority": -1001}, r"priority=-1001.*from -1000 to 1000"),
        ({"priority": 0.5}, r"priority=0\.5.*whole number"),
        ({"priority": True}, r"priority=True.*whole number"),
        ({"user": 7}, r"user=7: .*text of at most 256 characters"),
        ({"user": "\ud800"}, r"user='.ud800': character 0 is half of a surrogate pair"),
        ({"stream": 2**63}, r"stream=9223372036854775808: must be a whole number"),
        ({"branch": "x"}, r"branch='x': must be a whole number >= 0"),
        ({"user": 257 * "x"}, r"user='xxx.*text of at most 256 characters"),
    ],
)
def test_bad_priorities_and_users(more: dict[str, Any], message: str) -> None:
    with pytest.raises(RejectedError, match=message):
        job(**more)


def test_the_limits_themselves_are_allowed() -> None:
    assert job(priority=-1000, user=256 * "x").priority == -job(priority=1000).priority
