"""Growmaps: the shape, its two file forms, damaged files, pictures, the command."""

from __future__ import annotations

import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seedmp.commands.main import main
from seedmp.errors import ConfigError
from seedmp.token_tree import growmap_file
from seedmp.token_tree.growmap import MAX_GROWMAP_SIZE, Growmap
from seedmp.token_tree.growmap_draw import draw_svg, draw_text
from seedmp.token_tree.growmap_file import from_json, from_six_keys, load_growmap, save_growmap, to_json, to_six_keys
from seedmp.token_tree.k_config import num_drafted, num_nodes
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree

SMALL = Growmap((2, 2, 0, 0, 1, 0))


@st.composite
def growmaps(draw: st.DrawFn) -> Growmap:
    size = draw(st.integers(1, 24))
    counts, known = [], 1
    for node_id in range(size):
        least = 1 if node_id == known - 1 and known < size else 0
        count = draw(st.integers(least, size - known))
        counts.append(count)
        known += count
    return Growmap(tuple(counts))


# --- shape -----------------------------------------------------------------------------------------


def test_everything_about_a_small_one() -> None:
    assert (SMALL.size, SMALL.num_nodes, SMALL.num_drafted, SMALL.depth, SMALL.max_children) == (6, 5, 2, 3, 2)
    assert SMALL.children == ((1, 2), (3, 4), (), (), (5,), ())
    assert SMALL.levels == ((0,), (1, 2), (3, 4), (5,))
    assert SMALL.widths == (1, 2, 2, 1)
    assert SMALL.branches == ((2,), (2, 0), (0, 1), (0,))
    assert SMALL.depths == (0, 1, 1, 2, 2, 3)
    assert SMALL.parents == (NO_PARENT, NO_PARENT, 0, 0, 3)


@pytest.mark.parametrize("k_config", [(1,), (4,), (2, 2, 1), (1, 1, 1), (3, 2)])
def test_k_config_is_a_growmap(k_config: tuple[int, ...]) -> None:
    growmap = Growmap.from_k_config(k_config)
    assert growmap == Growmap.expansion(*k_config)
    assert (growmap.num_nodes, growmap.num_drafted) == (num_nodes(k_config), num_drafted(k_config))
    assert growmap.depth == len(k_config)


