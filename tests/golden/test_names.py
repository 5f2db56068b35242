"""Public names and options change on purpose only: ``make golden`` rewrites the two lists."""

import importlib

import pytest

from tests.golden.names import FILES, FOLDER, text_of

HOW = "If it is meant, run 'make golden', look at the difference, and add it to CHANGELOG.md."


@pytest.mark.parametrize("name", FILES)
def test_the_list_is_the_one_that_was_frozen(name: str) -> None:
    frozen = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    now = text_of(name).splitlines()
    added = [line for line in now if line not in frozen]
    gone = [line for line in frozen if line not in now]
    assert (added, gone) == ([], []), HOW
    assert now == frozen, HOW


def test_every_listed_name_can_be_imported() -> None:
    for line in (FOLDER / "public_names.txt").read_text(encoding="utf-8").splitlines():
        home, _, name = line.rpartition(".")
        assert hasattr(importlib.import_module(home), name), line
