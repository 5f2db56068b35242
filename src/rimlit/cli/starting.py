"""Whether fit may train in a folder: nothing is created yet."""

from pathlib import Path

import lightning as L

from rimlit.checkpoints import kept_checkpoint, read_checkpoint
from rimlit.data import DataModule
from rimlit.errors import CheckpointError, ConfigError
from rimlit.files import require_folder
from rimlit.tasks import Task
from rimlit.tracking.process_names import is_of_this_machine
from rimlit.tracking.run_folder import RunFolder, RunLock
from rimlit.training.changes import LENGTHS, find_changes, refuse_changes


class AlreadyDone(Exception):  # noqa: N818, no error
    """The run that fit was asked for has been trained."""

    def __init__(self, message: str, folder: RunFolder) -> None:
        super().__init__(message)
        self.folder = folder


def lock_folder(folder: RunFolder) -> RunLock:
    """Lock a run's folder until the command ends.

    Raises:
        StorageError: It cannot be written.
        ConfigError: Another process of this machine writes to it.
    """
    require_folder(folder.path, 0)
    lock = RunLock(folder.path)
    lock.acquire()
    return lock


def require_alone(folder: RunFolder, saved: object) -> None:
    """Refuse a folder in which another process trains or trained, also where files cannot be locked.

    Args:
        folder: The run's folder.
        saved: What was saved there when the command began.
    """
    process = folder.running_process()
    if process is not None and is_of_this_machine(process):
        host, _, pid, _ = process.split("/")
        raise ConfigError(
            f"{folder.path} is being trained by process {pid} on {host}. Wait until it ends, stop it, or "
            "give another --name."
        )
    if folder.saved() != saved:
        raise ConfigError(f"{folder.path} was trained by another process while this one started; start again.")


def is_inside(start: str | None, folder: RunFolder) -> bool:
    """Return whether the checkpoint that fit resumes from is in the run's own folder."""
    if start is None:
        return False
    file, path = Path(start), folder.path
    # as it is written, too: checkpoints may be a link to another disk
    return path.absolute() in file.absolute().parents or path.resolve() in file.resolve().parents


def require_same_run(
    start: str,
    folder: RunFolder,
    trainer: L.Trainer,
    task: Task,
    data: DataModule,
    *,
    seed: int,
    allow_changes: bool,
    test_after_fit: bool,
    is_named: bool,
    is_limited: bool,
) -> None:
    """Refuse to resume a run of other settings, and to train one that is done.

    Args:
        start: The checkpoint.
        folder: The run's folder.
        trainer: The trainer.
        task: The task.
        data: The data module.
        seed: The run's seed.
        allow_changes: Whether a run that has changed is resumed.
        test_after_fit: Whether a run that is done has been tested.
        is_named: Whether the checkpoint was named by the user.
        is_limited: Whether ``trainer.max_time`` or a ``Timer`` ends the training.

    Raises:
        CheckpointError: The checkpoint cannot be resumed.
        ConfigError: A setting has changed.
        AlreadyDone: Nothing is left to train.
    """
    checkpoint, is_same_run = read_checkpoint(start), is_inside(start, folder)
    for key in ("global_step", "loops", "optimizer_states"):
        if key not in checkpoint:
            raise CheckpointError(f"{start} cannot be resumed: {key} is missing.")
    changes = find_changes(checkpoint, trainer, task, data, seed)
    refuse_changes(changes, str(folder.path if is_same_run else start), are_allowed=allow_changes)
    step, epoch = checkpoint["global_step"], checkpoint.get("rimlit_position", {}).get("epoch", 0)
    state = folder.read_state()
    is_trained = is_same_run and state.get("status") == "finished"
    is_tested = folder.has_own_test() or not test_after_fit
    limits = (trainer.max_steps, step), (trainer.max_epochs, epoch)
    is_long_enough = any(limit is not None and 0 <= limit <= reached for limit, reached in limits)
    if state.get("step") == step and not is_limited:
        # what ended it before these limits, EarlyStopping for example, would do so again
        lengths = ("trainer.max_steps", "trainer.max_epochs")
        # Lightning turns None into a number when it trains
        is_long_enough |= not any(change.key in lengths and change.now is not None for change in changes)
    if not (is_trained and is_tested and is_long_enough) or is_named:
        return
    length = "trainer.max_steps" if data.num_epochs is None else "data.total_steps"
    other = next((change for change in changes if change.key not in LENGTHS), None)
    if other is not None:
        raise ConfigError(
            f"{folder.path} is done, {step} steps, with {other.key}={other.before!r}; got "
            f"{other.now!r}, with which no step would be made. Give another --name, train longer with "
            f"--{length}, or start from scratch with --resume never, which archives it."
        )
    kept = kept_checkpoint(folder.path) or folder.checkpoints / "best.ckpt"
    raise AlreadyDone(
        f"{folder.path} is done, {step} steps. Test it with rimlit test --ckpt_path {kept}, train "
        f"longer with --{length}, or start from scratch with --resume never, which archives it.",
        folder,
    )
