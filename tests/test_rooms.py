"""Rooms stay small: a file that is longer says at its top why."""

import ast
import re
from pathlib import Path

import pytest

import rimlit

ROOT = Path(rimlit.__file__).parent
MOST_LINES = 450
FILES = sorted(path for suffix in ("py", "cpp", "h") for path in ROOT.rglob(f"*.{suffix}"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_of(text: str) -> int:
    return text.count("\n")


def top_of(path: Path, text: str) -> str:
    """The docstring of a module, or the comment that a file of C++ begins with."""
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    found = re.match(r"(?:\s*//[^\n]*\n)+|\s*/\*.*?\*/", text, re.S)
    return found[0] if found else ""


def gives_a_reason(top: str) -> bool:
    """Whether a top says ``Long because …`` in more than a few words."""
    found = re.search(r"Long because (.+)", top, re.S)
    return found is not None and len(found[1].split()) >= 4


def test_a_file_is_short_or_says_why_not() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in FILES}
    long = {name_of(path): lines_of(text) for path, text in texts.items() if lines_of(text) > MOST_LINES}
    reasoned = [name_of(path) for path, text in texts.items() if gives_a_reason(top_of(path, text))]
    assert {name: lines for name, lines in long.items() if name not in reasoned} == {}


@pytest.mark.parametrize(
    ("suffix", "text", "expected"),
    [
        ("py", '"""One table.\n\nLong because the table has a row for each case.\n"""\n', True),
        ("py", '"""One table. Long because it is."""\n', False),
        ("py", '"""One table."""\n# Long because the table has a row for each case.\n', False),
        ("cpp", "// The loop.\n// Long because the compiler inlines it whole.\nint x;\n", True),
        ("h", "/* Long because the compiler inlines it whole. */\n", True),
        ("cpp", "int x;\n// Long because the compiler inlines it whole.\n", False),
    ],
)
def test_a_reason_stands_at_the_top_in_words(suffix: str, text: str, expected: bool) -> None:
    assert gives_a_reason(top_of(Path(f"a.{suffix}"), text)) is expected


def test_the_command_line_of_the_process_is_read_in_one_place() -> None:
    """It is written for Lightning, which starts other processes with it, and restored by ``rimlit.fit``."""
    readers = [
        name_of(path)
        for path in FILES
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if ast.unparse(node) in ("sys.argv", "sys.argv[1:]") and isinstance(getattr(node, "ctx", None), ast.Load)
    ]
    assert {name for name in readers if name not in ("cli/fit.py", "cli/run.py")} == {"cli/__init__.py"}
    assert (ROOT / "cli/run.py").read_text(encoding="utf-8").count("sys.argv") == 1
