"""Runs end when a signal asks or a number is not finite, and never with damage."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from rimlit.checkpoints import read_checkpoint, write_checkpoint
from rimlit.errors import NonFiniteError, StoppedError, StorageError
from rimlit.training import Checkpointer, FiniteGuard, VerifiedCheckpointIO
from tests.tasks.running import make_copying, make_copying_task, quiet

pytestmark = quiet


class At(L.Callback):
    """Do something when a step begins."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer: L.Trainer, task: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.action(task)


def train(folder: Path, *callbacks: L.Callback, steps: int = 6, task: Any = None, interval: float = 0.0) -> Any:
    task = make_copying_task() if task is None else task
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        callbacks=[*callbacks, Checkpointer(folder, interval=interval)],
        plugins=[VerifiedCheckpointIO()],
    )
    trainer.fit(task, make_copying())
    return task


@pytest.mark.parametrize(("signum", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 143)])
def test_a_signal_saves_the_last_step_and_ends_the_run(signum: str, code: int, tmp_path: Path) -> None:
    number = signal.Signals[signum]
    before = signal.getsignal(number)

    def twice(_: Any) -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # a second one does no harm

    with pytest.raises(StoppedError, match=rf"Stopped by {signum} after step 3; .*last\.ckpt holds it") as error:
        train(tmp_path, At(3, twice))
    assert error.value.exit_code == code
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3
    assert signal.getsignal(number) == before


def spoil_weight(task: Any) -> None:
    with torch.no_grad():
        next(iter(task.head.parameters())).view(-1)[0] = torch.nan


def test_a_weight_that_is_not_finite_ends_the_run_before_the_update(tmp_path: Path) -> None:
    message = (
        r"weight head\.\S+ is not finite at step 3 .*batch 3, process 0\): loss nan, gradient norm nan, .*rate"
    )
    with pytest.raises(NonFiniteError, match=message) as error:
        train(tmp_path, At(3, spoil_weight), FiniteGuard(), interval=1e9)
    assert error.value.exit_code == 5
    assert not (tmp_path / "last.ckpt").exists()


class SpoiltOnce(L.Callback):
    """Make one step's gradient infinite."""

    def on_after_backward(self, trainer: L.Trainer, task: Any) -> None:
        if trainer.global_step == 2:
            next(task.parameters()).grad.fill_(torch.inf)


def test_a_gradient_that_is_not_finite_may_be_left_out_so_many_times(tmp_path: Path) -> None:
    task = train(tmp_path / "skip", SpoiltOnce(), FiniteGuard(patience=10), steps=4)
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    with pytest.raises(NonFiniteError, match=r"gradient is not finite at step 2 .* gradient norm inf"):
        train(tmp_path / "stop", SpoiltOnce(), FiniteGuard())
    task = make_copying_task()
    with pytest.raises(NonFiniteError, match="is not written"):  # without the guard the checkpoint refuses
        train(tmp_path / "unguarded", SpoiltOnce(), task=task)
    assert read_checkpoint(tmp_path / "unguarded" / "last.ckpt")["global_step"] == 2
    with pytest.raises(ValueError, match="patience must be at least 0; got patience=-1"):
        FiniteGuard(patience=-1)


def test_a_folder_that_cannot_be_written_is_one_error_with_what_is_free(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        StorageError, match=r"last\.ckpt cannot be written \(.*\): it needs about 12 bytes, .*"
    ) as error:
        write_checkpoint({"weight": torch.ones(3)}, tmp_path / "file" / "last.ckpt")
    assert error.value.exit_code == 6


def test_a_folder_is_tried_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    steps: list[Any] = []
    with pytest.raises(StorageError, match=r"file/run cannot be written \(.*\): it needs about [\d,]+ bytes"):
        train(tmp_path / "file" / "run", At(0, steps.append))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(StorageError, match=r"No space left on device\): it needs about [\d,]+ bytes, 10 are free"):
        train(tmp_path / "run", At(0, steps.append))
    assert steps == []
    assert list((tmp_path / "run").iterdir()) == []


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"rimlit": {}, "weight": torch.ones(3)}, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device\): it needs about 12 bytes, [\d,]+ are free"):
        write_checkpoint({"rimlit": {}, "weight": torch.zeros(3)}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.equal(read_checkpoint(path)["weight"], torch.ones(3))


def test_infinity_that_is_no_weight_is_saved(tmp_path: Path) -> None:
    # what EarlyStopping starts with
    write_checkpoint({"rimlit": {}, "callbacks": {"best_score": torch.tensor(torch.inf)}}, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["callbacks"]["best_score"] == torch.inf
    with pytest.raises(
        NonFiniteError, match=r"last\.ckpt is not written: state_dict\.weight holds NaN or infinity"
    ):
        write_checkpoint({"state_dict": {"weight": torch.tensor(torch.inf)}}, tmp_path / "last.ckpt")


def test_a_signal_in_the_last_step_ends_the_run_too(tmp_path: Path) -> None:
    class Late(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match="after step 6"):
        train(tmp_path, Late())
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 6
