"""The law of constrained texts through scheduler, drafts and target, against its enumeration.

2,000 continuations of one prompt on a tiny random pair (8 tokens: 7 byte strings and EOS). The exact law is
the target's, token by token: at each token what the constraint forbids is left out and the rest normalised
(not the target's law of whole texts, given that they match). False-alarm rate 1e-4 a case; seeds are fixed.
Twins that mask wrongly below the root of the tree must fail.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch

from seedmp.decoding.constraint import ConstrainedTree
from seedmp.errors import RequestError
from seedmp.sampling import SamplingParams, TargetLaw
from seedmp.scheduler.events import BranchSubmitted
from tests.helpers.automata import constrainer_of
from tests.helpers.chi_square import pooled_p_value
from tests.helpers.local_loop import LocalLoop, Models, Outcome
from tests.statistical.test_loop_law import FALSE_ALARM, NUM_TEXTS, PROMPT, VOCAB, tiny_model

TOKENS = (b"a", b"b", b"ab", b"c", b"ba", b"\xc3", b"\xa9")
EOS = len(TOKENS)
REGEX = "(a|b|é){2,4}c?|ca"
MAX_TOKENS = 12  # no match has more


@pytest.fixture(scope="module")
def models() -> Models:
    torch.set_num_threads(1)
    assert len(TOKENS) + 1 == VOCAB
    target, draft = tiny_model(7), tiny_model(7)
    torch.manual_seed(8)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return Models(target, draft, VOCAB)


def matches() -> set[bytes]:
    """All texts that the constraint allows."""
    texts = ("".join(chars) for length in range(6) for chars in itertools.product("abcé", repeat=length))
    return {text.encode() for text in texts if re.fullmatch(REGEX, text)}


def exact_law(models: Models, params: SamplingParams) -> dict[tuple[int, ...], float]:
    """Probability of every text: the target's law at each token, restricted to what a match may go on with."""
    complete = matches()
    beginnings = {text[:num] for text in complete for num in range(len(text) + 1)}
    law = TargetLaw(params.temperature, params.top_p, params.top_k)
    texts: dict[tuple[int, ...], float] = {}
    front: dict[tuple[int, ...], float] = {(): 1.0}
    while front:
        following: dict[tuple[int, ...], float] = {}
        for ids, prob in front.items():
            text = b"".join(TOKENS[i] for i in ids)
            allowed = [text + token in beginnings for token in TOKENS] + [text in complete]
            if sum(allowed) == allowed[EOS]:  # nothing but EOS may follow: it ends without
                texts[ids] = prob
                continue
            with torch.inference_mode():
                logits = models.target(torch.tensor([[*PROMPT, *ids]])).logits[0, -1:].double()
            row = law.probs(logits.masked_fill(~torch.tensor([allowed]), -torch.inf))[0]
            for token_id in row.nonzero()[:, 0].tolist():
                longer = (*ids, token_id)
                (texts if token_id == EOS else following)[longer] = prob * float(row[token_id])
        front = following
    return texts


def p_value(models: Models, method: str, k_config: tuple[int, ...], params: SamplingParams) -> float:
    """Chi-square of what the loop generates against the exact law, rare texts pooled."""
    loop = LocalLoop(
        models, eos_token_ids=(EOS,), method=method, k_config=k_config, kv_slots=1 << 15, draft_top_m=6,
        max_forward_tokens=2048,
    )  # fmt: skip
    object.__setattr__(loop.config, "validate", False)
    loop.runner.constrainer = constrainer_of(TOKENS)
    outcomes = loop.run([PROMPT] * NUM_TEXTS, params)
    assert {outcome.reason for outcome in outcomes} == {"stop"}
    if method != "ar":
        assert 0 < loop.scheduler.counters["accepted"] < loop.scheduler.counters["drafted"]
    seen = Counter(tuple(outcome.token_ids) for outcome in outcomes)
    law = exact_law(models, params)
    assert sum(law.values()) == pytest.approx(1, abs=1e-5)
    if set(seen) - set(law):
        return 0.0
    return pooled_p_value(seen, law)


def params_of(temperature: float, top_p: float = 1.0, draft_temperature: float | None = None) -> SamplingParams:
    return SamplingParams(
        temperature=temperature, top_p=top_p, draft_temperature=draft_temperature, max_tokens=MAX_TOKENS, seed=11,
        regex=REGEX,
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize(
    ("method", "k_config", "top_p", "draft_temperature"),
    [
        ("sd", (1, 1), 1.0, None), ("sd", (2, 2), 1.0, None), ("mcsd", (3, 2), 1.0, None),
        ("mcsd", (2, 2, 1), 0.9, None), ("mcsd", (2, 1), 1.0, 0.0), ("ar", (1,), 0.9, None),
    ],
)  # fmt: skip
def test_law_of_whole_texts(
    models: Models,
    method: str,
    k_config: tuple[int, ...],
    top_p: float,
    draft_temperature: float | None,
    temperature: float,
) -> None:
    params = params_of(temperature, top_p, draft_temperature)
    assert p_value(models, method, k_config, params) > FALSE_ALARM


def root_alone(allowed: torch.Tensor, masked: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Nothing is forbidden after a draft token."""
    return torch.cat([masked[:1], logits[1:, :VOCAB]])


def flat_below_root(allowed: torch.Tensor, masked: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Every text matches, but after a draft token the target's own law is lost."""
    return torch.cat([masked[:1], torch.zeros_like(masked[1:]).masked_fill(~allowed[1:], -torch.inf)])


@pytest.mark.parametrize("broken", [root_alone, flat_below_root])
def test_a_broken_mask_is_found(
    models: Models,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    mask, end = ConstrainedTree.mask, ConstrainedTree.end

    def twin_mask(self: ConstrainedTree, logits: torch.Tensor) -> torch.Tensor:
        return broken(torch.from_numpy(self.allowed), mask(self, logits), logits)

    def twin_end(self: ConstrainedTree, accepted: Sequence[int], next_token: int) -> int | None:
        try:
            return end(self, accepted, next_token)
        except RequestError:  # of the real one a token that is not allowed is an error; here it ends the text
            return len(accepted) + 1

    monkeypatch.setattr(ConstrainedTree, "mask", twin_mask)
    monkeypatch.setattr(ConstrainedTree, "end", twin_end)
    assert p_value(models, "mcsd", (2, 2), params_of(1.0)) < 1e-6


def test_a_new_verifier_goes_on_from_the_committed_tokens(models: Models) -> None:
    """Whatever was committed, all of a complete text included; noise by position makes the rest the same."""
    params = params_of(1.0, draft_temperature=0.0)

    def rest_of(stream: int, committed: list[int]) -> Outcome:
        loop = LocalLoop(models, eos_token_ids=(EOS,), method="mcsd", k_config=(2, 1))
        loop.runner.constrainer = constrainer_of(TOKENS)
        loop.outcomes[0] = Outcome()
        loop._tell(BranchSubmitted(0, stream, PROMPT, tuple(committed), params))
        loop.run([], params)
        return loop.outcomes[0]

    ends = set()
    for stream in range(6):
        whole = rest_of(stream, [])
        ends.add(whole.token_ids[-1] == EOS)
        for num in range(1, len(whole.token_ids) + 1):
            rest = rest_of(stream, whole.token_ids[:num])
            assert (rest.token_ids, rest.reason) == (whole.token_ids[num:], "stop")
    assert ends == {True, False}
