"""From a token tree and the target's logits to a verdict: which path is kept, and the token after it.

Adding a rule: a class below ``AcceptRule`` in a file of its own, and its name in ``rules.RULES``. docs/methods.md has
the mathematics of the built-in rules.

Dimension letters: N tree nodes, I internal nodes (the root and every node with children),
V vocabulary, m tokens of a draft row, M draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch

from seedmp.checks import shown
from seedmp.decoding.rules import RULES, rule_for
from seedmp.errors import ConfigError, ProtocolError
from seedmp.sampling import Noise, TargetLaw
from seedmp.token_tree.tree import ProposalKind, TokenTree


@dataclass(frozen=True)
class Verdict:
    """Outcome of one target pass over a token tree.

    Args:
        accepted: node indices of the accepted path, from the root down; may be empty.
        next_token: the token after that path: recovered after a rejection, bonus if all was accepted.
    """

    accepted: tuple[int, ...]
    next_token: int


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


class AcceptRule(ABC):
    """How the verifier judges a token tree. A rule has no state.

    Attributes:
        name: as in settings and messages.
        kinds: the trees for which the output follows the target's law exactly.
        only_greedy: the rule is exact at target temperature 0 alone.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[ProposalKind]] = frozenset(ProposalKind)
    only_greedy: ClassVar[bool] = False

    def fits(self, kind: ProposalKind, target_temperature: float) -> bool:
        """Whether the rule is lossless for such trees."""
        return kind in self.kinds and (target_temperature == 0 or not self.only_greedy)

    @abstractmethod
    def judge(
        self,
        tree: TokenTree,
        draft_rows: DraftRows | None,
        logits: torch.Tensor,
        law: TargetLaw,
        noise: Noise,
        position: int,
    ) -> Verdict:
        """Decide about a tree that the rule fits; an empty tree is plain sampling. Arguments as in ``accept``."""


@cache
def load_rule(name: str) -> AcceptRule:
    """The rule of this name.

    Raises:
        ConfigError: there is none.
    """
    rule = RULES.load(name)
    if not (isinstance(rule, type) and issubclass(rule, AcceptRule)):
        raise ConfigError(f"rule={name!r}: {shown(rule)} is not a subclass of seedmp.decoding.accept.AcceptRule")
    return rule()


def choose_rule(asked: str | None, kind: ProposalKind, target_temperature: float) -> AcceptRule:
    """The rule that was asked for where it is lossless; elsewhere the default of the kind.

    Args:
        asked: name of a rule, or None.
        kind: of the tree.
        target_temperature: of the request.
    """
    if asked is not None and load_rule(asked).fits(kind, target_temperature):
        return load_rule(asked)
    return load_rule(rule_for(kind, target_temperature))


def check_rule(rule: AcceptRule, kind: ProposalKind, target_temperature: float) -> None:
    """Refuse a rule that would not reproduce the target's law.

    Raises:
        ConfigError: says which part does not fit, and what would.
    """
    better = rule_for(kind, target_temperature)
    if rule.only_greedy and target_temperature != 0:
        raise ConfigError(f"rule {rule.name} is only for target temperature 0, not {target_temperature}: use {better}")
    if kind not in rule.kinds:
        needed = " or ".join(sorted(one.value for one in rule.kinds))
        raise ConfigError(
            f"rule {rule.name} needs children that are {needed} draws, but the tree is {kind.value}: "
            "the output would be biased (total variation 0.15 in the SEED reference code, which does this "
            f"with deterministic trees): use {better}"
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
        draft_rows: the laws that the tree was drawn from; rules for deterministic trees do not read them.
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
    check_rule(rule, tree.kind if len(tree) else next(iter(rule.kinds)), law.temperature)
    return rule.judge(tree, draft_rows, logits, law, noise, position)


def target_probs(law: TargetLaw, logits: torch.Tensor, node_idx: int) -> np.ndarray:
    """[vocab_size] float32, the target's law after one node; NO_PARENT: after the committed prefix."""
    probs: np.ndarray = law.probs(logits[node_idx + 1 : node_idx + 2])[0].cpu().numpy()
    return probs
