"""``python -m rimlit``."""

import ctypes
import os
import signal
import sys


def end_with_parent() -> None:
    """Let Linux send SIGTERM when the process named in ``RIMLIT_PARENT_PROCESS`` dies, in any way."""
    parent = os.environ.pop("RIMLIT_PARENT_PROCESS", None)  # this process's children have another parent
    if parent is None or sys.platform != "linux":
        return
    set_signal_of_parents_death = 1  # PR_SET_PDEATHSIG in linux/prctl.h
    ctypes.CDLL(None).prctl(set_signal_of_parents_death, ctypes.c_ulong(signal.SIGTERM))
    if os.getppid() != int(parent):  # it died before that
        sys.exit(143)


if __name__ == "__main__":
    end_with_parent()

    from rimlit.cli import main

    main()
