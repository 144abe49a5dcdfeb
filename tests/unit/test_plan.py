"""Plans: what a file must be, what an engine takes from it, and whom it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from seedmp.engine import Engine
from seedmp.errors import ConfigError
from seedmp.models import pair
from seedmp.plan import Figures, Plan, load_plan, read_plan
from seedmp.system import affinity_cores

FAST, SLOW = Figures(150.0, 140.0, 160.5, 5), Figures(100.0, 90.0, 110.0, 5)
TREE = {"method": "sequoia", "growmap": (2, 1, 0, 0), "num_drafts": 2, "policy": "fcfs", "target_threads": 1}


def plan(**changes: Any) -> Plan:
    values = {"settings": TREE, "predicted": 148.0, "measured": FAST, "ar": SLOW, "gain": 1.5}
    return Plan(**{**values, **changes})


PLAIN = plan(settings={"method": "ar"}, measured=SLOW, gain=0.8)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [plan(), PLAIN, plan(target="a", draft="b", target_shape="7b", node={"cores": 2})])
def test_a_plan_is_read_as_it_was_written(made: Plan, tmp_path: Path) -> None:
    made.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == made == read_plan(made)
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"], "no half-written file is left"


def broken(**changes: Any) -> str:
    plain = plan().to_plain() | changes
    return json.dumps({name: value for name, value in plain.items() if value != "gone"})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not JSON"),
        ("[]", "no plan"),
        ('{"seedmp_growmap": 1, "num_children": [0]}', "no plan"),
        (broken(seedmp_plan=2), "version 2: this seedmp reads version 1"),
        (broken(seedmp_plan=True), "version True"),
        (broken(speed=3), "unknown key 'speed'"),
        (broken(ar="gone"), "lacks 'ar'"),
        (broken(measured={"median": 1}), "measured"),
        (broken(measured={"median": 1, "low": 2, "high": 3, "repeats": 5}), "low, median, high"),
        (broken(measured={"median": 1, "low": 1, "high": 1, "repeats": 0}), "repeats 0"),
        (broken(ar=7), "ar 7"),
        (broken(predicted="fast"), "predicted 'fast'"),
        (broken(gain=None), "gain None"),
        (broken(target=""), "target ''"),
        (broken(target="a"), "both bundled or neither"),
        (broken(node=[]), "node"),
        (broken(settings=None), "settings None"),
        (broken(settings={}), "no method"),
        (broken(settings={**TREE, "validate": True}), "unknown setting 'validate'"),
        (broken(settings={**TREE, "num_drafts": "two"}), "num_drafts='two'"),
        (broken(settings={**TREE, "growmap": [2, 1]}), "growmap"),
        (broken(settings={"method": "fastest"}), "method='fastest'"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, match: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=match) as refused:
        load_plan(file)
    assert str(file) in str(refused.value)


def test_a_missing_file_is_refused_before_any_process(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Engine(plan=tmp_path / "none.json")


# --- words ---------------------------------------------------------------------------------------


def test_it_says_whether_speculation_pays() -> None:
    assert plan().pays and "pays here: 150.0 tokens/s, plain decoding 100.0 (x1.50)" in plan().in_words
    assert not PLAIN.pays and "does not pay here" in PLAIN.in_words and "x0.80" in PLAIN.in_words


# --- what an engine takes from it ------------------------------------------------------------------


def test_settings_are_defaults_that_the_user_overrides() -> None:
    target, draft, settings = plan().settings_for(None, None, {"num_drafts": 5, "kv_slots": 512})
    assert (target, draft) == (None, None)
    assert settings == {**TREE, "num_drafts": 5, "kv_slots": 512}


@pytest.mark.parametrize("given", [{"method": "mcsd"}, {"k_config": (1, 1)}, {"growmap": "2x2", "method": "specinfer"}])
def test_a_tree_that_is_given_replaces_the_plans_as_a_whole(given: dict[str, Any]) -> None:
    _, _, settings = plan().settings_for(None, None, given)
    assert settings == {"num_drafts": 2, "policy": "fcfs", "target_threads": 1, **given}


def test_models_and_shapes_come_from_the_plan() -> None:
    made = plan(target="org/big", draft="org/small", target_shape="134m")
    expected = ("org/big", "org/small", {"target_shape": "134m", **TREE})
    assert made.settings_for(None, None, {}) == expected
    assert made.settings_for("org/big", "org/small", {"target_shape": "134m"}) == expected
    assert plan().settings_for(str(pair.TARGET), str(pair.DRAFT), {})[0] is None


@pytest.mark.parametrize(
    ("made", "args", "match"),
    [
        (plan(), ("org/big", None, {}), "the bundled target, not for target 'org/big'"),
        (plan(), (None, "org/small", {}), "the bundled draft, not for draft 'org/small'"),
        (plan(target="a", draft="b"), ("c", "b", {}), "target 'a', not for target 'c'"),
        (
            plan(target_shape="134m"),
            (None, None, {"target_shape": None}),
            "inflated to 134m, not for target_shape=None",
        ),
        (plan(), (None, None, {"draft_shape": "68m"}), "draft, not for draft_shape='68m'"),
    ],
)
def test_a_plan_for_other_models_is_refused(made: Plan, args: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        made.settings_for(*args)


def test_plain_decoding_takes_any_draft() -> None:
    assert PLAIN.settings_for(None, "org/small", {})[1] == "org/small"


def test_another_node_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "seedmp"):
        plan(node={"cores": affinity_cores()}).settings_for(None, None, {})
        assert not caplog.records
        plan(node={"cores": affinity_cores() + 1}).settings_for(None, None, {})
    assert "seedmp tune" in caplog.text
