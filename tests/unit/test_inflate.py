"""An inflated model gives the small one's logits."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from seedmp.errors import ConfigError
from seedmp.models.inflate import SHAPES, Shape, get_shape, inflate, inflated_config
from seedmp.models.pair import DRAFT, TARGET

QUESTION = "Question: Mia has 12 apples and buys 3 bags of 5 apples. How many apples does she have?\nAnswer:"
MAX_DIFF = 1e-4  # of float32 logits of size about 10
WIDE_HEADS = Shape(320, 7, 5, 128, 700, 5000)


def load(path: object) -> LlamaForCausalLM:
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def target() -> LlamaForCausalLM:
    return load(TARGET)


@pytest.fixture(scope="module")
def token_ids() -> torch.Tensor:
    """[1, 360] int64, a text."""
    ids = AutoTokenizer.from_pretrained(TARGET)(QUESTION * 12)["input_ids"]
    return torch.tensor([ids[:360]])


@torch.no_grad()
def check_equal(small: LlamaForCausalLM, big: LlamaForCausalLM, token_ids: torch.Tensor) -> None:
    vocab_size = small.config.vocab_size
    expected = small(token_ids).logits
    logits = big(token_ids).logits
    assert logits.shape[-1] == big.config.vocab_size
    assert (logits[..., :vocab_size] - expected).abs().max() < MAX_DIFF
    assert torch.equal(logits[..., :vocab_size].argmax(-1), expected.argmax(-1))
    assert not logits[..., vocab_size:].any()


@pytest.mark.parametrize("shape", [SHAPES["13m"], WIDE_HEADS], ids=["13m", "longer heads"])
def test_target_logits_beyond_position_300(shape: Shape, target: LlamaForCausalLM, token_ids: torch.Tensor) -> None:
    big = inflate(target, shape, seed=3)
    assert token_ids.shape[1] > 300
    check_equal(target, big, token_ids)
    assert big.num_parameters() == shape.num_parameters
    assert not big.training
    assert not any(parameter.requires_grad for parameter in big.parameters())


def test_target_in_the_134m_shape(target: LlamaForCausalLM, token_ids: torch.Tensor) -> None:
    check_equal(target, inflate(target, SHAPES["134m"]), token_ids[:, :32])
    assert 130e6 < SHAPES["134m"].num_parameters < 138e6


def test_draft_in_a_shape_like_68m(token_ids: torch.Tensor) -> None:
    draft = load(DRAFT)
    check_equal(draft, inflate(draft, Shape(192, 2, 3, 64, 768, 4500)), token_ids)


def test_generate_is_the_same_in_the_cache_too(target: LlamaForCausalLM, token_ids: torch.Tensor) -> None:
    big = inflate(target, SHAPES["13m"])
    ids = token_ids[:, :40]
    mask = torch.ones_like(ids)
    expected = target.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False)
    assert torch.equal(big.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False), expected)


def test_grouped_heads_and_a_norm_that_matters() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        vocab_size=50,
        rms_norm_eps=0.1,
        tie_word_embeddings=False,
    )
    small = LlamaForCausalLM(config).eval()
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.3)
    ids = torch.randint(50, (2, 20))
    check_equal(small, inflate(small, Shape(48, 3, 5, 24, 64, 64), seed=1), ids)


def test_same_seed_same_weights_and_the_small_model_is_left_alone() -> None:
    draft = load(DRAFT)
    before = {name: value.clone() for name, value in draft.state_dict().items()}
    shape = Shape(192, 3, 3, 64, 600, 4200)
    first, second, other = (inflate(draft, shape, seed=seed) for seed in (5, 5, 6))
    for one, same in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, same)
    assert not torch.equal(first.model.layers[2].mlp.up_proj.weight, other.model.layers[2].mlp.up_proj.weight)
    for name, value in draft.state_dict().items():
        assert torch.equal(value, before[name])


def test_bfloat16_has_float32_frequencies() -> None:
    draft = load(DRAFT)
    big = inflate(draft, Shape(192, 2, 3, 128, 600, 4200), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in big.parameters()} == {torch.bfloat16}
    assert big.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(big.model.rotary_emb.inv_freq[::2], draft.model.rotary_emb.inv_freq)


def test_default_dtype_and_generation_config(target: LlamaForCausalLM) -> None:
    big = inflate(target, SHAPES["13m"])
    assert big.dtype == torch.float32
    assert big.generation_config is not None
    assert big.generation_config.eos_token_id == 2


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape(128, 7, 5, 64, 768, 8192), "hidden_size=256 does not fit in the shape's 128"),
        (Shape(320, 5, 5, 64, 768, 8192), "num_hidden_layers=6"),
        (Shape(320, 7, 3, 64, 768, 8192), "num_attention_heads=4"),
        (Shape(320, 7, 5, 96, 768, 8192), "head_dim=96 must be a multiple of the model's 64"),
        (Shape(320, 7, 5, 64, 680, 8192), "intermediate_size=688"),
        (Shape(320, 7, 5, 64, 768, 4095), "vocab_size=4096"),
    ],
)
def test_what_does_not_fit_is_refused(shape: Shape, message: str, target: LlamaForCausalLM) -> None:
    with pytest.raises(ConfigError, match=message):
        inflated_config(target.config, shape)


def test_unknown_shape() -> None:
    with pytest.raises(ConfigError, match="shape='8b': must be one of 13m, 68m, 134m, 7b"):
        get_shape("8b")
