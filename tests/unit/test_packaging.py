"""setup.cfg names every package, and every data file that the packages need."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"seedmp": "seedmp", "seedmp.benchmarks": "benchmarks", "seedmp.ipc": "ipc", "seedmp.workers": "workers"}


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def test_packages_are_the_folders_with_init(setup_cfg: configparser.ConfigParser) -> None:
    found = set()
    for package, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            below = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *below)))
    listed = setup_cfg["options"]["packages"].split()
    assert len(listed) == len(set(listed))
    assert set(listed) == found


def test_every_python_file_lies_in_a_package() -> None:
    for folder in FOLDERS.values():
        for file in (ROOT / folder).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py"


def test_package_dir_maps_ipc_and_workers(setup_cfg: configparser.ConfigParser) -> None:
    lines = setup_cfg["options"]["package_dir"].strip().splitlines()
    assert {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)} == FOLDERS


def test_package_data_matches_every_data_file(setup_cfg: configparser.ConfigParser) -> None:
    covered: set[Path] = set()
    for package, patterns in setup_cfg["options.package_data"].items():
        folder = ROOT.joinpath(*package.split("."))
        for pattern in patterns.split():
            files = set(folder.glob(pattern))
            assert files, f"{package}: {pattern} matches nothing"
            covered |= files
    data = {
        file
        for folder in FOLDERS.values()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix not in {".py", ".pyc"} and file.parent != ROOT / "benchmarks/results"
    }
    assert data == covered


def test_constraints_pin_every_dependency(setup_cfg: configparser.ConfigParser) -> None:
    pinned = {
        line.split("==")[0]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    wanted = setup_cfg["options"]["install_requires"].split()
    for extra in setup_cfg["options.extras_require"].values():
        wanted += [name for name in extra.split() if not name.startswith("%")]
    names = {name.split(">")[0].split("<")[0] for name in wanted}
    assert names <= pinned


@pytest.mark.parametrize("name", ["seedmp.benchmarks", "seedmp.ipc", "seedmp.workers"])
def test_imports_from_another_directory(name: str, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}; print({name}.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert Path(done.stdout.strip()).name == "__init__.py"
