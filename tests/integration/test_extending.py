"""Parts from outside the package, as docs/extending.md shows them: one file each, named module:attribute."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seedmp import Engine, SamplingParams
from seedmp.errors import ConfigError

PAGE = Path(__file__).resolve().parents[2] / "docs/extending.md"
FILES = dict(re.findall(r"^```python (\w+\.py)\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL))
PROMPTS = [
    "Question: Tom has 3 pears and buys 4 more. How many pears has he now?\nAnswer:",
    "Input: 4 7 8 10\nStep:",
    "aaaa aaaa aaaa aaaa aaaa",
]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.8, max_tokens=24, ignore_eos=True, seed=11)


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files of the page, on this process's path alone."""
    folder = tmp_path_factory.mktemp("toys")
    for name, text in FILES.items():
        (folder / name).write_text(text, "utf-8")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def generate(**settings: Any) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], Engine]:
    """Greedy texts and seeded texts of the bundled target with some part."""
    with Engine(target_threads=1, dtype="float32", kv_slots=2048, **settings) as engine:
        greedy = engine.generate(PROMPTS, GREEDY, timeout=90)
        seeded = engine.generate(PROMPTS, SEEDED, timeout=90)
    return [out.token_ids for out in greedy], [out.token_ids for out in seeded], engine


@pytest.fixture(scope="module")
def plain(toys: Path) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The same by the target alone."""
    greedy, seeded, _ = generate(method="ar")
    return greedy, seeded


def test_the_page_has_a_file_for_each_part() -> None:
    assert set(FILES) == {"toy_policy.py", "toy_rule.py", "toy_draft.py", "toy_runner.py"}


def test_a_policy(plain: Any) -> None:
    greedy, _, engine = generate(policy="toy_policy:LastCome", num_drafts=2, k_config=(2, 1))
    assert greedy == plain[0]
    assert engine.config.policy == "toy_policy:LastCome"


def test_an_accept_rule(plain: Any) -> None:
    """The rule draws the target's own tokens, so a seed gives the text of plain sampling, too."""
    with Engine(
        target_threads=1, dtype="float32", kv_slots=2048, rule="toy_rule:OneStep", num_drafts=1, k_config=(2, 1)
    ) as engine:
        greedy = engine.generate(PROMPTS, GREEDY, timeout=90)
        seeded = engine.generate(PROMPTS, SEEDED, timeout=90)
        stats = engine.stats()
    assert [out.token_ids for out in greedy] == plain[0]
    assert [out.token_ids for out in seeded] == plain[1]
    assert 0 < stats["accepted"] <= stats["rounds"]  # one token a round at most


def test_a_method_with_a_draft_kind_of_its_own(plain: Any) -> None:
    from toy_draft import RepeatLast  # type: ignore[import-not-found]

    for method in ("toy_draft:RepeatLast", RepeatLast(length=2)):
        with Engine(target_threads=1, dtype="float32", kv_slots=2048, method=method, num_drafts=2) as engine:
            greedy = engine.generate(PROMPTS, GREEDY, timeout=90)
            seeded = engine.generate(PROMPTS, SEEDED, timeout=90)
            stats = engine.stats()
        assert [out.token_ids for out in greedy] == plain[0]
        assert [out.token_ids for out in seeded] == plain[1]
        assert stats["drafted"] > 0 and stats["draft_forward_ns"] == 0


@pytest.mark.parametrize("method", ["mcsd", "eagle"])
def test_a_runner(method: str, plain: Any) -> None:
    """Target and draft run in buckets; with a head the target alone, whose hidden states are stored without ghosts."""
    greedy, _, engine = generate(runner="toy_runner:InBuckets", method=method, num_drafts=2)
    assert greedy == plain[0]
    assert engine.config.runner == "toy_runner:InBuckets"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"policy": "toy_policy:Nobody"}, "policy='toy_policy:Nobody'.*no attribute 'Nobody'"),
        ({"policy": "lifo"}, "policy='lifo': must be one of fcfs, fcfs-batch, priority, fair, or module:attribute"),
        ({"rule": "no_such_module:Rule"}, "rule='no_such_module:Rule'.*No module named"),
        ({"rule": "sequoia", "method": "opt-tree"}, "rule sequoia needs children that are without-replacement draws"),
        ({"method": "toy_policy:LastCome"}, "method='toy_policy:LastCome'.*must be a class that extends .*base.Method"),
        ({"rule": "toy_policy:LastCome"}, "rule='toy_policy:LastCome'.*must be a class that extends .*AcceptRule"),
        ({"runner": "fast"}, "runner='fast': must be one of auto, eager, fused, or module:attribute"),
        ({"method": "__main__:Mine"}, "a file of its own"),
    ],
)
def test_what_is_refused_before_any_process_starts(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Engine(**settings)
