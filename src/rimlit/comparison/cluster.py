"""Runs as jobs of a cluster, by submitit: SLURM, processes that outlive this one, or this process to debug."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rimlit.comparison.job import train
from rimlit.comparison.job_queue import JobQueue, JobRecords
from rimlit.comparison.job_settings import JobSettings, import_submitit
from rimlit.comparison.runners import environment_of_a_run
from rimlit.comparison.runs import Run, last_words
from rimlit.console import say
from rimlit.errors import ConfigError

MOST_IN_AN_ARRAY = 1000
"""Jobs of one array: SLURM takes 1001 by default."""


class Submitit:
    """Jobs of a cluster. They continue when this process ends, and submitted ones are recorded in ``jobs.json``.

    Args:
        settings: The executor and its parameters.
        folder: The comparison's folder; submitit's files go to ``jobs`` in it.
        places: Runs at a time, None for any number: the cluster has its own bounds.
    """

    def __init__(self, settings: JobSettings, folder: Path, places: int | None = None) -> None:
        self.settings, self.folder = settings, folder
        self.queue = JobQueue(settings.cluster)
        self.records = JobRecords(folder)
        self._places = 1 if settings.cluster == "debug" else places

    @property
    def places(self) -> int | None:
        """Runs at a time."""
        return self._places

    def attach(self, runs: Sequence[Run]) -> None:
        """Restore the jobs of runs that an earlier command submitted and that have not ended."""
        for run in runs:
            if run.status == "waiting" and self._take_up(run):
                run.status = "running"

    def _take_up(self, run: Run) -> bool:
        """Give a run the job that an earlier command submitted for it; return whether it is running."""
        job = self.records.job_of(run.name)
        if job is None or self.queue.state(job) is None:
            return False
        run.log, run.process = self.records.log_of(run.name), SubmittedRun(run, job, self.queue)
        return True

    def name_ended(self, runs: Sequence[Run]) -> None:
        """Take runs whose job has ended before its end for failed, with the end of its log."""
        for run in runs:
            if run.status == "waiting" and self.records.job_of(run.name) is not None:
                run.log = self.records.log_of(run.name)
                run.status, run.reason = "failed", f"job {self.records.job_of(run.name)}: {last_words(run.log)}"

    def words_of(self, run: Run) -> str:
        """Return the name of a run that is a job, with the job and its state."""
        job = run.process.job if isinstance(run.process, SubmittedRun) else "?"
        return f"{run.name} (job {job}, {self.queue.state(job) or 'ending'})"

    def start(self, runs: Sequence[Run], parent: str | None) -> None:
        """Submit runs: an array for those that need the same number of processes. None is submitted twice.

        Raises:
            ConfigError: The cluster refuses them.
        """
        alike: dict[tuple[int, int], list[Run]] = defaultdict(list)
        for run in runs:
            if not self._take_up(run):
                alike[run.nodes, run.devices].append(run)
        for (nodes, devices), group in alike.items():
            for first in range(0, len(group), MOST_IN_AN_ARRAY):
                self._submit(group[first : first + MOST_IN_AN_ARRAY], parent, nodes, devices)

    def _submit(self, runs: Sequence[Run], parent: str | None, nodes: int, devices: int) -> None:
        submitit = import_submitit()
        executor = submitit.AutoExecutor(folder=self.folder / "jobs", cluster=self.settings.cluster)
        executor.update_parameters(**self.settings.parameters_of(nodes, devices))
        variables = environment_of_a_run(parent)
        if self.settings.cluster == "local" and devices > 1:
            variables["MASTER_PORT"] = _free_port()
        try:
            with _exported(variables), _sigint_ignored(self.settings.cluster == "local"), executor.batch():
                jobs = [
                    executor.submit(
                        train, run.arguments, variables, is_own_process=self.settings.cluster != "debug"
                    )
                    for run in runs
                ]
        except Exception as error:  # sbatch says what it does not like
            raise ConfigError(f"{self.settings.cluster} takes no job: {_reason(error)}") from error
        for run, job in zip(runs, jobs, strict=True):
            run.log = Path(job.paths.stdout)
            run.process = SubmittedRun(run, job.job_id, self.queue, job)
        if self.settings.cluster != "debug":  # its jobs end with this process
            self.records.add(
                {
                    run.name: {"job": job.job_id, "log": str(run.log), "cluster": self.settings.cluster}
                    for run, job in zip(runs, jobs, strict=True)
                }
            )
        self.queue.forget()

    def stop(self, runs: Sequence[Run], signum: int) -> str:
        """Leave the jobs, or cancel them where a user at a terminal chooses to: they save first."""
        jobs = [run.process.job for run in runs if isinstance(run.process, SubmittedRun)]
        if not jobs or self.settings.cluster == "debug":
            return ""
        if signum == signal.SIGINT and _asks_to_cancel(len(jobs)):
            self.queue.cancel(jobs)
            return (
                f"Cancelled {len(jobs)} jobs, which save first: {', '.join(jobs)}. The same command resumes them."
            )
        return self.words_on(jobs)

    def words_on(self, jobs: Sequence[str]) -> str:
        """Return what a user can do about jobs that continue."""
        cancel = {"slurm": f"scancel {' '.join(jobs)}"}.get(self.settings.cluster, f"kill {' '.join(jobs)}")
        return (
            f"{len(jobs)} jobs keep running: {', '.join(jobs)}. The same command waits for them, with --collect "
            f"it reads finished runs; {cancel} ends them."
        )


class SubmittedRun:
    """A run that is a job.

    Args:
        run: The run.
        job: The job's id.
        queue: Where its state is asked for.
        submitted: submitit's own job, None where another command submitted it.
    """

    def __init__(self, run: Run, job: str, queue: JobQueue, submitted: Any = None) -> None:
        self.run, self.job, self._queue, self._submitted = run, job, queue, submitted

    def poll(self) -> int | None:
        """Return None while the cluster lists the job, then 0 for a finished run and 1 for any other.

        A job of the debug executor is run now.
        """
        if self._submitted is not None and self._queue.cluster == "debug":
            code = self._run_here()
            if code in (129, 130, 143):  # the signal was for this process, and the run's handler took it
                raise KeyboardInterrupt
            return code
        if self._submitted is not None and self._queue.cluster == "local":
            self._submitted.done()  # it is a process of this one, which is to be reaped
        if self._queue.state(self.job) is not None:
            return None
        return 0 if self.run.folder.is_finished() else 1

    def _run_here(self) -> int:
        """Run the job in this process, not by submitit's own ``results``, which leaves two files open."""
        self.run.log.parent.mkdir(parents=True, exist_ok=True)
        before = dict(os.environ)
        try:
            with self.run.log.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                return int(self._submitted.submission().result())
        finally:
            os.environ.clear()
            os.environ.update(before)

    def terminate(self) -> None:
        """Cancel the job: the run saves and ends."""
        self._queue.cancel([self.job])

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code of a job that has ended."""
        return self.poll() or 0

    def kill(self) -> None:
        """Cancel the job."""
        self.terminate()


def _asks_to_cancel(number: int) -> bool:
    """Ask a user at a terminal; without one jobs are left."""
    if not (sys.stdin is not None and sys.stdin.isatty()):
        return False
    say(f"{number} jobs are submitted. Leave them, or cancel them (they save first)? [leave/cancel]")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        return input().strip().lower().startswith("c")
    return False


@contextlib.contextmanager
def _exported(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for what is submitted: threads are counted when a process starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _sigint_ignored(is_wanted: bool) -> Iterator[None]:
    """Let a process that is started not be ended by the terminal's Ctrl-C."""
    is_wanted = is_wanted and threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_wanted else None
    try:
        yield
    finally:
        if is_wanted:
            signal.signal(signal.SIGINT, handler)


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "stderr", None) or error).split())[:500]
