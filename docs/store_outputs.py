"""Copy the outputs of executed notebooks into notebooks/, so that the site and a code host show them.

``make outputs`` executes them in a temporary folder and passes that folder. Log lines, colours of a terminal and
paths of the machine are left out.
"""

import base64
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NOISE = re.compile(r"`Trainer|Restoring states|Loaded model weights|GPU available|Seed set|/")
"""How a printed line begins that is a log line or begins with a path of this machine."""
LARGE = 400_000
"""Characters of a GIF of which every fourth frame is kept."""


def main(folder: Path) -> None:
    """Store the outputs of every notebook of ``folder``."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook, executed = (json.loads(each.read_text("utf-8")) for each in (path, folder / path.name))
        for cell, done in zip(notebook["cells"], executed["cells"], strict=True):
            if cell["cell_type"] == "code":
                cell["execution_count"] = None
                cell["outputs"] = [each for output in done["outputs"] for each in cleaned(output, folder)]
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{path.name}: {path.stat().st_size:,} bytes")


def cleaned(output: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Return an output as it is stored, in a list that is empty where nothing is left."""
    data = output.get("data", {})
    if any(kind.startswith("image/") for kind in data) or output["output_type"] == "execute_result":
        if len(data.get("image/gif", "")) > LARGE:
            data["image/gif"] = every_fourth_frame(data["image/gif"])
        if "execution_count" in output:
            output["execution_count"] = None
        return [output]
    if output.get("name") == "stderr":
        return []
    text = COLOUR.sub("", "".join(output.get("text", data.get("text/plain", []))))
    lines = text.replace(f"{folder.resolve()}/", "").splitlines(keepends=True)
    kept = [line for line in lines if not NOISE.match(line)]
    return [{"name": "stdout", "output_type": "stream", "text": kept}] if "".join(kept).strip() else []


def every_fourth_frame(encoded: str) -> str:
    """Return a GIF in base64 with every fourth of its frames, at the same speed."""
    film = Image.open(io.BytesIO(base64.b64decode(encoded)))
    frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(film)][::4]
    file = io.BytesIO()
    duration = 4 * film.info["duration"]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
