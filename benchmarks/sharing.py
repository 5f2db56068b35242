"""Work beside other work: locks by which commands share runs, and low priority."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file ``path`` inside the ``with`` block; the system frees it when a process dies.

    Args:
        path: The file; a process must not lock it twice.
        wait: Whether to wait for another process; otherwise False is returned where one has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def let_others_go_first(process: int, niceness: int) -> None:
    """Give a process a low priority, and its session, too: Linux shares cores among sessions first.

    Args:
        process: Its number; it must have a session of its own.
        niceness: How far others go first, 0 to 19.
    """
    os.setpriority(os.PRIO_PROCESS, process, niceness)
    session = Path(f"/proc/{process}/autogroup")
    for _ in range(3):
        try:
            if session.is_file():
                session.write_text(str(niceness))
            return
        except BlockingIOError:  # Linux takes ten of these a second
            time.sleep(0.15)
        except OSError:
            return
