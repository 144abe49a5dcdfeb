"""The bytes of one instance of every message: changing them needs a new protocol version.

``python -m tests.golden.test_messages`` writes the file anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seedmp.draft_order import DraftOrder
from seedmp.ipc import codec
from seedmp.ipc import messages as m
from seedmp.metrics import RequestCounters
from seedmp.sampling import SamplingParams
from seedmp.token_tree.opt_tree import AdaptiveShape
from seedmp.token_tree.tree import ProposalKind
from tests.helpers.same import same

GOLDEN = Path(__file__).with_name("messages.json")
SWOR = ProposalKind.WITHOUT_REPLACEMENT


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype="<i4")


PARAMS = SamplingParams(
    temperature=0.5, draft_temperature=None, top_p=0.9, top_k=40, max_tokens=64, stop=("\n\n", "é"),
    stop_token_ids=(7,), ignore_eos=True, seed=2**63 - 1, n=2,
)  # fmt: skip
CUDA = m.CudaTensor("w", "bfloat16", (2, 3), (3, 1), 4, 1, b"\x00h", 4096, 512, b"r", 8, b"e", True)
INSTANCES: list[Any] = [
    m.DraftHello(2, 1, 1, "4x2x64x2x16 float32"),
    m.ContextReady(5, 0, 1),
    m.Proposal(
        5, 3, 1, 10**12, 10**12 + 5, 4, (11, 12, 300), (-1, -1, 0), SWOR,
        ints(11, 12, 300, 9).reshape(2, 2), np.array([[0.75, 0.25], [1.0, 0.5]], dtype="<f4"),
        (0, -1, -1), (0, 1, 0, 2),
    ),
    CUDA,
    m.DraftWelcome((CUDA,)),
    m.DraftTask(
        DraftOrder(
            2, 5, 3, 1, 2**40, 2, (2, 1, 0, 0), SWOR, 0.2, True, ints(0, 1, 70000), (11, 12), ints(3, 4),
            AdaptiveShape(20, 20, 8, 0.5), True, ints(-1, 70001),
        )
    ),
    m.Shutdown(),
    m.EngineHello(1),
    m.Submit(9, 0, (1, 2, 300), (4,), PARAMS, 3, 4, -2, "é"),
    m.Score(9, (1, 2), (3, 4, 5), (2, 1), 3),
    m.CloseBranches((3, 4), True),
    m.Cancel(9),
    m.StatsQuery(4),
    m.EngineWelcome(1, 1024, 8192),
    m.Committed(9, (4, 70000)),
    m.Finished(9, "stop", "\n\n", 10**12 + 1, RequestCounters(4, 12, 6, 10**9, 10**12, 20, 21)),
    m.Scored(9, np.array([-0.5, -2.0], dtype="<f4")),
    m.Failed(9, "RejectedError", "the prompt is empty"),
    m.StatsReply(4, ("rounds",), (3.0,)),
    m.WorkerReady("draft-0.1", 2, 4321),
    m.WorkerFailed("draft-0.1", 2, "OSError", "no", "Traceback ..."),
    m.WorkerLost("draft-0.1", 2, -9),
    m.ReplaceWorker("draft-0.1", 2, "3 proposals were refused"),
    m.GroupStarted(0, 1, "ipc:///tmp/x/verifier-0-1"),
    m.EngineDown("WorkerStartError", "why", "verifier-0", "last lines"),
]  # fmt: skip
TAGS = {cls: tag for tag, cls in codec.registered().items()}


def frames_of(msg: Any) -> list[str]:
    return [bytes(frame).hex() for frame in codec.encode(msg)]


def read_golden() -> dict[str, list[str]]:
    golden: dict[str, list[str]] = json.loads(GOLDEN.read_text())["messages"]
    return golden


def test_every_message_has_golden_bytes_of_this_version() -> None:
    assert {type(msg) for msg in INSTANCES} == set(TAGS)
    assert set(read_golden()) == set(codec.registered())
    assert json.loads(GOLDEN.read_text())["protocol_version"] == m.PROTOCOL_VERSION


@pytest.mark.parametrize("msg", INSTANCES, ids=lambda msg: TAGS[type(msg)])
def test_bytes_are_what_they_were(msg: Any) -> None:
    golden = read_golden()[TAGS[type(msg)]]
    assert frames_of(msg) == golden
    assert same(codec.decode([bytes.fromhex(frame) for frame in golden]), msg)


def test_the_header_is_a_plain_array() -> None:
    """Readable by eye: tag, then fields in order."""
    (frame,) = codec.encode(m.Committed(9, (4, 70000)))
    assert bytes(frame) == b"\x93\xa9committed\x09\x92\x04\xce\x00\x01\x11\x70"


def main() -> None:
    """Write the golden bytes of the present code."""
    golden = {TAGS[type(msg)]: frames_of(msg) for msg in INSTANCES}
    GOLDEN.write_text(json.dumps({"protocol_version": m.PROTOCOL_VERSION, "messages": golden}, indent=1) + "\n")


if __name__ == "__main__":
    main()
