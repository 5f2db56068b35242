"""The jobs of a comparison: which were submitted, and which the cluster still lists."""

import contextlib
import getpass
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import psutil

from rimlit.errors import ConfigError
from rimlit.files import read_json, write_json

State = Literal["pending", "running"]

SECONDS_BETWEEN_QUESTIONS = 5.0
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")


class JobRecords:
    """``jobs.json``: the last job of each run, with its log.

    Args:
        folder: The comparison's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jobs.json"

    def read(self) -> dict[str, dict[str, str]]:
        """Return ``job``, ``log`` and ``cluster`` of each run, by name."""
        return {name: entry for name, entry in read_json(self.path).items() if isinstance(entry, dict)}

    def job_of(self, name: str) -> str | None:
        """Return the last job of a run, None where it was never submitted."""
        job = self.read().get(name, {}).get("job")
        return job if isinstance(job, str) else None

    def log_of(self, name: str) -> Path:
        """Return the log of a run's last job."""
        return Path(str(self.read().get(name, {}).get("log", "")))

    def add(self, jobs: Mapping[str, dict[str, str]]) -> None:
        """Add jobs: ``job``, ``log`` and ``cluster`` by the name of their run."""
        write_json(self.path, {**self.read(), **jobs})


class JobQueue:
    """The jobs that a cluster has not ended.

    It asks ``squeue``, which knows jobs that wait to be started again too, and not submitit, which needs an
    accounting database and takes a requeued job for one that has ended.

    Args:
        cluster: ``slurm``, ``local`` or ``debug``.
    """

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self._states: dict[str, State] | None = None
        self._asked = 0.0

    def forget(self) -> None:
        """Ask again at the next question."""
        self._states = None

    def state(self, job: str) -> State | None:
        """Return the state of a job, None where it has ended.

        Raises:
            ConfigError: There is no ``squeue``.
        """
        if self.cluster != "slurm":
            return "running" if _task_controller(job) is not None else None
        if self._states is None or time.monotonic() - self._asked > SECONDS_BETWEEN_QUESTIONS:
            self._ask()
        return (self._states or {}).get(job)

    def _ask(self) -> None:
        """Ask SLURM; where it does not answer, what it said before is still taken to hold."""
        command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i %T"]
        self._asked = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except FileNotFoundError as error:
            raise ConfigError(
                "There is no squeue on this machine, which lists the jobs and their states."
            ) from error
        except subprocess.SubprocessError as error:
            if self._states is None:
                reason = " ".join(str(getattr(error, "stderr", None) or error).split())
                raise ConfigError(f"SLURM does not answer: {reason}") from error
            return
        lines = (line.split() for line in done.stdout.splitlines())
        self._states = {
            words[0]: "pending" if words[1] in WAITING else "running" for words in lines if len(words) == 2
        }

    def cancel(self, jobs: Sequence[str]) -> None:
        """Cancel jobs: the runs save and end, and are not requeued."""
        if self.cluster == "slurm":
            subprocess.run(["scancel", *jobs], check=False, timeout=60)
        for job in jobs if self.cluster == "local" else ():
            if (controller := _task_controller(job)) is not None:
                with contextlib.suppress(psutil.Error):  # its tasks, which save: it would kill them
                    for task in controller.children():
                        task.terminate()
        self.forget()


def _task_controller(job: str) -> psutil.Process | None:
    """Return the process of submitit's local executor that a job id names; None where it has ended."""
    try:
        process = psutil.Process(int(job))
        is_alive = process.status() != psutil.STATUS_ZOMBIE and "submitit.local._local" in process.cmdline()
    except (psutil.Error, ValueError):
        return None
    return process if is_alive else None


def refuse_live_jobs(folder: Path) -> None:
    """Refuse to train here what jobs of a cluster train: two would write into one folder.

    Raises:
        ConfigError: A job of the comparison has not ended.
    """
    queues: dict[str, JobQueue] = {}
    live = []
    for name, entry in JobRecords(folder).read().items():
        cluster, job = entry.get("cluster", "slurm"), entry.get("job", "")
        with contextlib.suppress(ConfigError):  # no squeue: a machine that the cluster does not know
            if queues.setdefault(cluster, JobQueue(cluster)).state(job) is not None:
                live.append(f"{name} (job {job})")
    if live:
        raise ConfigError(
            f"{folder} has runs that are jobs of a cluster: {', '.join(live)}. Wait for them with --on, or cancel "
            "them first."
        )
