"""The Makefile's targets."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m (rimlit[.\w]*)", MAKEFILE.read_text()))))
def test_a_module_that_make_runs_prints_no_warning(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_help_names_every_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):(?!=)", MAKEFILE.read_text(), flags=re.MULTILINE))
    # a make that runs these tests would have this one say which folder it is in
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "help"]
    done = subprocess.run(command, cwd=MAKEFILE.parent, capture_output=True, text=True, check=True, env=outside)
    named = {line.split()[0] for line in done.stdout.splitlines()[1:]}
    assert named == targets


def test_shuffled_tests_run_in_an_order_that_the_printed_seed_repeats() -> None:
    files = ("tests/test_types.py", "tests/test_spec.py")

    def order(seed: int) -> list[str]:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
        done = subprocess.run(
            [*command, "--shuffle", str(seed)], cwd=MAKEFILE.parent, capture_output=True, text=True, check=True
        )
        return [line for line in done.stdout.splitlines() if "::" in line]

    first, again, other = order(3), order(3), order(4)
    assert first == again != other
    assert sorted(first) == sorted(other)
