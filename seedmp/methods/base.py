"""What a method is: one way to propose tokens, as the scheduler, the drafts and the verifier need to know it.

A method is a frozen dataclass; its fields are its settings. It decides the shape of its token trees, how children are
drawn, and what drafts them. It runs no model: everything here is pure.

Adding a method: a class in a file of its own, and its name in ``registry.METHODS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, ClassVar, Protocol

from seedmp.checks import check_text
from seedmp.sampling import SamplingParams
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.opt_tree import AdaptiveShape
from seedmp.token_tree.tree import ProposalKind, TokenTree

TreeShape = Growmap | AdaptiveShape  # what a draft worker grows

NO_DRAFT, MODEL, HEAD = "none", "model", "eagle-head"  # names of draft kinds (seedmp.drafts)


@dataclass(frozen=True)
class Drawing:
    """How the children of a node are chosen, for one request.

    Args:
        kind: what the children are; it decides which accept rules are lossless.
        temperature: of the draft; 0 takes its likeliest tokens.
        shared_noise: children are drawn with the noise that the target draws its own token with.
    """

    kind: ProposalKind
    temperature: float
    shared_noise: bool = False


class EngineSettings(Protocol):
    """What a method may look at when it checks itself against an engine's settings."""

    @property
    def draft_top_m(self) -> int: ...
    @property
    def draft_shape(self) -> str | None: ...


class Lookup(Protocol):
    """Proposes without a draft process, inside the scheduler; one object serves all branches of a scheduler."""

    def propose(self, branch_id: int, token_ids: Sequence[int], max_depth: int) -> TokenTree:
        """A tree for one branch whose text is ``token_ids``; no path is longer than ``max_depth``."""
        ...

    def end(self, branch_id: int, token_ids: Sequence[int]) -> None:
        """The branch is gone; its text was ``token_ids``."""
        ...


@dataclass(frozen=True)
class Method(ABC):
    """One way to propose.

    Args:
        rule: name of an accept rule; None takes the one that accepts most. Where the rule would be biased (another
            kind of tree, temperature 0), the default rule of the kind decides.

    Attributes:
        name: as in settings and messages.
        draft_kind: name of the draft kind (``seedmp.drafts.registry``); NO_DRAFT: there are no draft processes.
        needs_features: drafts read the target's hidden states, which the verifier then keeps by slot.
        samples: children are drawn by chance, from a law that travels with the proposal.
    """

    name: ClassVar[str]
    draft_kind: ClassVar[str] = MODEL
    needs_features: ClassVar[bool] = False
    samples: ClassVar[bool] = False

    rule: str | None = field(default=None, kw_only=True)

    @property
    def has_drafts(self) -> bool:
        """Whether there are draft processes."""
        return self.draft_kind != NO_DRAFT

    @property
    def shape(self) -> TreeShape | None:
        """The largest tree that a draft grows; None without drafts."""
        return None

    @property
    def static_tree(self) -> Growmap | None:
        """``shape``, if it is one growmap for all proposals."""
        return self.shape if isinstance(self.shape, Growmap) else None

    @property
    def max_tree_nodes(self) -> int:
        """Draft tokens of the largest proposal: target slots that a round takes besides the text's."""
        if self.shape is None:
            return 0
        return self.shape.num_nodes if isinstance(self.shape, Growmap) else self.shape.nodes

    @property
    def max_drafted(self) -> int:
        """Draft tokens that are run forward at most: draft slots that a round takes besides the text's."""
        return 0 if self.shape is None else num_drafted(self.shape)

    @abstractmethod
    def drawing(self, params: SamplingParams) -> Drawing:
        """How children are chosen for a request."""

    def shape_within(self, max_depth: int) -> TreeShape | None:
        """``shape`` without the levels below ``max_depth``, which are of no use near the end of a text."""
        return None if self.shape is None else cut_shape(self.shape, max_depth)

    def make_lookup(self) -> Lookup | None:
        """What proposes inside the scheduler, for methods without drafts; None: nothing."""
        return None

    def check(self, settings: EngineSettings) -> None:
        """Compare with the other settings of an engine.

        Raises:
            ConfigError: they do not go together.
        """
        if self.rule is not None:
            from seedmp.decoding.accept import check_rule, load_rule  # imports torch; only for who names a rule

            check_rule(load_rule(check_text("rule", self.rule)), self.drawing(SamplingParams()).kind, 1.0)

    def __str__(self) -> str:
        """The name and the settings, for people."""
        words = []
        for name, value in self.settings().items():
            words.append(f"{name} {','.join(map(str, value)) if isinstance(value, tuple) else value}")
        return ", ".join([self.name, *words])

    def settings(self) -> dict[str, Any]:
        """The fields that are set, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def num_drafted(shape: TreeShape) -> int:
    """Nodes of a tree that a draft runs forward at most."""
    return shape.num_drafted if isinstance(shape, Growmap) else shape.max_drafted


@lru_cache(maxsize=256)
def _cut_growmap(growmap: Growmap, max_depth: int) -> Growmap:
    return growmap.cut(max_depth)


def cut_shape(shape: TreeShape, max_depth: int) -> TreeShape:
    """A shape without the levels below ``max_depth`` (>= 1)."""
    if isinstance(shape, AdaptiveShape):
        return shape if shape.max_depth <= max_depth else replace(shape, max_depth=max_depth)
    return shape if shape.depth <= max_depth else _cut_growmap(shape, max_depth)


def sampled(kind: ProposalKind, params: SamplingParams) -> Drawing:
    """Children drawn by chance; at draft temperature 0 they are the draft's likeliest tokens instead."""
    temperature = params.effective_draft_temperature
    return Drawing(kind if temperature > 0 else ProposalKind.DETERMINISTIC, temperature)


def deterministic(params: SamplingParams) -> Drawing:
    """Children chosen without chance."""
    return Drawing(ProposalKind.DETERMINISTIC, params.effective_draft_temperature)
