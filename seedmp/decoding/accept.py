"""From a token tree and the target's logits to a verdict: which path is kept, and the token after it.

Dimension letters: N tree nodes, I internal nodes (the root and every node with children),
V vocabulary, m tokens of a draft row.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import torch

from seedmp.decoding.greedy import follow_target, greedy_tokens
from seedmp.decoding.sequoia import SequoiaTrial
from seedmp.decoding.specinfer import SpecInferTrial
from seedmp.decoding.target_sample import sample_token
from seedmp.errors import ConfigError, ProtocolError
from seedmp.sampling import Noise, Purpose, TargetLaw
from seedmp.token_tree.merge import MergedTree
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree

__all__ = ["AcceptRule", "DraftRows", "Verdict", "accept", "check_rule", "rule_for", "sample_token"]


@dataclass(frozen=True)
class Verdict:
    """Outcome of one target pass over a token tree.

    Args:
        accepted: node indices of the accepted path, from the root down; may be empty.
        next_token: the token after that path: recovered after a rejection, bonus if all was accepted.
    """

    accepted: tuple[int, ...]
    next_token: int


class AcceptRule(enum.Enum):
    """How the verifier decides about children; docs/methods.md has the mathematics."""

    GREEDY = "greedy"
    TARGET_SAMPLE = "target-sample"
    SPECINFER = "specinfer"
    SEQUOIA = "sequoia"


@dataclass(frozen=True)
class DraftRows:
    """The laws that the children of each internal node were drawn from.

    Args:
        ids: [I, m] int32, distinct in a row; row r belongs to ``tree.internal_nodes[r]``.
        probs: [I, m] float32, exactly the numbers that were drawn from.
        draws: [M] node of each draw of an IID tree whose equal siblings are one node (``token_tree.merge``);
            empty if every node was drawn once.

    Raises:
        ProtocolError: the shapes differ, or are not two-dimensional.
    """

    ids: np.ndarray
    probs: np.ndarray
    draws: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.probs.shape:
            raise ProtocolError(f"draft rows: ids are {self.ids.shape}, probabilities {self.probs.shape}")

    def validate(self, tree: TokenTree, vocab_size: int) -> None:
        """Check rows on arrival, so that ``accept`` will not raise in the middle of a batch.

        Raises:
            ProtocolError: a row is missing or is no law over the vocabulary, or a child cannot have been
                drawn from its parent's row: it has no probability there, or repeats a sibling in a tree
                drawn without replacement; or the draws are not those of the tree's nodes.
        """
        if len(self.ids) != len(tree.internal_nodes):
            raise ProtocolError(f"{len(self.ids)} draft rows for {len(tree.internal_nodes)} nodes with children")
        if not len(self.ids):
            return
        masses = self.probs.sum(-1)
        is_law = self.probs.size > 0 and (self.probs >= 0).all() and (masses > 0).all() and (masses < np.inf).all()
        if not (is_law and self.ids.min() >= 0 and self.ids.max() < vocab_size):
            raise ProtocolError(f"a draft row is no law over {vocab_size} tokens")
        row_of = {node_idx: row for row, node_idx in enumerate(tree.internal_nodes)}
        rows = [row_of[parent] for parent in tree.parents]
        drawn = (self.ids[rows] == np.array(tree.token_ids)[:, None]) & (self.probs[rows] > 0)
        if not drawn.any(-1).all():
            raise ProtocolError("a draft token has no probability in the draft row that it came with")
        if self.draws and (tree.kind is not ProposalKind.IID or set(self.draws) != set(range(len(tree)))):
            raise ProtocolError(f"draws that do not belong to the {len(tree)} nodes of a {tree.kind.value} tree")
        distinct = tree.kind is ProposalKind.WITHOUT_REPLACEMENT
        if distinct and len(set(zip(tree.parents, tree.token_ids, strict=True))) < len(tree):
            raise ProtocolError("equal siblings in a tree that was drawn without replacement")


_TRIALS = {AcceptRule.SPECINFER: SpecInferTrial, AcceptRule.SEQUOIA: SequoiaTrial}
_NEEDS_KIND = {
    AcceptRule.SPECINFER: ProposalKind.IID,
    AcceptRule.SEQUOIA: ProposalKind.WITHOUT_REPLACEMENT,
}
_RULE_OF_KIND = {
    ProposalKind.DETERMINISTIC: AcceptRule.TARGET_SAMPLE,
    ProposalKind.IID: AcceptRule.SPECINFER,
    ProposalKind.WITHOUT_REPLACEMENT: AcceptRule.SEQUOIA,
}


def rule_for(kind: ProposalKind, target_temperature: float) -> AcceptRule:
    """The lossless rule that accepts most for trees of this kind."""
    return AcceptRule.GREEDY if target_temperature == 0 else _RULE_OF_KIND[kind]


def check_rule(rule: AcceptRule, kind: ProposalKind, target_temperature: float) -> None:
    """Refuse a rule that would not reproduce the target's law.

    Raises:
        ConfigError: says which part does not fit, and what would.
    """
    if rule is AcceptRule.GREEDY and target_temperature != 0:
        raise ConfigError(
            f"rule {rule.value} is only for target temperature 0, not {target_temperature}: "
            f"use {rule_for(kind, target_temperature).value}"
        )
    needed = _NEEDS_KIND.get(rule, kind)
    if kind is not needed:
        raise ConfigError(
            f"rule {rule.value} needs children that are {needed.value} draws, but the tree is {kind.value}: "
            "the output would be biased (total variation 0.15 in the SEED reference code, which does this "
            "with deterministic trees): use "
            f"{rule_for(kind, target_temperature).value}"
        )


def accept(
    rule: AcceptRule,
    tree: TokenTree,
    draft_rows: DraftRows | None,
    logits: torch.Tensor,
    law: TargetLaw,
    noise: Noise,
    position: int,
) -> Verdict:
    """Walk the tree from the root, keeping the first child of each node that the target accepts.

    Args:
        rule: must fit the tree's kind and the law (``check_rule``); an empty tree fits every rule
            that fits the law, and is plain sampling.
        tree: N draft tokens; children of a node in draft order.
        draft_rows: needed by SPECINFER and SEQUOIA, not read by the others.
        logits: [N + 1, V] any float dtype; row 0 after the committed prefix, row 1 + i after node i.
        law: what the target's logits stand for.
        noise: same noise, same verdict. TARGET_TOKEN draws the target's own token, ACCEPT has one
            uniform per draw, RECOVERED_TOKEN draws from a residual.
        position: absolute position of the first token to decide; tree depth d is decided at position + d - 1.

    Returns:
        Accepted node indices and one token after them, distributed exactly as the target's law.

    Raises:
        ConfigError: the rule would be biased for this tree.
        ProtocolError: draft rows are missing or are no laws, or cannot have given the tree's tokens.

    Runs in: verifier process.
    """
    assert logits.shape[0] == len(tree) + 1, f"{logits.shape[0]} rows of logits for {len(tree)} nodes"
    if len(tree):
        check_rule(rule, tree.kind, law.temperature)
    if rule is AcceptRule.GREEDY:
        greedy = greedy_tokens(logits, law.vocab_size)
        return Verdict(*follow_target(tree, lambda node_idx: greedy[node_idx + 1]))
    if rule is AcceptRule.TARGET_SAMPLE:

        def sampled(node_idx: int) -> int:
            depth = 0 if node_idx == NO_PARENT else tree.depths[node_idx]
            probs = _target_probs(law, logits, node_idx)
            return sample_token(probs, noise.gumbel(position + depth, Purpose.TARGET_TOKEN, len(probs)))

        return Verdict(*follow_target(tree, sampled))
    return _accept_by_trials(_TRIALS[rule], tree, draft_rows, logits, law, noise, position)


def _accept_by_trials(
    trial_type: type[SpecInferTrial],
    tree: TokenTree,
    draft_rows: DraftRows | None,
    logits: torch.Tensor,
    law: TargetLaw,
    noise: Noise,
    position: int,
) -> Verdict:
    """Rules C and D: at each node try its children in order; only visited rows cost anything."""
    num_rows = 0 if draft_rows is None else len(draft_rows.ids)
    if num_rows != len(tree.internal_nodes):
        raise ProtocolError(f"{num_rows} draft rows for {len(tree.internal_nodes)} nodes with children")
    trials = tree.children
    if draft_rows is not None and draft_rows.draws:
        trials = MergedTree(tree, draft_rows.draws).trials
    path: list[int] = []
    node_idx = NO_PARENT
    while children := trials[node_idx + 1]:  # with repeats where a token was drawn again
        assert draft_rows is not None
        row = tree.internal_nodes.index(node_idx)
        trial = trial_type(_target_probs(law, logits, node_idx), draft_rows.ids[row], draft_rows.probs[row])
        uniforms = noise.uniform(position, Purpose.ACCEPT, len(children))
        for child, uniform in zip(children, uniforms.tolist(), strict=True):
            token = tree.token_ids[child]
            if uniform < trial.accept_prob(token):
                break
            trial.reject(token)
        else:
            gumbel = noise.gumbel(position, Purpose.RECOVERED_TOKEN, len(trial.residual))
            return Verdict(tuple(path), sample_token(trial.residual, gumbel))
        path.append(child)
        node_idx = child
        position += 1
    probs = _target_probs(law, logits, node_idx)
    return Verdict(tuple(path), sample_token(probs, noise.gumbel(position, Purpose.TARGET_TOKEN, len(probs))))


def _target_probs(law: TargetLaw, logits: torch.Tensor, node_idx: int) -> np.ndarray:
    """[vocab_size] float32, the target's law after one node."""
    probs: np.ndarray = law.probs(logits[node_idx + 1 : node_idx + 2])[0].cpu().numpy()
    return probs
