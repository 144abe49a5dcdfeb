"""Rule A, greedy: a child is accepted iff it is the target's likeliest token.

Dimension letters: N tree nodes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from seedmp.decoding.accept import GREEDY, AcceptRule, TargetPass, Verdict
from seedmp.token_tree.tree import NO_PARENT, TokenTree


def greedy_tokens(logits: torch.Tensor, vocab_size: int | None) -> list[int]:
    """[N + 1] the target's likeliest token after the committed prefix and after each node.

    Args:
        logits: [N + 1, V]; columns from vocab_size on are padding.
        vocab_size: number of real tokens, or None.
    """
    tokens: list[int] = logits[:, :vocab_size].argmax(-1).tolist()
    return tokens


def follow_target(tree: TokenTree, token_after: Callable[[int], int]) -> tuple[tuple[int, ...], int]:
    """Walk from the root to the child that carries the target's own token, as long as there is one.

    Rules A and B are this walk; they differ in how the target chooses its token. It is
    lossless for any tree, because the text is the target's own tokens whatever was drafted.

    Args:
        tree: N draft tokens; of equal siblings the first is followed.
        token_after: the target's token after a node_idx (NO_PARENT: after the committed prefix).

    Returns:
        Accepted node indices from the root down, and the first token that no node carries.
    """
    path: list[int] = []
    node_idx = NO_PARENT
    while True:
        token = token_after(node_idx)
        child = next((c for c in tree.children[node_idx + 1] if tree.token_ids[c] == token), None)
        if child is None:
            return tuple(path), token
        path.append(child)
        node_idx = child


class GreedyRule(AcceptRule):
    """Rule A, for any tree at target temperature 0."""

    name = GREEDY
    only_greedy = True

    def judge(self, seen: TargetPass) -> Verdict:
        greedy = greedy_tokens(seen.logits, seen.law.vocab_size)
        return Verdict(*follow_target(seen.tree, lambda node_idx: greedy[node_idx + 1]))
