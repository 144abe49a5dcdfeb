"""Masks of a constraint over token trees, against brute force on decoded texts."""

from __future__ import annotations

import itertools
import re
from functools import lru_cache

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from seedmp.decoding.constraint import check_constraint, regex_of, why_invalid
from seedmp.errors import RejectedError, RequestError
from seedmp.sampling import SamplingParams
from seedmp.token_tree.tree import EMPTY_TREE, NO_PARENT, ProposalKind, TokenTree
from tests.helpers.automata import constrainer_of

TOKENS = (b"a", b"b", b"ab", b"ba", b"c", b"\xc3", b"\xa9")
EOS = len(TOKENS)
LETTERS = "abcé"
MAX_LEN = 8  # of the texts below, two more tokens and a character


@lru_cache
def matches(regex: str) -> frozenset[bytes]:
    """All matches of up to MAX_LEN characters."""
    texts = ("".join(t) for n in range(MAX_LEN + 1) for t in itertools.product(LETTERS, repeat=n))
    return frozenset(text.encode() for text in texts if re.fullmatch(regex, text))


@lru_cache
def beginnings(regex: str) -> frozenset[bytes]:
    """All byte prefixes of those."""
    return frozenset(match[:n] for match in matches(regex) for n in range(len(match) + 1))


def bytes_of(ids: tuple[int, ...]) -> bytes:
    return b"".join(TOKENS[i] for i in ids)


def may_follow(regex: str, ids: tuple[int, ...]) -> set[int]:
    """Tokens that leave a prefix of a match; EOS after a match."""
    text = bytes_of(ids)
    longer = {i for i, token in enumerate(TOKENS) if text + token in beginnings(regex)}
    return longer | ({EOS} if text in matches(regex) else set())


def tree_of(*paths: tuple[int, ...]) -> tuple[TokenTree, list[tuple[int, ...]]]:
    """A tree with these paths, and the text below the root of each of its rows."""
    nodes: dict[tuple[int, ...], int] = {(): NO_PARENT}
    for path in paths:
        for n in range(1, len(path) + 1):
            nodes.setdefault(path[:n], len(nodes) - 1)
    texts = list(nodes)
    tree = TokenTree(tuple(t[-1] for t in texts[1:]), tuple(nodes[t[:-1]] for t in texts[1:]), ProposalKind.IID)
    return tree, texts


ALL_PATHS = tree_of(*itertools.product(range(EOS + 1), repeat=2))


REGEXES = ("a|ab", "(ab)*c?", "é|aé", "a[bc]{1,2}|abé", "[^a]+")
BEGUN = [(r, g) for r in REGEXES for g in ((), (0,), (2, 5)) if bytes_of(g) in beginnings(r)]


@pytest.mark.parametrize(("regex", "generated"), BEGUN)
def test_masks_are_what_brute_force_allows(regex: str, generated: tuple[int, ...]) -> None:
    tree, texts = ALL_PATHS
    walk = constrainer_of(TOKENS).walk(regex, generated, tree)
    for row, below in enumerate(texts):
        reachable = EOS not in below and bytes_of(generated + below) in beginnings(regex)
        allowed = may_follow(regex, generated + below) if reachable else set()
        seen = set(np.flatnonzero(walk.allowed[row]).tolist())
        if not allowed - {EOS}:  # never read, or complete: what follows is not kept
            assert seen == set(range(EOS + 1))
        else:
            assert seen == allowed, (generated, below)


def test_forbidden_columns_and_padding_lose_their_logits() -> None:
    walk = constrainer_of(TOKENS).walk("ab", (), EMPTY_TREE)
    masked = walk.mask(torch.zeros(1, EOS + 4, dtype=torch.bfloat16))
    assert masked.shape == (1, EOS + 1)
    assert torch.isfinite(masked[0]).nonzero()[:, 0].tolist() == [0, 2]


