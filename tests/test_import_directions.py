"""Imports point one way, read from the syntax tree: nothing is imported to find out."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import rimlit

ROOT = Path(rimlit.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")

# what a part may import: its own level's neighbours and everything below
LEVELS = (
    ("_version", "checks", "errors", "types", "spec"),  # the ground floor
    ("causes", "checkpoints", "console", "files", "yaml_files"),
    ("nn",),
    ("mechanisms",),
    ("kernels",),
    ("backbones", "encoders", "heads", "metrics"),
    ("data", "tasks"),
    ("tracking", "rl"),
    ("pictures", "training"),
    ("comparison", "testing"),
    ("cli",),
)
LEVEL_OF = {part: level for level, parts in enumerate(LEVELS) for part in parts}
WITH_LIGHTNING = {"data", "tasks", "tracking", "rl", "pictures", "training", "comparison", "testing", "cli"}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            if node.module == "rimlit":
                yield from (f"rimlit.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    parts = ["rimlit", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> set[str]:
    """The modules of ours that a file imports anywhere; ``from rimlit.nn import attention`` means the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in BY_NAME else node.module for name in inner.values()}
    return found & BY_NAME.keys()


BY_NAME = {module_of(path): path for path in ROOT.rglob("*.py")}


def imports_of(path: Path) -> set[str]:
    return set(imported(ast.parse(path.read_text(encoding="utf-8"))))


def test_the_parts_that_are_read_are_those_that_exist() -> None:
    assert {part_of(path) for path in MODULES} <= {*LEVEL_OF, "__main__"}
    assert {"nn", "kernels", "backbones", "data", "tasks"} <= {part_of(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_from_its_own_level_and_below(path: Path) -> None:
    part = part_of(path)
    if part not in LEVEL_OF:
        pytest.skip(f"{part} stands outside the levels")
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "rimlit" and len(parts) > 1 and parts[1] in LEVEL_OF:
            assert LEVEL_OF[parts[1]] <= LEVEL_OF[part], f"{part} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lightning_is_imported_at_the_edge_only(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports_of(path)}
    if part_of(path) not in WITH_LIGHTNING:
        assert tops.isdisjoint({"lightning", "pytorch_lightning", "lightning_fabric"})


def test_kernels_are_reached_from_the_rim_only() -> None:
    users = {
        part_of(path) + "/" + path.name
        for path in MODULES
        if part_of(path) != "kernels" and any(name.startswith("rimlit.kernels") for name in imports_of(path))
    }
    assert "backbones/rim.py" in users
    own = {"backbones/rim.py", "backbones/layered.py", "backbones/watching.py"}
    assert {user for user in users if user.startswith("backbones/")} == own
    assert {user.split("/")[0] for user in users} <= {"backbones", *WITH_LIGHTNING}


def test_nothing_imports_the_laws() -> None:
    users = {
        part_of(path) for path in MODULES if any(name.startswith("rimlit.testing") for name in imports_of(path))
    }
    assert users == {"testing"}


def test_the_laws_need_no_test_runner() -> None:
    tops = {name.split(".")[0] for path in MODULES if part_of(path) == "testing" for name in imports_of(path)}
    assert tops.isdisjoint({"pytest", "_pytest"}) and "rimlit" in tops


def test_the_package_itself_imports_nothing_heavy_at_the_top() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    tops = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    tops |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    assert tops == {"typing", "rimlit._version"}


def test_no_modules_import_each_other_not_even_inside_a_function() -> None:
    """A cycle is shown as the way back to where it began."""
    graph = {name: imported_modules(path) for name, path in BY_NAME.items()}
    assert "rimlit.errors" in graph["rimlit.checks"]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_nothing_imports_from_the_package_itself() -> None:
    """``rimlit/__init__.py`` names modules of every level: who imports from it would import them all."""
    users = [name for name, path in BY_NAME.items() if "rimlit" in imported_modules(path)]
    assert users == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_outside_the_backbones_asks_for_a_protocol_and_not_for_the_rim(path: Path) -> None:
    asked = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        if "RIM" in {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
    ]
    assert part_of(path) == "backbones" or not asked
