"""Names of processes, by which a later process finds out whether an earlier one has ended."""

import os
import socket
import sys
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_only


def is_rank_zero() -> bool:
    """Return whether this process is the first of the run."""
    return getattr(rank_zero_only, "rank", 0) == 0


def process_name(pid: int | None = None) -> str:
    """Return a unique name: machine, process namespace, process id, start time.

    Args:
        pid: A process of this machine, by default this one.

    Raises:
        OSError: There is no such process.
    """
    pid = os.getpid() if pid is None else pid
    space = start = ""
    if sys.platform == "linux":
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
        # behind the command's name, which may hold spaces and brackets
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        if fields[0] in "ZX":
            raise ProcessLookupError(pid)
        start = fields[19]
    else:
        os.kill(pid, 0)
    return f"{socket.gethostname()}/{space}/{pid}/{start}"


def is_of_this_machine(process: str) -> bool:
    """Return whether a :func:`process_name` is of this machine and container."""
    return process.split("/")[:2] == process_name().split("/")[:2]


def is_gone(process: str) -> bool:
    """Return whether the process of a :func:`process_name` has ended; False for another machine."""
    if not is_of_this_machine(process):
        return False
    try:
        return process_name(int(process.split("/")[2])) != process
    except (OSError, ValueError, IndexError, OverflowError):
        return True
