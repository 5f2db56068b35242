"""The outputs that are stored in the notebooks, which the site shows."""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

from store_outputs import NOTEBOOKS, cleaned, every_fourth_frame

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


def outputs_of(path: Path) -> list[dict[str, Any]]:
    """The stored outputs of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_shows_a_figure_and_nothing_of_the_machine(path: Path) -> None:
    outputs = outputs_of(path)
    assert any(kind.startswith("image/") for output in outputs for kind in output.get("data", {}))
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    words = [output.get("text") or output["data"].get("text/plain", []) for output in outputs]
    text = "".join(line for lines in words for line in lines)
    assert len(text) > 100
    for trace in ("/tmp", "/home", "site-packages", "\x1b", "Traceback"):
        assert trace not in text


def test_log_lines_colours_and_paths_of_the_machine_are_left_out(tmp_path: Path) -> None:
    printed = [
        "Seed set to 0\n",
        "\x1b[1mtest\x1b[0m\n",
        f"Predictions: {tmp_path}/runs/a\n",
        "/usr/lib: a warning\n",
    ]
    stored = cleaned({"output_type": "stream", "name": "stdout", "text": printed}, tmp_path)
    assert [output["text"] for output in stored] == [["test\n", "Predictions: runs/a\n"]]
    assert cleaned({"output_type": "stream", "name": "stderr", "text": ["a warning"]}, tmp_path) == []
    assert (
        cleaned(
            {"output_type": "display_data", "data": {"text/html": ["<pre></pre>"], "text/plain": []}}, tmp_path
        )
        == []
    )
    result = {"output_type": "execute_result", "execution_count": 3, "data": {"text/plain": ["True"]}}
    assert cleaned(result, tmp_path) == [{**result, "execution_count": None}]


def test_a_long_film_keeps_every_fourth_frame_at_the_same_speed() -> None:
    frames = [Image.new("RGB", (8, 8), (20 * number, 0, 0)) for number in range(12)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=50)
    film = Image.open(io.BytesIO(base64.b64decode(every_fourth_frame(base64.b64encode(file.getvalue()).decode()))))
    assert film.n_frames == 3 and film.info["duration"] == 200
