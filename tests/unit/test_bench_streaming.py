"""The streaming benchmark: both ways give the same text, and the exponent is that of the law."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seedmp.benchmarks.questions.streaming import growth, main
from seedmp.errors import ConfigError


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_growth_is_the_exponent(exponent: float) -> None:
    sizes = (500, 1000, 2000, 4000)
    assert growth(sizes, [3e-6 * size**exponent for size in sizes]) == pytest.approx(exponent, abs=1e-9)


def test_a_smoke_run_writes_its_figures(tmp_path: Path) -> None:
    assert main(["--smoke", "--json", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["same_texts"]
    assert [row["name"] for row in report["rows"]] == ["all tokens", "new tokens"]
    assert all(len(row["cost_s"]) == len(report["sizes"]) == 2 for row in report["rows"])


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="has no tokenizer"):
        main(["--smoke", "--target", str(tmp_path)])