def test_the_end_is_where_nothing_may_follow() -> None:
    owner = constrainer_of(TOKENS)
    tree, _ = tree_of((0, 1, 4))
    walk = owner.walk("ab", (), tree)
    assert walk.end((0, 1, 2), 4) == 2  # c is beyond the end
    assert owner.walk("ab", (), tree).end((0,), 1) == 2
    assert owner.walk("ab", (), tree).end((), 2) == 1
    assert owner.walk("ab", (0, 1), tree).end((), 3) == 0  # complete before this round
    assert owner.walk("ab?", (), tree).end((), 0) is None  # more may follow
    assert owner.walk("ab?", (0,), EMPTY_TREE).end((), EOS) == 1


def test_a_state_is_a_function_of_the_tokens() -> None:
    """Kept from the last round or walked again: the same masks."""
    regex = "(ab|c)*é"
    kept, fresh = constrainer_of(TOKENS), constrainer_of(TOKENS)
    ids: tuple[int, ...] = ()
    for accepted, token in [((), 4), ((0, 1), 2), ((0,), 0)]:
        tree, _ = tree_of((4, 2), (0, 1))
        walk = kept.walk(regex, ids, tree)
        assert (walk.allowed == fresh.walk(regex, ids, tree).allowed).all()
        assert walk.end(accepted, token) is None
        ids += (*(tree.token_ids[i] for i in accepted), token)
        assert len(kept._states) == 1
    assert (kept.walk(regex, ids, EMPTY_TREE).allowed == fresh.walk(regex, ids, EMPTY_TREE).allowed).all()


def test_a_dead_end_is_an_error() -> None:
    """Without a token for every byte a text may get stuck: no hang, no NaN."""
    tokens = (b"a", b"ab", b"b")
    with pytest.raises(RequestError, match="no token"):
        constrainer_of(tokens).walk("c", (), EMPTY_TREE).end((), 0)
    tree = TokenTree((0,), (NO_PARENT,), ProposalKind.IID)
    walk = constrainer_of(tokens).walk("ac|b", (), tree)
    assert np.flatnonzero(walk.allowed[0]).tolist() == [0, 2]
    with pytest.raises(RequestError, match="no token"):
        walk.end((0,), 1)
    with pytest.raises(RequestError, match="do not match"):
        constrainer_of(tokens).walk("ab", (2,), EMPTY_TREE)


def test_choices_are_literal() -> None:
    hostile = ("a.b", " (", "\\d", "é|ü", "a/b\n", '"', "[^]", "😀")
    regex = regex_of(SamplingParams(choices=hostile))
    assert why_invalid(regex) == ""
    python = re.sub(r"\\x\{(\w+)\}", lambda m: re.escape(chr(int(m[1], 16))), regex)
    assert all(re.fullmatch(python, text) for text in hostile)
    assert not any(re.fullmatch(python, text) for text in ("axb", "1", "é", "😀😀"))


class _Tokenizer:
    is_fast = True
    backend_tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    backend_tokenizer.decoder = decoders.ByteLevel()


def test_what_cannot_be_served_is_refused() -> None:
    good = SamplingParams(regex=" [0-9]+")
    check_constraint(good, _Tokenizer())
    with pytest.raises(RejectedError, match="no tokenizer"):
        check_constraint(good, None)
    with pytest.raises(RejectedError, match="no fast tokenizer"):
        check_constraint(good, object())
    for regex, reason in {"[": "unclosed character class", "a(?=b)": "look-ahead", r"(a)\1": "backreferences"}.items():
        with pytest.raises(RejectedError, match=reason):
            check_constraint(SamplingParams(regex=regex), _Tokenizer())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regex": ""}, "regex=''"),
        ({"regex": 3}, "regex=3"),
        ({"choices": ("a", "")}, "choices="),
        ({"choices": (1,)}, "choices="),
        ({"regex": "a", "choices": ("a",)}, "at most one"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_parameters_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RejectedError, match=re.escape(message)):
        SamplingParams(**settings)  # type: ignore[arg-type]


def test_one_choice_needs_no_tuple() -> None:
    assert SamplingParams(choices="yes").choices == ("yes",)  # type: ignore[arg-type]
    assert not SamplingParams().is_constrained
