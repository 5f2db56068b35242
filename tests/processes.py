"""Runs of several real processes, forked from one that has paid for the imports, and what may happen to them.

Started as a program this file is that warm parent: it reads a job per line from its input and answers in JSON.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L


class Fault(L.Callback):
    """Let something happen in one process when a training step begins, but not after torchrun's restart.

    There the first process comes late: who is early must wait for it.

    Args:
        kind: ``kill``, ``stop``, ``hang``, ``wait`` (for five seconds), ``raise``, or the name of a signal.
        rank: The process.
        step: When ``global_step`` is that.
    """

    def __init__(self, kind: str, rank: int = 1, step: int = 3) -> None:
        self.kind, self.rank, self.step = kind, rank, step
        self.is_again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        if self.is_again and os.environ["RANK"] == "0":
            time.sleep(5)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_rank != self.rank or trainer.global_step != self.step or self.is_again:
            return
        if self.kind == "wait":
            time.sleep(5)
            return
        if self.kind == "hang":
            while True:
                time.sleep(0.1)
        if self.kind == "raise":
            raise RuntimeError("a fault of the task's own")
        names = {"kill": "SIGKILL", "stop": "SIGSTOP"}
        os.kill(os.getpid(), signal.Signals[names.get(self.kind, self.kind)])


class Losses(L.Callback):
    """Write the loss of every training batch and the weights' end to a file of the run's folder, exactly."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir, "losses.txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            number = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
            with path.open("a") as file:
                file.write(f"{number} {trainer.callback_metrics['train/loss'].item().hex()}\n")


class FirstObservations(L.Callback):
    """Write what the environments of each process show first to a file of the run's folder."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, _: int) -> None:
        if trainer.current_epoch == 0:
            path = Path(trainer.default_root_dir, f"first-{trainer.global_rank}.txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                for observation in batch.inputs.observations[:, 0].tolist():
                    file.write(f"{observation[0].hex()}\n")


class Ended(NamedTuple):
    """How a process ended."""

    code: int  # minus the signal's number where one killed it
    seconds: float  # after the start
    error: str


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


class Warm:
    """A parent that has imported rimlit; its children are the processes of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = subprocess.Popen(
            [sys.executable, "-m", "tests.processes"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def _ask(self, **job: Any) -> Any:
        assert self.program.stdin is not None and self.program.stdout is not None
        self.program.stdin.write(json.dumps(job) + "\n")
        self.program.stdin.flush()
        return json.loads(self.program.stdout.readline())

    def start(
        self,
        folder: Path,
        *arguments: Any,
        processes: int = 2,
        env: dict[str, str] | None = None,
        by_slurm: bool = False,
        own: dict[int, list[str]] | None = None,
    ) -> list[int]:
        """Start ``rimlit`` in several processes, as torchrun or srun would; returns their ids.

        ``own`` has arguments that only one process gets, by its rank.
        """
        command = [str(argument) for argument in arguments]
        if processes > 1:
            command += ["--trainer.accelerator=cpu", f"--trainer.devices={processes}", "--trainer.strategy=ddp"]
        environments = []
        port = str(free_port())
        for number in range(processes):
            rank = str(number)
            place: dict[str, str] = {}
            if by_slurm:
                place = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0"}
            elif processes > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
                place |= {"LOCAL_WORLD_SIZE": str(processes), "WORLD_SIZE": str(processes)}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
            environments.append({**address, **place, **(env or {})})
        commands = [[*command, *(own or {}).get(number, [])] for number in range(processes)]
        pids: list[int] = self._ask(folder=str(folder), commands=commands, environments=environments)
        return pids

    def start_alone(self, folder: Path, *commands: list[str]) -> list[int]:
        """Start ``rimlit`` once for each command, at the same time, each alone."""
        pids: list[int] = self._ask(folder=str(folder), commands=commands, environments=[{} for _ in commands])
        return pids

    def wait(self) -> list[Ended]:
        """Wait until all processes have ended."""
        return [Ended(*ended) for ended in self._ask(wait=True)]

    def run(self, folder: Path, *arguments: Any, **options: Any) -> list[Ended]:
        """Start and wait."""
        self.start(folder, *arguments, **options)
        return self.wait()

    def close(self) -> None:
        self.program.communicate()


def _start(job: dict[str, Any]) -> dict[int, Path]:
    files = {}
    for rank, environment in enumerate(job["environments"]):
        error = Path(job["folder"], f"error-{rank}.txt")
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.chdir(job["folder"])
            with error.open("w") as file:
                os.dup2(file.fileno(), 2)
                os.dup2(file.fileno(), 1)
            os.environ.update(environment)
            sys.argv = ["rimlit", *job["commands"][rank]]
            _end(_run())
        files[pid] = error
    return files


def _run() -> int:
    from rimlit.cli import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> None:
    """End as Python does, but for taking every module apart, which takes a second."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve() -> None:
    import rimlit.cli.run  # noqa: F401, the point of this program

    files: dict[int, Path] = {}
    started = 0.0
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            ended = {}
            while len(ended) < len(files):
                pid, status = os.wait()
                ended[pid] = os.waitstatus_to_exitcode(status), time.monotonic() - started
            answer: Any = [(*ended[pid], path.read_text()) for pid, path in files.items()]
        else:
            started = time.monotonic()
            files = _start(job)
            answer = list(files)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
