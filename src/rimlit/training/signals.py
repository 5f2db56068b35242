"""Signals that ask a run to stop: noted when they come, obeyed at the next step."""

import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from rimlit.errors import StoppedError

log = logging.getLogger(__name__)

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):  # what SLURM sends before the time limit
    EXIT_CODES[signal.SIGUSR1] = 143


class SignalFlag:
    """Note the first signal that asks the run to stop; more of them do no harm."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals, in the main thread, where Python delivers them."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.received = 0
        for signum in EXIT_CODES:
            self._before[signum] = signal.signal(signum, self._note)

    def listen_no_more(self) -> None:
        """Put back what handled the signals before."""
        while self._before:
            signum, handler = self._before.popitem()
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received = signum

    @staticmethod
    def error(signum: int, step: int, saved: Path) -> StoppedError:
        """Return what ends the run."""
        name = signal.Signals(signum).name
        return StoppedError(
            f"Stopped by {name} after step {step}; {saved} holds it. The same command goes on.",
            EXIT_CODES[signal.Signals(signum)],
        )
