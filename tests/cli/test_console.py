"""What is printed reaches any console: one that is not UTF-8, full, closed, or with a progress bar on it."""

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rimlit.cli.configs import config_names
from tests.cli.running import SMALL_COPYING, UNTRACKED

COMMAND = (sys.executable, "-m", "rimlit")
FIT = (
    "fit",
    "copying/rim",
    *SMALL_COPYING,
    *UNTRACKED,
    "--trainer.max_steps=20",
    "--trainer.val_check_interval=10",
)
NOT_UTF8 = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}


def test_a_console_that_is_not_utf8_gets_every_line() -> None:
    done = subprocess.run([*COMMAND, "configs"], capture_output=True, env=NOT_UTF8, timeout=60, check=True)
    entries = [line for line in done.stdout.splitlines() if not line.startswith(b" ")]  # others are wrapped
    assert len(entries) == len(config_names())
    assert not done.stderr


def test_a_full_or_closed_console_is_no_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "configs"], stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "configs"], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_a_run_ends_well_on_a_full_console_that_is_not_utf8(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *FIT], stdout=full, stderr=subprocess.PIPE, env=NOT_UTF8, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert (folder / "runs/copying/rim-seed0/results.json").is_file()


def on_a_terminal(*arguments: str) -> tuple[int, str]:
    """The exit code of a command and what it wrote to a terminal of 24 lines of 100 columns."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    written, until = b"", time.monotonic() + 300
    while time.monotonic() < until:
        if not select.select([ours], [], [], 1)[0]:
            continue
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        written += part
    code = process.wait(timeout=60)
    os.close(ours)
    return code, written.decode()


@pytest.mark.slow
def test_a_message_beside_a_progress_bar_has_a_line_of_its_own(folder: Path) -> None:
    code, text = on_a_terminal(*COMMAND, *FIT, "--test_after_fit=false")
    assert code == 0, text
    assert "it/s" in text
    line = next(line for line in text.split("\n") if "RIM time loop" in line)
    # the bar is cleared before the message: it is what stands after the last return to the line's start
    assert line.rstrip("\r").rpartition("\r")[2].startswith("RIM time loop: ")
    assert line.rstrip("\r").endswith(").")
