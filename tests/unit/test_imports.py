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

BASE = {"errors", "ids", "checks", "plain_json", "registry"}  # everyone may import these, unused or not
ANY = {"*"}
MAY_HAVE_ANY = {"__main__", "commands"}  # the outermost ring; tests, too, are not in the table

# unit -> units that it may import, besides BASE and itself; none is unused.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"async_engine", "branch", "config", "engine", "request", "sampling"},
    "errors": set(),
    "ids": set(),
    "checks": set(),
    "plain_json": set(),
    "registry": set(),
    # A setting names a method.
    "config": {"methods", "models", "system"},
    "system": set(),
    "sampling": set(),
    "trace": set(),
    # Overlap is a formula over spans.
    "metrics": {"trace"},
    # Which rule a tree needs: names alone, until somebody asks for a rule of his own.
    "methods": {"decoding", "sampling", "token_tree"},
    "token_tree": {"plain_json", "reporting"},
    "decoding": {"sampling", "token_tree"},
    "draft_order": {"token_tree"},
    "request": {"metrics"},
    # A proposal says what kind of tree it is; span_ring stores the activities that trace names. draft_order and
    # metrics: records that messages nest.
    "ipc": {"draft_order", "metrics", "sampling", "token_tree", "trace"},
    "kv": set(),
    # kv.rope_border: where KV of another kind begins, which the scheduler keeps apart.
    "models": {"ipc", "kv", "plain_json", "token_tree"},
    # Of kv, what is pure (tested below): the slot bookkeeping is part of the decision.
    "scheduler": {"config", "draft_order", "kv", "methods", "metrics", "sampling", "token_tree"},
    # A draft kind says what its drafts run and how their trees grow.
    "drafts": {"config", "decoding", "draft_order", "ipc", "models", "sampling", "token_tree"},
    "workers": {"client", "config", "decoding", "draft_order", "drafts", "ipc", "models", "sampling", "scheduler"}
    | {"token_tree", "trace"},
    "reporting": set(),
    # What lies between an engine and its verifiers; launch starts seedmp.workers by name.
    "client": {"config", "ipc", "request", "sampling", "system", "trace"},
    "branch": {"request", "sampling"},
    # Settings by name, the bundled pair, the cores of this node, what a method's drafts are.
    "plan": {"config", "methods", "models", "plain_json", "system"},
    # decoding.constraint: a broken constraint is refused before any work. profiling.profile: Engine.profile; that
    # module knows observers, not the engine.
    "engine": {"branch", "client", "config", "decoding", "drafts", "ipc", "methods", "metrics", "models", "plan"}
    | {"profiling", "request", "sampling", "trace"},
    "async_engine": {"client", "engine", "request", "sampling"},
    # search.task and search.thought_tree alone (tested below): what a task implements.
    "tasks": {"plain_json", "search"},
    # It knows no task: users bring their own.
    "search": {"engine", "metrics", "plain_json", "reporting", "request", "sampling"},
    "solve": {"engine", "metrics", "plain_json", "reporting", "search", "tasks"},
    # methods: how many ended texts a lookup keeps. models: what an inflated model weighs.
    "measuring": {"config", "engine", "methods", "metrics", "models", "request", "sampling", "system"},
    # The simulator is a host of the real scheduler.
    "simulation": {"config", "draft_order", "metrics", "plain_json", "sampling", "scheduler", "token_tree"},
    # simulation: a profile is priced for the simulator.
    "profiling": {"client", "config", "engine", "ipc", "measuring", "metrics", "reporting", "sampling"}
    | {"simulation", "system", "trace"},
    # workers, ipc, scheduler: forwards are timed with the code that runs them. tasks: prompts when none are given.
    "tuning": {"config", "decoding", "draft_order", "drafts", "engine", "ipc", "measuring", "methods", "metrics"}
    | {"models", "plan", "request", "sampling", "scheduler", "simulation", "system", "tasks"}
    | {"token_tree", "workers"},
    # Heads are trained as they are run.
    "training": {"models"},
    # tuning.acceptance: a growmap is fitted before it is measured. solve: solve rates are of `seedmp solve`'s searches.
    "benchmarks": {"client", "config", "decoding", "draft_order", "engine", "measuring", "methods", "metrics"}
    | {"models", "reporting", "request", "sampling", "scheduler", "search", "solve", "system", "tasks"}
    | {"token_tree", "tuning"},
    # Documents are the prompts of the tasks; training.optimiser.
    "recipes": {"tasks", "training"},
    "commands": ANY,
    "__main__": ANY,
}

# Nothing that is installed for users may need these.
OUTSIDE = {"benchmarks", "recipes", "tests"}

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


def test_the_map_names_every_unit() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    units = [unit for unit in MAY_IMPORT if not unit.startswith("__")]
    assert [unit for unit in units if f"`{unit}`" not in page and f"`{unit}/`" not in page] == []


def test_few_may_import_anything() -> None:
    assert {unit for unit, allowed in MAY_IMPORT.items() if "*" in allowed} == MAY_HAVE_ANY


def test_modules_import_each_other_in_no_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for name, file in MODULES:
        module = name.removesuffix(".__init__")
        imported = imported_names(file.read_text(), annotations=False)
        arrows[module] = {module_of(dotted) for dotted, _ in imported if ours(dotted)} - {module}
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
            assert imported.startswith(("seedmp.kv.slot_tree", "seedmp.kv.held_path", "seedmp.kv.rope_border")), (
                f"{where}: pure files of kv"
            )


@pytest.mark.parametrize("name", ["slot_tree", "held_path"])
def test_slot_books_are_pure(name: str) -> None:
    for imported, line in imported_names((ROOT / f"seedmp/kv/{name}.py").read_text()):
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
