"""The folder of a run: its files, and the lock that lets one process at a time train in it."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from rimlit.errors import ConfigError, NonFiniteError
from rimlit.files import read_json, storage_error, write_json
from rimlit.tracking.process_names import is_gone, process_name

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


class RunFolder:
    """The files of a run: ``checkpoints/``, ``config.yaml``, ``metrics.csv``, ``run_state.json``, ``figures/``.

    Args:
        path: ``runs/<dataset>/<name>``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Folder of ``best.ckpt`` and ``last.ckpt``."""
        return self.path / "checkpoints"

    def saved(self) -> dict[str, tuple[int, int]]:
        """Return time (ns) and size (bytes) of each checkpoint by name: they change when it is written."""
        return {
            path.name: (status.st_mtime_ns, status.st_size)
            for path in sorted(self.checkpoints.glob("*.ckpt"))
            if (status := path.lstat())
        }

    def read_state(self) -> dict[str, Any]:
        """Return ``run_state.json``, empty for a new run."""
        return read_json(self.path / "run_state.json")

    def write_state(self, **entries: Any) -> None:
        """Add entries to ``run_state.json``."""
        write_json(self.path / "run_state.json", {**self.read_state(), **entries})

    def running_process(self) -> str | None:
        """Return the :func:`process_name` of another process that trains this run; None where it has ended.

        A process on another machine counts as running until it has recorded its end.
        """
        state = self.read_state()
        process = state.get("process")
        if state.get("status") != "running" or not isinstance(process, str):
            return None
        return None if process == process_name() or is_gone(process) else process

    def read_results(self) -> dict[str, Any]:
        """Return ``results.json``, empty before the end of a run."""
        return read_json(self.path / "results.json")

    def write_results(self, **entries: Any) -> None:
        """Add entries to ``results.json``."""
        write_json(self.path / "results.json", {**self.read_results(), **entries})

    def has_own_test(self) -> bool:
        """Return whether the scores in ``results.json`` are those of the test that ended the training."""
        results = self.read_results()
        tested = results.get("tested")
        return isinstance(results.get("test"), dict) and bool(
            tested.get("after_fit", True) if isinstance(tested, dict) else True
        )

    def is_finished(self) -> bool:
        """Return whether the run was trained to its end and then tested."""
        return self.read_state().get("status") == "finished" and self.has_own_test()

    def has_diverged(self) -> bool:
        """Return whether the training ended because a loss, a gradient or a weight was not finite."""
        state = self.read_state()
        return state.get("status") == "failed" and state.get("error") == NonFiniteError.__name__

    def best_validation(self) -> dict[str, Any] | None:
        """Return ``metric``, ``score`` and ``higher_is_better`` of the best validation, None where none was."""
        found = self.read_results().get("best_validation")
        is_whole = isinstance(found, dict) and isinstance(found.get("score"), int | float) and "metric" in found
        return found if is_whole else None

    def archive_earlier_run(self) -> None:
        """Rename an earlier run of this name, so that a new one neither mixes with it nor destroys it.

        Raises:
            StorageError: The folder cannot be renamed.
        """
        if not any((self.path / name).exists() for name in ("checkpoints", "run_state.json", "results.json")):
            return
        number = 1
        while os.path.lexists(archive := self.path.with_name(f"{self.path.name}.{number}")):
            number += 1
        try:
            self.remove_leftovers()
            self.path.rename(archive)
        except OSError as error:
            raise storage_error(archive, None, error) from error
        log.info("The earlier run in %s is now in %s; resume it with --name %s.", self.path, archive, archive.name)

    def remove_leftovers(self) -> None:
        """Remove half-written files of a process that was killed."""
        for left in self.path.rglob(".*.tmp"):
            with contextlib.suppress(OSError):
                left.unlink()


class RunLock:
    """Lets one process at a time work on a run, from before its folder is read until it is released.

    The lock is on the file ``.<name>.lock`` beside the run's folder, so that it also holds while the folder is
    archived. The system releases it when the process ends, however it ends; a process forked from this one does
    not hold it. The file is removed at release, with the folders that were created for it and are still empty.

    Args:
        folder: The run's folder, which need not exist.
    """

    _held: dict[Path, "RunLock"] = {}  # noqa: RUF012, shared on purpose: the system lets a process lock twice

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        whole = folder.absolute()
        self.path = whole.with_name(f".{whole.name}.lock")
        if whole.is_dir() and not os.access(whole.parent, os.W_OK):  # a disk mounted there, for example
            self.path = whole / ".lock"
        self._key = Path(os.path.realpath(self.path.parent), self.path.name)
        self._file: int | None = None
        self._created: list[Path] = []

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ConfigError: Another process has it.
            StorageError: The folder above the run's cannot be written.
        """
        if self._key in self._held:
            raise self._busy(process_name())
        try:
            missing = [path for path in (self.path.parent, *self.path.parent.parents) if not path.exists()]
            self._created = missing
            self._file = self._open()
        except OSError as error:
            self._remove_created()
            raise storage_error(self.path, None, error) from error
        self._held[self._key] = self

    def _open(self) -> int | None:
        """Return the locked file, None where its file system has no locks."""
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)  # another process may have removed it, empty
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            try:
                self._lock(file)
            except (BlockingIOError, PermissionError) as error:
                owner = os.read(file, 1000).decode(errors="replace")
                os.close(file)
                raise self._busy(owner) from error
            except OSError as error:
                os.close(file)
                log.warning(
                    "%s cannot be locked (%s): start no second process in this folder.",
                    self.folder,
                    error.strerror,
                )
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(self.path)):
                    os.truncate(file, 0)
                    os.write(file, process_name().encode())
                    return file
            os.close(file)  # the process that held it has just removed it

    @staticmethod
    def _lock(file: int) -> None:
        if fcntl is not None:
            # of the process, not of the open file: a forked loader process does not keep it alive
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:  # pragma: no cover, Windows
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

    def _busy(self, owner: str) -> ConfigError:
        parts = owner.split("/")
        process = f"process {parts[2]} on {parts[0]}" if len(parts) == 4 else "another process"
        return ConfigError(
            f"{self.folder} is being used by {process}: one process at a time trains or tests a run. Wait until "
            "it ends, stop it, or give another --name."
        )

    def release(self) -> None:
        """Release the lock; nothing happens where it is not held."""
        if self._held.get(self._key) is not self:
            return
        del self._held[self._key]
        if self._file is not None:
            # removed while locked: a process that has opened the file opens it again
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._file)
            self._file = None
        self._remove_created()

    def _remove_created(self) -> None:
        for folder in self._created:
            with contextlib.suppress(OSError):  # not empty: it contains a run
                folder.rmdir()
        self._created = []
