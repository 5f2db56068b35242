"""The page about how the package is built names rooms, files and records that exist."""

import re
from pathlib import Path

from tests.test_import_directions import BY_NAME, LEVEL_OF, LEVELS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
DRAWINGS = re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SOURCES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "src/rimlit").rglob("*.*")
    if path.suffix in (".py", ".h")
}


def test_rooms_stand_in_the_order_in_which_they_may_import() -> None:
    (table,) = re.findall(r"^\| Level .*?\n\n", PAGE, re.DOTALL | re.MULTILINE)
    rows = [re.findall(r"\[`([\w.]+)`\]\(\.\./src", row) for row in table.strip().splitlines()[2:]]
    assert len(rows) == len(LEVELS)
    for level, rooms in enumerate(rows):
        assert {LEVEL_OF[room] for room in rooms} == {level}
    folders = {room for room in LEVEL_OF if f"rimlit.{room}" in BY_NAME and (ROOT / "src/rimlit" / room).is_dir()}
    assert folders <= {room for rooms in rows for room in rooms}


def test_every_file_in_a_drawing_exists_and_is_linked() -> None:
    assert len(DRAWINGS) == 3
    for drawing in DRAWINGS:
        folder = ""
        for name in re.findall(r"[\w/]+\.(?:py|h|cpp)\b", drawing):
            folder = name.rpartition("/")[0] or folder  # "kernels/cpu/loop.py, call.py" are of one folder
            path = f"src/rimlit/{folder}/{name.rpartition('/')[2]}"
            path = path if (ROOT / path).is_file() else f"src/rimlit/{name}"  # types.py is in no folder
            assert (ROOT / path).is_file(), name
            assert f"](../{path})" in PAGE, f"{path} is not linked"


def test_every_class_in_the_drawing_of_a_tensor_exists() -> None:
    names = set(re.findall(r"\b[A-Z]\w+[a-z]\w*\b", DRAWINGS[0])) - {"NamedTuple", "None", "Function"}
    assert {"LayerInputs", "LayerWeights", "Operands", "Outputs"} <= names
    for name in names:
        pattern = rf"class {name}\b|STRUCT\({name}\b"
        assert any(re.search(pattern, text) for text in SOURCES.values()), name
