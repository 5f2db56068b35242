"""A run that stops and goes on is the run that never stopped, bit for bit."""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam

from rimlit.checkpoints import read_checkpoint
from rimlit.data import Copying, DataModule, Text
from rimlit.errors import CheckpointError
from rimlit.tasks import CopyingTask, LanguageModelingTask, Task
from rimlit.training import Checkpointer, VerifiedCheckpointIO, WarmupCosine
from rimlit.training.checkpointing import newest_checkpoint
from tests.tasks.running import SMALL_RIM, quiet

pytestmark = quiet

STEPS = 11


class InterruptedRunError(Exception):
    """What the tests stop a run with."""


class Watch(L.Callback):
    """Write every loss and validation down, exactly, and stop the run when told to."""

    def __init__(self, stop: Callable[[int, str], bool] = lambda batch, when: False) -> None:
        self.losses: dict[int, str] = {}
        self.scores: dict[int, dict[str, str]] = {}
        self.stop = stop

    def _maybe_stop(self, trainer: L.Trainer, when: str) -> None:
        batch = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        if self.stop(batch, when):
            raise InterruptedRunError

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._maybe_stop(trainer, "before the step")

    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, *_: Any) -> None:
        batch = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        assert batch not in self.losses
        self.losses[batch] = outputs["loss"].item().hex()
        self._maybe_stop(trainer, "after the step")

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._maybe_stop(trainer, "in validation")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        values = {name: value.item().hex() for name, value in trainer.callback_metrics.items() if "val/" in name}
        self.scores[trainer.global_step] = values


class Case(NamedTuple):
    task: Callable[[DataModule], Task]
    data: Callable[[], DataModule]
    trainer: dict[str, Any]


DROPPED = {
    **SMALL_RIM,
    "init_args": {**SMALL_RIM["init_args"], "input_dropout": 0.3, "communication_dropout": 0.3, "dropout": 0.3},
}


def copying(data: DataModule) -> Task:
    return CopyingTask(
        DROPPED,
        data.vocabulary_size,
        data.recall_length,
        embedding_size=8,
        optimizer=partial(Adam, lr=0.01),
        scheduler=partial(WarmupCosine, warmup_steps=3, total_steps=STEPS),
    )


def language(data: DataModule) -> Task:
    return LanguageModelingTask(
        DROPPED,
        data.vocabulary_size,
        "byte",
        embedding_size=8,
        dropout=0.2,
        optimizer=partial(SGD, lr=0.1, momentum=0.9),
    )


def copying_data(**options: Any) -> Copying:
    return Copying(train_span=4, min_train_span=1, test_spans=[4], batch_size=4, val_size=6, seed=3, **options)


CASES = {
    "endless": Case(copying, copying_data, {"val_check_interval": 3}),
    "workers": Case(copying, partial(copying_data, num_workers=1), {"val_check_interval": 4}),
    "accumulation": Case(copying, copying_data, {"val_check_interval": 3, "accumulate_grad_batches": 2}),
    # 4 batches an epoch, shuffled
    "epochs": Case(copying, partial(copying_data, train_size=16), {"val_check_interval": 1.0}),
    "epochs_with_workers": Case(
        copying, partial(copying_data, train_size=16, num_workers=1), {"val_check_interval": 0.5}
    ),
    # 5 chunks an epoch, the state carried from one to the next
    "carried_state": Case(
        language, partial(Text, size_limit=1000, chunk_length=32, batch_size=6), {"val_check_interval": 2}
    ),
}


def fit(case: Case, folder: Path, *, stop: Any = None, ckpt_path: Path | None = None, steps: int = STEPS) -> Watch:
    """Train; saves after every step."""
    L.seed_everything(5, verbose=False)
    data = case.data()
    data.setup("fit")
    task = case.task(data)
    torch.manual_seed(hash(folder) % 1000)  # where another program left the global random numbers is no matter
    watch = Watch() if stop is None else Watch(stop)
    options = dict(case.trainer)
    if isinstance(options["val_check_interval"], int):
        options["check_val_every_n_epoch"] = None
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps // options.get("accumulate_grad_batches", 1),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        callbacks=[watch, Checkpointer(folder, monitor="val/cross_entropy", seed=5, interval=0)],
        plugins=[VerifiedCheckpointIO()],
        **options,
    )
    with contextlib.suppress(InterruptedRunError):
        trainer.fit(task, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return watch


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    checkpoint = read_checkpoint(folder / f"{name}.ckpt")
    return {
        **checkpoint["state_dict"],
        **{
            f"optimizer.{index}.{key}": value
            for index, state in checkpoint["optimizer_states"][0]["state"].items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        },
    }


def assert_same(folder: Path, expected: Path) -> None:
    for name in ("last", "best"):
        mine, theirs = weights(folder, name), weights(expected, name)
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert torch.equal(tensor, theirs[key]), (name, key)
    mine, theirs = (read_checkpoint(path / "last.ckpt") for path in (folder, expected))
    assert mine["global_step"] == theirs["global_step"]
    assert mine["rimlit_position"] == theirs["rimlit_position"]


def after(batch: int) -> Callable[[int, str], bool]:
    return lambda at, now: at > batch and now == "before the step"


WHEN = ("before the step", "after the step", "in validation")


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Watch]]:
    """Runs of each case that never stop, made once."""
    made: dict[str, tuple[Path, Watch]] = {}

    def run(name: str) -> tuple[Path, Watch]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, fit(CASES[name], folder)
        return made[name]

    return run


