"""Where a measurement comes from, written at the head of its file under benchmarks/results."""

import json
import sys
from pathlib import Path
from typing import Any

from rimlit.tracking.recording import git_commit, machine


def origin(**options: Any) -> dict[str, Any]:
    """Return command, commit and machine; at the start of a script, because the checkout may move on meanwhile.

    Args:
        **options: What of the command line the result depends on, by the options' names; True is a switch.
    """
    words = ["python", f"benchmarks/{Path(sys.argv[0]).name}"]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return {"command": " ".join(words), "commit": git_commit(), "machine": machine()}


def write(path: Path | None, content: dict[str, Any]) -> None:
    """Write a result, where a file for it was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
