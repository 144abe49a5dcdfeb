"""Text of tokens, all at once or as they come; together the pieces are exactly the text made all at once.

The text of tokens is what they add to a text before them. A tokenizer of the SentencePiece kind leaves out the blank
at the very beginning of a text; generated tokens are never there, so their blank stays. One rule for all: what a user
gets, what is streamed, where stop strings are looked for, and what a constraint allows.

A stop string is looked for in the text with special tokens written out, and cuts the text without them.

A stream reads each token once, so its cost grows linearly with its length. That needs to know how the tokenizer
makes text: ``_reads_token_by_token`` lists what is known. For any other tokenizer a stream decodes all tokens again
at each call, and pieces fit together as far as its text only ever grows.
"""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers.decoders import DecodeStream

from seedmp.client.stop_text import cut_at_stop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

NOT_A_CHARACTER = "\ufffd"  # what stands for bytes that are no character, or not yet
# Decoders (in tokenizer.json) that make text of each token by itself, apart from the bytes of a character.
_TOKEN_DECODERS = {"ByteLevel", "Metaspace", "WordPiece", "BPEDecoder"}
_WORDS = ("a", "A", "x", "0")  # any may stand for the text before
_NUM_TRIED = 4096  # tokens, where none of these is known
_NUM_UNSURE = 4  # characters at the start of a tail: a blank that is not there, or the rest of a broken character


