"""The benchmark runs, writes what it promises, and compares equal tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import schedules

KEYS = {"name", "tokens_per_s", "speedup", "acceptance_rate", "mean_accepted_len", "overlap_s", "verifier_busy"}


def test_smoke(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert schedules.main(["--smoke", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows) == {"generate", "generate-batch", "serial-ar", "serial-sd", "fcfs-batch"}
    assert all(row.keys() >= KEYS | {"text_equals_ar"} for row in rows.values())
    assert all(row["text_equals_ar"] for row in rows.values()), "float32: every row makes the same tokens"
    assert rows["fcfs-batch"]["mean_accepted_len"] > 1 == rows["serial-ar"]["mean_accepted_len"]
    assert {"bounds", "memory_mib", "settings", "threads", "node"} <= report.keys()


def test_a_file_of_the_wrong_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"question": "no answer"}\n')
    assert schedules.main(["--data", str(wrong)]) == 2
    assert "answer" in capsys.readouterr().err
