"""Who is served first, by each policy; and that impossible answers are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from seedmp.config import POLICIES
from seedmp.errors import ConfigError, PolicyError
from seedmp.scheduler.checked_policy import CheckedPolicy, make_policy
from seedmp.scheduler.policies import Fair, Fcfs, FcfsBatch, Outlook, Policy, Priority, QueueItem, Selection, Ticket
from seedmp.scheduler.queue import FirstComeQueue, QueueView
from tests.helpers.policies import AnyOrder, Scripted

NOW_NS = 1_000_000
FORWARD_NS = 10_000


def item(branch_id: int, ready_ns: int = NOW_NS, num_rows: int = 10, is_proposal: bool = True) -> QueueItem:
    return QueueItem(branch_id, ready_ns, num_rows, is_proposal)


def outlook(expected: tuple[int, ...] = (), max_rows: int = 32, now_ns: int = NOW_NS, free_ns: int = 0) -> Outlook:
    return Outlook(now_ns, max_rows, expected, FORWARD_NS, free_ns)


def first(num: int) -> Selection:
    """The first branches of the queue, whose ids are 0, 1, ..."""
    return Selection(tuple(range(num)))


def test_every_name_has_a_policy() -> None:
    classes = {POLICIES.load(name) for name in POLICIES.names()}
    assert classes == {Fcfs, FcfsBatch, Priority, Fair}


@pytest.mark.parametrize("num", [1, 2, 9])
@pytest.mark.parametrize("expected", [(), (NOW_NS + 1,)])
def test_fcfs_serves_one_at_once(num: int, expected: tuple[int, ...]) -> None:
    assert Fcfs().select([item(i) for i in range(num)], outlook(expected)) == first(1)


@pytest.mark.parametrize(
    ("rows", "num_items"),
    [
        ([10], 1),
        ([10, 10, 10], 3),
        ([16, 16], 2),
        ([16, 16, 1], 2),  # the budget is exactly used
        ([10, 23, 1], 1),  # a prefix: the third may not overtake the second
        ([99, 1], 1),  # the first is always served, in chunks if need be
        ([1] * 40, 32),
    ],
)
def test_fcfs_batch_serves_the_prefix_that_fits(rows: list[int], num_items: int) -> None:
    queue = [item(i, num_rows=num) for i, num in enumerate(rows)]
    assert FcfsBatch().select(queue, outlook()) == first(num_items)


def test_fcfs_batch_waits_for_a_proposal_that_is_due_within_a_forward() -> None:
    due_ns = NOW_NS + 4_000
    selection = FcfsBatch().select([item(0)], outlook((due_ns, NOW_NS + 10**6)))
    assert selection.branch_ids == ()
    assert selection.hold_until_ns is not None
    assert due_ns < selection.hold_until_ns <= NOW_NS + FORWARD_NS


@pytest.mark.parametrize("late_ns", [1, 10**9])
def test_fcfs_batch_does_not_wait_for_what_is_due_later(late_ns: int) -> None:
    assert FcfsBatch().select([item(0)], outlook((NOW_NS + FORWARD_NS + late_ns,))) == first(1)


def test_fcfs_batch_never_holds_the_first_longer_than_a_forward() -> None:
    waiting_since = NOW_NS - FORWARD_NS
    assert FcfsBatch().select([item(0, waiting_since)], outlook((NOW_NS,))) == first(1)
    almost = FcfsBatch().select([item(0, waiting_since + 100)], outlook((NOW_NS - 5,)))
    assert almost == Selection((), NOW_NS + 100)


def test_fcfs_batch_counts_from_when_the_first_could_be_served() -> None:
    """What waited for a forward meets those that it verified, if they are drafted sooner than another one takes."""
    queue = [item(0, NOW_NS - 2 * FORWARD_NS)]
    held = FcfsBatch().select(queue, outlook((NOW_NS + 4_000,), free_ns=NOW_NS))
    assert held.branch_ids == () and held.hold_until_ns is not None and held.hold_until_ns <= NOW_NS + FORWARD_NS
    assert FcfsBatch().select(queue, outlook((NOW_NS + FORWARD_NS + 1,), free_ns=NOW_NS)) == first(1)
    later = outlook((NOW_NS,), now_ns=NOW_NS + FORWARD_NS, free_ns=NOW_NS)
    assert FcfsBatch().select(queue, later) == first(1)


def test_fcfs_batch_does_not_wait_for_what_is_long_overdue() -> None:
    """A draft that hangs must not cost every forward another one's time."""
    queue = [item(0, NOW_NS - 2 * FORWARD_NS), item(1)]
    assert FcfsBatch().select(queue, outlook((NOW_NS - FORWARD_NS - 1,), free_ns=NOW_NS)) == first(2)


def test_fcfs_batch_holds_no_prompt() -> None:
    assert FcfsBatch().select([item(0, is_proposal=False)], outlook((NOW_NS + 1,))) == first(1)


def test_fcfs_batch_does_not_hold_a_full_forward() -> None:
    """A forward that is full already gains nothing from a late proposal."""
    queue = [item(i, num_rows=16) for i in range(3)]
    assert FcfsBatch().select(queue, outlook((NOW_NS + 1,))) == first(2)


def test_fcfs_batch_reads_no_further_than_the_first_that_does_not_fit() -> None:
    """That one is read, so that it knows that there is more; with a thousand branches behind it nothing is lost."""
    read: list[int] = []

    class Queue(list[QueueItem]):
        def __iter__(self) -> Iterator[QueueItem]:
            for waiting in list.__iter__(self):
                read.append(waiting.branch_id)
                yield waiting

    assert FcfsBatch().select(Queue(item(i, num_rows=19) for i in range(9)), outlook(max_rows=40)) == first(2)
    assert read == [0, 1, 2]