def test_chains() -> None:
    grid = Growmap.chains(5, 8)
    assert (grid.size, grid.widths) == (41, (1, *[5] * 8))
    assert grid.branches == ((5,), *[(1,) * 5] * 7, (0,) * 5)
    assert Growmap.chains(1, 3) == Growmap((1, 1, 1, 0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(growmaps())
def test_node_ids_fit_token_trees(growmap: Growmap) -> None:
    tree = TokenTree(tuple(range(growmap.num_nodes)), growmap.parents, ProposalKind.IID)
    assert tree.depths == growmap.depths[1:]
    assert [tuple(i + 1 for i in children) for children in tree.children] == list(growmap.children)
    assert Growmap.from_children_counts(growmap.branches) == growmap


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ((), "1 to"), ((1,), "add up to 1"), ((0, 1), "nobody's child"), ((1, 0, 1, 0), "nobody's child"),
        ((2, 0), "add up to 2"), ((-1,), ">= 0"), ((True, 0), ">= 0"), ((1.0, 0), ">= 0"),
        ((1,) * MAX_GROWMAP_SIZE + (0,), "1 to"),
    ],
)  # fmt: skip
def test_refuses_counts_of_no_tree(counts: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Growmap(counts)
    with pytest.raises(ConfigError):
        Growmap.chains(0, 4)


# --- files -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(growmaps())
def test_both_forms_round_trip(growmap: Growmap) -> None:
    assert from_six_keys(to_six_keys(growmap)) == growmap
    assert from_json(to_json(growmap)) == growmap
    assert from_json(json.dumps({"seedmp_growmap": 1, "num_children": growmap.num_children})) == growmap


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_files_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"map{suffix}"
    for growmap in (SMALL, Growmap((0,)), Growmap.chains(5, 8)):
        save_growmap(growmap, path)
        assert load_growmap(path) == growmap


def test_six_keys_have_the_published_types(tmp_path: Path) -> None:
    save_growmap(SMALL, tmp_path / "map.pt")
    data = torch.load(tmp_path / "map.pt", weights_only=True)
    assert list(data) == ["roots", "branches", "Successors", "mask", "depth", "size"]
    assert data["roots"] == [[0], [1, 2], [3, 4], [5]]
    assert data["branches"] == [[2], [2, 0], [0, 1], [0]]
    assert data["Successors"] == [[1, 2], [3, 4], [], [], [5], []]
    assert data["depth"].equal(torch.tensor([0, 1, 1, 2, 2, 3]))
    assert data["mask"].dtype is torch.int64
    assert data["mask"].tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert type(data["size"]) is int
    assert data["size"] == 6


def _set(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.__setitem__(key, value)


def _flip(data: dict[str, Any]) -> None:
    data["mask"][3, 2] = 1


DAMAGE: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda data: data.pop("mask"), "lacks mask"),
    (_set("extra", 1), "has .'extra'"),
    (_set("size", 7), "6 entries, but size is 7"),
    (_set("size", True), "size True"),
    (_set("size", 10**9), "size 1000000000"),
    (_set("size", torch.tensor(6)), "whole number"),
    (_set("Successors", [[1, 3], [2, 4], [], [], [5], []]), r"Successors\[0\]"),
    (_set("Successors", [[1, 2], [3, 4], [], [], [5], [6]]), "add up to 6"),
    (_set("Successors", [[1, 2], [3, 4], [], [], ["5"], []]), "no whole numbers"),
    (_set("Successors", [[1, 2], [3, 4], [], [], [5]]), "5 entries, but size is 6"),
    (_set("Successors", "abc"), "no list of lists"),
    (_set("roots", [[0], [1, 2], [3, 4]]), r"roots\[3\] is missing"),
    (_set("roots", [[0], [2, 1], [3, 4], [5]]), r"roots\[1\]"),
    (_set("roots", [[0], [1, 2], [3, 4], [5], []]), "roots has 5 entries"),
    (_set("branches", [[2], [2, 0], [1, 0], [0]]), r"branches\[2\]"),
    (_set("branches", [[2], [2, 0], [0, 1], [1]]), r"branches\[3\]"),
    (_set("branches", [[0] * 9] * 10**5), "more entries"),
    (_set("depth", torch.tensor([0, 1, 1, 2, 2, 4])), r"depth\[5\] is 4, but 3"),
    (_set("depth", [0, 1, 1, 2, 2, 3]), "depth is a list"),
    (_set("mask", torch.eye(6)), "float32"),
    (_set("mask", torch.eye(5, dtype=torch.int64)), r"\[5, 5\]"),
    (_set("mask", torch.eye(6, dtype=torch.int64).to_sparse()), "mask is"),
    (_set("mask", torch.zeros(1, dtype=torch.int64).expand(10**6, 10**6)), "1000000"),
    (_flip, r"mask\[3, 2\] is 1, but 0"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "says"), DAMAGE, ids=[says for _, says in DAMAGE])
def test_every_key_is_checked(tmp_path: Path, damage: Callable[[dict[str, Any]], object], says: str) -> None:
    data = to_six_keys(SMALL)
    damage(data)
    path = tmp_path / "map.pt"
    torch.save(data, path)
    with pytest.raises(ConfigError, match=says) as caught:
        load_growmap(path)
    assert str(path) in str(caught.value)


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_runs_no_code_of_a_foreign_pickle(tmp_path: Path, write: Callable[[object, Path], object]) -> None:
    path, made = tmp_path / "map.pt", tmp_path / "made"
    write({**to_six_keys(SMALL), "size": _Payload(made)}, path)
    with pytest.raises(ConfigError, match=r"map\.pt"):
        load_growmap(path)
    assert not made.exists()


def test_damaged_bytes_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    good, path = tmp_path / "good.pt", tmp_path / "map.pt"
    save_growmap(SMALL, good)
    data = good.read_bytes()
    rng = random.Random(0)
    for i in range(150):
        broken = bytearray(data)
        if i % 3 == 0:
            del broken[rng.randrange(len(data)) :]
        for _ in range(1 + i % 5):
            if broken:
                broken[rng.randrange(len(broken))] = rng.randrange(256)
        path.write_bytes(broken)
        try:
            assert load_growmap(path) == SMALL  # damage where nothing is stored
        except ConfigError as error:
            assert "map.pt" in str(error)


