"""Streamed text: pieces are exactly the text of all tokens, for every kind of tokenizer, at a cost that is linear."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seedmp.client.detokenize import NOT_A_CHARACTER, Detokenizer, TextStream
from seedmp.models import pair
from seedmp.models.load import load_tokenizer

WORDS = ["a", "b", "do", "n't", "not", "'m", "'s", "'ve", "'re", "'", ".", ",", "!", "?", "x1", "é", "日"]
BYTES = pre_tokenizers.ByteLevel.alphabet()


def wrap(backend: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **options)


def numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(numbered([*sorted(BYTES), "ĠĠ", "Ġa", "the", "ðŁĺ", "Ã©"]), []))
    backend.decoder = decoders.ByteLevel()
    return wrap(backend)


def metaspace() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(numbered(["▁", "▁▁▁", *WORDS, *(f"▁{word}" for word in WORDS)]), "a"))
    backend.decoder = decoders.Metaspace()
    return wrap(backend)


def llama() -> PreTrainedTokenizerFast:
    singles = [f"<0x{byte:02X}>" for byte in (0x41, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80)]
    backend = Tokenizer(models.BPE(numbered(["▁", "▁▁", *singles, *singles, "▁a", "b", NOT_A_CHARACTER, "é"]), []))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(backend)


def word_piece(*, clean_up: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(numbered([*WORDS, *(f"##{word}" for word in WORDS)]), unk_token="a"))
    backend.decoder = decoders.WordPiece(cleanup=clean_up)
    return wrap(backend, clean_up_tokenization_spaces=clean_up)


def word_level() -> PreTrainedTokenizerFast:
    return wrap(Tokenizer(models.WordLevel(numbered(WORDS), "a")), clean_up_tokenization_spaces=True)


def suffixed() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(numbered([*WORDS, *(f"{word}</w>" for word in WORDS)]), []))
    backend.decoder = decoders.BPEDecoder()
    return wrap(backend)


def bundled() -> Any:
    return load_tokenizer(str(pair.TARGET))


KINDS: dict[str, Callable[[], Any]] = {
    "bundled": bundled,
    "byte-level": byte_level,
    "metaspace": metaspace,
    "llama": llama,
    "word-piece": lambda: word_piece(clean_up=False),
    "word-piece, cleaned up": lambda: word_piece(clean_up=True),
    "words, cleaned up": word_level,
    "suffixed": suffixed,
}


def continued(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """What tokens add to a text before them, which ends with a word."""
    vocabulary = tokenizer.get_vocab()
    word = next(vocabulary[name] for name in ("a</w>", "▁a", "a") if name in vocabulary)
    before = tokenizer.decode([word, word])
    whole = str(tokenizer.decode([word, word, *token_ids], skip_special_tokens=True))
    assert whole.startswith(before)
    return whole.removeprefix(before)


def ordinary_ids(tokenizer: Any) -> list[int]:
    """Ids of all tokens but the special ones."""
    return sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))


def pieces_of(stream: TextStream, token_ids: Sequence[int], chance: random.Random) -> list[str]:
    """Read tokens a few at a time, as rounds commit them."""
    at, pieces = 0, []
    while at < len(token_ids):
        at += chance.randint(1, 5)
        pieces.append(stream.read(list(token_ids[:at])))
    return pieces


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_a_beginning_of_the_text_of_all_tokens(kind: str) -> None:
    tokenizer = KINDS[kind]()
    detokenizer = Detokenizer(tokenizer)
    chance = random.Random(7)
    num_streamed = num_chars = 0
    for _ in range(150):
        num_ids = chance.choice([3, len(tokenizer)])  # a few tokens again and again, or any
        some = [chance.randrange(len(tokenizer)) for _ in range(num_ids)]
        token_ids = [chance.choice(some) for _ in range(chance.randint(1, 40))]
        text = continued(tokenizer, token_ids)
        assert detokenizer.decode(token_ids) == text
        stream = detokenizer.stream()
        streamed = "".join(pieces_of(stream, token_ids, chance))
        assert text.startswith(streamed), (token_ids, streamed, text)
        assert stream.num_chars == len(streamed)
        num_streamed, num_chars = num_streamed + len(streamed), num_chars + len(text)
    assert num_streamed > 0.5 * num_chars, "most of a text comes before its end"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_stop_string_is_streamed(kind: str) -> None:
    tokenizer = KINDS[kind]()
    detokenizer = Detokenizer(tokenizer)
    chance = random.Random(11)
    num_met = 0
    for _ in range(100):
        token_ids = chance.choices(ordinary_ids(tokenizer), k=30)
        text = continued(tokenizer, token_ids)
        if len(text) < 12:
            continue
        at = chance.randrange(len(text) - 8)
        stop = text[at : at + chance.randint(1, 8)]
        stream = detokenizer.stream((stop, "never met", "x"))
        streamed = "".join(pieces_of(stream, token_ids, chance))
        begins = min(begin for word in (stop, "x") if (begin := text.find(word)) >= 0)
        assert text[:begins].startswith(streamed)
        assert detokenizer.decode(token_ids, stop) == text[: text.find(stop)]
        num_met += 1
    assert num_met > 50


def test_split_characters_come_whole() -> None:
    tokenizer = byte_level()
    stream = Detokenizer(tokenizer).stream()
    token_ids = tokenizer.convert_tokens_to_ids(["a", "ð", "Ł", "ĺ", "Ģ", "Ġa"])  # U+1F600 is four bytes
    pieces = [stream.read(token_ids[: n + 1]) for n in range(len(token_ids))]
    assert pieces == ["a", "", "", "", "\U0001f600", " a"]


def test_a_run_of_byte_tokens_is_text_when_it_has_ended() -> None:
    """The third byte makes nonsense of the first two, which were a character before it came."""
    tokenizer = llama()
    stream = Detokenizer(tokenizer).stream()
    token_ids = tokenizer.convert_tokens_to_ids(["▁a", "<0xC3>", "<0xA9>", "<0xC3>", "b", "<0x41>", "▁a"])
    pieces = [stream.read(token_ids[: n + 1]) for n in range(len(token_ids))]
    assert pieces == [" a", "", "", "", 3 * NOT_A_CHARACTER + "b", "", "A a"]


def test_blanks_before_punctuation_are_cleaned_up_as_in_the_whole_text() -> None:
    tokenizer = word_level()
    detokenizer, chance = Detokenizer(tokenizer), random.Random(3)
    few = tokenizer.convert_tokens_to_ids(["'", "'m", "n't", ".", "a", "'s"])
    for _ in range(500):
        token_ids = [chance.choice(few) for _ in range(12)]
        streamed = "".join(pieces_of(detokenizer.stream(), token_ids, chance))
        assert detokenizer.decode(token_ids).startswith(streamed)


class SlowTokenizer:
    """One that is not known: it tells nothing of how it makes text."""

    is_fast = False

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(token_ids).decode("utf-8", "replace")


def test_an_unknown_tokenizer_is_asked_for_the_whole_text_each_time() -> None:
    text = "Grüße an 日本, \U0001f600!"
    token_ids = list(text.encode())
    stream = Detokenizer(SlowTokenizer()).stream(("!",))
    pieces = [stream.read(token_ids[: n + 1]) for n in range(len(token_ids))]
    assert "".join(pieces) == text[:-1]
    assert NOT_A_CHARACTER not in "".join(pieces)


def test_a_decoder_that_is_not_known_counts_as_unknown() -> None:
    """CTC drops repeated tokens, so a token's text depends on the one before it."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.decoder = decoders.CTC("<s>", "|", False)
    token_ids = tokenizer.convert_tokens_to_ids(["a", "a", "b", "b", "b", "a"])
    stream = Detokenizer(tokenizer).stream()
    assert "".join(stream.read(token_ids[: n + 1]) for n in range(6)) == "aba" == tokenizer.decode(token_ids)


