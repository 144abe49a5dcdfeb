"""Training of EAGLE heads: rows see what they will see when a tree grows, the loss falls, the result can be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from seedmp.errors import ConfigError
from seedmp.models.eagle import EagleHead, new_head, read_head
from seedmp.models.load import ModelSpec, load_model
from seedmp.training.eagle import HeadPlan, HeadTrainer, main, read_documents, train_head, unroll
from tests.unit.test_eagle_head import load

VOCAB = 40


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    torch.manual_seed(4)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("target")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return ModelSpec(str(folder))


def own_steps(head: EagleHead, ids: torch.Tensor, features: torch.Tensor, row: int, num_own: int) -> torch.Tensor:
    """[D] logits of a row after ``num_own`` rows of own features, by growing the text row by row without a cache."""
    states = head.fuse(features[: row + 1 - num_own])
    while True:
        num = len(states)
        mask = torch.full((num, num), -1e9).triu(1)[None, None]
        made = head(ids[None, 1 : num + 1], states[None], torch.arange(num)[None], mask, None)[0]
        if num == row + 1:
            return head.logits(made[-1])
        states = torch.cat([states, made[-1:]])


def test_unrolled_rows_are_those_of_a_growing_tree(target: ModelSpec) -> None:
    torch.manual_seed(0)
    head = new_head(load_model(target, torch.float32))
    ids, features = torch.randint(0, VOCAB, (1, 9)), torch.randn(1, 9, head.spec.feature_size)
    with torch.inference_mode():
        for num_own, logits in enumerate(unroll(head, ids, features, 4)):
            for row in range(num_own, 8):
                expected = own_steps(head, ids[0], features[0], row, num_own)
                torch.testing.assert_close(logits[0, row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("draft_ids", [None, range(3, 33)])
def test_the_loss_falls(draft_ids: range | None, target: ModelSpec, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_model(target, torch.float32)
    trainer = HeadTrainer(model, new_head(model, draft_ids), depth=3)
    before = {name: weight.clone() for name, weight in trainer.head.named_parameters()}
    ids, lengths = torch.randint(3, VOCAB, (4, 16)), torch.tensor([16, 12, 16, 9])
    losses = [trainer.step(ids, lengths, 1.0) for _ in range(4)]
    assert losses[3] < losses[2] < losses[1] < losses[0]
    changed = {name for name, weight in trainer.head.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == before.keys() - {"embed_tokens.weight", "lm_head.weight"}


def test_padding_and_what_follows_the_text_count_for_nothing(target: ModelSpec) -> None:
    model = load_model(target, torch.float32)
    losses = []
    for filler in (0, 7):
        torch.manual_seed(0)
        ids = torch.full((1, 20), filler)
        ids[0, :10] = torch.arange(5, 15)
        losses.append(HeadTrainer(model, new_head(model), depth=3).step(ids, torch.tensor([10]), 1.0))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_run_leaves_a_head_that_fits(target: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "tokens.npy", rng.integers(3, VOCAB, (6, 24)))
    out = tmp_path / "head"
    arguments = ["--target", target.path, "--data", str(tmp_path), "--out", str(out), "--minutes", "0.01"]
    monkeypatch.setattr("sys.argv", ["eagle", *arguments, "--draft-vocab", "20", "--window", "16", "--windows", "2"])
    main()
    spec = read_head(str(out), target)
    assert (spec.draft_vocab_size, spec.feature_layers) == (20, (0, 1, 3))
    assert spec.from_target == {"embed_tokens.weight"}
    assert len(set(load(out, target).target_ids().tolist())) == 20


def test_documents(target: ModelSpec, tmp_path: Path) -> None:
    sizes = load_model(target, torch.float32).config
    np.save(tmp_path / "a.npy", np.array([[1, 5, 6, 2, 1, 7, 0, 0], [8, 9, 1, 4, 4, 4, 4, 4]], dtype=np.int16))
    assert read_documents(tmp_path, None, sizes) == [[1, 5, 6, 2], [1, 7], [8, 9], [1, 4, 4, 4, 4, 4]]

    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(char) - 90 for char in text if char != "\n"]}

    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "ab", "n": 3, "answer": "c"}) + "\n\n" + '"dd"\n')
    (tmp_path / "c.txt").write_text("xy")
    assert read_documents(tmp_path, tokenizer, sizes)[4:] == [[7, 8, 9], [10, 10], [30, 31]]
    with pytest.raises(ConfigError, match="has no tokenizer, so give token ids"):
        read_documents(tmp_path / "c.txt", None, sizes)
    with pytest.raises(ConfigError, match="token id 40: must be in"):
        np.save(tmp_path / "a.npy", np.array([[40]]))
        read_documents(tmp_path / "a.npy", None, sizes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no \.txt, \.jsonl or \.npy file"):
        read_documents(tmp_path / "empty", None, sizes)
    np.save(tmp_path / "a.npy", np.array([[4, 5]]))
    with pytest.raises(ConfigError, match="has no text of 8 tokens"):
        train_head(HeadPlan(target.path, tmp_path / "a.npy", tmp_path / "out", 0.01))
