"""What the benchmarks ask, and the settings that they ask for: no process, no model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seedmp.benchmarks import paper
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.questions import mtbench, peers, scale, schedules, sequoia, table1
from seedmp.benchmarks.subjects import engine_subject
from seedmp.benchmarks.workloads import conversations, passages, question_ids, questions, roots
from seedmp.config import EngineConfig
from seedmp.errors import ConfigError
from seedmp.measuring.engines import EngineSubject
from seedmp.methods.registry import METHODS


class WordEncoder:
    """A word is a token."""

    def prompt(self, text: str, question: str | None = None) -> tuple[int, ...]:
        return tuple(hash(word) for word in text.split())

    def plain(self, text: str) -> tuple[int, ...]:
        return tuple(range(len(text.split())))


def config_of(subject: EngineSubject) -> EngineConfig:
    settings = dict(subject.settings)
    return EngineConfig(**{**settings, "target": "t", "draft": "d", "dtype": "float32"})


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("task", paper.TASKS)
@pytest.mark.parametrize("texts", [["", "nonsense", "?"], [" a plan", " b plan", " c plan"]])
def test_three_evaluations_whatever_the_thoughts(task: str, chat: bool, texts: list[str]) -> None:
    for root in roots(Options(), task, 2, 8, chat=chat):
        assert root.thought().max_tokens == 8
        asks = root.evaluations(texts)
        assert len(asks) == 3 and all(ask.max_tokens <= 12 for ask in asks)


@pytest.mark.parametrize("num_nodes", [10, 64])
@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_has_settings_for_sequoias_protocol(method: str, num_nodes: int) -> None:
    settings = sequoia.settings_of(method, num_nodes)
    if settings is not None:
        config = EngineConfig(target="t", draft="d", method=method, **settings)  # type: ignore[arg-type]
        assert config.method.max_tree_nodes <= 1.4 * num_nodes


@pytest.mark.parametrize("rows", [schedules.ROWS, table1.METHODS, mtbench.METHODS, peers.OURS, scale.ROWS])
def test_settings_are_valid_and_equal_ones_are_one_engine(rows: dict[str, dict[str, Any]]) -> None:
    for settings in rows.values():
        given = {"k_config": (1, 1, 1), "num_drafts": 3, **settings}
        subject, same = engine_subject(Options(), **given), engine_subject(Options(), **dict(reversed(given.items())))
        assert subject == same and hash(subject) == hash(same)
        config = config_of(subject)
        assert config.num_drafts == (1 if settings.get("schedule") == "serial" else 3)


def test_questions_that_come_again_are_numbered() -> None:
    texts = questions(Options(), 20)
    prompts = question_ids(WordEncoder(), texts)  # type: ignore[arg-type]
    assert len(texts) == 20 and len(set(texts)) < 20 == len(set(prompts))


def test_prompts_of_passages_have_the_same_length() -> None:
    own = passages(Options())
    (prompts,) = sequoia.cut_prompts(own, WordEncoder(), 128, 2).values()  # type: ignore[arg-type]
    assert [len(prompt) for prompt in prompts] == [128, 128]
    with pytest.raises(ConfigError, match="no passage has 999 tokens"):
        sequoia.cut_prompts(own, WordEncoder(), 999, 2)  # type: ignore[arg-type]


def test_published_formats_are_read(tmp_path: Path) -> None:
    (tmp_path / "c4").mkdir()
    (tmp_path / "cnn_dm").mkdir()
    (tmp_path / "c4/c4_small.jsonl").write_text(json.dumps({"id": 0, "text": "some text"}) + "\n")
    article = {"question_id": 1, "turns": ["Summarize: the article"]}
    (tmp_path / "cnn_dm/question.jsonl").write_text(json.dumps(article) + "\n")
    assert passages(Options(data=tmp_path)) == {"c4": ["some text"], "cnn_dm": ["the article"]}
    questions_file = tmp_path / "question.jsonl"
    questions_file.write_text(json.dumps({"turns": ["first", "second"]}) + "\n")
    assert conversations(Options(data=questions_file), 1) == [("first", "second")]
    with pytest.raises(ConfigError, match="1 entries: must be two"):
        conversations(Options(data=tmp_path / "cnn_dm/question.jsonl"), 1)
    assert len(conversations(Options(), 2)) == 2


def test_what_suits_the_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    assert Options(out=tmp_path, shape="none").resolved().shape is None
    assert Options(out=tmp_path, smoke=True).resolved().shape == "13m"
    gpu = SimpleNamespace(is_available=lambda: True, mem_get_info=lambda: (100 << 30, 140 << 30))
    monkeypatch.setattr(torch, "cuda", gpu)
    large = Options(out=tmp_path).resolved()
    assert (large.shape, large.draft_shape, large.dtype) == ("7b", "68m", "bfloat16")
    assert "inflated to 7b" in large.describe_model()
    gpu.mem_get_info = lambda: (8 << 30, 16 << 30)
    small = Options(out=tmp_path).resolved()
    assert (small.shape, small.draft_shape) == ("134m", None)
    own = Options(out=tmp_path, target=small.target_spec.path, draft=small.draft_spec.path).resolved()
    assert own.shape is None and "inflated" not in own.describe_model()
