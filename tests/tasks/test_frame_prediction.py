"""The frame task: what is scored, how it rolls out, that it learns, that any backbone and head will do."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Adam

from rimlit.data import BouncingBalls
from rimlit.encoders import ConvolutionalEncoder, DenseEncoder
from rimlit.errors import ConfigError
from rimlit.heads import AttentionHead, DenseHead, FrameHead, LinearHead, SlotMixtureHead, SumHead
from rimlit.tasks import FramePredictionTask
from tests.tasks.running import SMALL_LSTM, SMALL_RIM, make_trainer, quiet

pytestmark = quiet

SIZES = {"frame_size": 16, "context_length": 3, "rollout_length": 4}


def make_data(**arguments: Any) -> BouncingBalls:
    defaults: dict[str, Any] = {
        "train_balls": 2,
        "test_balls": [2, "curtain"],
        "num_frames": 8,
        "train_size": 8,
        "val_size": 4,
        "test_size": 4,
        "batch_size": 4,
        "seed": 1,
    }
    return BouncingBalls(**{**SIZES, **defaults, **arguments})


def make_task(**arguments: Any) -> FramePredictionTask:
    defaults: dict[str, Any] = {
        "backbone": SMALL_RIM,
        "encoder": partial(DenseEncoder, output_size=8, hidden_sizes=[12]),
        "head": partial(DenseHead, hidden_size=12),
    }
    return FramePredictionTask(**{**SIZES, **defaults, **arguments})


def batch(**arguments: Any) -> Any:
    return next(iter(make_data(**arguments).val_dataloader()[0]))


def test_the_loss_is_the_mean_over_all_pixels_of_the_next_frames() -> None:
    frames = batch()
    outputs = torch.linspace(-2, 2, 4 * 7 * 256).view(4, 7, 256)
    lit = frames.frames[:, 1:].flatten(2).double()
    probabilities = outputs.double().sigmoid()
    expected = -(lit * probabilities.log() + (1 - lit) * (1 - probabilities).log()).mean()
    assert make_task().loss(outputs, frames).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("prediction", ["pixels", "motion"])
@pytest.mark.parametrize("backbone", [SMALL_RIM, SMALL_LSTM])
def test_a_rollout_is_true_frames_and_then_the_task_s_own_run_as_one_sequence(
    backbone: dict[str, Any], prediction: Any
) -> None:
    task = make_task(backbone=backbone, prediction=prediction).eval()
    frames = batch().frames[:, :3]
    rollout = task.rollout(frames)
    assert rollout.logits.shape == (4, 6, 16, 16) and rollout.features.shape == (4, 6, 12)
    own = rollout.logits[:, 2:-1]
    own = (own > 0).float() if task.certainty is None else own / task.certainty / 2 + 0.5
    logits, _ = task(torch.cat([frames.float(), own], dim=1))
    torch.testing.assert_close(logits.view(4, 6, 16, 16), rollout.logits, rtol=1e-4, atol=1e-5)


def test_a_rollout_sees_nothing_after_the_context() -> None:
    task, frames = make_task().eval(), batch()
    logits = task.scored(frames.frames, frames)[0]
    later = frames._replace(frames=torch.cat([frames.frames[:, :3], 1 - frames.frames[:, 3:]], dim=1))
    assert torch.equal(task.scored(later.frames, later)[0], logits)


def test_what_is_scored_are_the_frames_after_the_context() -> None:
    frames = batch()
    logits, targets, radii, positions, visible = make_task().scored(frames.frames, frames)
    assert logits.shape == targets.shape == (4, 4, 16, 16)
    assert torch.equal(targets, frames.frames[:, 3:7])
    assert torch.equal(positions, frames.positions[:, 3:7])
    assert torch.equal(visible, frames.visible[:, 3:7])
    assert torch.equal(radii, frames.radii)


def at_rest(**arguments: Any) -> FramePredictionTask:
    """A task for which nothing moves."""
    task = make_task(prediction="motion", **arguments)
    for parameter in task.head.parameters():
        parameter.data.zero_()
    task.head.layers[-1].bias.data.view(-1, 5)[:, 2] = 50  # type: ignore[union-attr, index]
    return task


def test_motion_is_learned_from_copying_the_frame_before() -> None:
    task, frames = at_rest(), batch().frames
    logits = task(frames)[0].view(frames.shape)
    torch.testing.assert_close(logits, 6.0 * frames - 3)
    rollout = task.rollout(frames[:, :3]).logits
    torch.testing.assert_close(rollout[:, 2:], (6.0 * frames[:, 2:3] - 3).expand(-1, 4, -1, -1))
    task.loss(task(frames[:, :-1])[0], batch()).backward()
    assert all(parameter.grad is not None for parameter in task.parameters())


def test_a_prediction_that_is_unknown_or_does_not_fit_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction must be one of pixels, motion; got prediction='optical'"):
        make_task(prediction="optical")
    with pytest.raises(ConfigError, match="frame_size divisible by 8; got frame_size=20"):
        make_task(prediction="motion", frame_size=20)


@pytest.mark.parametrize(
    "head",
    [None, LinearHead, DenseHead, AttentionHead, SumHead, partial(SlotMixtureHead, channels=(4, 2)), FrameHead],
)
@pytest.mark.parametrize("backbone", [SMALL_RIM, SMALL_LSTM])
def test_every_head_draws_frames_of_every_backbone(head: Any, backbone: dict[str, Any]) -> None:
    task = make_task(backbone=backbone, **({} if head is None else {"head": head}))
    assert task.rollout(batch().frames[:, :3]).logits.shape == (4, 6, 16, 16)


def test_the_positions_of_a_feature_map_can_be_the_input_slots() -> None:
    encoder = partial(ConvolutionalEncoder, output_size=8, channels=[2, 3], position_wise=True)
    task = make_task(encoder=encoder)
    frames = batch()
    with task.backbone.record_activity() as activities:
        task.loss(task(frames.inputs)[0], frames).backward()
    assert activities[0].slot_attention.shape[-1] == 16  # 4 × 4 positions
    assert all(parameter.grad is not None for parameter in task.parameters())
    assert task.rollout(frames.frames[:, :3]).logits.shape == (4, 6, 16, 16)


def test_a_run_logs_rollouts_of_every_set(tmp_path: Path) -> None:
    task, data = make_task(prediction="motion"), make_data()
    trainer = make_trainer(tmp_path)
    trainer.fit(task, data)
    assert {"val/loss", "val/f1", "val/position_error_at_1"} <= set(trainer.callback_metrics)
    scores = {name: value for part in trainer.test(task, data, verbose=False) for name, value in part.items()}
    for group in ("balls_2", "curtain"):
        for metric in ("bce", "f1", "position_error"):
            assert math.isfinite(scores[f"test/{group}/{metric}"])
            assert math.isfinite(scores[f"test/{group}/{metric}_at_1"])
            assert len(task.rollout_curves()[group][metric]) == 4
        assert f"test/{group}/loss" in scores
    assert task.floors().keys() >= {"balls_2/f1_at_1", "curtain/constant_velocity_position_error"}


def test_prediction_tells_where_the_balls_were_found(tmp_path: Path) -> None:
    data = make_data(test_balls=["1-3"], frame_size=64, radii=[0.8], masses=[1.0])
    task = at_rest(frame_size=64)
    records = [record for part in make_trainer(tmp_path).predict(task, data) for record in part]
    assert len(records) == 4
    for index, record in enumerate(records):
        scene = data.datasets("predict")["balls_1-3"][index]
        count = len(record["radii"])
        assert count == (scene.radii > 0).sum()
        assert len(record["found"]) == len(record["true"]) == 4
        torch.testing.assert_close(torch.tensor(record["true"]), scene.positions[3:7, :count], rtol=0, atol=0.006)
        if count == 1:
            error = torch.tensor(record["found"])[:, 0] - scene.positions[2, 0]
            assert error.norm(dim=-1).max() < 0.5


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_training_and_evaluation_work_at_other_precisions(tmp_path: Path, precision: str) -> None:
    task, data = make_task(prediction="motion"), make_data()
    trainer = make_trainer(tmp_path, precision=precision)
    trainer.fit(task, data)
    scores = trainer.test(task, data, verbose=False)
    assert all(math.isfinite(value) for part in scores for value in part.values())


def test_training_on_few_sequences_learns_to_predict_them(tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": partial(Adam, lr=0.02), "head": partial(DenseHead, hidden_size=64)}
    task = make_task(**options, backbone={**SMALL_LSTM, "init_args": {"hidden_size": 32}})
    data = make_data(train_size=4, batch_size=4)
    make_trainer(tmp_path, max_steps=100, limit_val_batches=0).fit(task, data)
    frames = next(iter(data.train_dataloader()))
    loss = task.loss(task.eval()(frames.inputs)[0], frames).item()
    copied = frames.inputs.float().clamp(0.05, 0.95)
    copying = torch.nn.functional.binary_cross_entropy(copied, frames.targets.float()).item()
    assert loss < 0.5 * copying
