"""What the verifier makes of a proposal's arrays, and which ones it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from seedmp.errors import ProtocolError
from seedmp.ipc.messages import Proposal
from seedmp.token_tree.tree import ProposalKind
from seedmp.workers.target import ProposalLimits, read_proposal

LIMITS = ProposalLimits(vocab_size=8, max_nodes=4, row_len=2)
IID = Proposal(
    5, 3, 1, 0, 1, 1, (4, 6, 4), (-1, -1, 0), ProposalKind.IID,
    np.array([[4, 6], [4, 5]], dtype="<i4"), np.array([[0.5, 0.5], [0.9, 0.1]], dtype="<f4"),
    (0, -1, -1), (0, 1, 0, 2),
)  # fmt: skip


def test_rows_and_draws_go_with_the_tree() -> None:
    tree, rows = read_proposal(IID, LIMITS)
    assert tree.parents == IID.parents and rows is not None and rows.draws == (0, 1, 0, 2)


def test_a_tree_without_chance_has_no_rows() -> None:
    no_rows = np.empty((0, 0), dtype="<f4")
    sent = replace(IID, kind=ProposalKind.DETERMINISTIC, row_ids=no_rows.astype("<i4"), row_probs=no_rows, draws=())
    tree, rows = read_proposal(sent, LIMITS)
    assert rows is None and tree.kind is ProposalKind.DETERMINISTIC


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"drafted_idx": (0, -1)}, "slots .* of 3 nodes"),
        ({"drafted_idx": ()}, "slots .* of 3 nodes"),
        ({"drafted_idx": (1, -1, 1)}, "an entry of its own"),
        ({"draws": (0, 1, 0)}, "draws that do not belong to the 3 nodes"),
        ({"draws": (0, 1, 2, 3)}, "draws that do not belong"),
        ({"draws": (0, 1, 2, -1)}, "draws that do not belong"),
        ({"kind": ProposalKind.WITHOUT_REPLACEMENT}, "draws that do not belong .* without-replacement"),
        ({"parents": (-1, -1, 2)}, "node 2 has parent 2"),
        ({"token_ids": (4, 6, 8)}, "token id 8: must be below 8"),
        ({"token_ids": (4,) * 5, "parents": (-1,) * 5}, "5 draft tokens or draws: must be at most 4"),
        ({"draws": (0, 1, 0, 2, 2)}, "5 draft tokens or draws"),
        ({"row_ids": np.zeros((2, 3), "<i4"), "row_probs": np.ones((2, 3), "<f4")}, "at most 2 in a row"),
        ({"row_ids": np.zeros((2, 2, 2), "<i4")}, "draft rows"),
        ({"row_ids": np.zeros(2, "<i4"), "row_probs": np.ones(2, "<f4")}, "draft rows"),
        ({"row_probs": np.full((2, 2), np.nan, "<f4")}, "no law"),
        ({"row_probs": np.array([[np.inf, -np.inf], [1, 0]], "<f4")}, "no law"),
    ],
    ids=str,
)
def test_what_is_malformed(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        read_proposal(replace(IID, **change), LIMITS)