# --- priority and fair share ------------------------------------------------------------------------


def test_what_is_most_urgent_goes_first_and_equal_ones_first_come() -> None:
    queue = [item(i, num_rows=16)._replace(priority=priority) for i, priority in enumerate([0, 2, 0, 2, -1])]
    assert Priority().select(queue, outlook(max_rows=48)) == Selection((1, 3, 0))
    tickets = [Ticket(i, i, priority) for i, priority in enumerate([0, 2, 0, 2, -1])]
    assert Priority().admit(tickets, 0) == [1, 3, 0, 2, 4]
    assert [ticket.branch_id for ticket in Priority().draft_order(tickets)] == [1, 3, 0, 2, 4]
    assert Priority().victim(tickets) == 4 and Priority().victim(tickets[:4]) == 2


def test_with_equal_priorities_it_is_fcfs_batch() -> None:
    queue = [item(i, num_rows=num) for i, num in enumerate([10, 10, 10, 10])]
    for expected in ((), (NOW_NS + 1,)):
        assert Priority().select(queue, outlook(expected)) == FcfsBatch().select(queue, outlook(expected))
    tickets = [Ticket(i, i) for i in range(4)]
    assert Priority().victim(tickets) == Policy().victim(tickets) == 3


def test_the_user_with_the_fewest_tokens_goes_first() -> None:
    policy = Fair()
    tickets = [Ticket(i, i, 0, user) for i, user in enumerate(["greedy", "greedy", "modest"])]
    queue = [item(i, num_rows=16)._replace(user=ticket.user) for i, ticket in enumerate(tickets)]
    for ticket in tickets:
        policy.submitted(ticket)
    assert policy.select(queue, outlook(max_rows=16)) == Selection((0,))
    policy.served(tickets[0], 3)
    assert policy.select(queue, outlook(max_rows=48)) == Selection((2, 0, 1))
    assert policy.victim(tickets) == 1
    policy.served(tickets[2], 4)
    assert policy.admit(tickets, 0) == [0, 1, 2]


def test_an_absence_earns_nothing() -> None:
    """Who comes later does not take every forward until he has as many tokens as those who were there before."""
    policy = Fair()
    early, late = Ticket(0, 0, 0, "early"), Ticket(1, 0, 0, "late")
    policy.submitted(early)
    policy.served(early, 1000)
    policy.submitted(late)
    assert policy.rank(early) == policy.rank(late)
    policy.served(late, 1)
    assert policy.rank(late) > policy.rank(early)
    for ticket in (early, late):
        policy.ended(ticket)
    assert policy.rank(early) == policy.rank(late) == 0


# --- impossible answers -----------------------------------------------------------------------------


def checked(choice: str, answer: object) -> CheckedPolicy:
    return CheckedPolicy(Scripted(choice, answer))


def view(*items: QueueItem) -> QueueView:
    queue = FirstComeQueue()
    for waiting in items:
        queue.put(waiting)
    return QueueView(queue)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Selection((7,)), "chose branch 7: must be one that is in the queue"),
        (Selection((0, 1, 0)), "must name each branch once"),
        (Selection(), "chose nothing and named no time"),
        (Selection((), NOW_NS), "must be later than now"),
        ([0], "returned a list: must be a Selection"),
    ],
)
def test_an_impossible_selection_is_the_policys_fault(answer: object, text: str) -> None:
    with pytest.raises(PolicyError, match=f"policy tests.helpers.policies:Scripted: select.*{text}"):
        checked("select", answer).select(view(item(0), item(1)), outlook(), is_woken=False)


def test_waiting_without_a_time_is_fine_while_a_proposal_is_on_its_way() -> None:
    assert checked("select", Selection()).select(view(item(0)), outlook(), is_woken=True) == Selection()


def test_what_was_preempted_in_this_decision_cannot_be_selected() -> None:
    queue = FirstComeQueue()
    for branch_id in range(2):
        queue.put(item(branch_id))
    with pytest.raises(PolicyError, match="in the queue"):
        checked("select", Selection((0,))).select(QueueView(queue, {0}), outlook(), is_woken=True)


@pytest.mark.parametrize(
    ("choice", "answer", "text"),
    [
        ("admit", [3], "chose branch 3: must be one that is waiting"),
        ("admit", [1, 1], "must name each branch once"),
        ("admit", [], "nobody although no branch is active"),
        ("draft_order", [], "must be the 2 given"),
        ("draft_order", [Ticket(0), Ticket(0)], "must be the 2 given"),
        ("worker", 9, "chose 9: must be one of .0, 1."),
        ("victim", 9, "chose branch 9: must be one of .0, 1."),
    ],
)
def test_every_other_impossible_choice_too(choice: str, answer: object, text: str) -> None:
    policy, tickets = checked(choice, answer), [Ticket(0), Ticket(1)]
    ask: dict[str, Callable[[], object]] = {
        "admit": lambda: policy.admit(tickets, 0),
        "draft_order": lambda: policy.draft_order(tickets),
        "worker": lambda: policy.worker(tickets[0], {0: 1, 1: 1}),
        "victim": lambda: policy.victim(tickets),
    }
    with pytest.raises(PolicyError, match=text):
        ask[choice]()


def test_a_policy_of_ones_own_is_named_by_its_place() -> None:
    assert type(make_policy("tests.helpers.policies:AnyOrder").policy) is AnyOrder
    with pytest.raises(PolicyError, match="must be a class that extends"):
        make_policy("os:path")
    with pytest.raises(ConfigError, match=r"policy='lifo'.*fcfs, fcfs-batch, priority, fair"):
        make_policy("lifo")
