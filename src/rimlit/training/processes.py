"""Several processes end together: the one that failed first is named, and no process waits forever.

torch notices a dead process by a broken connection and a frozen one after half an hour, and says neither which nor
why. Here every process has a companion (:mod:`rimlit.training.watcher`) and a thread, which ends the process also
where the main thread waits in an operation that will never end.
"""

import atexit
import contextlib
import faulthandler
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rimlit.checks import require_at_least
from rimlit.console import say
from rimlit.errors import ConfigError, ProcessError, StoppedError
from rimlit.tracking.recording import RunRecorder
from rimlit.training import watcher
from rimlit.training._lightning import spare_this_process, starts_commands

SLOW_MODULES = (
    "torch._dynamo",
    "torch._inductor",
    "torch.serialization",
    "triton.compiler",
    "rimlit.kernels.cpu.build",
    "rimlit.checkpoints",
)
"""Modules that may take as long as a start: compiling, reading and writing a checkpoint."""

WAITING_MODULES = ("torch.distributed", "torch.autograd.graph")
"""Modules in which a process waits for others: collective operations, and with DDP the backward pass."""


class ProcessWatch(L.Callback):
    """End a run of several processes, each with exit code 7, when one of them dies, raises, freezes or hangs.

    The first culprit is named. A process that hangs prints the stacks of its threads; of a frozen one the state is
    printed, and it is killed. A process that is alone is not watched.

    What counts as a step is any part of a batch in training, validation, test or prediction; ten times the longest
    seen so far is always allowed. Start-up, the first batch of an epoch or a validation, what happens between
    training and test, compiling, and reading or writing a checkpoint may take ``startup_timeout``.

    Args:
        timeout: Seconds without a sign of life, or without a step, after which a run is ended; at least 1.
        startup_timeout: Seconds that start-up and its like may take, at least ``timeout``.

    Raises:
        ConfigError: A time is out of its range.
        ProcessError: The run ends because of another process; also a ``SystemExit`` of code 7.

    Example:
        >>> watch = ProcessWatch(timeout=30)
        >>> trainer = L.Trainer(callbacks=[watch], logger=False, enable_checkpointing=False)
    """

    def __init__(self, *, timeout: float = 40.0, startup_timeout: float = 600.0) -> None:
        require_at_least(1, timeout=timeout)
        if startup_timeout < timeout:
            raise ConfigError(
                "startup_timeout must be at least timeout; got "
                f"startup_timeout={startup_timeout}, timeout={timeout}."
            )
        self.timeout = timeout
        self.startup_timeout = startup_timeout
        self._guard: Guard | None = None

    def begin(self, trainer: L.Trainer) -> None:
        """Watch the start-up, before Lightning waits for other processes; the command line calls this."""
        if trainer.world_size > 1 and self._guard is None:
            self._guard = Guard(trainer, self.timeout, self.startup_timeout)
            self._guard.open_store()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watch the processes, which are connected now."""
        self.begin(trainer)
        if self._guard is not None:
            self._guard.start_companion()
            self._guard.move(is_slow=True)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Report the failure to the others; where one of them failed first, end with its name."""
        if trainer.world_size > 1:
            self.begin(trainer)
            assert self._guard is not None
            self._guard.fail(exception)

    def _move(self, **how: bool) -> None:
        if self._guard is not None:
            self._guard.move(**how)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note a step."""
        self._move(is_slow=True, together=True)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note a step."""
        self._move(is_slow=True, together=True)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note a step."""
        self._move(together=True)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Any) -> None:
        """Note a step."""
        self._move(together=True)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note a step."""
        self._move(together=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Note a step; what is slow in an epoch's first batch is over."""
        self._move(is_slow=False, together=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note a step."""
        self._move(is_slow=True, together=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note a step."""
        self._move(is_slow=True, together=True)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note a step."""
        self._move(is_slow=True, together=True)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Note a step of this process; others may have a batch less."""
        self._move(is_slow=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note a step."""
        self._move(is_slow=True, together=True)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Note a step of this process."""
        self._move(is_slow=False)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note a step."""
        self._move(is_slow=True)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Note a step of this process."""
        self._move(is_slow=False)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note a step."""
        self._move(is_slow=True)


class Guard:
    """The watch of a process: its companion and a thread.

    Args:
        trainer: The trainer, before it runs.
        timeout: As in :class:`ProcessWatch`.
        startup_timeout: As in :class:`ProcessWatch`.
    """

    def __init__(self, trainer: L.Trainer, timeout: float, startup_timeout: float) -> None:
        self.trainer = trainer
        self.timeout = timeout
        self.startup_timeout = startup_timeout
        self.verdict: dict[str, Any] | None = None
        self._has_verdict = threading.Event()
        self._is_over = threading.Event()
        self._is_leaving = False  # the main thread ends the process
        self._has_failed = False
        self._companion: subprocess.Popen[bytes] | None = None
        self._store: TCPStore | None = None  # the first process's, kept open
        self._sending = threading.Lock()
        self._main = threading.main_thread().ident or 0
        self._parent = os.getppid()
        self._begun = self._moved = time.monotonic()
        self._longest = 0.0
        self._is_slow = True
        self._position = 0
        threading.Thread(target=self._watch, name="process-watch", daemon=True).start()

    def open_store(self) -> None:
        """Let the processes of a restart under torchrun meet in a store of their own.

        torchrun's store outlives a restart, and the addresses of processes that are gone stay in it: one that
        starts before the others reads them and cannot connect (torch 2.13).
        """
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return
        environment: Any = self.trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        host, key = environment.main_address, f"rimlit/port/{attempt}"
        shared = TCPStore(host, environment.main_port, is_master=False)
        if self.trainer.is_global_zero:
            store = TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
            shared.set(key, str(store.port))
            self._store = store
        os.environ["MASTER_PORT"] = shared.get(key).decode()  # waits for it
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"

    def start_companion(self) -> None:
        """Start the companion with the address of the first process's; all processes call this together."""
        if self._companion is not None:
            return
        faulthandler.enable()  # the companion may ask for the stacks of a process that no thread of it can print
        trainer = self.trainer
        companion = subprocess.Popen(
            [sys.executable, "-I", watcher.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a signal to the whole group is not for it
        )
        environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        host = environment.main_address
        settings: dict[str, Any] = {
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "pid": os.getpid(),
            "timeout": self.timeout,
            "address": (host, 0),
            "token": secrets.token_hex(16),
        }
        if trainer.is_global_zero:
            assert companion.stdout is not None
            _write(companion, settings)
            settings["address"] = host, json.loads(companion.stdout.readline())["port"]
        agreed = trainer.strategy.broadcast((settings["address"], settings["token"]))
        if not trainer.is_global_zero:
            settings["address"], settings["token"] = agreed
            _write(companion, settings)
        self._companion = companion
        spare_this_process()
        atexit.register(self._leave)

    # Reports of the process

    def move(self, *, is_slow: bool | None = None, together: bool = False) -> None:
        """Note a step.

        Args:
            is_slow: Whether the next one may take as long as start-up; None leaves it as it is.
            together: Whether all processes take this step.
        """
        now = time.monotonic()
        if not self._is_slow:
            self._longest = max(self._longest, now - self._moved)
        self._moved = now
        self._is_slow = self._is_slow if is_slow is None else is_slow
        self._position += together

    def _beat(self) -> dict[str, Any]:
        idle = time.monotonic() - self._moved
        limit, is_waiting = max(self.timeout, 10 * self._longest), False
        if idle > 1:  # the stack is read only where the process may hang
            frame = sys._current_frames().get(self._main)
            if self._is_slow or _is_inside(frame, SLOW_MODULES):
                limit = max(limit, self.startup_timeout)
            is_waiting = _is_inside(frame, WAITING_MODULES)
        return {"position": self._position, "idle": idle, "limit": limit, "is_waiting": is_waiting}

    def _tell(self, **message: Any) -> None:
        if self._companion is not None:
            with self._sending, contextlib.suppress(OSError, ValueError):
                _write(self._companion, message)

    # The thread

    def _watch(self) -> None:
        """Watch until the process ends."""
        while not self._is_over.is_set():
            self._watch_parent()
            if self._companion is None:
                self._watch_start()
                time.sleep(0.5)
                continue
            self._tell(**self._beat())
            stdout = self._companion.stdout
            assert stdout is not None
            if not select.select([stdout], [], [], 0.5)[0]:
                continue
            line = stdout.readline()
            if not line:
                if not self._is_leaving:
                    self._conclude({"ranks": [], "kind": "lost", "message": "This process's companion has ended."})
                return
            message = json.loads(line)
            if "verdict" in message:
                self._conclude(message["verdict"])
                return
            if "over" in message:
                self._is_over.set()

    def _watch_start(self) -> None:
        waited = time.monotonic() - self._begun
        if waited > self.startup_timeout:
            expected = self.trainer.world_size
            self._end(f"Waited {waited:.0f} s for {expected} processes to start; not all have come.")

    def _watch_parent(self) -> None:
        """End with the launcher: one that is killed cannot signal its processes."""
        if os.getppid() == self._parent or self._is_leaving:
            return
        is_by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        is_by_lightning = os.environ.get("LOCAL_RANK", "0") != "0" and "SLURM_JOB_ID" not in os.environ
        # Lightning's launcher is process 0, which has a companion later
        if is_by_torchrun or (is_by_lightning and self._companion is None):
            self._end("The process that started this one has ended.")

    def _conclude(self, verdict: dict[str, Any]) -> None:
        """End this process: by its main thread where that is not blocked, or at once."""
        self.verdict = verdict
        self._has_verdict.set()
        rank, message = self.trainer.global_rank, verdict["message"]
        if rank in verdict["ranks"] and verdict["kind"] == "hung":
            say(f"rimlit: {message} The stacks of process {rank}:", sys.stderr)
            faulthandler.dump_traceback(all_threads=True)
            self._end(message)
        # one that fails with the others, or notices the broken connection, says so itself and closes what is open
        until = time.monotonic() + (10 if verdict["kind"] == "failed" else 2)
        while not self._is_leaving and time.monotonic() < until:
            time.sleep(0.05)
        if self._is_leaving:
            time.sleep(15)
        self._end(message)

    def _end(self, message: str) -> None:
        """End the process, also where the main thread is blocked."""
        self._report(message)
        launcher = self.trainer.strategy.launcher
        if self._companion is None and starts_commands(launcher):
            launcher.kill(signal.SIGKILL)  # those that are not watched yet
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ProcessError.exit_code)

    def _report(self, message: str) -> None:
        """Print why the process ends, and write it into the run's state."""
        say(f"rimlit: error: {message}", sys.stderr)
        for recorder in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(recorder, RunRecorder):
                with contextlib.suppress(OSError):
                    recorder.on_exception(self.trainer, self.trainer.lightning_module, ProcessError(message))

    # The main thread

    def fail(self, error: BaseException) -> None:
        """Report an error to the others, or, where it came from one of them, end with the first culprit's name."""
        self._is_leaving = True
        if isinstance(error, StoppedError) and self.trainer.state.fn == TrainerFn.FITTING:
            return  # all processes have agreed to
        if not is_broken_connection(error):
            self._has_failed = True
            self._tell(failure=" ".join(f"{type(error).__name__}: {error}".split())[:500])
            return
        message = f"The connection to another process broke: {' '.join(str(error).split())[:200]}"
        if self._companion is not None and self._has_verdict.wait(self.timeout + 5):
            assert self.verdict is not None
            message = self.verdict["message"]
        self._report(message)
        for logger in self.trainer.loggers:
            logger.finalize("failed")  # Lightning does not get to it
        raise ProcessError(message) from None

    def _leave(self) -> None:
        """Say that this process ends; the first waits until all have said so, or one is found not to."""
        self._is_leaving = True
        if self._has_failed or self.verdict is not None:
            return
        self._tell(has_left=True)
        while self.trainer.is_global_zero and not self._is_over.wait(0.1):
            if self.verdict is not None:
                self._end(self.verdict["message"])


def is_broken_connection(error: BaseException) -> bool:
    """Return whether an error says that another process could not be reached."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, distributed.DistError):
            return True
        if isinstance(link, RuntimeError) and any(
            part in str(link) for part in ("gloo/", "NCCL", "closed by peer")
        ):
            return True
        link = link.__cause__ or link.__context__
    return False


def _is_inside(frame: FrameType | None, modules: tuple[str, ...]) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(modules):
            return True
        frame = frame.f_back
    return False


def _write(companion: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert companion.stdin is not None
    companion.stdin.write(json.dumps(message).encode() + b"\n")
    companion.stdin.flush()
