"""No two classes of the package have one name, read from the syntax tree: a name says what a thing is."""

import ast
from collections import defaultdict
from pathlib import Path

import rimlit

ROOT = Path(rimlit.__file__).parent


def classes_of(source: str) -> list[str]:
    """Return the names of all classes, private, nested and local ones too."""
    return [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def test_classes_are_found_wherever_they_stand() -> None:
    source = "class A:\n    class _B: ...\ndef f():\n    if 1:\n        class C: ...\n"
    assert sorted(classes_of(source)) == ["A", "C", "_B"]


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        for name in classes_of(path.read_text(encoding="utf-8")):
            places[name].append(path.relative_to(ROOT).as_posix())
    assert len(places) > 100
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert twice == {}
