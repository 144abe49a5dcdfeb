"""When a branch ends: EOS anywhere in an accepted run, stop strings across token boundaries, exact length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seedmp.sampling import SamplingParams

Decode = Callable[[Sequence[int], int], str]  # token ids, and how many of the last ones; see Detokenizer.tail


@dataclass(frozen=True)
class Stop:
    """Why and where a branch ends.

    Args:
        num_kept: how many of the new tokens belong to the branch.
        reason: ``stop`` (EOS, stop token or stop string) or ``length``; empty: it goes on.
        text: the stop string that was met, if one was.
    """

    num_kept: int
    reason: str = ""
    text: str = ""


def find_stop(
    old_ids: Sequence[int],
    new_ids: Sequence[int],
    params: SamplingParams,
    eos_token_ids: frozenset[int],
    max_new: int,
    decode: Decode | None,
) -> Stop:
    """Where a run of new tokens ends the branch, if it does.

    Args:
        old_ids: tokens generated before.
        new_ids: tokens committed by this round, at least one.
        params: of the request.
        eos_token_ids: of the model; ignored with ``params.ignore_eos``.
        max_new: new tokens allowed in total.
        decode: text of the last of many tokens, special tokens written out; needed when there are stop strings.
    """
    enders = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_token_ids)
    for num_kept, token_id in enumerate(new_ids, 1):
        if token_id in enders:
            return Stop(num_kept, "stop")
        if params.stop and decode is not None:
            text = _find_stop_string([*old_ids, *new_ids[:num_kept]], params.stop, decode)
            if text:
                return Stop(num_kept, "stop", text)
        if len(old_ids) + num_kept >= max_new:
            return Stop(num_kept, "length")
    return Stop(len(new_ids))


def _find_stop_string(token_ids: list[int], stop: tuple[str, ...], decode: Decode) -> str:
    """The stop string that the last token completed; the one that begins first when there are several."""
    # A character has at most 4 bytes, a token at least one. Text of the first 16 may be missing.
    text = decode(token_ids, 4 * max(map(len, stop)) + 16)
    hits = [(text.find(candidate), candidate) for candidate in stop if candidate in text]
    return min(hits)[1] if hits else ""