class Detokenizer:
    """Makes text with one tokenizer, special tokens left out.

    Args:
        tokenizer: None makes every text empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.tokenizer = tokenizer

    def decode(self, token_ids: Sequence[int], stop: str = "") -> str:
        """What tokens add to a text before them, up to the first ``stop``."""
        text = self._plain(token_ids)
        if not stop or self._special.keys().isdisjoint(token_ids):
            return cut_at_stop(text, stop)
        written = self._written(token_ids, text)
        begin = written.text.find(stop)
        return written.take(begin) if begin >= 0 else text

    def tail(self, token_ids: Sequence[int], num_tokens: int) -> str:
        """Text of about the last ``num_tokens`` tokens, special tokens written out: where a stop string may end.

        Never less than the text of all but the first 16 of them. It begins where no character is broken.
        """
        start = max(0, len(token_ids) - num_tokens)
        while start and (token_ids[start] in self._byte_ids or token_ids[start] in self._special):
            start -= 1
        last_ids = token_ids[start:]
        text = self._plain(last_ids)
        if not self._special.keys().isdisjoint(last_ids):
            text = self._written(last_ids, text).text
        return text[_NUM_UNSURE:] if start else text

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        """A new stream; it keeps back what may turn out to be one of the strings in ``stop``."""
        letters = "".join(stop)  # a token that shares none is no part of a stop string
        special = {i: name for i, name in self._special.items() if not set(name).isdisjoint(letters)}
        return TextStream(self._pieces(), stop, special, lambda token_ids: len(self._plain(token_ids)))

    def _plain(self, token_ids: Sequence[int]) -> str:
        if self.tokenizer is None:
            return ""
        before_ids, before = self._before
        text = str(self.tokenizer.decode([*before_ids, *token_ids], skip_special_tokens=True))
        return text.removeprefix(before)

    def _written(self, token_ids: Sequence[int], text: str) -> _Written:
        """All of ``text``, which the tokens make, and each special token behind the text of those before it."""
        written = _Written()
        for num_before, token_id in enumerate(token_ids):
            name = self._special.get(token_id)
            if name is not None:
                written.mark(min(len(text), len(self._plain(token_ids[:num_before]))), name)
        written.put(text)
        return written

    def _pieces(self) -> Pieces:
        if self.tokenizer is None:
            return _NoPieces()
        if not self._is_known:
            return _WholePieces(self)
        before_ids, before = self._before
        pieces: Pieces = _TokenPieces(self.tokenizer.backend_tokenizer, self._special, self._byte_ids, before_ids)
        return _CleanPieces(self.tokenizer, pieces, before) if _cleans_up(self.tokenizer) else pieces

    @cached_property
    def _is_known(self) -> bool:
        assert self.tokenizer is not None
        return _reads_token_by_token(self.tokenizer)

    @cached_property
    def _tells_tokens(self) -> bool:
        """Whether its vocabulary can be asked for; of any other object only ``decode`` is used."""
        from transformers import PreTrainedTokenizerBase

        return isinstance(self.tokenizer, PreTrainedTokenizerBase)

    @cached_property
    def _special(self) -> Mapping[int, str]:
        """Special tokens by id."""
        if self.tokenizer is None or not self._tells_tokens:
            return {}
        if not self.tokenizer.is_fast:
            return dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))
        added = self.tokenizer.backend_tokenizer.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in added.items() if token.special}

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        """Ids of tokens that are one byte of a character, as SentencePiece writes them."""
        if self.tokenizer is None or not self._tells_tokens:
            return frozenset()
        vocabulary = self.tokenizer.get_vocab()
        names = [f"<0x{byte:{form}}>" for byte in range(256) for form in ("02X", "02x")]
        return frozenset(vocabulary[name] for name in names if name in vocabulary)

    @cached_property
    def _before(self) -> tuple[list[int], str]:
        """Tokens that stand for the text before, and their text: a word or the end of one.

        Both are empty if the tokenizer makes the same text of a token anywhere.
        """
        assert self.tokenizer is not None
        if not self._tells_tokens or (self.tokenizer.is_fast and _decoder_kinds(self.tokenizer) == ["ByteLevel"]):
            return [], ""
        found: tuple[list[int], str] = ([], "")
        for token_ids in self._words():
            text = str(self.tokenizer.decode(token_ids))
            twice = str(self.tokenizer.decode([*token_ids, *token_ids]))
            if text.isascii() and text.isalnum() and twice.startswith(text) and twice != text:
                if twice != 2 * text:  # a blank between them: the word ends here
                    return token_ids, text
                found = found if found[0] else (token_ids, text)
        return found

    def _words(self) -> Iterator[list[int]]:
        """Tokens of short words; then tokens alone, the first of the vocabulary."""
        assert self.tokenizer is not None
        for word in _WORDS:
            token_ids = [int(i) for i in self.tokenizer(word, add_special_tokens=False).input_ids]
            if not (self._byte_ids | self._special.keys()) & set(token_ids):
                yield token_ids
        for token_id in range(min(_NUM_TRIED, len(self.tokenizer))):
            if token_id not in self._byte_ids and token_id not in self._special:
                yield [token_id]


class Pieces(Protocol):
    """Makes text of tokens as they come."""

    def add(self, token_ids: Sequence[int], num_read: int) -> str:
        """Text that became certain.

        Args:
            token_ids: all tokens so far.
            num_read: how many of them were there at the last call.
        """


class TextStream:
    """The text of one continuation, in pieces: whole characters, nothing that may turn out to be a stop string.

    Args:
        pieces: text of the tokens that are not special.
        stop: stop strings.
        special: special tokens by id that may be part of a stop string; each costs a call of ``count``.
        count: how many characters the text of tokens has.

    Attributes:
        num_chars: of the pieces so far; they are this long a beginning of the whole text.
    """

    def __init__(
        self,
        pieces: Pieces,
        stop: Sequence[str],
        special: Mapping[int, str],
        count: Callable[[Sequence[int]], int],
    ) -> None:
        self.num_chars = 0
        self._pieces = pieces
        self._stop = tuple(stop)
        self._special = special
        self._count = count
        self._num_kept = max(map(len, stop), default=1) - 1
        self._num_read = 0
        self._held = _Written()  # text that is not handed out yet

    def read(self, token_ids: Sequence[int]) -> str:
        """The next piece, which may be empty.

        Args:
            token_ids: all tokens so far, those of earlier calls first.
        """
        for num_before in range(self._num_read, len(token_ids)) if self._special else ():
            name = self._special.get(token_ids[num_before])
            if name is not None:
                self._held.mark(self._count(token_ids[:num_before]), name)
        self._held.put(self._pieces.add(token_ids, self._num_read))
        self._num_read = len(token_ids)
        text = self._held.text
        begins = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        piece = self._held.take(max(0, min([len(text) - self._num_kept, *begins])))
        self.num_chars += len(piece)
        return piece


class _Written:
    """Text in which special tokens are written out; it is put in at the end and taken away at the beginning.

    Attributes:
        text: what was not taken yet.
    """

    def __init__(self) -> None:
        self.text = ""
        self._shown = bytearray()  # one for each character of text: 0 in a special token
        self._num_put = 0
        self._marks: deque[tuple[int, str]] = deque()  # special tokens that come later, and behind how many characters

    def mark(self, num_before: int, name: str) -> None:
        """A special token stands behind the first ``num_before`` characters of all that is put, if not later."""
        self._marks.append((num_before, name))
        self.put("")

    def put(self, piece: str) -> None:
        """Add text."""
        while self._marks and self._marks[0][0] <= self._num_put + len(piece):
            num_before, name = self._marks.popleft()
            begin = max(0, num_before - self._num_put)
            self._add(piece[:begin])
            self.text += name
            self._shown += bytes(len(name))
            piece = piece[begin:]
        self._add(piece)

    def _add(self, piece: str) -> None:
        self.text += piece
        self._shown += b"\1" * len(piece)
        self._num_put += len(piece)

    def take(self, end: int) -> str:
        """Take away the first ``end`` characters; what of them belongs to no special token."""
        piece = "".join(compress(self.text[:end], self._shown[:end]))
        self.text = self.text[end:]
        del self._shown[:end]
        return piece


class _NoPieces:
    """Without a tokenizer."""

    def add(self, token_ids: Sequence[int], num_read: int) -> str:
        return ""


class _WholePieces:
    """Decodes all tokens at each call: quadratic, for tokenizers that are not known."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._num_chars = 0

    def add(self, token_ids: Sequence[int], num_read: int) -> str:
        text = self._detokenizer.decode(token_ids).rstrip(NOT_A_CHARACTER)
        piece, self._num_chars = text[self._num_chars :], max(self._num_chars, len(text))
        return piece