def assert_goes_on_exactly(name: str, batch: int, when: str, folder: Path, whole: tuple[Path, Watch]) -> None:
    case, (whole_folder, watch) = CASES[name], whole
    accumulated = case.trainer.get("accumulate_grad_batches", 1)
    assert len(watch.losses) == STEPS // accumulated * accumulated
    assert watch.scores
    first = fit(case, folder, stop=lambda at, now: at >= batch and now == when)
    assert (folder / "last.ckpt").exists()
    second = fit(case, folder, ckpt_path=folder / "last.ckpt")
    assert {**first.losses, **second.losses} == watch.losses
    assert {**first.scores, **second.scores} == watch.scores
    repeated = first.losses.keys() & second.losses.keys()
    assert len(repeated) <= 1 + accumulated
    for at in repeated:  # what was lost is trained again, as it was
        assert first.losses[at] == second.losses[at]
    assert_same(folder, whole_folder)


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_stops_goes_on_exactly(name: str, tmp_path: Path, whole_runs: Any) -> None:
    assert_goes_on_exactly(name, 5, "after the step", tmp_path / "cut", whole_runs(name))


@pytest.mark.slow
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("batch", range(1, STEPS - 1))
@pytest.mark.parametrize("name", CASES)
def test_a_run_stopped_at_any_step_goes_on_exactly(
    name: str, batch: int, when: str, tmp_path: Path, whole_runs: Any
) -> None:
    if "workers" in name and batch % 3:
        pytest.skip("starting workers takes time: every third step")
    assert_goes_on_exactly(name, batch, when, tmp_path / "cut", whole_runs(name))


@pytest.mark.slow
def test_a_run_stopped_again_and_again_goes_on_exactly(tmp_path: Path) -> None:
    for name in ("epochs", "carried_state"):
        whole = fit(CASES[name], tmp_path / name)
        folder, losses, path = tmp_path / f"{name}-chain", {}, None
        for _ in range(STEPS):  # one step further each time
            watch = fit(
                CASES[name],
                folder,
                ckpt_path=path,
                stop=after(len(losses)),
            )
            losses.update(watch.losses)
            path = folder / "last.ckpt"
        assert losses == whole.losses
        assert_same(folder, tmp_path / name)


def test_a_run_whose_end_is_moved_goes_on_exactly(tmp_path: Path) -> None:
    for name in ("endless", "epochs", "carried_state"):
        whole = fit(CASES[name], tmp_path / name)
        folder = tmp_path / f"{name}-parts"
        first = fit(CASES[name], folder, steps=4)
        second = fit(CASES[name], folder, steps=7, ckpt_path=folder / "last.ckpt")
        third = fit(CASES[name], folder, ckpt_path=folder / "last.ckpt")
        assert [len(part.losses) for part in (first, second, third)] == [4, 3, 4]
        assert {**first.losses, **second.losses, **third.losses} == whole.losses
        assert weights(folder).keys() == weights(tmp_path / name).keys()
        for key, tensor in weights(folder).items():
            assert torch.equal(tensor, weights(tmp_path / name)[key]), (name, key)


def test_without_the_position_a_run_does_not_go_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(CASES["epochs"], tmp_path / "whole")
    first = fit(CASES["epochs"], tmp_path / "cut", stop=lambda at, now: at == 6 and now == "before the step")
    monkeypatch.setattr(DataModule, "start_training_at", lambda *_: None)
    second = fit(CASES["epochs"], tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert {**first.losses, **second.losses} != whole.losses


def test_without_seeded_batches_a_run_does_not_go_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rimlit.training.checkpointing.seed_batch", lambda *_: None)
    whole = fit(CASES["endless"], tmp_path / "whole")
    first = fit(CASES["endless"], tmp_path / "cut", stop=lambda at, now: at == 6 and now == "before the step")
    second = fit(CASES["endless"], tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert {**first.losses, **second.losses} != whole.losses


def test_the_newest_whole_checkpoint_is_found_and_the_damaged_are_named(tmp_path: Path) -> None:
    fit(CASES["endless"], tmp_path)
    assert newest_checkpoint(tmp_path) == (tmp_path / "last.ckpt", STEPS, [])
    os.utime(tmp_path / "best.ckpt")  # a copy may come out younger than it is
    assert newest_checkpoint(tmp_path).path == tmp_path / "last.ckpt"
    content = bytearray((tmp_path / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "last.ckpt").write_bytes(content)
    path, _, passed_over = newest_checkpoint(tmp_path)
    assert path == tmp_path / "best.ckpt"
    assert passed_over == [f"{tmp_path / 'last.ckpt'} is damaged: its SHA-256 is not the one it was written with."]
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged"):
        fit(CASES["endless"], tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert newest_checkpoint(tmp_path / "none") == (None, 0, [])
