"""Chat templates, and a target inflated to a larger shape, through a real engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from seedmp import Engine, SamplingParams
from seedmp.errors import RejectedError
from seedmp.models import pair

TEMPLATE = "{% for m in messages %}{{ 'Question: ' if m.role == 'user' else '' }}{{ m.content }}\n{% endfor %}Answer:"
PARAMS = SamplingParams(temperature=0.0, max_tokens=12, seed=0)
QUESTION = "A pen costs 2 dollars. How much do 5 pens cost?"


def test_chat_uses_the_models_template_and_inflation_keeps_the_text(tmp_path: Path) -> None:
    target = tmp_path / "target"
    shutil.copytree(pair.TARGET, target)
    config = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    with Engine(target, pair.DRAFT, num_drafts=1, target_shape="13m") as engine:
        answer = engine.chat([{"role": "user", "content": QUESTION}], PARAMS)
        plain = engine.generate(engine.encode(f"Question: {QUESTION}\nAnswer:"), PARAMS)[0]
        assert answer.token_ids == plain.token_ids
        inflated_text = plain.text
    with Engine(num_drafts=1) as engine:
        with pytest.raises(RejectedError, match="chat template"):
            engine.chat([{"role": "user", "content": QUESTION}], PARAMS)
        assert engine.generate(engine.encode(f"Question: {QUESTION}\nAnswer:"), PARAMS)[0].text == inflated_text
