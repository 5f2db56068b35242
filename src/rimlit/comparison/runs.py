"""Runs of a comparison, and the order in which they start."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from rimlit.tracking.metrics_file import read_metrics
from rimlit.tracking.run_folder import RunFolder

Status = Literal["waiting", "running", "finished", "failed", "stopped", "pruned"]


LAST_LINES = 30
"""Lines at the end of a log in which an error is one of the last start."""


class Process(Protocol):
    """What trains a run: a process here, or a job elsewhere. :class:`subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Return the exit code, None before its end."""

    def terminate(self) -> None:
        """Ask it to save and end."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; return the exit code."""

    def kill(self) -> None:
        """End it at once."""


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
        devices: Processes on each machine.
        nodes: Machines.
        status: Its progress.
        reason: Why it failed.
        is_pruned: Whether it has been asked to stop, as others are better.
        process: What trains it.
    """

    config: str
    seed: int
    arguments: list[str]
    folder: RunFolder
    log: Path
    steps: int | None = None
    devices: int = 1
    nodes: int = 1
    status: Status = "waiting"
    reason: str = ""
    is_pruned: bool = False
    process: Process | None = field(default=None, repr=False)

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

    def is_hopeless(self, run: Run) -> bool:
        """Return whether a run that has not ended is to be stopped."""
        return False


def last_words(log: Path) -> str:
    """Return the error in a run's log, or its last line."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines[-LAST_LINES:] if line.startswith("rimlit: error:")]
    return (errors or lines or ["it printed nothing"])[-1].removeprefix("rimlit: error: ")
