"""Who may import whom: the table, held to the code by reading its imports.

A unit is a package (``kv``) or a module (``config``) below ``seedmp``, or the recipes. Change the table in the commit
that needs it, with the reason; a permission that nobody uses any more goes. Imports for annotations alone
(``if TYPE_CHECKING``) need a permission like any other, but make no cycle: they are not there when the program runs.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "seedmp": "seedmp",
    "seedmp.benchmarks": "benchmarks",
    "seedmp.ipc": "ipc",
    "seedmp.workers": "workers",
    "recipes": "recipes",
}

BASE = {"errors", "ids", "checks", "registry"}  # everyone may import these, unused or not
ANY = {"*"}
MAY_HAVE_ANY = {"__main__", "commands"}  # the outermost ring; tests, too, are not in the table

# unit -> units that it may import, besides BASE and itself; none is unused.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"async_engine", "branch", "config", "engine", "request", "sampling"},  # public names, on first use
    "errors": set(),
    "ids": set(),
    "checks": set(),
    "registry": set(),
    "output": set(),
    "system": set(),
    "config": {"token_tree"},  # a setting names the shape of a tree
    "sampling": set(),
    "trace": set(),
    "metrics": {"trace"},  # overlap is a formula over spans
    "stopping": {"sampling"},
    "token_tree": {"output"},  # growmaps are files
    "decoding": {"sampling", "token_tree"},
    "request": {"metrics"},
    # A proposal says what kind of tree it is; span_ring stores the activities that trace names.
    "ipc": {"sampling", "token_tree", "trace"},
    "kv": set(),
    "models": set(),
    # kv.slot_tree alone: the slot bookkeeping is part of the decision, and pure (tested below).
    "scheduler": {"config", "kv", "metrics", "sampling", "stopping", "token_tree"},
    "workers": {"config", "decoding", "ipc", "models", "sampling", "scheduler", "token_tree", "trace"},
    "branch": {"engine", "request", "sampling"},  # engine: as an annotation
    # decoding.constraint: a broken constraint is refused before any work. profiling: Engine.profile.
    # tuning.plan: Engine(plan=...). system: how workers' idle threads wait.
    "engine": {
        "branch",
        "config",
        "decoding",
        "ipc",
        "metrics",
        "models",
        "profiling",
        "request",
        "sampling",
        "stopping",
    }
    | {"stopping", "system", "trace", "tuning"},
    "async_engine": {"engine", "request", "sampling"},
    # search.task and search.thought_tree alone (tested below): what a task implements.
    "tasks": {"search"},
    "search": {"engine", "request", "sampling", "metrics"},  # knows no task: users bring their own
    "solve": {"engine", "metrics", "output", "search", "tasks"},
    # scheduler: how many ended texts a verifier keeps. models: what an inflated model weighs.
    "measuring": {"config", "engine", "metrics", "models", "request", "sampling", "scheduler", "system"},
    # The simulator is a host of the real scheduler.
    "simulation": {"config", "metrics", "sampling", "scheduler", "token_tree"},
    # engine: as an annotation, and to hear of engines that open. simulation: a profile is priced for the simulator.
    "profiling": {"config", "engine", "ipc", "measuring", "metrics", "output", "sampling", "simulation"}
    | {"system", "trace"},
    # workers, ipc, scheduler: forwards are timed with the code that runs them. tasks: prompts when none are given.
    "tuning": {"config", "decoding", "engine", "ipc", "measuring", "metrics", "models", "request", "sampling"}
    | {"scheduler", "simulation", "system", "tasks", "token_tree", "workers"},
    "training": {"models"},  # heads are trained as they are run
    # tuning.acceptance: a growmap is fitted before it is measured. solve: solve rates are of `seedmp solve`'s searches.
    "benchmarks": {"config", "decoding", "engine", "measuring", "metrics", "models", "request", "sampling", "search"}
    | {"output", "solve", "system", "tasks", "token_tree", "tuning"},
    "recipes": {"tasks", "training"},  # documents are the prompts of the tasks; training.optimiser
    "commands": ANY,
    "__main__": ANY,
}

# Nothing that is installed for users may need these.
OUTSIDE = {"benchmarks", "recipes", "tests"}

# Cycles that are known, as (importing module, imported module): whose they are, and since when. Empty is the aim.
KNOWN_CYCLES: dict[tuple[str, str], str] = {}

# The scheduler gets time and chance as arguments, and tells others what to do.
SCHEDULER_THIRD_PARTY = {"numpy"}
IMPURE = {
    "torch", "transformers", "zmq", "msgpack", "multiprocessing", "threading", "asyncio", "socket",
    "subprocess", "time", "random", "secrets", "os", "concurrent",
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module."""
    for package, folder in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *parts)), file


