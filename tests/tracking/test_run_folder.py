"""The lock of a run: one process at a time, from before its folder is looked at, also while it is archived."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rimlit.errors import ConfigError, StorageError
from rimlit.tracking.run_folder import RunFolder, RunLock

HOLD = """\
import os, sys, time
from pathlib import Path
from rimlit.tracking.run_folder import RunLock
RunLock(Path(sys.argv[1])).acquire()
if sys.argv[2] == "fork" and os.fork() == 0:
    time.sleep(60)
print("held", flush=True)
time.sleep(60)
"""


def hold(folder: Path, how: str = "") -> "subprocess.Popen[str]":
    """Start a process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_lock_that_another_process_holds_is_refused_by_its_number_until_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "runs/copying/mine"
    other = hold(folder)
    lock = RunLock(folder)
    message = f"mine is being used by process {other.pid} on {socket.gethostname()}: one process at a time"
    with pytest.raises(ConfigError, match=message):
        lock.acquire()
    RunFolder(folder).write_state(a=1)
    RunFolder(folder).archive_earlier_run()
    with pytest.raises(ConfigError, match=message):
        lock.acquire()
    end(other)
    lock.acquire()
    lock.release()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mine.1"], "no lock file is left"


def test_a_process_forked_from_the_one_that_was_killed_does_not_keep_the_lock(tmp_path: Path) -> None:
    other = hold(tmp_path / "mine", "fork")
    end(other)
    lock = RunLock(tmp_path / "mine")
    lock.acquire()
    lock.release()
    os.killpg(other.pid, signal.SIGKILL)


def test_a_process_does_not_lock_twice_and_may_lock_again(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path / "mine"), RunLock(tmp_path / "mine")
    first.acquire()
    with pytest.raises(ConfigError, match=f"by process {os.getpid()} on"):
        second.acquire()
    second.release()  # it holds nothing
    with pytest.raises(ConfigError):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_folders_that_were_created_for_the_lock_are_removed_while_they_are_empty(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "runs/copying/mine")
    lock.acquire()
    lock.release()
    assert not os.listdir(tmp_path)
    (tmp_path / "runs").mkdir()
    lock.acquire()
    (tmp_path / "runs/other").mkdir()
    lock.release()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["other"]


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StorageError, match=r"\.mine\.lock cannot be written"):
        RunLock(tmp_path / "runs/copying/mine").acquire()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".mine.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError):
        RunLock(tmp_path / "mine").acquire()
    assert (tmp_path / "victim").read_text() == "mine"


def test_where_the_folder_above_is_read_only_the_lock_is_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    lock = RunLock(tmp_path / "out")
    lock.acquire()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == [".lock"]
    with pytest.raises(ConfigError):
        RunLock(tmp_path / "out").acquire()
    lock.release()
    assert os.listdir(tmp_path / "out") == []


RACE = """\
import sys, time
from pathlib import Path
from rimlit.errors import ConfigError
from rimlit.tracking.run_folder import RunLock
lock = RunLock(Path(sys.argv[1]))
wins = 0
until = time.monotonic() + 2
while time.monotonic() < until:
    try:
        lock.acquire()
    except ConfigError:
        continue
    inside = Path(sys.argv[1] + ".inside")
    inside.touch(exist_ok=False)
    inside.unlink()
    lock.release()
    wins += 1
print(wins)
"""


def test_of_processes_that_lock_and_release_without_end_never_two_are_inside(tmp_path: Path) -> None:
    race = [sys.executable, "-c", RACE, str(tmp_path / "mine")]
    processes = [subprocess.Popen(race, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    wins = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(wins) > 10
    assert not os.listdir(tmp_path)
