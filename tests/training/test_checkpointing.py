"""A resumed run is bit-identical to an uninterrupted one."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rimlit import checkpoints
from rimlit.checkpoints import read_checkpoint, write_checkpoint
from rimlit.data import DataModule
from rimlit.errors import CheckpointError
from rimlit.tasks import load_checkpoint
from rimlit.training import Checkpointer, VerifiedCheckpointIO
from rimlit.training.checkpointing import newest_checkpoint, seed_batch
from tests.tasks.running import make_trainer, quiet
from tests.training.running import CASES, STEPS, Watch, assert_same, fit, weights

pytestmark = quiet


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
    assert {**first.means, **second.means} == watch.means
    repeated = first.losses.keys() & second.losses.keys()
    assert len(repeated) <= 1 + accumulated
    for at in repeated:  # what was lost is trained again, as it was
        assert first.losses[at] == second.losses[at]
    assert_same(folder, whole_folder)


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_stops_goes_on_exactly(name: str, tmp_path: Path, whole_runs: Any) -> None:
    assert_goes_on_exactly(name, 5, "after the step", tmp_path / "cut", whole_runs(name))


def stops() -> list[tuple[str, int, str]]:
    """Every step of every kind of run; before, after and in validation for those that differ most, or in turn."""
    found = []
    for name in CASES:
        # starting workers takes time: every third step
        for batch in range(1, STEPS - 1, 3 if "workers" in name else 1):
            when = WHEN if name in ("epochs", "means", "carried_state") else (WHEN[batch // 3 % 3],)
            found += [(name, batch, now) for now in when]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch", "when"), stops())
def test_a_run_stopped_at_any_step_goes_on_exactly(
    name: str, batch: int, when: str, tmp_path: Path, whole_runs: Any
) -> None:
    assert_goes_on_exactly(name, batch, when, tmp_path / "cut", whole_runs(name))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["endless", "epochs", "carried_state"])
def test_a_deterministic_run_on_a_gpu_goes_on_exactly(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    case = CASES[name]
    case = case._replace(trainer={**case.trainer, "accelerator": "gpu", "devices": 1, "deterministic": True})
    try:
        whole = fit(case, tmp_path / "whole")
        first = fit(case, tmp_path / "cut", stop=after(5))
        second = fit(case, tmp_path / "cut", ckpt_path=tmp_path / "cut/last.ckpt")
    finally:
        torch.use_deterministic_algorithms(False)
    assert {**first.losses, **second.losses} == whole.losses
    assert_same(tmp_path / "cut", tmp_path / "whole")


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


class PlainModule(L.LightningModule):
    """A module that knows nothing of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(), torch.nn.Linear(4, 1))

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def test_any_module_with_an_ordered_loader_goes_on_exactly(tmp_path: Path) -> None:
    rows = torch.arange(32.0).view(8, 4) / 32

    def train(folder: Path, steps: int, path: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        module = PlainModule()
        trainer = make_trainer(
            folder,
            max_steps=steps,
            enable_checkpointing=True,
            callbacks=[Checkpointer(folder, seed=1)],
            plugins=[VerifiedCheckpointIO()],
        )
        trainer.fit(module, DataLoader(rows, batch_size=2), ckpt_path=path, weights_only=True)
        return module.state_dict()

    whole = train(tmp_path / "whole", 8)
    train(tmp_path / "parts", 4)  # an epoch: where a plain loader continues
    parts = train(tmp_path / "parts", 8, tmp_path / "parts/last.ckpt")
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    with pytest.raises(CheckpointError, match=r"last\.ckpt holds weights of a module that is not a task"):
        load_checkpoint(tmp_path / "parts/last.ckpt")


def test_a_run_whose_end_is_moved_goes_on_exactly(tmp_path: Path) -> None:
    for name in ("endless", "epochs", "means", "carried_state"):
        whole = fit(CASES[name], tmp_path / name)
        folder = tmp_path / f"{name}-parts"
        first = fit(CASES[name], folder, steps=4)
        second = fit(CASES[name], folder, steps=7, ckpt_path=folder / "last.ckpt")
        third = fit(CASES[name], folder, ckpt_path=folder / "last.ckpt")
        assert [len(part.losses) for part in (first, second, third)] == [4, 3, 4]
        assert {**first.losses, **second.losses, **third.losses} == whole.losses
        assert {**first.means, **second.means, **third.means} == whole.means
        assert weights(folder).keys() == weights(tmp_path / name).keys()
        for key, tensor in weights(folder).items():
            assert torch.equal(tensor, weights(tmp_path / name)[key]), (name, key)


def test_a_run_killed_between_its_last_two_files_is_completed(tmp_path: Path) -> None:
    fit(CASES["endless"], tmp_path, steps=3)  # validated after its last step: best is written, then last
    best = (tmp_path / "best.ckpt").read_bytes()
    (tmp_path / "last.ckpt").unlink()
    fit(CASES["endless"], tmp_path, steps=3, ckpt_path=tmp_path / "best.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == best
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3


def test_a_run_that_goes_on_in_another_folder_has_a_best_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpointer, "_is_best", lambda self, score: self.best_score is None)  # none is better
    fit(CASES["endless"], tmp_path / "first", steps=3)
    fit(CASES["endless"], tmp_path / "second", ckpt_path=tmp_path / "first" / "last.ckpt")
    assert read_checkpoint(tmp_path / "second" / "best.ckpt")["global_step"] == 6


def test_without_the_position_a_run_does_not_go_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(CASES["epochs"], tmp_path / "whole")
    first = fit(CASES["epochs"], tmp_path / "cut", stop=lambda at, now: at == 6 and now == "before the step")
    monkeypatch.setattr(DataModule, "start_training_at", lambda *_: None)
    second = fit(CASES["epochs"], tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert {**first.losses, **second.losses} != whole.losses


def test_without_its_sums_an_epoch_has_other_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(CASES["means"], tmp_path / "whole")
    assert set(whole.means) == {0, 1} and len(whole.means[0]) == 8
    (group,) = read_checkpoint(tmp_path / "whole/last.ckpt")["optimizer_states"][0]["param_groups"]
    assert group["lr"] == 0.25, "the schedule has acted"
    first = fit(CASES["means"], tmp_path / "cut", stop=lambda at, now: at == 6 and now == "before the step")
    monkeypatch.setattr("rimlit.training.checkpointing.restore", lambda *_, **__: None)
    second = fit(CASES["means"], tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert {**first.losses, **second.losses} == whole.losses
    assert {**first.means, **second.means} != whole.means


def test_without_seeded_batches_a_run_does_not_go_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rimlit.training.checkpointing.seed_batch", lambda *_: None)
    whole = fit(CASES["endless"], tmp_path / "whole")
    first = fit(CASES["endless"], tmp_path / "cut", stop=lambda at, now: at == 6 and now == "before the step")
    second = fit(CASES["endless"], tmp_path / "cut", ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert {**first.losses, **second.losses} != whole.losses


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_random_numbers_of_a_batch_follow_from_seed_process_and_number(device: str) -> None:
    def drawn(*numbers: int) -> list[float]:
        seed_batch(*numbers, torch.device(device))
        of_torch = [torch.rand((), device=device).item(), torch.rand(()).item()]
        return [*of_torch, np.random.rand(), random.random()]

    first = drawn(3, 1, 7)
    others = [drawn(4, 1, 7), drawn(3, 0, 7), drawn(3, 1, 8)]
    assert drawn(3, 1, 7) == first
    assert all(set(other).isdisjoint(first) for other in others)


def test_without_the_digest_a_flipped_bit_would_load_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"rimlit": {}, "state_dict": {"weight": torch.full((1000,), 0.5)}}, path)
    content = bytearray(path.read_bytes())
    at = content.index(torch.full((9,), 0.5).numpy().tobytes()) + 403
    content[at] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256"):
        read_checkpoint(path)
    monkeypatch.setattr(checkpoints, "verify", lambda _: None)
    assert read_checkpoint(path)["state_dict"]["weight"][100] > 1e30


def test_the_newest_whole_checkpoint_is_found_and_the_damaged_are_named(tmp_path: Path) -> None:
    fit(CASES["endless"], tmp_path)
    assert newest_checkpoint(tmp_path) == (tmp_path / "last.ckpt", STEPS, [])
    os.utime(tmp_path / "best.ckpt")  # a copy may come out younger than it is
    assert newest_checkpoint(tmp_path).path == tmp_path / "last.ckpt"
    content = bytearray((tmp_path / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "last.ckpt").write_bytes(content)
    non_finite = read_checkpoint(tmp_path / "best.ckpt")
    non_finite["global_step"] = 99
    non_finite["state_dict"]["head.linear.bias"][1] = torch.nan
    torch.save(non_finite, tmp_path / "non_finite.ckpt")
    path, _, (*passed_over, other) = newest_checkpoint(tmp_path)
    assert path == tmp_path / "best.ckpt"
    assert other.endswith("non_finite.ckpt cannot be used: state_dict.head.linear.bias holds NaN or infinity.")
    assert passed_over == [f"{tmp_path / 'last.ckpt'} is damaged: its SHA-256 is not the one it was written with."]
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged"):
        fit(CASES["endless"], tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert newest_checkpoint(tmp_path / "none") == (None, 0, [])


def test_a_checkpoint_that_may_not_be_read_is_passed_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, step in (("best", 3), ("last", 4)):
        write_checkpoint({"rimlit": {}, "state_dict": {}, "global_step": step}, tmp_path / f"{name}.ckpt")
    verify = checkpoints.verify

    def refuse(path: Path) -> None:  # by rights it would be: the tests may run as root
        if Path(path).stem == "last":
            raise PermissionError(13, "Permission denied", str(path))
        verify(path)

    monkeypatch.setattr(checkpoints, "verify", refuse)
    denied = f"{tmp_path / 'last.ckpt'} cannot be read (Permission denied)."
    assert newest_checkpoint(tmp_path) == (tmp_path / "best.ckpt", 3, [denied])
