"""A run that is resumed with other settings: rates are used and logged, what changes a step is refused by name."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, ReduceLROnPlateau

from rimlit.checkpoints import read_checkpoint
from rimlit.errors import ConfigError
from rimlit.training import WarmupCosine
from tests.tasks.running import make_copying_task, quiet
from tests.training.running import Case, copying_data, fit

pytestmark = quiet


def case(*, optimizer: Any = None, scheduler: Any = None, data: Any = None, **trainer: Any) -> Case:
    def task(data: Any) -> Any:
        return make_copying_task(
            recall_length=10, optimizer=optimizer or partial(SGD, lr=0.5), scheduler=scheduler
        )

    data = data or partial(copying_data, train_size=16)
    return Case(task, data, {"val_check_interval": 1.0, **trainer})


def group_of(folder: Path) -> dict[str, Any]:
    group: dict[str, Any] = read_checkpoint(folder / "last.ckpt")["optimizer_states"][0]["param_groups"][0]
    return group


def go_on(folder: Path, first: Case, second: Case) -> dict[str, Any]:
    """Train six steps as the first says and the rest as the second says; return the optimiser's settings."""
    fit(first, folder, steps=6)
    fit(second, folder, steps=10, ckpt_path=folder / "last.ckpt")
    return group_of(folder)


def test_another_rate_is_used_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rimlit"):
        group = go_on(
            tmp_path / "changed",
            case(optimizer=partial(Adam, lr=0.05)),
            case(optimizer=partial(Adam, lr=0.025, weight_decay=0.1), gradient_clip_val=0.3),
        )
    assert (group["lr"], group["weight_decay"]) == (0.025, 0.1)
    prefix = "model.init_args.optimizer.init_args"
    assert f"{prefix}.lr was 0.05 and is 0.025 from here on." in caplog.text
    assert f"{prefix}.weight_decay was 0 and is 0.1 from here on." in caplog.text
    assert "trainer.gradient_clip_val was 1.0 and is 0.3 from here on." in caplog.text
    assert "trainer.max_steps was 6 and is 10 from here on." in caplog.text
    state = read_checkpoint(tmp_path / "changed/last.ckpt")["optimizer_states"][0]["state"]
    assert state[0]["step"] == 10, "Adam's moments are kept"


SCHEDULES: list[tuple[Any, Any]] = [
    (partial(ExponentialLR, gamma=0.5), partial(ExponentialLR, gamma=0.9)),
    (
        partial(WarmupCosine, warmup_steps=2, total_steps=20),
        partial(WarmupCosine, warmup_steps=4, final_ratio=0.1, total_steps=20),
    ),
]


@pytest.mark.parametrize(("before", "now"), SCHEDULES)
def test_another_schedule_stands_where_it_would_had_it_been_the_runs_own(
    before: Any, now: Any, tmp_path: Path
) -> None:
    first = case(scheduler=before)
    second = case(optimizer=partial(SGD, lr=2.0, momentum=0.5), scheduler=now)
    changed = go_on(tmp_path / "changed", first, second)
    fit(second, tmp_path / "own", steps=10)
    own = group_of(tmp_path / "own")
    assert changed == own
    kept = [read_checkpoint(tmp_path / name / "last.ckpt")["lr_schedulers"] for name in ("changed", "own")]
    assert kept[0] == kept[1]


def test_a_rate_that_a_score_has_lowered_stays_lowered_by_as_much(tmp_path: Path) -> None:
    def plateau(factor: float, lr: float) -> Case:
        # no score is ever better by 99 %
        schedule = partial(ReduceLROnPlateau, factor=factor, patience=0, threshold=0.99)
        return case(optimizer=partial(SGD, lr=lr), scheduler=schedule)

    fit(plateau(0.5, 1.0), tmp_path, steps=12)  # three epochs: the first has nothing to compare with
    assert group_of(tmp_path)["lr"] == 0.25
    fit(plateau(0.1, 2.0), tmp_path, steps=14, ckpt_path=tmp_path / "last.ckpt")
    assert group_of(tmp_path)["lr"] == 0.5
    fit(plateau(0.1, 2.0), tmp_path, steps=16, ckpt_path=tmp_path / "last.ckpt")
    assert group_of(tmp_path)["lr"] == pytest.approx(0.05)


def test_the_same_settings_replay_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LRScheduler, "load_state_dict", lambda *_: None)
    monkeypatch.setattr("rimlit.training.changes.fresh_optimizers", None)
    same = case(scheduler=partial(ExponentialLR, gamma=0.5))
    go_on(tmp_path, same, same)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            case(data=partial(copying_data, train_size=20)),
            r"cut was started with data\.init_args\.train_size=16; got 20\. Give .* --allow_changes true",
        ),
        (case(accumulate_grad_batches=2), r"cut was started with trainer\.accumulate_grad_batches=1; got 2\."),
        (case(precision="bf16-mixed"), r"trainer\.precision='32-true'; got 'bf16-mixed'"),
        (case(scheduler=partial(ExponentialLR, gamma=0.5)), r"model\.init_args\.scheduler"),
        (
            case(optimizer=partial(Adam, lr=0.5)),
            r"trained with torch\.\S*SGD, whose state torch\.\S*Adam",
        ),
    ],
)
def test_what_a_step_means_does_not_change_unless_allowed(changed: Case, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "cut" / "checkpoints"
    fit(case(), folder, steps=3)
    with pytest.raises(ConfigError, match=message):
        fit(changed, folder, steps=5, ckpt_path=folder / "last.ckpt")
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 3
    if "Adam" not in message:
        fit(changed, folder, steps=8, ckpt_path=folder / "last.ckpt", allow_changes=True)
        assert read_checkpoint(folder / "last.ckpt")["global_step"] > 3


def test_workers_and_places_may_change(tmp_path: Path) -> None:
    fit(case(), tmp_path, steps=3)
    fit(case(data=partial(copying_data, train_size=16, num_workers=1)), tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert torch.is_tensor(read_checkpoint(tmp_path / "last.ckpt")["state_dict"]["head.linear.weight"])
