"""Who failed first, and how the companions of processes tell each other."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from torch import distributed

from rimlit.errors import ConfigError, ProcessError
from rimlit.training import ProcessWatch, signals, watcher
from rimlit.training.processes import is_broken_connection
from rimlit.training.watcher import ProcessState, Verdict, judge

# The judgement


def verdict_of(*records: ProcessState) -> Verdict | None:
    return judge(list(records), now=100.0, timeout=40.0)


def process(rank: int, **entries: Any) -> ProcessState:
    return ProcessState(rank, f"pid {rank} on node", **{"heard": 100.0, "limit": 40.0, **entries})


def test_while_all_work_no_process_is_blamed() -> None:
    assert verdict_of(process(0), process(1)) is None
    # one has left, and what it says no more is not silence
    assert verdict_of(process(0), process(1, has_left=True, heard=0.0, is_lost=True, is_alive=False)) is None


@pytest.mark.parametrize(
    ("entries", "kind", "message"),
    [
        ({"is_alive": False}, "died", "Process 1 (pid 1 on node) ended without a word"),
        ({"failure": "ValueError: no"}, "failed", "Process 1 (pid 1 on node) failed: ValueError: no."),
        ({"failure": "ValueError: no", "has_left": True}, "failed", "Process 1"),
        ({"heard": 59.0}, "lost", "Process 1 (pid 1 on node) is out of reach"),
        ({"is_lost": True}, "lost", "Process 1 (pid 1 on node) is out of reach"),
        ({"silence": 41.0, "status": "stopped"}, "frozen", "no sign of life for 41 s, its state is 'stopped'"),
        ({"idle": 41.0}, "hung", "Process 1 (pid 1 on node) hangs: no step for 41 s."),
    ],
)
def test_a_process_is_blamed_for_what_it_did(entries: dict[str, Any], kind: str, message: str) -> None:
    verdict = verdict_of(process(0, idle=39.0, silence=39.0, heard=61.0, position=5), process(1, **entries))
    assert verdict is not None
    assert (verdict.ranks, verdict.kind) == ((1,), kind)
    assert message in verdict.message


def test_of_processes_that_stand_still_the_one_furthest_behind_is_blamed() -> None:
    waiting = process(0, idle=50.0, position=8, is_waiting=True)
    hanging = process(1, idle=41.0, position=7)
    assert verdict_of(waiting, hanging).ranks == (1,)  # type: ignore[union-attr]
    # on a GPU waiting does not show
    assert verdict_of(process(0, idle=50.0, position=8), hanging).ranks == (1,)  # type: ignore[union-attr]


def test_of_processes_at_the_same_step_the_one_that_does_not_wait_is_blamed() -> None:
    waiting = process(0, idle=50.0, position=7, is_waiting=True)
    assert verdict_of(waiting, process(1, idle=41.0, position=7)).ranks == (1,)  # type: ignore[union-attr]
    both = verdict_of(waiting, process(1, idle=41.0, position=7, is_waiting=True))
    assert both is not None
    assert both.ranks == (0, 1)
    assert both.message == "Processes 0 (pid 0 on node), 1 (pid 1 on node) hang: no step for 41 s."


def test_no_process_is_blamed_for_waiting_while_another_works() -> None:
    waiting = process(0, idle=500.0, position=7, is_waiting=True)
    assert verdict_of(waiting, process(1, idle=3.0, position=7)) is None
    # it saves a checkpoint or compiles, which may take as long as start-up
    assert verdict_of(waiting, process(1, idle=300.0, position=7, limit=600.0)) is None


# Companions, as programs


class Companion:
    """A companion whose process is this one."""

    def __init__(self, rank: int, address: tuple[str, int], *, timeout: float = 2.0, token: str = "right") -> None:
        self.program = subprocess.Popen(
            [sys.executable, "-I", watcher.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        common = {"world_size": 2, "pid": os.getpid(), "timeout": timeout, "token": token}
        self.say(rank=rank, address=address, **common)

    def say(self, **message: Any) -> None:
        assert self.program.stdin is not None
        self.program.stdin.write(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        assert self.program.stdout is not None
        answer: dict[str, Any] = json.loads(self.program.stdout.readline())
        return answer

    def close(self) -> None:
        self.program.kill()
        with contextlib.suppress(OSError):
            self.program.communicate()


class Judge(Companion):
    """The companion of the first process."""

    def __init__(self, **options: Any) -> None:
        super().__init__(0, ("127.0.0.1", 0), **options)
        self.address = "127.0.0.1", self.hear()["port"]


@pytest.fixture
def companions() -> Iterator[list[Companion]]:
    """The companions of the first process, which judges, and of the second."""
    with contextlib.closing(Judge()) as first, contextlib.closing(Companion(1, first.address)) as second:
        first.say(position=1)
        second.say(position=1)
        yield [first, second]


def test_what_one_process_reports_ends_the_others(companions: list[Companion]) -> None:
    companions[1].say(failure="ValueError: no such thing")
    for companion in companions:
        verdict = companion.hear()["verdict"]
        assert (verdict["ranks"], verdict["kind"]) == ([1], "failed")
        where = f"pid {os.getpid()} on {socket.gethostname()}"
        assert verdict["message"] == f"Process 1 ({where}) failed: ValueError: no such thing."


def test_a_run_is_over_when_all_have_left(companions: list[Companion]) -> None:
    companions[0].say(has_left=True)
    companions[1].say(has_left=True)
    assert companions[0].hear() == {"over": True}
    assert [companion.program.wait(5) for companion in companions] == [0, 0]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL])
def test_a_machine_that_goes_away_is_missed(companions: list[Companion], which: int, signum: int) -> None:
    time.sleep(0.3)
    companions[which].program.send_signal(signum)
    other = companions[1 - which]
    while not select.select([other.program.stdout], [], [], 0.2)[0]:
        other.say(position=1)  # it is alive all the while
    verdict = other.hear()["verdict"]
    assert (verdict["ranks"], verdict["kind"]) == ([which], "lost")


def test_a_stranger_is_not_heard() -> None:
    with contextlib.closing(Judge(timeout=30.0)) as first:
        for message in (
            b'{"token": "wrong", "rank": 1, "failure": "none"}\n',
            '{"token": "é", "rank": 1}\n'.encode(),
            b'{"token": "\\ud800"}\n',
            b"GET / HTTP/1.1\r\n\r\n",
            b"[]\n",
            b"[" * 20_000 + b"\n",
        ):
            with socket.create_connection(first.address, timeout=3) as stranger:
                stranger.sendall(message)
                assert stranger.recv(100) in (b"", b'{"tick": true}\n')
        with contextlib.closing(Companion(1, first.address, timeout=30.0)) as second:
            second.say(failure="told by the right one")
            assert first.hear()["verdict"]["message"].endswith("failed: told by the right one.")


# The callback


def test_a_process_that_is_alone_is_not_watched(tmp_path: Path) -> None:
    watch = ProcessWatch()
    trainer = L.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, callbacks=[watch])
    watch.begin(trainer)
    watch.setup(trainer, L.LightningModule(), "fit")
    watch.on_exception(trainer, L.LightningModule(), RuntimeError("Connection closed by peer"))
    assert watch._guard is None


def test_a_time_out_of_its_range_is_refused_with_its_value() -> None:
    with pytest.raises(ConfigError, match=r"timeout must be at least 1; got timeout=0\.5\."):
        ProcessWatch(timeout=0.5)
    with pytest.raises(ConfigError, match=r"at least timeout; got startup_timeout=5, timeout=9\."):
        ProcessWatch(timeout=9, startup_timeout=5)


@pytest.mark.parametrize(
    ("error", "is_broken"),
    [
        (
            RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
            True,
        ),
        (distributed.DistNetworkError("the client socket has timed out"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_a_broken_connection_is_told_from_errors_of_ones_own(error: Exception, is_broken: bool) -> None:
    assert is_broken_connection(error) is is_broken


def test_an_error_uncaught_ends_a_program_with_code_7() -> None:
    assert issubclass(ProcessError, SystemExit)
    assert ProcessError("who").code == ProcessError.exit_code == 7


# SLURM


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({"SLURM_JOB_ID": "17"}, "17"),
        ({"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2"}, "17_2"),
    ],
)
def test_a_slurm_job_or_its_task_of_an_array_is_requeued_on_the_signal_slurm_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], job: str
) -> None:
    calls = fake_scontrol(tmp_path, monkeypatch)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    error = signals.SignalFlag.error(signal.SIGUSR1, 3, Path("last.ckpt"))
    assert str(error).endswith(f"The same command resumes it. SLURM puts job {job} back into its queue.")
    signals.SignalFlag.error(signal.SIGTERM, 3, Path("last.ckpt"))  # scancel
    assert calls.read_text() == f"requeue {job}\n"


def test_slurm_may_end_the_command_that_requeues_together_with_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_scontrol(tmp_path, monkeypatch, "kill -TERM $$")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert str(signals.SignalFlag.error(signal.SIGUSR1)).endswith("SLURM puts job 17 back into its queue.")


def test_without_slurm_nothing_is_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_scontrol(tmp_path, monkeypatch)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    signals.SignalFlag.error(signal.SIGUSR1, 3, Path("last.ckpt"))
    assert not calls.exists()


def test_a_requeue_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_scontrol(tmp_path, monkeypatch, "echo slurm_update error: Access denied >&2; exit 1")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    message = r"scontrol requeue 17 failed \(slurm_update error: Access denied\): submit the job again\."
    with pytest.raises(Exception, match=message):
        raise signals.SignalFlag.error(signal.SIGUSR1)


def fake_scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, then: str = "") -> Path:
    """Put a ``scontrol`` before others that writes down how it was called; returns the file."""
    calls = folder / "scontrol.txt"
    program = folder / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho \"$@\" >> '{calls}'\n{then}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return calls
