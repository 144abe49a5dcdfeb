"""Who may import whom: the table, held to the code by reading its imports.

A unit is a package (``kv``) or a module (``config``) below ``seedmp``. Change the table in the
commit that needs it, with the reason.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"seedmp": "seedmp", "seedmp.benchmarks": "benchmarks", "seedmp.ipc": "ipc", "seedmp.workers": "workers"}

BASE = {"errors", "ids", "checks", "registry"}  # everyone may import these
PLAIN = {"config", "sampling", "metrics", "trace"}
ANY = {"*"}

# unit -> units that it may import, besides BASE and itself.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": ANY,  # public names, loaded on first use
    "errors": set(),
    "ids": set(),
    "checks": set(),
    "registry": set(),
    # A setting names a method, a tree shape, a rule and (models.runner alone, which imports no torch) a runner.
    "config": {"sampling", "token_tree", "decoding", "models"},
    "sampling": set(),
    "trace": set(),
    "metrics": {"trace"},  # overlap is a formula over spans
    "stopping": {"sampling"},
    "token_tree": {"sampling"},
    "decoding": {"sampling", "token_tree"},
    "request": {"sampling", "metrics"},
    # A proposal says what kind of tree it is; span_ring stores the activities that trace names.
    "ipc": {"sampling", "config", "token_tree", "trace"},
    "kv": {"config", "ipc"},
    "models": {"ipc", "token_tree"},  # ipc.arena: what a forward wrote is published; token_tree: NO_PARENT of its nodes
    # kv.slot_tree alone: the slot bookkeeping is part of the decision, and pure (tested below).
    "scheduler": PLAIN | {"request", "token_tree", "kv", "stopping"},
    "workers": PLAIN | {"ipc", "kv", "models", "decoding", "scheduler", "token_tree", "request"},
    "branch": {"engine", "request", "sampling"},
    # decoding.constraint: a broken constraint is refused before any work. profiling: Engine.profile.
    # tuning.plan: Engine(plan=...). system: how workers' idle threads wait.
    "engine": PLAIN
    | {"ipc", "kv", "workers", "request", "models", "token_tree", "stopping", "branch", "decoding", "profiling"}
    | {"tuning", "system"},
    "async_engine": PLAIN | {"engine", "request"},
    # search.task and search.thought_tree alone (tested below): what a task implements.
    "tasks": {"search"},
    "search": {"engine", "request", "sampling", "metrics"},  # knows no task: users bring their own
    "tuning": ANY,
    "profiling": ANY,
    "benchmarks": ANY,
    "training": {"tasks", "models"},  # its documents are the prompts of the tasks; heads are trained as they are run
    "growmap_cli": {"token_tree"},
    "system": set(),
    "doctor": ANY,
    "__main__": ANY,
    "demo": ANY,
    "solve": ANY,
    "measure": ANY,
    "cli": ANY,
}

# The scheduler gets time and chance as arguments, and tells others what to do.
SCHEDULER_THIRD_PARTY = {"numpy"}
IMPURE = {
    "torch", "transformers", "zmq", "msgpack", "multiprocessing", "threading", "asyncio", "socket",
    "subprocess", "time", "random", "secrets", "os", "concurrent",
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of the library."""
    for package, folder in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *parts)), file


def imported_names(source: str) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of each import, inside functions and ``if TYPE_CHECKING`` too.

    ``from a import b`` gives ``a.b``, which may name a module or something inside ``a``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: absolute imports only"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def unit_of(dotted: str) -> str:
    return dotted.split(".")[1] if "." in dotted else "__init__"


MODULES = list(modules())
IDS = [name for name, _ in MODULES]


@pytest.mark.parametrize(("name", "file"), MODULES, ids=IDS)
def test_imports_follow_the_table(name: str, file: Path) -> None:
    unit = unit_of(name)
    assert unit in MAY_IMPORT, f"{unit} is not in the table of this file: say what it may import"
    allowed = MAY_IMPORT[unit] | BASE | {unit, "__version__"}
    for imported, line in imported_names(file.read_text()):
        first = imported.split(".")[0]
        where = f"{file.relative_to(ROOT)}:{line} imports {imported}"
        assert first not in {"benchmarks", "ipc", "workers"}, f"{where}: a second copy; say seedmp.{first}"
        assert first != "tests", f"{where}: the library needs no test"
        if first == "seedmp" and "*" not in allowed:
            assert unit_of(imported) in allowed, f"{where}: {unit} may import {sorted(allowed)}"


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, file in MODULES if unit_of(name) == "scheduler"])
def test_scheduler_is_pure(name: str, file: Path) -> None:
    for imported, line in imported_names(file.read_text()):
        first = imported.split(".")[0]
        where = f"{file.relative_to(ROOT)}:{line} imports {imported}"
        assert first not in IMPURE, where
        assert first in sys.stdlib_module_names | {"seedmp"} | SCHEDULER_THIRD_PARTY, where
        assert not imported.startswith("numpy.random"), where
        if imported.startswith("seedmp.kv"):
            assert imported.startswith("seedmp.kv.slot_tree"), f"{where}: of kv, slot_tree alone"


def test_slot_tree_is_pure() -> None:
    for imported, line in imported_names((ROOT / "seedmp/kv/slot_tree.py").read_text()):
        assert imported.split(".")[0] not in IMPURE, f"line {line} imports {imported}"


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, file in MODULES if unit_of(name) == "tasks"])
def test_tasks_know_no_search(name: str, file: Path) -> None:
    for imported, line in imported_names(file.read_text()):
        if imported.startswith("seedmp.search"):
            assert imported.startswith(("seedmp.search.task.", "seedmp.search.thought_tree.")), (
                f"line {line}: {imported}"
            )


def test_package_inits_are_empty() -> None:
    names = ("seedmp", "seedmp/models/pair", "seedmp/search")  # what users import from
    allowed = {ROOT / name / "__init__.py" for name in names}
    for _, file in MODULES:
        if file.name == "__init__.py" and file not in allowed:
            assert not file.read_text().strip(), f"{file.relative_to(ROOT)} should be empty"


def test_import_reader_sees_every_form() -> None:
    source = "import a.b\nfrom c import d as e\ndef f():\n    import g\nif TYPE_CHECKING:\n    from h.i import j\n"
    assert sorted(name for name, _ in imported_names(source)) == ["a.b", "c.d", "g", "h.i.j"]
