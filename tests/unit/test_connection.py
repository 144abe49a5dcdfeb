"""The connection without processes: fake groups that say where they serve, fake verifiers on real sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq

from seedmp.client.connection import Connection
from seedmp.client.detokenize import Detokenizer
from seedmp.client.in_flight import Job
from seedmp.errors import (
    CancelledError,
    ConfigError,
    EngineClosedError,
    EngineDeadError,
    RejectedError,
    RequestError,
    RequestTimeoutError,
    WorkerStartError,
)
from seedmp.ipc.messages import (
    PROTOCOL_VERSION,
    Cancel,
    CloseBranches,
    Committed,
    EngineDown,
    EngineHello,
    EngineWelcome,
    Failed,
    GroupStarted,
    Score,
    Scored,
    StatsQuery,
    StatsReply,
    Submit,
    WorkerLost,
    WorkerReady,
)
from seedmp.ipc.span_ring import SpanRing
from seedmp.request import RequestHandle
from seedmp.sampling import SamplingParams
from tests.helpers.groups import DEADLINE_S, FakeGroups, FakeVerifier

PARAMS = SamplingParams(temperature=0.0, max_tokens=8, seed=0)


class House:
    """A connection between fake groups."""

    def __init__(self, folder: Path, num_groups: int, tokenizer: Any = None) -> None:
        self.folder = folder
        self.context: zmq.Context[Any] = zmq.Context()
        self.groups = FakeGroups(num_groups)
        self.connection = Connection(self.groups, Detokenizer(tokenizer), SpanRing())
        self.verifiers: dict[int, FakeVerifier] = {}
        self._closing: list[FakeVerifier] = []

    def serve(self, group: int, epoch: int = 0) -> FakeVerifier:
        """A verifier begins to serve, and the connection is told where."""
        verifier = FakeVerifier(self.context, f"ipc://{self.folder}/v{group}-{epoch}")
        self.verifiers[group] = verifier
        self._closing.append(verifier)
        self.groups.tell(GroupStarted(group, epoch, verifier.endpoint))
        return verifier

    def lose(self, group: int, epoch: int = 0) -> None:
        """The verifier of a group dies."""
        self.verifiers.pop(group).close()
        self.groups.tell(WorkerLost(f"verifier-{group}", epoch, -9))
        self.groups.wait_until_handled()

    def start(self) -> list[FakeVerifier]:
        """All groups serve, and the connection has said hello to each."""
        for group in range(self.groups.num_groups):
            self.serve(group)
        self.connection.start(DEADLINE_S)
        verifiers = [self.verifiers[group] for group in range(self.groups.num_groups)]
        for verifier in verifiers:
            assert verifier.next(EngineHello) == EngineHello(PROTOCOL_VERSION)
        return verifiers

    def close(self) -> None:
        self.connection.stop(EngineClosedError("the engine was closed"))
        for verifier in self._closing:
            verifier.close()
        self.context.destroy(linger=0)


@pytest.fixture
def make_house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def make(num_groups: int = 1, tokenizer: Any = None) -> House:
        made.append(House(tmp_path, num_groups, tokenizer))
        return made[-1]

    yield make
    for house in made:
        house.close()
        assert house.groups.num_closed == 1, "the thread has ended, and let go of the source"


class ByteTokenizer:
    """Tokens are bytes."""

    is_fast = False
    all_special_ids: tuple[int, ...] = ()
    all_special_tokens: tuple[str, ...] = ()

    def __call__(self, text: str, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=list(text.encode()))

    def __len__(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {chr(byte): byte for byte in range(256)}

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode("utf-8", "replace")


def job(*prompt_ids: int, **more: Any) -> Job:
    return Job(None, prompt_ids or (1, 2), PARAMS, **more)


def tokens_of(handle: RequestHandle) -> tuple[int, ...]:
    return handle.result(DEADLINE_S).token_ids


# --- requests ---------------------------------------------------------------------------------------


def test_a_request_from_submission_to_its_output(make_house: Callable[..., House]) -> None:
    house = make_house(tokenizer=ByteTokenizer())
    (verifier,) = house.start()
    handle = house.connection.submit(job(5, 6, stream=3, index=3, priority=7, user="me"))
    submit = verifier.next(Submit)
    assert submit == Submit(handle.request_id, 3, (5, 6), (), PARAMS, 0, 0, 7, "me")
    verifier.send(Committed(submit.request_id, tuple(b"ab")))
    verifier.send(Committed(submit.request_id, tuple(b"c")))
    verifier.finish(submit.request_id, "stop", "c")
    output = handle.result(DEADLINE_S)
    assert (output.text, output.token_ids, output.finish_reason, output.index) == ("ab", tuple(b"abc"), "stop", 3)
    assert (output.metrics.rounds, output.metrics.drafted, output.metrics.accepted) == (2, 4, 2)


def test_who_follows_late_gets_the_whole_text(make_house: Callable[..., House]) -> None:
    house = make_house(tokenizer=ByteTokenizer())
    (verifier,) = house.start()
    handle = house.connection.submit(job())
    request_id = verifier.next(Submit).request_id
    future = house.connection.score((1,), (2,), (1,), 0)
    verifier.send(Committed(request_id, tuple("Grüße".encode()[:3])))
    verifier.send(Scored(verifier.next(Score).request_id, np.zeros(1, dtype="<f4")))
    future.result(DEADLINE_S)  # so the first tokens have come
    seen: list[Any] = []
    handle.listen(seen.append)
    verifier.send(Committed(request_id, tuple("Grüße".encode()[3:])))
    verifier.finish(request_id)
    assert tokens_of(handle) == tuple("Grüße".encode())
    house.connection.stop(EngineClosedError("the engine was closed"))
    assert seen.pop() is None
    assert "".join(chunk.text for chunk in seen) == "Grüße"
    assert sum((chunk.token_ids for chunk in seen), ()) == tuple("Grüße".encode())


def test_a_failure_is_the_error_that_it_names(make_house: Callable[..., House]) -> None:
    house = make_house()
    (verifier,) = house.start()
    handle = house.connection.submit(job())
    verifier.send(Failed(verifier.next(Submit).request_id, "RejectedError", "too long"))
    with pytest.raises(RejectedError, match="too long"):
        handle.result(DEADLINE_S)


def test_cancel(make_house: Callable[..., House]) -> None:
    house = make_house()
    (verifier,) = house.start()
    handle = house.connection.submit(job())
    request_id = verifier.next(Submit).request_id
    handle.cancel()
    assert verifier.next(Cancel) == Cancel(request_id)
    verifier.send(Failed(request_id, "CancelledError", "the request was cancelled"))
    with pytest.raises(CancelledError):
        handle.result(DEADLINE_S)
    handle.cancel()  # of what is over, nobody is told
    house.connection.submit(job(9))
    assert verifier.next(Submit).prompt_ids == (9,)


def test_scores(make_house: Callable[..., House]) -> None:
    house = make_house()
    (verifier,) = house.start()
    future = house.connection.score((1, 2), (3, 4, 5), (2, 1), 0)
    score = verifier.next(Score)
    assert score == Score(score.request_id, (1, 2), (3, 4, 5), (2, 1), 0)
    verifier.send(Scored(score.request_id, np.array([-1.0, -2.0, -3.0], dtype="<f4")))
    verifier.finish(score.request_id)
    assert [row.tolist() for row in future.result(DEADLINE_S)] == [[-1.0, -2.0], [-3.0]]


def test_stats_are_asked_of_every_group(make_house: Callable[..., House]) -> None:
    house = make_house(2)
    verifiers = house.start()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(house.connection.query)
        for index, verifier in enumerate(verifiers):
            query = verifier.next(StatsQuery)
            verifier.send(StatsReply(query.query_id, ("rounds",), (float(index),)))
        assert [reply.values for reply in asked.result(DEADLINE_S)] == [(0.0,), (1.0,)]


# --- groups come and go -------------------------------------------------------------------------------


def test_it_waits_until_every_group_serves(make_house: Callable[..., House]) -> None:
    house = make_house(2)
    house.serve(0)
    with pytest.raises(WorkerStartError, match="not ready within 0 s"):
        house.connection.start(0.01)


def test_a_lost_group_goes_on_from_the_committed_tokens(make_house: Callable[..., House]) -> None:
    house = make_house()
    (verifier,) = house.start()
    handle = house.connection.submit(job(5, 6, branch=0, user="me"))
    future = house.connection.score((1,), (2,), (1,), 0)
    request_id = verifier.next(Submit).request_id
    verifier.send(Committed(request_id, (11, 12)))
    chunks = iter(handle)
    assert next(chunks).token_ids == (11, 12)
    first_score = verifier.next(Score)
    house.lose(0)
    later = house.connection.submit(job(7))
    again = house.serve(0, epoch=1)
    assert again.next(EngineHello)
    assert again.next(Submit) == Submit(request_id, 0, (5, 6), (11, 12), PARAMS, 0, 0, 0, "me")
    assert again.next(Score) == first_score
    assert again.next(Submit).prompt_ids == (7,), "sent once, although it was ordered while the group was away"
    again.send(Committed(request_id, (13,)))
    again.finish(request_id)
    again.send(Scored(first_score.request_id, np.array([-1.0], dtype="<f4")))
    assert tokens_of(handle) == (11, 12, 13)
    assert future.result(DEADLINE_S)[0].tolist() == [-1.0]
    again.finish(later.request_id)
    assert tokens_of(later) == ()
    assert house.connection.num_lost == 1


def test_stats_wait_while_a_group_is_away(make_house: Callable[..., House]) -> None:
    """Those that the dead verifier was asked for, too."""
    house = make_house()
    (verifier,) = house.start()
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(house.connection.query)
        verifier.next(StatsQuery)
        house.lose(0)
        meanwhile = pool.submit(house.connection.query)
        again = house.serve(0, epoch=1)
        again.next(EngineHello)
        for _ in range(2):
            query = again.next(StatsQuery)
            again.send(StatsReply(query.query_id, (), ()))
        assert [len(asked.result(DEADLINE_S)) for asked in (before, meanwhile)] == [1, 1]


def test_stats_that_nobody_answers_do_not_say_that_the_engine_is_dead(
    make_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seedmp.client.connection.STATS_S", 0.01)
    house = make_house()
    house.start()
    with pytest.raises(RequestTimeoutError, match="did not answer"):
        house.connection.query()
    assert house.connection.dead is None


def test_a_cancelled_request_ends_at_once_while_its_group_is_away(make_house: Callable[..., House]) -> None:
    house = make_house()
    (verifier,) = house.start()
    handle = house.connection.submit(job())
    verifier.next(Submit)
    house.lose(0)
    handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(DEADLINE_S)
    again = house.serve(0, epoch=1)
    again.next(EngineHello)
    house.connection.submit(job(9))
    assert again.next(Submit).prompt_ids == (9,), "what was cancelled is not sent again"


def test_an_order_to_cancel_that_died_with_the_verifier(make_house: Callable[..., House]) -> None:
    house = make_house()
    (verifier,) = house.start()
    handle = house.connection.submit(job())
    future = house.connection.score((1,), (2,), (1,), 0)
    verifier.next(Submit)
    verifier.next(Score)
    handle.cancel()
    assert future.cancel()
    assert {verifier.next(Cancel).request_id for _ in range(2)} == {1, 2}
    house.lose(0)
    again = house.serve(0, epoch=1)
    with pytest.raises(CancelledError):
        handle.result(DEADLINE_S)
    again.next(EngineHello)
    house.connection.submit(job(9))
    assert again.next(Submit).prompt_ids == (9,)


@pytest.mark.parametrize("value", [float, object(), "\ud800", 2**70])
def test_what_cannot_be_sent_fails_its_own_request(make_house: Callable[..., House], value: object) -> None:
    """Values that no constructor saw; the encoder and the verifier's decoder see them in the caller's thread."""
    house = make_house()
    (verifier,) = house.start()
    for name in ("seed", "stop_token_ids", "regex", "ignore_eos"):
        params = replace(PARAMS)
        object.__setattr__(params, name, value)
        with pytest.raises(RejectedError, match="cannot be sent"):
            house.connection.submit(Job(None, (1,), params))
    with pytest.raises(RejectedError, match="cannot be sent"):
        house.connection.score((1,), (value,), (1,), 0)  # type: ignore[arg-type]
    house.connection.submit(job(9))
    assert verifier.next(Submit).prompt_ids == (9,)


def test_nothing_that_a_listener_or_callback_raises_reaches_the_thread(
    make_house: Callable[..., House], caplog: pytest.LogCaptureFixture
) -> None:
    house = make_house()
    (verifier,) = house.start()
    handle = house.connection.submit(job())
    calls: list[object] = []

    def fail(what: object) -> None:
        calls.append(what)
        raise SystemExit(f"not this: {what}")

    handle.listen(fail)
    handle.future.add_done_callback(fail)
    request_id = verifier.next(Submit).request_id
    for _ in range(2):
        verifier.send(Committed(request_id, (5,)))
    verifier.finish(request_id)
    assert tokens_of(handle) == (5, 5)
    other = house.connection.submit(job())
    verifier.finish(verifier.next(Submit).request_id)
    assert tokens_of(other) == ()
    assert len(calls) == 2, "the listener once, the callback once"
    assert sum("a listener of request" in record.message for record in caplog.records) == 1


def test_a_tokenizer_that_fails_fails_its_own_request(make_house: Callable[..., House]) -> None:
    house = make_house(tokenizer=ByteTokenizer())
    (verifier,) = house.start()
    handle = house.connection.submit(job())
    verifier.send(Committed(verifier.next(Submit).request_id, (300,)))  # no byte
    verifier.finish(handle.request_id)
    with pytest.raises(RequestError, match="bytes must be in"):
        handle.result(DEADLINE_S)
    other = house.connection.submit(job())
    verifier.finish(verifier.next(Submit).request_id)
    assert tokens_of(other) == ()


def test_a_cancelled_future_cancels_its_request(make_house: Callable[..., House]) -> None:
    house = make_house()
    (verifier,) = house.start()
    handle = house.connection.submit(job())
    verifier.next(Submit)
    assert handle.future.cancel()
    assert verifier.next(Cancel).request_id == handle.request_id
    verifier.finish(handle.request_id)  # too late to take it back
    with pytest.raises(CancelledError):
        list(handle)


@pytest.mark.parametrize("kind", ["annotations", "ConfigError", "OutOfSlotsError", "NoSuchError"])
def test_a_failure_of_an_unknown_kind_is_a_request_error(make_house: Callable[..., House], kind: str) -> None:
    house = make_house()
    (verifier,) = house.start()
    handle = house.connection.submit(job())
    verifier.send(Failed(verifier.next(Submit).request_id, kind, "why"))
    with pytest.raises(RequestError, match="why"):
        handle.result(DEADLINE_S)


def test_a_group_that_returns_takes_no_orders_from_another(make_house: Callable[..., House]) -> None:
    """Orders for both are there at the moment when the lost one is back: what it is sent anew is its own alone."""
    house = make_house(2)
    _, other = house.start()
    house.lose(0)
    prompt_ids = iter((7, 8))
    house.groups.on_receive = lambda: [house.connection.submit(job(prompt_id)) for prompt_id in prompt_ids]
    again = house.serve(0, epoch=1)
    again.next(EngineHello)
    assert again.next(Submit).prompt_ids == (7,)
    assert other.next(Submit).prompt_ids == (8,)


def test_workers_by_name(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.groups.tell(WorkerReady("verifier-0", 0, 41), WorkerReady("draft-0.0", 0, 42), WorkerLost("draft-0.0", 0, 1))
    (verifier,) = house.start()
    assert house.connection.pids == {"verifier-0": 41}
    assert house.connection.num_lost == 1
    house.connection.submit(job())
    verifier.next(Submit)  # a lost draft does not cut the link


# --- the end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("down", "error", "message"),
    [
        (EngineDown("ConfigError", "ConfigError: k=0", "", ""), ConfigError, "^k=0$"),
        (EngineDown("WorkerStartError", "no memory", "draft-0.0", "log"), WorkerStartError, "no memory"),
        (EngineDown("EngineDeadError", "died 5 times", "verifier-0", "its log"), EngineDeadError, "its log"),
        (None, EngineDeadError, "nobody looks after the groups"),
    ],
)
def test_why_it_did_not_start(
    make_house: Callable[..., House], down: EngineDown | None, error: type[Exception], message: str
) -> None:
    house = make_house()
    house.groups.tell(down)
    with pytest.raises(error, match=message):
        house.connection.start(DEADLINE_S)


def test_everybody_who_waits_is_told(make_house: Callable[..., House]) -> None:
    house = make_house()
    (verifier,) = house.start()
    handle = house.connection.submit(job())
    future = house.connection.score((1,), (2,), (1,), 0)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(house.connection.query)
        for kind in (Submit, Score, StatsQuery):
            verifier.next(kind)
        house.groups.tell(None)
        for waits in (handle.future, future, asked):
            with pytest.raises(EngineDeadError, match="nobody looks after the groups"):
                waits.result(DEADLINE_S)
    with pytest.raises(EngineDeadError, match="nobody looks after the groups"):
        house.connection.submit(job())


def test_stop_names_its_reason(make_house: Callable[..., House]) -> None:
    house = make_house()
    house.start()
    handle = house.connection.submit(job())
    for _ in range(2):
        house.connection.stop(EngineClosedError("the engine was closed"))
    with pytest.raises(EngineClosedError):
        handle.result(DEADLINE_S)
    with pytest.raises(EngineClosedError):
        house.connection.score((1,), (2,), (1,), 0)
    house.connection.drop_branch(3, free=True)  # late, and harmless


def test_a_verifier_of_another_protocol_ends_it(make_house: Callable[..., House]) -> None:
    house = make_house()
    (verifier,) = house.start()
    handle = house.connection.submit(job())
    verifier.next(Submit)
    verifier.send(EngineWelcome(PROTOCOL_VERSION, 100, 100))
    verifier.send(EngineWelcome(PROTOCOL_VERSION + 1, 100, 100))
    with pytest.raises(EngineDeadError, match=f"speaks protocol {PROTOCOL_VERSION + 1}, not {PROTOCOL_VERSION}"):
        handle.result(DEADLINE_S)


# --- branches -----------------------------------------------------------------------------------------


def test_a_score_goes_to_the_group_that_holds_its_branch(make_house: Callable[..., House]) -> None:
    """As with schedule="parallel": a draft and a verifier each, and a KV arena each."""
    house = make_house(3)
    verifiers = house.start()
    connection = house.connection
    root = connection.new_branch_id()
    children = [connection.new_branch_id() for _ in verifiers]
    for child in children:
        connection.submit(job(branch=root, child=child))
    for group, verifier in enumerate(verifiers):
        submit = verifier.next(Submit)
        assert (submit.branch, submit.child) == (root, children[group]), "least loaded first"
    for group in (2, 0, 1, 2):
        connection.score((1, 2), (3,), (1,), children[group])
        assert verifiers[group].next(Score).branch == children[group]
    connection.score((1, 2), (3,), (1,), connection.new_branch_id(children[1]))
    verifiers[1].next(Score)  # where the branch is that it goes on from


def test_dropped_branches_are_forgotten_and_closed_everywhere(make_house: Callable[..., House]) -> None:
    house = make_house(2)
    verifiers = house.start()
    branch, child = house.connection.new_branch_id(), house.connection.new_branch_id()
    house.connection.submit(job(branch=branch, child=child))
    verifiers[0].next(Submit)
    house.connection.drop_branch(branch, free=False)
    house.connection.drop_branch(child, free=True)
    for verifier in verifiers:
        closed = {verifier.next(CloseBranches) for _ in range(2)}
        assert closed == {CloseBranches((child,), True), CloseBranches((branch,), False)}
    house.connection.score((1,), (2,), (1,), child)
    verifiers[1].next(Score)  # group 0 has a request in flight, and holds nothing any more
