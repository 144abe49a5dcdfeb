"""Flags that describe an engine reach its settings, and what a method does not use is refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seedmp import Engine
from seedmp.commands import main as cli
from seedmp.commands.arguments import engine_settings
from seedmp.config import EngineConfig
from seedmp.errors import ConfigError
from seedmp.models import pair


@pytest.mark.parametrize("command", [["generate", "text"], ["solve", "game24"]])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {}),
        (["--nodes", "9", "--max-depth", "4"], {"nodes": 9, "max_depth": 4}),
        (["--threshold", "0", "--top-k", "1"], {"threshold": 0.0, "top_k": 1}),
    ],
)
def test_flags_of_adaptive_trees(command: list[str], flags: list[str], expected: dict[str, Any]) -> None:
    settings = engine_settings(cli.parse([*command, "--method", "eagle", *flags]))
    given = {name: settings[name] for name in ("nodes", "max_depth", "threshold", "top_k") if name in settings}
    assert given == expected
    config = EngineConfig(**settings | {"target": "-", "draft": "-"})
    assert config.method == EngineConfig("-", "-", method="eagle", **expected).method  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--top-k", "3"], "top_k is not used by method=mcsd: only by eagle"),
        (["--method", "ngram", "--threshold", "1"], "threshold is not used by method=ngram"),
        (["--method", "opt-tree", "--threshold", "-1"], "threshold=-1.0: must be a finite number >= 0"),
        (["--method", "opt-tree", "--max-depth", "0"], "max_depth=0: must be a whole number"),
        (["--method", "eagle", "--target", str(pair.TARGET)], "no draft for target"),
    ],
)
def test_wrong_flags_are_told_in_a_line(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "text", *flags]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "eagle", "target": "some/model"}, r"name a head that was trained for it \(python -m"),
        ({"method": "sd", "target": "some/model"}, r"name a draft model, or use method='ar' or 'ngram'"),
        ({"method": "eagle"}, r"no draft for method='eagle': the bundled target's head is not there \(.*absent\)"),
    ],
)
def test_what_no_default_drafts_for(
    settings: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair, "HEAD", tmp_path / "absent")
    with pytest.raises(ConfigError, match=told):
        Engine(**settings)
