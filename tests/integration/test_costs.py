"""The price list of this machine, measured on the bundled pair in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seedmp.config import EngineConfig
from seedmp.errors import ConfigError
from seedmp.models import pair
from seedmp.models.load import ModelSpec, load_config, max_positions
from seedmp.simulation.costs import Costs
from seedmp.tuning.measure import measure_costs

CONFIG = EngineConfig(target=str(pair.TARGET), draft=str(pair.DRAFT), placement="cpu", target_threads=1)


@pytest.mark.alone
def test_both_models_are_timed() -> None:
    before = torch.get_num_threads()
    costs = measure_costs(CONFIG, rows=(1, 4), branches=(1, 3), context_len=20, repeats=2)
    assert costs.target.sizes == (1, 4) and costs.draft.sizes == (1, 3)
    assert costs.target.at(1) > 0 and costs.draft.at(3) >= costs.draft.at(1) >= 0
    assert Costs.from_plain(costs.to_plain()).target == costs.target
    assert costs.cores > 0 and torch.get_num_threads() == before


def test_a_model_with_few_positions_is_timed_within_them(tiny_pair: Callable[[str], tuple[Path, Path]]) -> None:
    target, draft = tiny_pair("gpt2")
    config = EngineConfig(target=str(target), draft=str(draft), placement="cpu", target_threads=1)
    context_len = max_positions(load_config(ModelSpec(str(target)))) // 2 + 1
    costs = measure_costs(config, rows=(1, 4), branches=(1, 3), context_len=context_len, repeats=1)
    assert costs.target.sizes == (1, 4) and costs.context_ms == 0


def test_without_a_draft_there_is_nothing_to_time() -> None:
    with pytest.raises(ConfigError, match="no draft"):
        measure_costs(EngineConfig(target=str(pair.TARGET), draft=str(pair.DRAFT), method="ar"))  # type: ignore[arg-type]
