"""Imports point one way, read from the syntax tree: nothing is imported to find out."""

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import rimlit

ROOT = Path(rimlit.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")

READS_SETTINGS = (
    *("_jsonargparse", "arguments", "checks", "configs", "failures", "help", "messages", "options", "parser"),
    *("places", "quiet", "settings", "setup", "surroundings"),
)
# what a part may import: its own level's neighbours and everything below; a module may have a level of its own
LEVELS = (
    ("_lazy", "_train", "_version", "checks", "deprecation", "errors", "types", "spec"),  # the ground floor
    ("causes", "checkpoints", "console", "files", "yaml_files"),
    ("nn",),
    ("mechanisms",),
    ("kernels",),
    ("backbones", "encoders", "heads", "metrics", "training._lightning"),
    ("data", "tasks"),
    ("tracking", "rl"),
    ("pictures", "training", "comparison.matching", "integrations"),
    ("testing",),
    # what reads settings, which a comparison does too
    tuple(f"cli.{name}" for name in READS_SETTINGS),
    ("comparison",),
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


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported_modules(path: Path) -> set[str]:
    """The modules of rimlit that a file imports anywhere."""
    return modules_in(tree_of(path))


def modules_in(tree: ast.Module, *, with_functions: bool = True) -> set[str]:
    """The modules of rimlit that a tree imports; ``from rimlit.nn import attention`` means the module."""
    found: set[str] = set()
    for node in ast.walk(tree) if with_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in BY_NAME else node.module for name in inner.values()}
    return found & BY_NAME.keys()


BY_NAME = {module_of(path): path for path in ROOT.rglob("*.py")}


@functools.cache
def imports_of(path: Path) -> set[str]:
    return set(imported(tree_of(path)))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_parts_that_are_read_are_those_that_exist() -> None:
    assert {part_of(path) for path in MODULES} <= {*LEVEL_OF, "__main__"}
    assert {"nn", "kernels", "backbones", "data", "tasks"} <= {part_of(path) for path in MODULES}


def level_of(module: str) -> int | None:
    """The level of a module, or of the nearest part above it that has one; None for the package itself."""
    parts = module.split(".")[1:]
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((LEVEL_OF[name] for name in names if name in LEVEL_OF), None)


def test_a_module_imports_from_its_own_level_and_below() -> None:
    levels = {path: level_of(module_of(path)) for path in MODULES}
    assert [name_of(path) for path, level in levels.items() if level is None] == ["__main__.py"]
    upwards = [
        f"{module_of(path)} imports {name}"
        for path, level in levels.items()
        if level is not None
        for name in sorted(imported_modules(path))
        if (level_of(name) or 0) > level
    ]
    assert upwards == []


def test_lightning_is_imported_at_the_edge_only() -> None:
    tops = {path: {name.split(".")[0] for name in imports_of(path)} for path in MODULES}
    users = [path for path in MODULES if tops[path] & {"lightning", "pytorch_lightning", "lightning_fabric"}]
    assert "tasks" in {part_of(path) for path in users}
    assert [name_of(path) for path in users if part_of(path) not in WITH_LIGHTNING] == []


def test_kernels_are_reached_from_backbones_with_mechanisms_only() -> None:
    users = {
        part_of(path) + "/" + path.name
        for path in MODULES
        if part_of(path) != "kernels" and any(name.startswith("rimlit.kernels") for name in imports_of(path))
    }
    assert "backbones/rim.py" in users
    names = ("rim", "brim", "balanced", "layered", "watching")
    own = {f"backbones/{name}.py" for name in names}
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
    assert tops == {"typing", "rimlit._lazy", "rimlit._version"}


def require_no_cycle(graph: dict[str, set[str]]) -> None:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_modules_import_each_other_not_even_inside_a_function() -> None:
    """A cycle is shown as the way back to where it began."""
    graph = {name: imported_modules(path) for name, path in BY_NAME.items()}
    assert "rimlit.errors" in graph["rimlit.checks"]
    require_no_cycle(graph)


def at_the_top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported, without what is there for type checkers only."""
    for node in body:
        if not isinstance(node, ast.If):
            yield node
        elif "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from at_the_top([*node.body, *node.orelse])


def test_modules_and_the_packages_they_are_in_can_be_imported_in_any_order() -> None:
    """Who imports ``rimlit.a.b`` runs ``rimlit.a``, too."""
    graph: dict[str, set[str]] = {}
    for name, path in BY_NAME.items():
        tree = tree_of(path)
        imported = modules_in(ast.Module(list(at_the_top(tree.body)), []), with_functions=False)
        parts = [module.split(".") for module in imported]
        packages = {".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)}
        graph[name] = {module for module in packages if not f"{name}.".startswith(f"{module}.")}
    require_no_cycle(graph)


def test_nothing_imports_from_the_package_itself() -> None:
    """``rimlit/__init__.py`` names modules of every level: who imports from it would import them all."""
    users = [name for name, path in BY_NAME.items() if "rimlit" in imported_modules(path)]
    assert users == []


def test_code_outside_the_backbones_asks_for_a_protocol_and_not_for_the_rim() -> None:
    asked = [
        f"{name_of(path)}: {ast.unparse(node)}"
        for path in MODULES
        if part_of(path) != "backbones"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
        if "RIM" in {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
    ]
    assert asked == []
