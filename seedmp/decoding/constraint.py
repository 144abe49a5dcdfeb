"""Constrained texts: which tokens may follow at each node of a token tree.

The automaton is llguidance's (docs/adr/0003-constrained-thoughts.md). It is a function of the tokens
generated so far, so nothing of it has to survive a crash or a preemption.

Dimension letters: N tree nodes, V vocabulary.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, regex_to_lark
from tokenizers import Tokenizer, models

from seedmp.errors import RejectedError, RequestError
from seedmp.sampling import SamplingParams
from seedmp.token_tree.tree import TokenTree

MAX_REGEXES = 64  # compiled automata kept
MAX_STATES = 1024  # states kept between rounds, one a branch; 3 KB each

MakeTokenizer = Callable[[], LLTokenizer]


def regex_of(params: SamplingParams) -> str:
    """The regular expression that the whole text must match; empty without a constraint."""
    if params.regex is not None:
        return params.regex
    return "|".join("".join(map(_literal, choice)) for choice in params.choices)


def _literal(char: str) -> str:
    return char if char.isascii() and char.isalnum() else rf"\x{{{ord(char):x}}}"


def _grammar(regex: str) -> str:
    """The library's grammar of a regular expression.

    Without ``no_forcing`` the library allows only one token where the next bytes are certain: the one that its
    tokenizer would choose. Then the law would depend on more than the expression.
    """
    pattern = regex_to_lark(regex, use_ascii="")
    return LLMatcher.grammar_from_lark(f'%llguidance {{"no_forcing": true}}\nstart: /{pattern}/')


@lru_cache(MAX_REGEXES)
def why_invalid(regex: str) -> str:
    """The library's complaint about a regular expression, in one line. Empty when there is none."""
    message: str = LLMatcher.validate_grammar(_grammar(regex))
    lines = [line.strip() for line in message.splitlines()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(iter(reasons or lines), "")


def check_constraint(params: SamplingParams, tokenizer: Any) -> None:
    """Refuse a constraint that cannot be served, before any work.

    Args:
        params: of the request.
        tokenizer: the target's, from transformers, or None.

    Raises:
        RejectedError: the target has no tokenizer, or one without token bytes; or the library's reason.
    """
    named = f"choices={params.choices!r}" if params.regex is None else f"regex={params.regex!r}"
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        raise RejectedError(f"{named}: the target has no {'' if tokenizer is None else 'fast '}tokenizer")
    decoder = tokenizer.backend_tokenizer.decoder
    plain = "null" if decoder is None else decoder.__getstate__().decode()
    if not _has_token_bytes(plain):
        kind = json.loads(plain)["type"] if decoder is not None else "none"
        raise RejectedError(
            f"{named}: the target's tokenizer does not tell the bytes of its tokens (decoder {kind}); "
            "allowed are ByteLevel, ByteFallback and Metaspace"
        )
    reason = why_invalid(regex_of(params))
    if reason:
        raise RejectedError(f"{named}: {reason}")


def automaton_tokenizer(tokenizer: Any, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """The vocabulary as the automaton walks it: the bytes that each token adds to a text before it.

    Args:
        tokenizer: a fast tokenizer of transformers.
        eos_token_ids: of the model; allowed exactly after a complete match.

    Takes 30 ms for 4,096 tokens, about a second for 128,000.
    """
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    plain |= {"decoder": _decoder_of_bytes(plain["decoder"]), "padding": None, "truncation": None}
    eos = list(eos_token_ids) or tokenizer.eos_token_id
    return LLTokenizer(json.dumps(plain), eos_token=eos)


def _decoder_of_bytes(decoder: Any) -> Any:
    """A decoder (as in tokenizer.json) that the library knows and that gives tokens the same bytes, if there is one."""
    if decoder is None or decoder["type"] != "Metaspace":
        return decoder
    blank = {"type": "Replace", "pattern": {"String": decoder["replacement"]}, "content": " "}
    return {"type": "Sequence", "decoders": [blank, {"type": "ByteFallback"}, {"type": "Fuse"}]}


@lru_cache
def _has_token_bytes(decoder: str) -> bool:
    """Whether the library can tell the bytes of tokens that this decoder (as in tokenizer.json) reads."""
    tiny = json.loads(Tokenizer(models.BPE({"a": 0, "b": 1}, [])).to_str())
    try:
        LLTokenizer(json.dumps(tiny | {"decoder": _decoder_of_bytes(json.loads(decoder))}), eos_token=1)
    except ValueError:
        return False
    return True


class Constrainer:
    """Compiled automata of one vocabulary, and where the branches in flight stand.

    States are found by (regex, generated tokens). If the state of a branch was dropped, or if the branch comes from
    another verifier, the automaton walks again from the first generated token.

    Args:
        make_tokenizer: called at the first constrained request.
        vocab_size: real tokens, V.

    Runs in: verifier process, main thread.
    """

    def __init__(self, make_tokenizer: MakeTokenizer, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._starts: OrderedDict[str, LLMatcher] = OrderedDict()
        self._states: OrderedDict[tuple[str, tuple[int, ...]], LLMatcher] = OrderedDict()

    def walk(self, regex: str, generated_ids: tuple[int, ...], tree: TokenTree) -> ConstrainedTree:
        """Follow a token tree.

        Args:
            regex: the whole text must match it.
            generated_ids: tokens since the prompt.
            tree: drafted below them.

        Raises:
            RequestError: the generated tokens do not begin any match.
        """
        matcher = self._states.pop((regex, generated_ids), None)
        if matcher is None:
            matcher = self._start(regex).deep_copy()
            if generated_ids and not matcher.consume_tokens(list(generated_ids)):
                raise RequestError(f"regex={regex!r}: {len(generated_ids)} tokens were generated that do not match")
        return ConstrainedTree(self, regex, generated_ids, tree, matcher)

    def _start(self, regex: str) -> LLMatcher:
        start = self._starts.pop(regex, None)
        if start is None:
            if self._tokenizer is None:
                self._tokenizer = self._make_tokenizer()
            start = LLMatcher(self._tokenizer, _grammar(regex), log_level=0)
            if start.is_error():
                raise RejectedError(f"regex={regex!r}: {why_invalid(regex) or start.get_error().splitlines()[0]}")
        _remember(self._starts, regex, start, MAX_REGEXES)
        return start

    def keep(self, regex: str, generated_ids: tuple[int, ...], matcher: LLMatcher) -> None:
        """Remember a state for the branch's next round."""
        _remember(self._states, (regex, generated_ids), matcher, MAX_STATES)


def _remember(cache: OrderedDict[Any, LLMatcher], key: Any, matcher: LLMatcher, limit: int) -> None:
    cache[key] = matcher
    if len(cache) > limit:
        cache.popitem(last=False)


class ConstrainedTree:
    """What a constraint allows at the root of a token tree (entry 0) and after node i (entry 1 + i).

    Attributes:
        allowed: [N + 1, V] bool. A row is all True where it does not matter: after a token that is not
            allowed, after a text that is complete, and in a dead end, which ``end`` reports.

    Invariants:
        ``_matchers[i]`` is None exactly where the text before row i breaks the constraint or goes on after
        its end.
    """

    def __init__(
        self, owner: Constrainer, regex: str, generated_ids: tuple[int, ...], tree: TokenTree, root: LLMatcher
    ) -> None:
        self._owner = owner
        self._regex = regex
        self._generated_ids = generated_ids
        self._tree = tree
        self._matchers: list[LLMatcher | None] = []
        self._complete: list[bool] = []  # nothing may follow
        self._dead: list[bool] = []  # something must follow, but no token can
        self.allowed = np.ones((len(tree) + 1, owner.vocab_size), dtype=bool)
        self._add_row(root)
        for token_id, parent in zip(tree.token_ids, tree.parents, strict=True):
            self._add_row(self._after(parent + 1, token_id))

    def _after(self, row: int, token_id: int) -> LLMatcher | None:
        """The state after a token, if it is allowed there."""
        matcher = self._matchers[row]
        if matcher is None or self._complete[row] or self._dead[row] or not self.allowed[row, token_id]:
            return None
        matcher = matcher.deep_copy()
        return matcher if matcher.consume_token(token_id) else None

    def _add_row(self, matcher: LLMatcher | None) -> None:
        row = len(self._matchers)
        complete = matcher is not None and matcher.is_stopped()
        dead = False
        if matcher is not None and not complete:
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            bits = bits[: self._owner.vocab_size]
            dead = matcher.is_error() or not bits.any()
            if not dead:
                self.allowed[row, : len(bits)] = bits
                self.allowed[row, len(bits) :] = False
        self._matchers.append(matcher)
        self._complete.append(complete)
        self._dead.append(dead)

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits of which the accept rules make the constrained law: -inf where a token is not allowed.

        Args:
            logits: [N + 1, V or more] any float dtype; columns beyond V are padding.
        """
        forbidden = torch.from_numpy(~self.allowed).to(logits.device)
        return logits[:, : self._owner.vocab_size].masked_fill(forbidden, -torch.inf)

    def end(self, accepted: Sequence[int], next_token: int) -> int | None:
        """Number of tokens of a verdict that belong to the text, if the text ends there. None if the text goes on.

        Args:
            accepted: node indices from the root down.
            next_token: after them.

        Raises:
            RequestError: the text is not complete, and no token of the vocabulary can go on with it.
        """
        rows = [0, *(node_idx + 1 for node_idx in accepted)]
        for num_tokens, row in enumerate(rows):
            if self._complete[row]:
                return num_tokens
            if self._dead[row]:
                raise RequestError(f"regex={self._regex!r}: no token of the vocabulary can continue the text")
        matcher = self._after(rows[-1], next_token)
        if matcher is None:
            raise RequestError(f"regex={self._regex!r}: token {next_token} was chosen, which it does not allow")
        if matcher.is_stopped():
            return len(rows)
        new_ids = (*(self._tree.token_ids[node_idx] for node_idx in accepted), next_token)
        self._owner.keep(self._regex, self._generated_ids + new_ids, matcher)
        return None
