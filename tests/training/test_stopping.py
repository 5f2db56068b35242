"""Runs end when a signal asks or a number is not finite, and never with damage."""

import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from rimlit.checkpoints import read_checkpoint, write_checkpoint
from rimlit.errors import NonFiniteError, StoppedError, StorageError
from rimlit.training import Checkpointer, FiniteGuard, VerifiedCheckpointIO
from rimlit.training.signals import SignalFlag
from tests.tasks.running import make_copying, make_copying_task, quiet

pytestmark = quiet


class At(L.Callback):
    """Do something when a step begins."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer: L.Trainer, task: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.action(task)


def train(
    folder: Path,
    *callbacks: L.Callback,
    steps: int = 6,
    task: Any = None,
    interval: float = 0.0,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Any:
    task = make_copying_task() if task is None else task
    options["plugins"] = [VerifiedCheckpointIO(), *options.get("plugins", [])]
    trainer = L.Trainer(
        accelerator=options.pop("accelerator", "cpu"),
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=options.pop("limit_val_batches", 0),
        use_distributed_sampler=False,
        callbacks=[*callbacks, Checkpointer(folder, interval=interval)],
        **options,
    )
    trainer.fit(task, make_copying(), ckpt_path=ckpt_path, weights_only=True)
    return task


@pytest.mark.parametrize(
    ("signum", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 143), ("SIGHUP", 129)]
)
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


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    flag = SignalFlag()
    try:
        flag.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        assert not flag.received
        flag.listen_no_more()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def spoil_weight(task: Any) -> None:
    with torch.no_grad():
        next(iter(task.head.parameters())).view(-1)[0] = torch.nan


def test_a_weight_that_is_not_finite_ends_the_run_before_the_update(tmp_path: Path) -> None:
    message = (
        r"weight head\.\S+ is not finite at step 3 .*batch 3, process 0\): loss nan, gradient norm nan, .*rate"
    )
    with pytest.raises(NonFiniteError, match=message) as error:
        train(tmp_path, At(3, spoil_weight), FiniteGuard(skip=9), interval=1e9)
    assert error.value.exit_code == 5
    assert not (tmp_path / "last.ckpt").exists()


def test_a_weight_that_no_loss_depends_on_is_looked_at_too(tmp_path: Path) -> None:
    task = make_copying_task()
    task.idle = torch.nn.Parameter(torch.zeros(3))

    def spoil(task: Any) -> None:
        task.idle.data[1] = torch.inf

    message = r"weight idle is not finite at step 2 .*loss \d\S*, gradient norm \d"
    with pytest.raises(NonFiniteError, match=message):
        train(tmp_path, At(2, spoil), FiniteGuard(), task=task, interval=1e9)


def test_finite_numbers_whose_sum_is_not_end_nothing(tmp_path: Path) -> None:
    task = make_copying_task()
    task.large = torch.nn.Parameter(torch.full((3,), 3e38))
    assert not task.large.sum().isfinite()
    train(tmp_path, FiniteGuard(), task=task, steps=2)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2


class NonFinite(L.Callback):
    """Make a number infinite in some steps: of the gradient, or of the loss alone."""

    def __init__(self, *steps: int, loss: bool = False) -> None:
        self.steps, self.loss = steps, loss

    def on_before_backward(self, trainer: L.Trainer, task: Any, loss: torch.Tensor) -> None:
        if trainer.global_step in self.steps and self.loss:
            loss.data.fill_(torch.inf)

    def on_after_backward(self, trainer: L.Trainer, task: Any) -> None:
        if trainer.global_step in self.steps and not self.loss:
            next(task.parameters()).grad.fill_(torch.inf)


def test_an_update_that_is_not_finite_may_be_left_out_so_many_times(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = train(tmp_path / "skip", NonFinite(2, 4), FiniteGuard(skip=2))
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    assert "is left out, 1 of 2" in caplog.text and "is left out, 2 of 2" in caplog.text
    with pytest.raises(NonFiniteError, match=r"gradient is not finite at step 4 .* gradient norm inf"):
        train(tmp_path / "stop", NonFinite(2, 4), FiniteGuard(skip=1))
    with pytest.raises(NonFiniteError, match=r"loss is not finite at step 2 .* loss inf, gradient norm \d"):
        train(tmp_path / "loss", NonFinite(2, loss=True), FiniteGuard())
    with pytest.raises(ValueError, match="skip must be at least 0; got skip=-1"):
        FiniteGuard(skip=-1)


def test_without_the_guard_the_checkpoint_refuses(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="is not written"):
        train(tmp_path, NonFinite(2), task=make_copying_task())
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2


def test_a_left_out_update_is_counted_over_stops(tmp_path: Path) -> None:
    train(tmp_path, NonFinite(2), FiniteGuard(skip=1), steps=4)
    with pytest.raises(NonFiniteError, match="at step 5"):
        train(tmp_path, NonFinite(5), FiniteGuard(skip=1), ckpt_path=tmp_path / "last.ckpt")


def test_all_batches_of_an_accumulated_update_are_named(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"epoch 1, batches 0 to 1, process 0\): loss \d\S+, \d\S+, gradient"):
        train(tmp_path, NonFinite(2), FiniteGuard(), accumulate_grad_batches=2)


def test_a_loss_scale_that_collapses_ends_the_run(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-10)
    half = MixedPrecision("16-mixed", "cpu", scaler)
    with pytest.raises(NonFiniteError, match=r"loss scale has collapsed to 3\.\d+e-05 at step \d") as error:
        train(tmp_path, NonFinite(*range(99)), FiniteGuard(), steps=20, plugins=[half])
    assert error.value.exit_code == 5
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 5, "the last one is whole"


@pytest.mark.gpu
def test_a_loss_scale_that_collapses_on_a_gpu_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="loss scale has collapsed"):
        train(tmp_path, NonFinite(*range(99)), FiniteGuard(), steps=60, accelerator="gpu", precision="16-mixed")


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
    with pytest.raises(StorageError, match=r"left on device\): it needs about [\d,]+ bytes, 10 bytes are free"):
        train(tmp_path / "run", At(0, steps.append))
    assert steps == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "what is refused leaves nothing"


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"rimlit": {}, "state_dict": {}, "weight": torch.ones(3)}, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"left on device\): it needs about 12 bytes, [\d,]+ bytes are free"):
        write_checkpoint({"rimlit": {}, "state_dict": {}, "weight": torch.zeros(3)}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.equal(read_checkpoint(path)["weight"], torch.ones(3))


def test_a_folder_that_vanishes_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    message = r"checkpoints/last\.ckpt cannot be written \(No such file.*needs about [\d,]+ bytes, the folder is"
    with pytest.raises(StorageError, match=message):
        train(folder, At(3, lambda _: shutil.rmtree(folder)))
    assert not folder.exists(), "it is not created again as if nothing was lost"


def test_a_run_whose_checkpoints_are_gone_does_not_end_well(tmp_path: Path) -> None:
    class Thief(L.Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            (tmp_path / "best.ckpt").unlink()

    with pytest.raises(StorageError, match=r"best\.ckpt is gone: the run wrote it"):
        train(tmp_path, Thief(), steps=3, limit_val_batches=1, val_check_interval=2, interval=1e9)


def test_infinity_that_is_no_weight_is_saved(tmp_path: Path) -> None:
    # what EarlyStopping starts with
    write_checkpoint(
        {"rimlit": {}, "state_dict": {}, "callbacks": {"best_score": torch.tensor(torch.inf)}},
        tmp_path / "last.ckpt",
    )
    assert read_checkpoint(tmp_path / "last.ckpt")["callbacks"]["best_score"] == torch.inf
    with pytest.raises(
        NonFiniteError, match=r"last\.ckpt is not written: state_dict\.weight holds NaN or infinity"
    ):
        write_checkpoint({"state_dict": {"weight": torch.tensor(torch.inf)}}, tmp_path / "last.ckpt")


def test_a_carried_state_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    carried = [None, [torch.zeros(2, 3), torch.tensor([[torch.inf]])]]
    message = r"last\.ckpt is not written: rimlit\.carried\.1\.1 holds NaN or infinity"
    with pytest.raises(NonFiniteError, match=message):
        write_checkpoint({"rimlit": {"carried": carried}, "state_dict": {}}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_signal_in_the_last_step_ends_the_run_too(tmp_path: Path) -> None:
    class Late(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match="after step 6"):
        train(tmp_path, Late())
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 6
