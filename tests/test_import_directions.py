"""Imports point one way, read from the syntax tree: nothing is imported to find out."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rimlit

ROOT = Path(rimlit.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")

# what a part may import: its own level's neighbours and everything below
LEVELS = (
    ("causes", "checkpoints", "console", "errors", "files", "types", "spec", "yaml_files"),
    ("nn",),
    ("kernels",),
    ("backbones", "encoders", "heads", "metrics"),
    ("data", "tasks"),
    ("tracking",),
    ("training", "comparison", "rl"),
    ("testing",),
    ("cli",),
)
LEVEL_OF = {part: level for level, parts in enumerate(LEVELS) for part in parts}
WITH_LIGHTNING = {"data", "tasks", "tracking", "training", "comparison", "rl", "testing", "cli"}


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


def imports_of(path: Path) -> set[str]:
    return set(imported(ast.parse(path.read_text(encoding="utf-8"))))


def test_the_parts_that_are_read_are_those_that_exist() -> None:
    assert {part_of(path) for path in MODULES} <= {*LEVEL_OF, "__main__", "_version"}
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
    assert {user for user in users if user.startswith("backbones/")} == {"backbones/rim.py"}
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
    tops = {
        alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    } | {node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    assert tops <= {"typing"}
