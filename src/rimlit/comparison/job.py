"""What a job of a cluster runs. Imports nothing heavy: submitit loads this module before anything is set up."""

import contextlib
import importlib
import os
import signal
from collections.abc import Callable, Mapping

STOPPING = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGTERM", "SIGINT") if hasattr(signal, name))


def train(arguments: list[str], environment: Mapping[str, str], *, is_own_process: bool = True) -> int:
    """Run ``rimlit`` in this process: submitit's signals reach it, and rimlit's handlers replace submitit's.

    It has no method ``checkpoint``: rimlit saves and requeues, and not submitit as well.

    Args:
        arguments: What follows ``rimlit``.
        environment: Variables that are set first.
        is_own_process: Whether the process is the job's, and no command's that debugs it.

    Returns:
        The exit code.
    """
    os.environ.update(environment)
    if is_own_process:
        _name_processes()
    can_block = hasattr(signal, "pthread_sigmask")
    if can_block:  # a signal that comes while torch is imported waits until it can be handled
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    import torch

    from rimlit.console import guard_streams
    from rimlit.training.signals import SignalFlag

    if (threads := int(environment["OMP_NUM_THREADS"])) != torch.get_num_threads():
        torch.set_num_threads(threads)
    if is_own_process:
        guard_streams()
    # by its name: the command is above this level, and a process would be started as "python -m rimlit"
    main: Callable[[list[str]], None] = importlib.import_module("rimlit.cli").main
    signals = SignalFlag()
    try:
        if is_own_process:
            signals.listen(at_once=True)
        if can_block:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        signals.listen_no_more()
    return 0


def _name_processes() -> None:
    """Leave the terminal, where submitit started this on the user's machine; tell Lightning which task it is."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "local":
        return
    with contextlib.suppress(OSError, AttributeError):
        os.setsid()  # the terminal's Ctrl-C is for the comparison, which asks what becomes of its jobs
    if os.environ.get("SUBMITIT_LOCAL_NTASKS", "1") != "1":
        os.environ["LOCAL_RANK"] = os.environ["SUBMITIT_LOCAL_LOCALID"]
        os.environ["WORLD_SIZE"] = os.environ["SUBMITIT_LOCAL_NTASKS"]
        os.environ["NODE_RANK"] = "0"
        os.environ["MASTER_ADDR"] = "127.0.0.1"