def test_other_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.pt"
    contents: list[object] = [[1, 2], torch.ones(3), {}, "text", None]
    for content in contents:
        torch.save(content, path)
        with pytest.raises(ConfigError, match=r"map\.pt: no growmap"):
            load_growmap(path)
    for bad in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(ConfigError, match=r"no such file|not a file"):
            load_growmap(bad)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(growmap_file.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="unpacks to"):
        load_growmap(path)
    save_growmap(SMALL, path)
    monkeypatch.setattr(growmap_file, "MAX_FILE_BYTES", 100)
    with pytest.raises(ConfigError, match="more than the 100"):
        load_growmap(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"), ("[" * 10**5, "not JSON"), ("[]", "object with the keys"), ('{"num_children": [0]}', "keys"),
        ('{"seedmp_growmap": 2, "num_children": [0]}', "version 2"),
        ('{"seedmp_growmap": 1, "num_children": 3}', "no list"),
        ('{"seedmp_growmap": 1, "num_children": [[1], 0]}', "no list of lists"),
        ('{"seedmp_growmap": 1, "num_children": [["1"], [0]]}', "no whole numbers"),
        ('{"seedmp_growmap": 1, "num_children": [[1, 0]]}', r"num_children\[0\]"),
        ('{"seedmp_growmap": 1, "num_children": [1.0, 0]}', ">= 0"),
    ],
)  # fmt: skip
def test_refuses_other_json(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_growmap(path)
    assert "map.json" in str(caught.value)


def test_refuses_to_write_where_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    for name, says in {"map.txt": "must end in", "none/map.pt": "no folder", "folder.pt": "is a folder"}.items():
        with pytest.raises(ConfigError, match=says):
            save_growmap(SMALL, tmp_path / name)


# --- pictures --------------------------------------------------------------------------------------


def test_text_shows_widths_and_chains() -> None:
    text = draw_text(SMALL)
    assert "nodes by level: 1 2 2 1" in text
    assert text.endswith("0\n├─ 1\n│  ├─ 3\n│  └─ 4─5\n└─ 2\n")
    large = draw_text(Growmap.from_k_config((8, 8, 4)), max_lines=20).splitlines()
    assert len(large) == 3 + 20
    assert large[-1] == "... 310 more lines"


@pytest.mark.parametrize("growmap", [Growmap((0,)), SMALL, Growmap.from_k_config((8, 8, 4))])
def test_svg_has_every_node_and_edge(growmap: Growmap) -> None:
    root = ElementTree.fromstring(draw_svg(growmap))
    names = [element.tag.split("}")[1] for element in root]
    assert names.count("circle") == growmap.size
    assert names.count("path") == growmap.num_nodes


# --- the command -----------------------------------------------------------------------------------

CONFIG = {
    "acceptance_rate_vector": "vector.json", "max_depth": 6, "max_budget": 16, "draft_time": 0.3,
    "valid_budget": [1, 2, 4, 8], "target_time": [10, 10, 10, 12], "dst": "unused.pt",
}  # fmt: skip
VECTOR = [0.0, 0.6, 0.15, 0.05, 0.2]


def _config(folder: Path, vector: object = VECTOR, **changes: object) -> Path:
    (folder / "vector.json").write_text(json.dumps(vector))
    config = folder / "config.json"
    config.write_text(json.dumps({**CONFIG, **changes}))
    return config


def test_make_show_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config, map_pt, figures = _config(tmp_path), tmp_path / "map.pt", tmp_path / "figures.json"
    assert main(["growmap", "make", "--config", str(config), "--out", str(map_pt), "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert list(found) == ["size", "levels", "expected_tokens", "cost", "speedup"]
    growmap = load_growmap(map_pt)
    assert (growmap.size, len(growmap.levels)) == (found["size"], found["levels"])
    assert found["speedup"] == 10 / found["cost"]
    assert "<- best" in capsys.readouterr().out

    torch.save(torch.tensor(VECTOR), tmp_path / "vector.pt")  # the published form, found in the current folder
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    config = _config(elsewhere, acceptance_rate_vector="vector.pt")
    assert main(["growmap", "make", "--config", str(config), "--out", str(tmp_path / "again.json")]) == 0
    assert load_growmap(tmp_path / "again.json") == growmap

    assert main(["growmap", "convert", str(map_pt), str(tmp_path / "map.json")]) == 0
    assert load_growmap(tmp_path / "map.json") == growmap
    capsys.readouterr()
    assert main(["growmap", "show", str(map_pt), "--svg", str(tmp_path / "map.svg")]) == 0
    assert capsys.readouterr().out == draw_text(growmap)
    assert (tmp_path / "map.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_time": [10, 10]}, "4 entries of valid_budget, but 2 of target_time"),
        ({"target_time": [10, 10, -1, 12]}, "target_time -1: must be a number above 0"),
        ({"target_time": [10, 10, float("nan"), 12]}, "target_time nan"),
        ({"target_time": 10}, "target_time must be a list"),
        ({"draft_time": -0.1}, "draft_time -0.1"),
        ({"draft_time": "fast"}, "draft_time 'fast'"),
        ({"draft_time": 10**400}, "draft_time 1000"),
        ({"max_depth": 0}, "max_depth 0"),
        ({"max_depth": 2.5}, "max_depth 2.5"),
        ({"valid_budget": []}, "valid_budget must be a list, not empty"),
        ({"valid_budget": [1, 2, 4, 32]}, "valid_budget 32: must be a whole number from 1 to 16"),
        ({"valid_budget": [1, 2, 2, 8]}, "names a size twice"),
        ({"max_budget": None}, "max_budget None"),
        ({"acceptance_rate_vector": "absent.pt"}, "acceptance_rate_vector: neither"),
        ({"acceptance_rate_vector": 3}, "must be the name of a file"),
        ({"vector_ends_with_none": 1}, "must be true or false"),
        ({"vector": [0, 0.6, 0.7]}, "sums to 1.3"),
        ({"vector": [0.1, 0.6, 0.3]}, "must begin with 0"),
        ({"vector": [0, 1.5, -0.5]}, "no probabilities"),
        ({"vector": [0, "0.5"]}, "list of numbers"),
        ({"vector": {"p": [0, 0.5]}}, 'without the key "vector"'),
        ({"vector": [[0, 0.5], [0, 0.5, 0.1]]}, "list of numbers"),
        ({"vector": []}, "must be"),
    ],
)  # fmt: skip
def test_bad_configurations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], says: str
) -> None:
    config = _config(tmp_path, **changes)
    assert main(["growmap", "make", "--config", str(config), "--out", str(tmp_path / "map.pt")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"seedmp: {tmp_path}")
    assert says in told
    assert not (tmp_path / "map.pt").exists()


def test_other_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = str(_config(tmp_path)), str(tmp_path / "map.pt")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "lacking.json").write_text('{"max_depth": 3}')
    cases = {
        "cannot be read": ["make", "--config", str(tmp_path / "absent.json"), "--out", out],
        "not JSON": ["make", "--config", str(tmp_path / "broken.json"), "--out", out],
        "lacks acceptance_rate_vector": ["make", "--config", str(tmp_path / "lacking.json"), "--out", out],
        "must end in": ["make", "--config", config, "--out", str(tmp_path / "map.bin")],
        "no folder": ["make", "--config", config, "--out", str(tmp_path / "none" / "map.pt")],
        "is a folder": ["make", "--config", config, "--out", out, "--json", str(tmp_path)],
        "the same file": [
            "make",
            "--config",
            config,
            "--out",
            str(tmp_path / "a.json"),
            "--json",
            str(tmp_path / "a.json"),
        ],
        "no such file": ["show", str(tmp_path / "absent.pt")],
    }
    for says, arguments in cases.items():
        assert main(["growmap", *arguments]) == 2
        assert says in capsys.readouterr().err


def test_says_when_speculation_does_not_pay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _config(tmp_path, draft_time=50)
    assert main(["growmap", "make", "--config", str(config), "--out", str(tmp_path / "map.pt")]) == 0
    assert "speculation does not pay" in capsys.readouterr().out
    assert load_growmap(tmp_path / "map.pt").size == 1