def imported_names(source: str, *, annotations: bool = True) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of each import, inside functions too; ``annotations``: those below ``if TYPE_CHECKING`` too.

    ``from a import b`` gives ``a.b``, which may name a module or something inside ``a``.
    """
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not annotations:
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: absolute imports only"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def unit_of(dotted: str) -> str:
    if dotted.startswith("recipes"):
        return "recipes"
    return dotted.split(".")[1] if "." in dotted else "__init__"


def ours(dotted: str) -> bool:
    return dotted.split(".")[0] in {"seedmp", "recipes"}


def find_cycle(arrows: Mapping[str, set[str]]) -> list[str]:
    """A path of arrows that ends where it begins; empty without one."""
    clear: set[str] = set()  # from here no cycle is reached

    def follow(path: list[str]) -> list[str]:
        for target in sorted(arrows.get(path[-1], ())):
            if target in path:
                return [*path[path.index(target) :], target]
            if target not in clear and (cycle := follow([*path, target])):
                return cycle
        clear.add(path[-1])
        return []

    return next((cycle for start in sorted(arrows) if start not in clear and (cycle := follow([start]))), [])


MODULES = list(modules())
IDS = [name for name, _ in MODULES]
NAMES = {name.removesuffix(".__init__") for name in IDS}


def module_of(dotted: str) -> str:
    """The module that an imported name names or lies in."""
    while dotted not in NAMES:
        dotted = dotted.rpartition(".")[0]
    return dotted


@pytest.mark.parametrize(("name", "file"), MODULES, ids=IDS)
def test_imports_follow_the_table(name: str, file: Path) -> None:
    unit = unit_of(name)
    assert unit in MAY_IMPORT, f"{unit} is not in the table of this file: say what it may import"
    allowed = MAY_IMPORT[unit] | BASE | {unit, "__version__"}
    for imported, line in imported_names(file.read_text()):
        first = imported.split(".")[0]
        where = f"{file.relative_to(ROOT)}:{line} imports {imported}"
        assert first not in {"benchmarks", "ipc", "workers"}, f"{where}: a second copy; say seedmp.{first}"
        if unit not in OUTSIDE:
            assert not {first, unit_of(imported)} & OUTSIDE, f"{where}: the library needs none of {sorted(OUTSIDE)}"
        if ours(imported) and "*" not in allowed:
            assert unit_of(imported) in allowed, f"{where}: {unit} may import {sorted(allowed)}"


def test_every_permission_is_used() -> None:
    used: dict[str, set[str]] = {unit: set() for unit in MAY_IMPORT}
    for name, file in MODULES:
        used[unit_of(name)] |= {unit_of(imported) for imported, _ in imported_names(file.read_text()) if ours(imported)}
    units = {unit_of(name) for name in IDS}
    assert set(MAY_IMPORT) == units, "the table and the folders name different units"
    unused = {unit: sorted(allowed - used[unit] - ANY) for unit, allowed in MAY_IMPORT.items()}
    assert {unit: names for unit, names in unused.items() if names} == {}


def test_few_may_import_anything() -> None:
    assert {unit for unit, allowed in MAY_IMPORT.items() if "*" in allowed} == MAY_HAVE_ANY


def test_modules_import_each_other_in_no_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for name, file in MODULES:
        module = name.removesuffix(".__init__")
        imported = imported_names(file.read_text(), annotations=False)
        targets = {module_of(dotted) for dotted, _ in imported if ours(dotted)} - {module}
        arrows[module] = {target for target in targets if (module, target) not in KNOWN_CYCLES}
    cycle = find_cycle(arrows)
    assert not cycle, " imports ".join(cycle)


def test_a_circle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


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
    assert sorted(name for name, _ in imported_names(source, annotations=False)) == ["a.b", "c.d", "g"]
