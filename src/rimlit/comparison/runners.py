"""What trains the runs of a comparison: processes here, or jobs that submitit sends to a cluster."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Protocol

from rimlit.comparison.runs import Run, threads_of_a_run
from rimlit.files import open_to_append
from rimlit.spec import trusted_packages

SECONDS_TO_SAVE = 120.0


class Runner(Protocol):
    """What trains runs."""

    @property
    def places(self) -> int | None:
        """Runs at a time, None for any number."""

    def start(self, runs: Sequence[Run], parent: str | None) -> None:
        """Start runs: their ``process`` is set.

        Args:
            runs: The runs.
            parent: MLflow run that they are shown under.
        """

    def stop(self, runs: Sequence[Run], signum: int) -> str:
        """Stop runs that have not ended, or leave them, as the runner sees fit.

        Args:
            runs: The runs.
            signum: The signal that asked for it, 0 where there was none.

        Returns:
            What is said about it; nothing where they have been saved and have ended.
        """


def environment_of_a_run(parent: str | None) -> dict[str, str]:
    """Return the variables that every run is given, wherever it runs.

    Args:
        parent: MLflow run that it is shown under.
    """
    return {
        "OMP_NUM_THREADS": str(threads_of_a_run()),
        "MKL_NUM_THREADS": str(threads_of_a_run()),
        "RIMLIT_TRUST": ",".join(trusted_packages()),
        "RIMLIT_PARENT_RUN": parent or "",
    }


class LocalProcesses:
    """Processes of this machine, which end with this one.

    Args:
        places: Runs at a time, at least 1.
    """

    def __init__(self, places: int) -> None:
        self._places = places

    @property
    def places(self) -> int | None:
        """Runs at a time."""
        return self._places

    def start(self, runs: Sequence[Run], parent: str | None) -> None:
        """Start a process for each run."""
        for run in runs:
            run.process = start(run, parent)

    def stop(self, runs: Sequence[Run], signum: int) -> str:
        """Ask the runs to stop, and wait until they have saved."""
        for run in runs:
            assert run.process is not None
            run.process.terminate()
        for run in runs:
            assert run.process is not None
            try:
                run.process.wait(timeout=SECONDS_TO_SAVE)
            except subprocess.TimeoutExpired:
                run.process.kill()
                run.process.wait()
            run.status = "stopped"
        return ""


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
        **environment_of_a_run(parent),
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