class _TokenPieces:
    """Decodes the tokens since the last piece, with the few before them that they join.

    A run of single bytes is text only once it has ended: a byte that fits no character spoils the whole run.
    If the library cannot go on, no more pieces come; the text at the end is made without them.

    Args:
        skipped_ids: of special tokens.
        byte_ids: of single bytes.
        before_ids: tokens that stand for the text before.
    """

    def __init__(
        self, backend: Any, skipped_ids: Container[int], byte_ids: Container[int], before_ids: list[int]
    ) -> None:
        self._backend = backend
        self._skipped_ids = skipped_ids
        self._byte_ids = byte_ids
        self._bytes: list[int] = []  # a run that goes on
        self._stream: DecodeStream | None = DecodeStream(skip_special_tokens=True)  # None: it refused to go on
        if before_ids:
            self._step(before_ids)

    def add(self, token_ids: Sequence[int], num_read: int) -> str:
        return "".join(self._texts(token_ids[num_read:]))

    def _texts(self, token_ids: Iterable[int]) -> Iterable[str]:
        for token_id in token_ids:
            if token_id in self._skipped_ids:
                continue
            if token_id in self._byte_ids:
                self._bytes.append(token_id)
                continue
            run, self._bytes = self._bytes, []
            yield self._step([*run, token_id])

    def _step(self, token_ids: list[int]) -> str:
        if self._stream is None:
            return ""
        try:
            return self._stream.step(self._backend, token_ids) or ""
        except Exception:  # it raises no class of its own
            log.exception("no more text is streamed; all of it comes at the end")
            self._stream = None
            return ""


class _CleanPieces:
    """Takes blanks away before punctuation, as ``clean_up_tokenization_spaces`` asks.

    Text is certain up to a blank between two characters that are neither blank nor apostrophe: nothing that is
    replaced reaches over its left edge, before or after other replacements.

    Args:
        before: the text before, which ends in a letter or digit; it is not given out.
    """

    _LAST_EDGE = re.compile(r".*[^ '](?= [^'])", re.DOTALL)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pieces: Pieces, before: str) -> None:
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._held = before
        self._num_before = len(before)

    def add(self, token_ids: Sequence[int], num_read: int) -> str:
        self._held += self._pieces.add(token_ids, num_read)
        edge = self._LAST_EDGE.match(self._held)
        end = edge.end() if edge else 0
        piece, self._held = self._held[:end], self._held[end:]
        clean = str(self._tokenizer.clean_up_tokenization(piece))
        num_dropped = min(self._num_before, len(clean))
        self._num_before -= num_dropped
        return clean[num_dropped:]


def _reads_token_by_token(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether what a token adds to the text depends on its neighbours only in ways that ``_TokenPieces`` knows."""
    from transformers import PreTrainedTokenizerFast

    ours, known = type(tokenizer), PreTrainedTokenizerFast
    if not tokenizer.is_fast or not issubclass(ours, known):
        return False
    if any(getattr(ours, name) is not getattr(known, name) for name in ("decode", "_decode", "clean_up_tokenization")):
        return False
    steps = _decoder_steps(tokenizer)
    if not steps:
        return True  # tokens with blanks between them
    if len(steps) == 1:
        return steps[0]["type"] in _TOKEN_DECODERS
    kinds = [step["type"] for step in steps]
    num_single = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)  # steps that see one token after another
    return set(kinds[:num_single]) <= {"Replace", "ByteFallback"} and all(
        step["type"] == "Fuse" or (step["type"] == "Strip" and step["stop"] == 0) for step in steps[num_single:]
    )


def _decoder_steps(tokenizer: Any) -> list[dict[str, Any]]:
    """The steps of a fast tokenizer's decoder, as tokenizer.json describes them; none if it has no decoder."""
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return []
    plain = json.loads(decoder.__getstate__())
    return list(plain["decoders"]) if plain["type"] == "Sequence" else [plain]


def _decoder_kinds(tokenizer: Any) -> list[str]:
    return [step["type"] for step in _decoder_steps(tokenizer)]


def _cleans_up(tokenizer: Any) -> bool:
    """Whether ``tokenizer.decode`` cleans up blanks; for BPE it does so only if it must."""
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(tokenizer.clean_up_tokenization_spaces) and (not is_bpe or bool(forced))
