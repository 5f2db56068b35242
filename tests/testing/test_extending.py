"""The page about extending the package: its files run unchanged, and its table names what exists."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rimlit.testing
from rimlit.testing import laws_of

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))


def run_tests(folder: Path) -> subprocess.CompletedProcess[str]:
    source = Path(rimlit.__file__).parents[1]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            str(folder),
        ],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join((str(source), os.environ.get("PYTHONPATH", ""))),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the page."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_tests_of_the_page_pass_and_take_at_most_10_lines(folder: Path) -> None:
    assert set(FILES) == {"decay.py", "test_decay.py", "test_everything.py"}
    assert len([line for line in FILES["test_decay.py"].splitlines() if line.strip()]) <= 10
    done = run_tests(folder)
    assert done.returncode == 0, done.stdout
    assert f"{2 * len(laws_of('backbone'))} passed" in done.stdout


def test_a_backbone_that_breaks_a_law_fails_with_the_message_of_the_page() -> None:
    broken = FILES["decay.py"].replace("if resets is not None:", "if False:")
    assert broken != FILES["decay.py"]
    namespace: dict[str, Any] = {"__name__": "decay"}
    exec(broken, namespace)  # the page's own text
    (law,) = (law for law in laws_of("backbone") if law.__name__ == "check_reset_starts_again")
    with pytest.raises(AssertionError) as caught:
        law(lambda: namespace["Decay"](5, 8))
    shown = next(line for line in PAGE.splitlines() if line.startswith("Decay breaks the law"))
    numbers = r"-?[\d.]+"
    assert re.match(re.sub(r"0\\\.\d+", lambda _: numbers, re.escape(shown.rstrip("…"))), str(caught.value))


def test_the_table_names_every_kind_and_its_driver() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(check_\w+)\(", PAGE, re.MULTILINE)
    for kind, driver in rows:
        assert laws_of(kind) and driver in rimlit.testing.__all__
    drivers = {name for name in rimlit.testing.__all__ if name.startswith("check_")} - {"check_laws"}
    assert {driver for _, driver in rows} == drivers
