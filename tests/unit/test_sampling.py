"""Parameters and the law that they make of logits: converted or refused by name, and right at the limits of float32."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest
import torch

from seedmp.checks import shown
from seedmp.decoding.accept import GREEDY, rule_for
from seedmp.errors import RejectedError
from seedmp.ipc import codec
from seedmp.ipc.messages import Submit
from seedmp.methods.static import MultiCandidate
from seedmp.sampling import GREEDY_BELOW, MAX_TEMPERATURE, SamplingParams, TargetLaw
from seedmp.token_tree.tree import ProposalKind


class Word(str):
    """A str whose own conversion says something else."""

    def __str__(self) -> str:
        return "not this"


class Number(enum.IntEnum):
    SEVEN = 7


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"temperature": torch.tensor(0.5)}, {"temperature": 0.5}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"draft_temperature": np.array(0.25)}, {"draft_temperature": 0.25}),
        ({"top_p": np.float64(0.5)}, {"top_p": 0.5}),
        ({"top_k": np.int64(5)}, {"top_k": 5}),
        ({"max_tokens": Number.SEVEN}, {"max_tokens": 7}),
        ({"seed": torch.tensor(3)}, {"seed": 3}),
        ({"ignore_eos": np.True_}, {"ignore_eos": True}),
        ({"ignore_eos": torch.tensor(True)}, {"ignore_eos": True}),
        ({"stop": None}, {"stop": ()}),
        ({"stop": Word("x")}, {"stop": ("x",)}),
        ({"stop": np.str_("x")}, {"stop": ("x",)}),
        ({"stop": [Word("x"), "y"]}, {"stop": ("x", "y")}),
        ({"choices": np.array(["a", "b"])}, {"choices": ("a", "b")}),
        ({"choices": None}, {"choices": ()}),
        ({"regex": Word("[0-9]")}, {"regex": "[0-9]"}),
        ({"stop_token_ids": [np.int64(5), Number.SEVEN]}, {"stop_token_ids": (5, 7)}),
        ({"stop_token_ids": np.array([5, 6], dtype=np.uint8)}, {"stop_token_ids": (5, 6)}),
        ({"stop_token_ids": torch.tensor([5])}, {"stop_token_ids": (5,)}),
        ({"stop_token_ids": {5}}, {"stop_token_ids": (5,)}),
        ({"stop_token_ids": range(2)}, {"stop_token_ids": (0, 1)}),
        ({"stop_token_ids": None}, {"stop_token_ids": ()}),
        ({"n": np.int8(2), "best_of": np.int8(3)}, {"n": 2, "best_of": 3}),
    ],
    ids=shown,
)
def test_values_become_pythons_own(given: dict[str, Any], expected: dict[str, Any]) -> None:
    params = SamplingParams(**given)
    for name, value in expected.items():
        ours = getattr(params, name)
        assert ours == value and type(ours) is type(value)
        if isinstance(value, tuple):
            assert [type(item) for item in ours] == [type(item) for item in value]
    (frame,) = codec.encode(Submit(1, 0, (1,), (), params))
    assert codec.decode([frame]).params == params


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": True}, "temperature=True: must be a finite number >= 0"),
        ({"temperature": 10**400}, r"temperature=1000.*\.\.\.: must be a finite number"),
        ({"temperature": 10**5000}, "temperature=<int>: must be a finite number"),
        ({"temperature": "0"}, "temperature='0'"),
        ({"temperature": None}, "temperature=None"),
        ({"temperature": torch.tensor([0.5, 0.6])}, "temperature=tensor"),
        ({"top_p": True}, "top_p=True"),
        ({"top_k": 2**63}, "top_k=9223372036854775808: must be a whole number from 0 to 9223372036854775807"),
        ({"max_tokens": True}, "max_tokens=True"),
        ({"max_tokens": 3.0}, r"max_tokens=3\.0"),
        ({"max_tokens": np.float64(3)}, "max_tokens="),
        ({"seed": True}, "seed=True: must be a whole number from 0"),
        ({"seed": np.True_}, "seed="),
        ({"n": 10**9}, "n=1000000000: must be a whole number from 1 to 4096"),
        ({"best_of": True}, "best_of=True"),
        ({"n": 2, "best_of": 1}, "best_of=1: must be a whole number >= n=2, or None"),
        ({"ignore_eos": 1}, "ignore_eos=1: must be True or False"),
        ({"ignore_eos": "no"}, "ignore_eos='no'"),
        ({"stop": 5}, "stop=5: must be a list"),
        ({"stop": [5]}, r"stop=\[5\]: must be a list; every stop string must be a non-empty str, not 5"),
        ({"stop": b"x"}, "stop=b'x'"),
        ({"stop": {"x": 1}}, "stop={'x': 1}"),
        ({"stop": torch.tensor(True)}, "stop=True: must be a list"),
        ({"stop": "a\ud800"}, "character 1 is half of a surrogate pair"),
        ({"choices": ["\udfff"]}, "choices='.udfff': character 0 is half of a surrogate pair"),
        ({"regex": "\ud800"}, "regex='.ud800': character 0 is half"),
        ({"regex": ""}, "regex='': must be a non-empty str"),
        ({"stop_token_ids": ["x"]}, r"stop_token_ids=\['x'\]: must be a list of token ids, .*, not 'x'"),
        ({"stop_token_ids": [True]}, "not True"),
        ({"stop_token_ids": [1.5]}, r"not 1\.5"),
        ({"stop_token_ids": [-1]}, "token id -1"),
        ({"stop_token_ids": [2**31]}, "token id 2147483648"),
        ({"stop_token_ids": b"ab"}, "stop_token_ids=b'ab'"),
        ({"stop_token_ids": 5}, "stop_token_ids=5"),
        ({"stop_token_ids": np.array([[5]])}, "must be a list of token ids"),
        ({"stop_token_ids": np.array([0.5])}, r"not 0\.5"),
    ],
    ids=shown,
)
def test_values_that_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RejectedError, match=message) as caught:
        SamplingParams(**given)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", [{}, [], "x", 5, SamplingParams])
def test_parameters_of_another_class(value: object) -> None:
    with pytest.raises(RejectedError, match="must be SamplingParams, or None for the defaults"):
        SamplingParams.of(value)
    assert SamplingParams.of(None) == SamplingParams()


# --- limits of the law --------------------------------------------------------------------------------

LOGITS = torch.tensor([[1.0, 7.0, 7.5, -3.0, 7.25], [50.0, -50.0, 49.0, 0.0, 1.0]])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [9e-6, 1e-8, 1e-30, 1e-38, 1e-45, 1e-300, 5e-324])
def test_tiny_temperatures_are_greedy(temperature: float, dtype: torch.dtype) -> None:
    params = SamplingParams(temperature=temperature, draft_temperature=temperature)
    assert params == SamplingParams(temperature=0, draft_temperature=0)
    assert rule_for(MultiCandidate().drawing(params).kind, params.temperature) == GREEDY
    assert MultiCandidate().drawing(params).kind is ProposalKind.DETERMINISTIC, "drafts follow"
    probs = TargetLaw(temperature).probs(LOGITS.to(dtype))
    assert probs.tolist() == TargetLaw(0).probs(LOGITS.to(dtype)).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "law", [{"top_p": 1e-9}, {"top_p": 1e-300}, {"top_p": 5e-324}, {"top_k": 1}, {"temperature": 2, "top_p": 1e-46}]
)
def test_what_keeps_one_token_keeps_the_likeliest(law: dict[str, Any], dtype: torch.dtype) -> None:
    """Of equals the first, as greedy decoding does; bfloat16 has many of them."""
    logits = torch.cat([LOGITS, LOGITS.roll(1, 1), torch.tensor([[0.0, 7.001, 7.0, 7.001, 1.0]])]).to(dtype)
    probs = TargetLaw(**law).probs(logits)
    assert probs.argmax(-1).tolist() == logits.argmax(-1).tolist()
    assert probs.max(-1).values.tolist() == [1.0] * len(logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [GREEDY_BELOW, 1e-3, 1e30, 1e38, 1e300, MAX_TEMPERATURE])
def test_every_temperature_gives_a_law_that_forbids_what_is_forbidden(temperature: float, dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype).masked_fill(torch.tensor([True, False, False, False, False]), -torch.inf)
    for top_p, top_k in ((1.0, 0), (0.5, 3), (1.0, 4), (1e-300, 0)):
        probs = TargetLaw(SamplingParams(temperature=temperature).temperature, top_p, top_k).probs(logits)
        assert torch.allclose(probs.sum(-1), torch.ones(2), atol=1e-6)
        assert probs[:, 0].tolist() == [0, 0]
