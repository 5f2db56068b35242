"""Deprecated names and arguments warn, still work, and are gone in the version that removes them."""

import inspect
import warnings
from pathlib import Path

import pytest

import rimlit
from rimlit.deprecation import deprecated

LATER = "99.0"


@deprecated("topk", instead="num_active", removed_in=LATER)
def count(size: int, *, num_active: int = 4) -> tuple[int, int]:
    return size, num_active


@deprecated(instead="Newer", removed_in=LATER)
class Older:
    def __init__(self, size: int) -> None:
        self.size = size


def test_an_old_argument_is_passed_on_under_its_new_name_with_one_warning() -> None:
    with pytest.warns(
        FutureWarning, match=r"^count: topk is deprecated .* version 99\.0\. Use num_active\.$"
    ) as seen:
        assert count(6, topk=3) == (6, 3)  # type: ignore[call-arg]
    assert [warning.filename for warning in seen] == [__file__]


def test_without_the_old_argument_nothing_is_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count(6, num_active=2) == (6, 2)
    assert list(inspect.signature(count).parameters) == ["size", "num_active"]


def test_the_old_and_the_new_argument_together_are_refused() -> None:
    with pytest.warns(FutureWarning), pytest.raises(TypeError, match="got topk and num_active"):
        count(6, topk=3, num_active=3)  # type: ignore[call-arg]


def test_a_class_warns_when_it_is_built_and_stays_a_class() -> None:
    with pytest.warns(FutureWarning, match=r"^Older is deprecated .*Use Newer\.$"):
        assert Older(3).size == 3
    assert isinstance(Older, type)


@pytest.mark.parametrize("version", ["0.2", "0.1", "1", "soon", "1.2.3"])
def test_the_version_that_removes_is_a_later_one(version: str) -> None:
    with pytest.raises(ValueError, match=f"removed_in='{version}'"):
        deprecated(instead="x", removed_in=version)


def test_the_versions_that_are_written_down_are_one() -> None:
    root = Path(__file__).parents[1]
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = next(line for line in changelog.splitlines() if line.startswith("## [") and "Unreleased" not in line)
    version, _, date = newest.removeprefix("## [").partition("] - ")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\ndate-released: {date}\n" in citation
    assert rimlit.__version__ == version or rimlit.__version__.endswith(".dev0")


def test_the_changelog_has_the_form_that_it_names() -> None:
    text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = [line for line in text.splitlines() if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    kinds = {line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
