"""Signals that ask a run to stop: recorded by the handler, acted on at the next step."""

import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

from rimlit.errors import StoppedError

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):  # sent by SLURM before the time limit
    EXIT_CODES[signal.SIGUSR1] = 143
if hasattr(signal, "SIGHUP"):  # sent when a terminal closes or a connection is lost
    EXIT_CODES[signal.SIGHUP] = 129


class SignalFlag:
    """Records the first signal that asks the run to stop; further ones are ignored."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def listen(self, *, at_once: bool = False) -> None:
        """Install the handlers, in the main thread, where Python calls them.

        Args:
            at_once: Whether the first one ends what runs, by a :class:`StoppedError`: there is nothing to save.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        self.received = 0
        for signum in EXIT_CODES:
            if signal.Signals(signum).name == "SIGHUP" and signal.getsignal(signum) is signal.SIG_IGN:
                continue  # under nohup
            self._before[signum] = signal.signal(signum, self._stop if at_once else self._note)

    def listen_no_more(self) -> None:
        """Restore the earlier handlers."""
        while self._before:
            signum, handler = self._before.popitem()
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received = signum

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received = signum
            raise self.error(signum)

    @staticmethod
    def error(signum: int, step: int | None = None, saved: Path | None = None) -> StoppedError:
        """Return the error that ends the run; requeue its SLURM job if SLURM sent the signal.

        Args:
            signum: The signal.
            step: The last step, where one was saved.
            saved: The checkpoint that holds it.
        """
        name = signal.Signals(signum).name
        what = "" if saved is None else f" after step {step}; {saved} holds it"
        text = f"Stopped by {name}{what}. The same command resumes it."
        if name == "SIGUSR1" and "SLURM_JOB_ID" in os.environ and getattr(rank_zero_only, "rank", 0) == 0:
            text += " " + requeue()
        return StoppedError(text, EXIT_CODES[signal.Signals(signum)])


def requeue() -> str:
    """Requeue this SLURM job, or this task of its array; return the message for the user."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the first task's job id would stand for the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        # SLURM ends the processes of a job that it requeues with SIGTERM: this command is one of them
        if done.returncode != -signal.SIGTERM:
            done.check_returncode()
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(getattr(error, "stderr", None) or error).split())
        return f"{' '.join(command)} failed ({reason}): submit the job again."
    return f"SLURM puts job {job} back into its queue."
