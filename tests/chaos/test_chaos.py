"""Runs killed at random instants lose nothing."""

import re
import subprocess
import sys

import pytest

from tests.tasks.running import quiet

pytestmark = [*quiet, pytest.mark.slow]


def chaos(*options: str) -> tuple[int, int, int, int]:
    """Kill as ``make chaos`` does; return kills, corrupt files, most steps lost and differing bits."""
    command = [sys.executable, "-m", "tests.chaos", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    print(done.stdout)  # the seed
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(
        r"(\d+) kills, (\d+) corrupt, at most (\d+) steps lost, (\d+) differing bits",
        done.stdout.splitlines()[-1],
    )
    assert found is not None, done.stdout
    kills, corrupt, lost, bits = map(int, found.groups())
    return kills, corrupt, lost, bits


def test_runs_killed_at_random_instants_lose_no_file_no_bit_and_at_most_one_interval() -> None:
    kills, corrupt, lost, bits = chaos("--kills", "25")
    assert (kills, corrupt, bits) == (25, 0, 0)
    assert lost <= 2, "saved after every update of up to two batches"


def test_files_written_in_place_would_break() -> None:
    kills, corrupt, _, _ = chaos("--kills", "4", "--in-place")
    assert kills == 4
    assert corrupt > 0
