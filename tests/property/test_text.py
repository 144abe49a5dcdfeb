"""Output text, streamed text, the cut at a stop string and choices agree, for several kinds of tokenizers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seedmp.client.detokenize import NOT_A_CHARACTER, Detokenizer
from seedmp.decoding.constraint import Constrainer, automaton_tokenizer, check_constraint, regex_of
from seedmp.errors import RejectedError
from seedmp.sampling import SamplingParams
from seedmp.scheduler.stopping import find_stop
from seedmp.token_tree.tree import EMPTY_TREE

WORDS = ("yes", "no", "may", "be", "n't", "'s", ".", ",", "a", "b", "é", "日", "\n")
MARKS = ["<s>", "</s>", "<|end|>", "<|user|>"]
BLANK = "▁"


def wrap(model: Any, decoder: Any, **options: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.decoder = decoder
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **options)


def numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def byte_level() -> PreTrainedTokenizerFast:
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = ["".join(part for part, _ in split.pre_tokenize_str(word)) for w in WORDS for word in (w, " " + w)]
    model = models.BPE(numbered([*sorted(pre_tokenizers.ByteLevel.alphabet()), *words]), [])
    return wrap(model, decoders.ByteLevel())


def pieces(*, single_bytes: bool) -> models.BPE:
    singles = [f"<0x{byte:02X}>" for byte in range(256)] if single_bytes else []
    letters = sorted({letter for word in WORDS for letter in word})
    return models.BPE(numbered([*singles, BLANK, *letters, *WORDS, *(BLANK + word for word in WORDS)]), [])


def sentence_piece(*, prepend: bool) -> PreTrainedTokenizerFast:
    steps: list[Any] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    return wrap(
        pieces(single_bytes=True), decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prepend else [])])
    )


def metaspace(*, prepend: bool) -> PreTrainedTokenizerFast:
    scheme = "always" if prepend else "never"
    return wrap(pieces(single_bytes=False), decoders.Metaspace(prepend_scheme=scheme))


def word_piece(*, clean_up: bool) -> PreTrainedTokenizerFast:
    model = models.WordPiece(numbered([*WORDS, *(f"##{word}" for word in WORDS)]), unk_token="a")
    return wrap(model, decoders.WordPiece(cleanup=clean_up), clean_up_tokenization_spaces=clean_up)


KINDS = {
    "byte BPE": byte_level(),
    "SentencePiece, blank prepended": sentence_piece(prepend=True),
    "SentencePiece": sentence_piece(prepend=False),
    "Metaspace, blank prepended": metaspace(prepend=True),
    "Metaspace": metaspace(prepend=False),
    "WordPiece": word_piece(clean_up=False),
    "WordPiece, cleaned up": word_piece(clean_up=True),
}
SEEDS = range(120)


def special_ids(tokenizer: Any) -> set[int]:
    return set(tokenizer.convert_tokens_to_ids(MARKS))


def some_ids(tokenizer: Any, chance: random.Random) -> list[int]:
    """Tokens of which some come often; a few are special."""
    special = special_ids(tokenizer)
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    few = chance.sample(ordinary, chance.choice([3, 12, len(ordinary)]))
    marks = sorted(special) if chance.random() < 0.5 else []
    return [chance.choice(marks) if marks and chance.random() < 0.1 else chance.choice(few) for _ in range(60)]


def some_stops(detokenizer: Detokenizer, token_ids: list[int], chance: random.Random) -> tuple[str, ...]:
    """Stop strings, some of which come in the text or in a special token."""
    text = detokenizer.tail(token_ids, len(token_ids))
    begins = [chance.randrange(len(text)) for _ in range(2)]
    stops = [text[begin : begin + chance.randint(1, 9)] for begin in begins]
    stops = [stop for stop in stops if NOT_A_CHARACTER not in stop] or [" never"]
    return (*stops, *chance.sample(["<|end|>", ".\n<|user|>", " never met", "end|"], chance.randint(0, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_what_the_whole_has_after_the_prompt(kind: str) -> None:
    tokenizer = KINDS[kind]
    detokenizer = Detokenizer(tokenizer)
    words = [i for name, i in tokenizer.get_vocab().items() if name.strip(BLANK) in ("yes", "no", "be")]
    for seed in SEEDS:
        chance = random.Random(seed)
        token_ids = some_ids(tokenizer, chance)
        prompt_ids = chance.choices(words, k=chance.randint(1, 5))
        prompt = tokenizer.decode(prompt_ids)
        whole = tokenizer.decode([*prompt_ids, *token_ids], skip_special_tokens=True)
        assert prompt + detokenizer.decode(token_ids) == whole, seed


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_text_and_the_cut_at_a_stop_string_agree(kind: str) -> None:
    tokenizer = KINDS[kind]
    detokenizer = Detokenizer(tokenizer)
    num_stopped = 0
    for seed in SEEDS:
        chance = random.Random(seed)
        token_ids = some_ids(tokenizer, chance)
        params = SamplingParams(stop=some_stops(detokenizer, token_ids, chance))
        stream, streamed, num_read, stop = detokenizer.stream(params.stop), "", 0, None
        while num_read < len(token_ids) and (stop is None or not stop.reason):
            new_ids = token_ids[num_read : num_read + chance.randint(1, 6)]
            stop = find_stop(token_ids[:num_read], new_ids, params, frozenset(), 999, detokenizer.tail)
            num_read += stop.num_kept
            streamed += stream.read(token_ids[:num_read])
        assert stop is not None
        kept_ids = token_ids[:num_read]
        text = detokenizer.decode(kept_ids, stop.text)
        assert text.startswith(streamed), seed
        assert detokenizer.decode(kept_ids).startswith(text), seed
        assert stream.num_chars == len(streamed)
        num_clean = num_read - 1 if stop.reason else num_read
        whole = [detokenizer.tail(token_ids[:end], end) for end in range(num_clean + 1)]
        assert not any(word in seen for seen in whole for word in params.stop), f"{seed}: it should have ended before"
        if stop.reason:
            num_stopped += 1
            assert stop.text in detokenizer.tail(kept_ids, len(kept_ids)), seed
            assert set(kept_ids) & special_ids(tokenizer) or stop.text not in text, seed
    assert num_stopped > len(SEEDS) / 5


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_special_token_is_a_stop_string_like_any(kind: str, mark: str) -> None:
    tokenizer = KINDS[kind]
    detokenizer = Detokenizer(tokenizer)
    vocabulary = tokenizer.get_vocab()
    words = [i for name, i in vocabulary.items() if name.strip(BLANK) in ("yes", "no", "be")]
    token_ids = [*words, vocabulary[mark], *words]
    params = SamplingParams(stop=(mark,))
    stop = find_stop([], token_ids, params, frozenset(), 999, detokenizer.tail)
    assert (stop.num_kept, stop.reason, stop.text) == (len(words) + 1, "stop", mark)
    assert detokenizer.decode(token_ids[: stop.num_kept], mark) == detokenizer.decode(words)
    stream = detokenizer.stream(params.stop)
    assert detokenizer.decode(words).startswith(stream.read(token_ids[: stop.num_kept]))


@pytest.mark.parametrize("choices", [(" yes", " no"), ("yes", "no"), (" yes.", "maybe", "é日"), ("\n", "a b", "  a")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_constrained_text_is_one_of_the_choices(kind: str, choices: tuple[str, ...]) -> None:
    tokenizer = KINDS[kind]
    detokenizer = Detokenizer(tokenizer)
    params = SamplingParams(choices=choices)
    if "WordPiece" in kind:
        with pytest.raises(RejectedError, match="WordPiece"):
            check_constraint(params, tokenizer)
        return
    check_constraint(params, tokenizer)
    eos = tokenizer.eos_token_id
    constrainer = Constrainer(lambda: automaton_tokenizer(tokenizer, [eos]), len(tokenizer))
    seen = set()
    for seed in range(40):
        chance, token_ids, end = random.Random(seed), list[int](), None
        while end is None:
            walk = constrainer.walk(regex_of(params), tuple(token_ids), EMPTY_TREE)
            token_id = chance.choice(np.flatnonzero(walk.allowed[0]).tolist())
            end = walk.end((), token_id)
            token_ids.append(token_id)
        text = detokenizer.decode(token_ids[: len(token_ids) - 1 + end])
        assert text in choices, token_ids
        seen.add(text)
    assert len(seen) > 1
