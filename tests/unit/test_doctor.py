"""What the doctor says of machines that are made up, and of this one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from seedmp.commands import main as cli
from seedmp.commands.doctor import GIB, Node, advice, facts
from seedmp.config import EngineConfig
from seedmp.system import affinity_cores, cpu_quota

CONFIG = EngineConfig(target="-", draft="-", target_threads=4, draft_threads=1)
NODE = Node({"seedmp": "0"}, 8, 8, None, "AVX512", ("avx512_bf16",), 32 * GIB, 16 * GIB, 16 * GIB)
CPU_PLAN = {"target on": "cpu"}
GPU_PLAN = {"target on": "cuda:0"}
GPU = {"name": "a GPU", "memory_gib": 80.0}


def told(node: Node, plan: dict[str, str] = CPU_PLAN) -> str:
    return " ".join(advice(node, CONFIG, plan))


def test_cores_and_quota() -> None:
    assert "more cores than there are" not in told(NODE)
    assert "more cores than there are" in told(replace(NODE, cores=4))
    assert "set target_threads=2" in told(replace(NODE, quota=2.5))
    assert dict(facts(replace(NODE, quota=2.5)))["cores"] == "8 usable of 8, quota 2.5 cores"


def test_bfloat16_and_shared_memory() -> None:
    assert "bfloat16 is in hardware" in told(NODE)
    assert "stay with float32" in told(replace(NODE, bf16=()))
    assert "--shm-size" in told(replace(NODE, shared_bytes=GIB // 16)) and "--shm-size" not in told(NODE)


def test_gpus() -> None:
    one = replace(NODE, gpus=(GPU,), mps="off")
    assert "MPS is off" in told(one, GPU_PLAN) and "nvidia-cuda-mps-control" in told(one, GPU_PLAN)
    assert "MPS is on" in told(replace(one, mps="on"), GPU_PLAN)
    two = replace(NODE, gpus=(GPU, GPU), peers=((0, 1), (1, 0)))
    assert "drafts the second" in told(two, GPU_PLAN)
    assert dict(facts(two))["peer access"] == "0-1, 1-0" and dict(facts(one))["peer access"] == "one GPU"


def test_quotas_of_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "self"
    own.write_text("0::/a/b\n")
    root = tmp_path / "cgroup"
    (root / "a" / "b").mkdir(parents=True)
    assert cpu_quota(root, own) is None
    (root / "a" / "cpu.max").write_text("150000 100000\n")
    (root / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(root, own) == 1.5
    (root / "a" / "b" / "cpu.max").write_text("50000 100000\n")
    assert cpu_quota(root, own) == 0.5
    first = tmp_path / "version1"
    (first / "cpu").mkdir(parents=True)
    (first / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (first / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(first, tmp_path / "nothing") == 3.0


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["cores"] == affinity_cores() and plain["plan"]["target on"] and plain["advice"]
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "shared memory" in text and "\n* " in text
