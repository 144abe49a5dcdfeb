"""What the verifier makes of a proposal's arrays, and which ones it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from seedmp.errors import ProtocolError
from seedmp.ipc.messages import Proposal
from seedmp.token_tree.tree import ProposalKind
from seedmp.workers.target import read_proposal

IID = Proposal(
    5, 3, 1, 0, 1, 1, (4, 6, 4), (-1, -1, 0), ProposalKind.IID,
    np.array([[4, 6], [4, 5]], dtype="<i4"), np.array([[0.5, 0.5], [0.9, 0.1]], dtype="<f4"),
    (0, -1, -1), (0, 1, 0, 2),
)  # fmt: skip


def test_rows_and_draws_go_with_the_tree() -> None:
    tree, rows = read_proposal(IID, 8)
    assert tree.parents == IID.parents and rows is not None and rows.draws == (0, 1, 0, 2)


def test_a_tree_without_chance_has_no_rows() -> None:
    no_rows = np.empty((0, 0), dtype="<f4")
    sent = replace(IID, kind=ProposalKind.DETERMINISTIC, row_ids=no_rows.astype("<i4"), row_probs=no_rows, draws=())
    tree, rows = read_proposal(sent, 8)
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
    ],
    ids=str,
)
def test_what_is_malformed(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        read_proposal(replace(IID, **change), 8)
