"""The target's part of a round: one packed forward, then the accept rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seedmp.decoding.accept import DraftRows, accept, choose_rule
from seedmp.decoding.constraint import Constrainer, regex_of
from seedmp.errors import NumericalError, ProtocolError, RequestError
from seedmp.ipc.messages import Proposal
from seedmp.models.overflow import have_no_result
from seedmp.models.rows import BranchRows, pack_rows
from seedmp.models.runner import Runner
from seedmp.sampling import Noise, TargetLaw
from seedmp.scheduler import actions, events
from seedmp.token_tree.tree import ProposalKind, TokenTree


class TargetRunner:
    """Runs forwards of the target and applies the accept rules.

    Args:
        runner: of the target.
        constrainer: of the target's tokenizer; None refuses constrained requests.
        rule: name of the accept rule that was asked for; None is the default one of each kind of tree.

    Runs in: verifier process, main thread.
    """

    def __init__(self, runner: Runner, constrainer: Constrainer | None = None, rule: str | None = None) -> None:
        self._runner = runner
        self.constrainer = constrainer
        self.rule = rule

    @property
    def vocab_size(self) -> int:
        """Tokens that a text can have."""
        return self._runner.vocab_size

    @property
    def busy_ns(self) -> int:
        """Time spent in forwards so far."""
        return self._runner.busy_ns

    def run(self, segments: Sequence[actions.Segment]) -> tuple[list[events.Outcome], dict[int, np.ndarray]]:
        """One packed forward over all segments.

        Returns:
            outcomes of the segments that were verified, and [texts' tokens] float32 log-probabilities
            of those that were scored, by branch.
        """
        return self.decide(segments, self.forward(segments))

    def forward(self, segments: Sequence[actions.Segment]) -> torch.Tensor:
        """[rows wanted, V] logits of the last tokens and trees of the segments that are verified, in order."""
        branches = [
            BranchRows(
                s.context_slots, s.chain_ids, s.chain_slots, s.tree.token_ids, s.tree.parents, s.tree_slots,
                num_wanted=1 + len(s.tree) if s.verify else 0, rope_len=s.rope_len,
            )
            for s in segments
        ]  # fmt: skip
        return self._runner.run(pack_rows(branches))

    def decide(
        self, segments: Sequence[actions.Segment], logits: torch.Tensor
    ) -> tuple[list[events.Outcome], dict[int, np.ndarray]]:
        """Accept, reject and resample, or score; as ``run`` returns it."""
        outcomes: list[events.Outcome] = []
        scores: dict[int, np.ndarray] = {}
        all_overflowed = have_no_result(logits).cpu().numpy()
        first = 0
        for s in segments:
            if not s.verify:
                continue
            rows = logits[first : first + 1 + len(s.tree)]
            overflowed = all_overflowed[first : first + 1 + len(s.tree)]
            first += rows.shape[0]
            try:
                if s.score:
                    _check_numbers(s, overflowed[[0, *(1 + parent for parent in s.tree.parents)]])
                    scores[s.branch_id] = _log_probs(s.tree, rows)
                    outcomes.append(events.Outcome(s.branch_id, (), 0))
                else:
                    outcomes.append(self._verify(s, rows, overflowed))
            except RequestError as error:
                outcomes.append(
                    events.Outcome(s.branch_id, (), 0, problem=str(error), problem_kind=type(error).__name__)
                )
        return outcomes, scores

    def _verify(self, s: actions.Segment, rows: torch.Tensor, overflowed: np.ndarray) -> events.Outcome:
        """Apply the accept rule; what a constraint forbids is taken from the target's law before.

        Args:
            rows: [1 + N, V] logits of the last token and the tree.
            overflowed: [1 + N] bool, rows that say nothing.
        """
        _check_numbers(s, overflowed[:1])
        if overflowed.any():
            rows = rows.masked_fill(torch.from_numpy(overflowed).to(rows.device)[:, None], 0.0)
        constrained = None
        if s.params.is_constrained:
            if self.constrainer is None:
                raise RequestError("the target has no tokenizer: its text cannot be constrained")
            constrained = self.constrainer.walk(regex_of(s.params), s.generated_ids, s.tree)
            rows = constrained.mask(rows)
        law = TargetLaw(s.params.temperature, s.params.top_p, s.params.top_k, self.vocab_size)
        position = s.position + len(s.chain_ids)
        assert s.params.seed is not None
        verdict = accept(
            choose_rule(self.rule, s.tree.kind, s.params.temperature), s.tree,
            s.payload if isinstance(s.payload, DraftRows) else None,
            rows, law, Noise(s.params.seed, s.stream), position,
        )  # fmt: skip
        accepted, next_token = verdict.accepted, verdict.next_token
        for depth, node_idx in enumerate(accepted):
            if overflowed[1 + node_idx]:  # the text may end with this token; if not, the next round fails
                accepted, next_token = accepted[:depth], s.tree.token_ids[node_idx]
                break
        num_kept = None if constrained is None else constrained.end(accepted, next_token)
        return events.Outcome(s.branch_id, accepted, next_token, num_kept)


def _check_numbers(s: actions.Segment, overflowed: np.ndarray) -> None:
    """
    Raises:
        NumericalError: a row that is needed overflowed.
    """
    if overflowed.any():
        raise NumericalError(
            f"the target's numbers overflowed to infinity or NaN within the first {s.position + len(s.chain_ids)} "
            "tokens of prompt and text, or in what was to be scored: the model gives no next token"
        )


@dataclass(frozen=True)
class ProposalLimits:
    """What a proposal may have at most, whatever was ordered.

    Args:
        vocab_size: token ids must be below it.
        max_nodes: draft tokens, and draws.
        row_len: (id, probability) pairs of a draft row.
    """

    vocab_size: int
    max_nodes: int
    row_len: int


def read_proposal(msg: Proposal, limits: ProposalLimits) -> tuple[TokenTree, DraftRows | None]:
    """The tree that was proposed, and the laws that it was drawn from if the accept rule needs them.

    Raises:
        ProtocolError: they are no tree or no laws, they are larger than allowed, or two nodes claim one slot.
    """
    most = max(len(msg.token_ids), len(msg.draws))
    if most > limits.max_nodes:  # first: what follows costs nodes x row
        raise ProtocolError(f"{most} draft tokens or draws: must be at most {limits.max_nodes}")
    if max(msg.row_ids.shape[-1], msg.row_probs.shape[-1]) > limits.row_len:
        raise ProtocolError(f"draft rows {msg.row_ids.shape} of ids: must have at most {limits.row_len} in a row")
    strange = next((token for token in msg.token_ids if token >= limits.vocab_size), None)
    if strange is not None:
        raise ProtocolError(f"token id {strange}: must be below {limits.vocab_size}")
    tree = TokenTree(msg.token_ids, msg.parents, msg.kind)
    in_slots = [drafted_idx for drafted_idx in msg.drafted_idx if drafted_idx >= 0]
    if len(msg.drafted_idx) != len(tree) or len(set(in_slots)) < len(in_slots):
        raise ProtocolError(f"slots {msg.drafted_idx[:8]} of {len(tree)} nodes: each node needs an entry of its own")
    if msg.kind is ProposalKind.DETERMINISTIC:
        return tree, None
    rows = DraftRows(msg.row_ids, msg.row_probs, msg.draws)
    rows.validate(tree, limits.vocab_size)
    return tree, rows


def _log_probs(tree: TokenTree, rows: torch.Tensor) -> np.ndarray:
    """[N] float32 log-probability (nats, temperature 1) of each node after its parent."""
    parents = torch.tensor(tree.parents, device=rows.device) + 1
    tokens = torch.tensor(tree.token_ids, device=rows.device)
    logs = rows.float().log_softmax(-1)[parents].gather(1, tokens[:, None])[:, 0]
    result: np.ndarray = logs.cpu().numpy()
    return result
