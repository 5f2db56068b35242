"""Many runs, each a process of its own: as many at a time as cores allow, with a progress bar over all."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rimlit.files import open_to_append
from rimlit.spec import trusted_packages
from rimlit.tracking.metrics_file import read_metrics
from rimlit.tracking.run_folder import RunFolder
from rimlit.training.signals import SignalFlag

Status = Literal["waiting", "running", "finished", "failed", "stopped"]

POLL_SECONDS = 0.5
SECONDS_TO_SAVE = 120.0
NAMED_EXIT_CODES = {129: "hung up", 130: "interrupted", 143: "terminated"}


@dataclass
class Run:
    """One training with a seed.

    Args:
        config: Name of the config in the comparison.
        seed: Its seed.
        arguments: What follows ``rimlit``.
        folder: Where it lives.
        log: File that takes what it prints.
        steps: Optimiser steps it will take, None where it ends otherwise.
        status: Its progress.
    """

    config: str
    seed: int
    arguments: list[str]
    folder: RunFolder
    log: Path
    steps: int | None = None
    status: Status = "waiting"
    reason: str = ""
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Config and seed."""
        return f"{self.config}-seed{self.seed}"

    @property
    def step(self) -> int:
        """The last step in ``metrics.csv``, or the one at which the run was saved."""
        saved = int(self.folder.read_state().get("step") or 0)
        return max(saved, last_step(self.folder.path / "metrics.csv"))


def last_step(metrics: Path) -> int:
    """Return the greatest step in the last lines of a ``metrics.csv``, 0 without one."""
    rows = read_metrics(metrics, last_bytes=8192).rows
    return max((int(row["step"]) for row in rows), default=0)


def start(run: Run, parent: str | None) -> "subprocess.Popen[bytes]":
    """Start a run in a process and a session of its own: the terminal's Ctrl-C reaches this process only.

    It does not see SLURM, which signals all processes of a job: one of them puts the job back into its queue, and
    that is the comparison.

    Args:
        run: The run.
        parent: MLflow run that it is shown under.
    """
    run.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "OMP_NUM_THREADS": str(threads_of_a_run()),
        "MKL_NUM_THREADS": str(threads_of_a_run()),
        "RIMLIT_TRUST": ",".join(trusted_packages()),
        "RIMLIT_PARENT_RUN": parent or "",
        "RIMLIT_PARENT_PROCESS": str(os.getpid()),
    }
    with open_to_append(run.log) as log:
        log.seek(0, os.SEEK_END)
        return subprocess.Popen(
            [sys.executable, "-m", "rimlit", *run.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def threads_of_a_run() -> int:
    """Return the threads of each run: 1, or ``OMP_NUM_THREADS``; never by how many run at a time.

    Sums depend on the number of threads in their last bits, and with them the course of a training.
    """
    given = os.environ.get("OMP_NUM_THREADS", "1")
    return int(given) if given.isdigit() and int(given) > 0 else 1


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Work:
    """Runs in the order in which they start; a subclass may add some while others end.

    Args:
        runs: The runs that are known; their ``status`` and ``reason`` are kept up to date.
    """

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs

    @property
    def total(self) -> int:
        """How many runs there will be."""
        return len(self.runs)

    def take(self) -> Run | None:
        """Return the run that starts next, None where no run can start now."""
        return next((run for run in self.runs if run.status == "waiting"), None)

    def note_start(self, run: Run) -> None:
        """Take note of a run whose process has started."""

    def note_end(self, run: Run) -> None:
        """Take note of a run that has ended by itself."""


def run_all(work: Work, jobs: int, *, console: Console, parent: str | None = None) -> None:
    """Run what is waiting; a run that fails does not stop the others.

    Args:
        work: The runs.
        jobs: Processes at a time.
        console: Where the progress is shown.
        parent: MLflow run that they are shown under.

    Raises:
        StoppedError: A signal of ``EXIT_CODES`` came. The runs have been asked to stop, have saved and ended.
    """
    signals = SignalFlag()
    signals.listen()
    try:
        with _progress(work, console) as show:
            while True:
                if signals.received:
                    raise signals.error(signals.received)
                for run in work.runs:
                    if run.status == "running":
                        _look_at(run, work)
                while sum(run.status == "running" for run in work.runs) < jobs:
                    if (run := work.take()) is None:  # type: ignore[assignment]
                        break
                    run.process, run.status = start(run, parent), "running"
                    work.note_start(run)
                show()
                if not any(run.status == "running" for run in work.runs):
                    break
                time.sleep(POLL_SECONDS)
    finally:
        _stop(work)
        signals.listen_no_more()


def _look_at(run: Run, work: Work) -> None:
    assert run.process is not None
    code = run.process.poll()
    if code is None:
        return
    run.status = "finished" if code == 0 else "failed"
    if code != 0:
        run.reason = f"{NAMED_EXIT_CODES.get(code, f'exit code {code}')}: {last_words(run.log)}"
    work.note_end(run)


def last_words(log: Path) -> str:
    """Return the error in a run's log, or its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("rimlit: error:")]
    return (errors or lines or ["it printed nothing"])[-1].removeprefix("rimlit: error: ")


def _stop(work: Work) -> None:
    """Ask what still runs to stop, and wait until it has saved."""
    for run in work.runs:
        if run.status == "running":
            _look_at(run, work)
    running = [run for run in work.runs if run.status == "running"]
    for run in running:
        assert run.process is not None
        run.process.terminate()
    for run in running:
        assert run.process is not None
        try:
            run.process.wait(timeout=SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.process.wait()
        run.status = "stopped"


@contextmanager
def _progress(work: Work, console: Console) -> Iterator[Callable[[], None]]:
    """Show a bar over all runs and one for each active run; without a terminal, a line for each that ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    reported = {run.name for run in work.runs if run.status == "finished"}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("runs", total=work.total)

        def show() -> None:
            counts = {status: sum(run.status == status for run in work.runs) for status in get_args(Status)}
            ended, total = counts["finished"] + counts["failed"], work.total
            failed = f", {counts['failed']} failed" if counts["failed"] else ""
            waiting = total - ended - counts["running"]
            description = f"runs: {counts['finished']} finished{failed}, {waiting} waiting"
            progress.update(bar, completed=ended, total=total, description=description)
            for run in work.runs:
                if run.status == "running" and console.is_terminal:
                    if run.name not in bars:
                        bars[run.name] = progress.add_task(run.name, total=run.steps)
                    progress.update(bars[run.name], completed=run.step)
                elif run.status in ("finished", "failed"):
                    if run.name in bars:
                        progress.remove_task(bars.pop(run.name))
                    if run.name not in reported:
                        reported.add(run.name)
                        reason = f" ({run.reason})" if run.reason else ""
                        progress.console.print(
                            f"{run.name}: {run.status}{reason}, {ended} of {total} runs",
                            highlight=False,
                            markup=False,
                        )

        yield show
        show()
