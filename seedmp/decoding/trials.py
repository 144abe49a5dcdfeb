"""Rules C and D share this walk: at each node its children are tried one by one, in draft order.

Dimension letters: V vocabulary, m tokens with draft probability.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import numpy as np

from seedmp.decoding.accept import AcceptRule, TargetPass, Verdict, sample_token
from seedmp.errors import ProtocolError
from seedmp.sampling import Purpose
from seedmp.token_tree.merge import MergedTree
from seedmp.token_tree.tree import NO_PARENT


class Trial(Protocol):
    """The children of one node before the target: how likely each is accepted, and what is left.

    Attributes:
        residual: [V] float64, the law of the next token given that all children so far were rejected.
    """

    residual: np.ndarray

    def accept_prob(self, token: int) -> float:
        """Probability that this child is accepted."""
        ...

    def reject(self, token: int) -> None:
        """Take note that this child was rejected."""
        ...


class TrialRule(AcceptRule):
    """A rule that is a trial at each node of the path; only visited rows cost anything."""

    @abstractmethod
    def trial(self, target_probs: np.ndarray, row_ids: np.ndarray, row_probs: np.ndarray) -> Trial:
        """The trial of one node.

        Args:
            target_probs: [V] the target's law.
            row_ids: [m] tokens of the draft's law.
            row_probs: [m] their probabilities.
        """

    def judge(self, seen: TargetPass) -> Verdict:
        tree, draft_rows, position = seen.tree, seen.draft_rows, seen.position
        num_rows = 0 if draft_rows is None else len(draft_rows.ids)
        if num_rows != len(tree.internal_nodes):
            raise ProtocolError(f"{num_rows} draft rows for {len(tree.internal_nodes)} nodes with children")
        children_of = tree.children
        if draft_rows is not None and draft_rows.draws:
            children_of = MergedTree(tree, draft_rows.draws).trials
        path: list[int] = []
        node_idx = NO_PARENT
        while children := children_of[node_idx + 1]:  # with repeats where a token was drawn again
            assert draft_rows is not None
            row = tree.internal_nodes.index(node_idx)
            trial = self.trial(seen.probs(node_idx), draft_rows.ids[row], draft_rows.probs[row])
            uniforms = seen.noise.uniform(position, Purpose.ACCEPT, len(children))
            for child, uniform in zip(children, uniforms.tolist(), strict=True):
                token = tree.token_ids[child]
                if uniform < trial.accept_prob(token):
                    break
                trial.reject(token)
            else:
                gumbel = seen.noise.gumbel(position, Purpose.RECOVERED_TOKEN, len(trial.residual))
                return Verdict(tuple(path), sample_token(trial.residual, gumbel))
            path.append(child)
            node_idx = child
            position += 1
        probs = seen.probs(node_idx)
        return Verdict(tuple(path), sample_token(probs, seen.noise.gumbel(position, Purpose.TARGET_TOKEN, len(probs))))
