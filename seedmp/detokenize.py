"""Text of tokens, all at once or as they come; together the pieces are exactly the text made all at once.

A stream reads each token once, so its cost grows linearly with its length. That needs to know how the tokenizer
makes text: ``_reads_token_by_token`` lists what is known. For any other tokenizer a stream decodes all tokens again
at each call, and pieces fit together as far as its text only ever grows.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers.decoders import DecodeStream

from seedmp.stop_text import cut_at_stop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

NOT_A_CHARACTER = "\ufffd"  # what stands for bytes that are no character, or not yet
# Decoders (in tokenizer.json) that make text of each token by itself, apart from the bytes of a character.
_TOKEN_DECODERS = {"ByteLevel", "Metaspace", "WordPiece", "BPEDecoder"}


class Detokenizer:
    """Makes text with one tokenizer, special tokens left out.

    Args:
        tokenizer: None makes every text empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.tokenizer = tokenizer

    def decode(self, token_ids: Sequence[int], stop: str = "") -> str:
        """Text of tokens up to the first ``stop``."""
        if self.tokenizer is None:
            return ""
        return cut_at_stop(str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True)), stop)

    def stream(self, stop: Sequence[str] = ()) -> TextStream:
        """A new stream; it keeps back what may turn out to be one of the strings in ``stop``."""
        pieces: Pieces
        if self.tokenizer is None:
            pieces = _NoPieces()
        elif self._is_known:
            pieces = _TokenPieces(self.tokenizer.backend_tokenizer, self._skipped_ids, self._byte_ids)
            if _cleans_up(self.tokenizer):
                pieces = _CleanPieces(self.tokenizer, pieces)
        else:
            pieces = _WholePieces(self)
        return TextStream(pieces, stop)

    @cached_property
    def _is_known(self) -> bool:
        assert self.tokenizer is not None
        return _reads_token_by_token(self.tokenizer)

    @cached_property
    def _skipped_ids(self) -> frozenset[int]:
        """Ids of special tokens."""
        assert self.tokenizer is not None
        added = self.tokenizer.backend_tokenizer.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        """Ids of tokens that are one byte of a character, as SentencePiece writes them."""
        assert self.tokenizer is not None
        backend = self.tokenizer.backend_tokenizer
        names = [f"<0x{byte:{form}}>" for byte in range(256) for form in ("02X", "02x")]
        return frozenset(token_id for name in names if (token_id := backend.token_to_id(name)) is not None)


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

    Attributes:
        num_chars: of the pieces so far; they are this long a beginning of the whole text.
    """

    def __init__(self, pieces: Pieces, stop: Sequence[str] = ()) -> None:
        self.num_chars = 0
        self._pieces = pieces
        self._stop = tuple(stop)
        self._num_kept = max(map(len, stop), default=1) - 1
        self._num_read = 0
        self._held = ""  # text that is not handed out yet

    def read(self, token_ids: Sequence[int]) -> str:
        """The next piece, which may be empty.

        Args:
            token_ids: all tokens so far, those of earlier calls first.
        """
        self._held += self._pieces.add(token_ids, self._num_read)
        self._num_read = len(token_ids)
        begins = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        end = max(0, min([len(self._held) - self._num_kept, *begins]))
        piece, self._held = self._held[:end], self._held[end:]
        self.num_chars += len(piece)
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
    """

    def __init__(self, backend: Any, skipped_ids: frozenset[int], byte_ids: frozenset[int]) -> None:
        self._backend = backend
        self._skipped_ids = skipped_ids
        self._byte_ids = byte_ids
        self._bytes: list[int] = []  # a run that goes on
        self._stream: DecodeStream | None = DecodeStream(skip_special_tokens=True)  # None: it refused to go on

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
    """

    _LAST_EDGE = re.compile(r".*[^ '](?= [^'])", re.DOTALL)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pieces: Pieces) -> None:
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._held = ""

    def add(self, token_ids: Sequence[int], num_read: int) -> str:
        self._held += self._pieces.add(token_ids, num_read)
        edge = self._LAST_EDGE.match(self._held)
        end = edge.end() if edge else 0
        piece, self._held = self._held[:end], self._held[end:]
        return str(self._tokenizer.clean_up_tokenization(piece))


def _reads_token_by_token(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether what a token adds to the text depends on its neighbours only in ways that ``_TokenPieces`` knows."""
    from transformers import PreTrainedTokenizerFast

    ours, known = type(tokenizer), PreTrainedTokenizerFast
    if not tokenizer.is_fast or not issubclass(ours, known):
        return False
    if any(getattr(ours, name) is not getattr(known, name) for name in ("decode", "_decode", "clean_up_tokenization")):
        return False
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return True  # tokens with blanks between them
    plain = json.loads(decoder.__getstate__())
    steps = plain["decoders"] if plain["type"] == "Sequence" else [plain]
    if len(steps) == 1:
        return steps[0]["type"] in _TOKEN_DECODERS
    kinds = [step["type"] for step in steps]
    num_single = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)  # steps that see one token after another
    return set(kinds[:num_single]) <= {"Replace", "ByteFallback"} and all(
        step["type"] == "Fuse" or (step["type"] == "Strip" and step["stop"] == 0) for step in steps[num_single:]
    )


def _cleans_up(tokenizer: Any) -> bool:
    """Whether ``tokenizer.decode`` cleans up blanks; for BPE it does so only if it must."""
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(tokenizer.clean_up_tokenization_spaces) and (not is_bpe or bool(forced))