def test_without_a_tokenizer_there_is_no_text() -> None:
    detokenizer = Detokenizer(None)
    assert detokenizer.decode([1, 2]) == detokenizer.stream().read([1, 2]) == ""


def test_special_tokens_at_any_place_leave_no_trace() -> None:
    tokenizer = metaspace()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    a, blank = tokenizer.convert_tokens_to_ids(["▁a", "▁"])
    stream = Detokenizer(tokenizer).stream()
    assert stream.read([bos, a, eos, bos, blank, eos, a]) == " a  a"


def test_a_late_reader_gets_everything_at_once() -> None:
    tokenizer = bundled()
    token_ids = tokenizer("How many apples does he have?").input_ids
    stream = Detokenizer(tokenizer).stream()
    assert stream.read(token_ids[:5]) + stream.read(token_ids) == "How many apples does he have?"


def test_the_whole_text_is_never_decoded_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = bundled()
    token_ids = (tokenizer("One after another they come. ").input_ids * 100)[:600]
    detokenizer = Detokenizer(tokenizer)

    def refuse(*args: object, **options: object) -> str:
        raise AssertionError("every token again")

    monkeypatch.setattr(tokenizer, "decode", refuse)
    stream = detokenizer.stream(("\n\n",))
    text = "".join(stream.read(token_ids[: n + 1]) for n in range(600))
    monkeypatch.undo()
    assert tokenizer.decode(token_ids, skip_special_tokens=True).startswith(text) and len(text) > 1000


def test_a_stream_that_the_library_refuses_is_completed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, skip_special_tokens: bool) -> None:
            self.num_left = 2

        def step(self, backend: Any, token_ids: Sequence[int]) -> str:
            self.num_left -= 1
            if self.num_left < 0:
                raise Exception("Invalid prefix encountered")
            return str(backend.decode(token_ids))

    monkeypatch.setattr("seedmp.client.detokenize.DecodeStream", Refusing)
    tokenizer = byte_level()
    token_ids = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    stream = Detokenizer(tokenizer).stream()
    assert [stream.read(token_ids[: n + 1]) for n in range(3)] == ["a", "b", ""]
    assert Detokenizer(tokenizer).decode(token_ids)[stream.num_chars :] == "c"
