"""Texts that branches may repeat: what prompt lookup looks in besides a branch's own text.

Branches of one reasoning tree share their prompt and much of what follows. Which texts are here depends on
timing, but proposals may: the accept rule makes the output a function of model, prompt and seed alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain, islice

import numpy as np

from seedmp.token_tree.ngram import NgramShape, propose_ngram_tree
from seedmp.token_tree.tree import TokenTree

MAX_ENDED = 32  # texts remembered after their branch ended
MAX_COMPARED = 96  # texts considered for one proposal: the youngest branches, then what ended last
MAX_SEARCHED = 16  # texts looked in for one proposal, those with the longest common prefix
MIN_EQUAL_TOKENS = 16  # equal first tokens that make two texts siblings
_NOTHING = np.empty(0, np.int32)


class SiblingTexts:
    """The texts of live branches, as of their last proposal, and of the last few that ended.

    Siblings are texts whose first MIN_EQUAL_TOKENS tokens are equal, or all of a shorter text.
    """

    def __init__(self) -> None:
        self._live: dict[int, np.ndarray] = {}
        self._ended: deque[np.ndarray] = deque(maxlen=MAX_ENDED)

    def propose(self, branch_id: int, token_ids: Sequence[int], shape: NgramShape) -> TokenTree:
        """A tree for one branch, whose text is ``token_ids`` now."""
        text = self._update(branch_id, token_ids)
        candidates = []
        for other in islice(chain(reversed(self._live.values()), reversed(self._ended)), MAX_COMPARED):
            num_shared = _num_shared(text, other)
            if num_shared >= min(MIN_EQUAL_TOKENS, len(text), len(other)) and num_shared < len(other):
                candidates.append((num_shared, other))
        candidates.sort(key=lambda candidate: -candidate[0])
        # The common prefix is looked in once, as part of the text; but what follows it needs its last words.
        searched = [other[max(0, shared - shape.max_ngram) :] for shared, other in candidates[:MAX_SEARCHED]]
        return propose_ngram_tree(text, searched, shape)

    def end(self, branch_id: int, token_ids: Sequence[int]) -> None:
        """The branch is gone; its text stays for a while."""
        self._ended.append(self._update(branch_id, token_ids))
        self._live.pop(branch_id, None)

    def _update(self, branch_id: int, token_ids: Sequence[int]) -> np.ndarray:
        text = self._live.get(branch_id, _NOTHING)
        if len(text) < len(token_ids):
            text = np.concatenate([text, np.asarray(token_ids[len(text) :], np.int32)])
            self._live[branch_id] = text
        return text


def _num_shared(text: np.ndarray, other: np.ndarray) -> int:
    """Length of the common prefix."""
    num = min(len(text), len(other))
    different = np.flatnonzero(text[:num] != other[:num])
    return int(different[0]) if len(different) else num
