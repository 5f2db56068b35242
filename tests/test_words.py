"""The list of banned idioms finds them, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from check_words import BANNED, check_text  # noqa: E402


@pytest.mark.parametrize(
    ("text", "idiom", "instead"),
    [
        ("a run that goes\non with it", "goes on with", "resume"),
        ("def test_a_run_is_gone_on_with():", "gone on with", "resume"),
        ("memory that is LENT", "LENT", "pool"),
        ("after the walk_back", "walk back", "forward pass, backward pass"),
        ("class WalkBack:", "WalkBack", "forward pass"),
        ("`rimlit` sets it aside", "sets it aside", "archive"),
        ("Nobody reads it", "Nobody", "say which code"),
        ("12 numbers in the state", "numbers in the state", "state size"),
        ("'fitt' is no command", "is no command", "is not a"),
        ("a class of yours", "of yours", "your own"),
        ("what\ncame of it", "what came of it", "results"),
        ("mechanisms are awake", "are awake", "active"),
    ],
)
def test_an_idiom_is_found_with_its_line_and_a_better_word(text: str, idiom: str, instead: str) -> None:
    (message,) = check_text("page.md", f"first\n{text}")
    assert message.startswith(f"page.md:2: {idiom!r}; write: {instead}")


@pytest.mark.parametrize(
    "text",
    [
        "blended",
        "equivalent",
        "the calendar",
        "recommended",
        "a silent run",
        "amend",
        "a walkthrough",
        "ideal talent",
        "there is no command",
        "pandas is no longer needed",
        "hand-written on a GPU",
    ],
)
def test_a_word_that_holds_an_idiom_is_none(text: str) -> None:
    assert check_text("page.md", text) == []


def test_the_repository_has_none() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/check_words.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(" files, 0 banned idioms\n") and len(BANNED) > 15
