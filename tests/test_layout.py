"""The package's layout: imports go downward, modules are short and hold no state."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "colab_utils"
# A file or folder imports only from the lines above its own.
FLOORS = (
    ("libraries",),
    ("runtime", "parameters", "families", "recipe", "limits"),
    ("shape", "storage", "locks"),
    ("replacement",),
    ("workspace", "hub", "demo"),
    ("data", "memory"),
    ("fast", "weights", "plots", "creation"),
    ("models",),
    ("generation",),
    ("training", "evaluation", "widgets"),
    ("install",),
)
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
LONGEST = 300


def module_name(path: Path) -> str:
    """Return `data.schema` for data/schema.py, and `data` for data/__init__.py."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix("__init__").rstrip(".")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(tree: ast.AST, known: set[str]) -> Iterator[str]:
    """Yield the package's modules that a module imports, also inside its functions."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        package, _, inside = node.module.partition(".")
        if package == "colab_utils":
            for alias in node.names:
                name = f"{inside}.{alias.name}".lstrip(".")
                yield name if name in known else inside


def upward(name: str, names: set[str]) -> list[str]:
    """Return the imports of the module `name` that do not go downward."""
    unit = name.partition(".")[0]
    units = {other.partition(".")[0] for other in names} - {unit, ""}
    return sorted(other for other in units if FLOOR[other] >= FLOOR[unit])


@functools.cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text("utf-8"))


def imports_of(name: str) -> set[str]:
    return set(imported(tree_of(name), set(MODULES)))


def unseen(tree: ast.AST) -> list[str]:
    """Return the imports of the package in a form that `imported` does not read."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"from {'.' * node.level}{node.module or ''}")
        elif isinstance(node, ast.Import):
            found += [one.name for one in node.names if "colab_utils" in one.name]
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_have_a_form_that_is_checked(name):
    assert unseen(tree_of(name)) == []


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_imports_go_downward(name):
    assert upward(name, imports_of(name)) == []


def test_imports_form_no_cycle():
    graph = {name: imports_of(name) - {"", name} for name in MODULES if name}
    # An __init__ imports its files, so a file that imports its own folder is a cycle.
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_is_short(name):
    assert len(MODULES[name].read_text("utf-8").splitlines()) <= LONGEST


def state(tree: ast.Module) -> list[str]:
    """Return lower-case variables at module level, and globals that functions set."""
    found = [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
        if target.id.islower() and not target.id.startswith("__")
    ]
    nodes = ast.walk(tree)
    return found + [
        n for node in nodes if isinstance(node, ast.Global) for n in node.names
    ]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_holds_no_state(name):
    assert state(tree_of(name)) == []


def test_checks_find_what_they_look_for():
    lazy = "def f():\n    from colab_utils.training import trainer\n"
    assert upward("data.schema", set(imported(ast.parse(lazy), set(MODULES)))) == [
        "training"
    ]
    assert upward("hub.cards", {"workspace"}) == ["workspace"]  # the same floor
    assert upward("models.loading", {"models.sources", "data", ""}) == []
    forms = "import os\nimport colab_utils.data as d\nfrom . import a\nfrom .b import c"
    assert unseen(ast.parse(forms)) == ["colab_utils.data", "from .", "from .b"]
    with pytest.raises(CycleError):
        list(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
    source = "_last = {}\nSIZE = 3\ndef f():\n    global count\n    count = 1\n"
    assert state(ast.parse(source)) == ["_last", "count"]
