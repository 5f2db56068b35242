"""Pictures to a class: sizes from the data module, any encoder of a shape, that it learns."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Adam

from rimlit.backbones import GRU
from rimlit.data import BlinkingBalls
from rimlit.encoders import ConvolutionalEncoder, ObjectEncoder
from rimlit.errors import ConfigError
from rimlit.tasks import FrameClassificationTask
from tests.tasks.running import SMALL_LSTM, SMALL_RIM, make_trainer, quiet

pytestmark = quiet

SHAPE = (3, 16, 16)
SLOTS = partial(ObjectEncoder, output_size=6, num_slots=3, channels=[2, 3])


def make_data(**arguments: Any) -> BlinkingBalls:
    sizes: dict[str, Any] = {"frame_size": 16, "batch_size": 4, "val_size": 4, "test_size": 4, "seed": 1}
    return BlinkingBalls(**{**sizes, **arguments})


def make_task(**arguments: Any) -> FrameClassificationTask:
    return FrameClassificationTask(**{"backbone": SMALL_RIM, "output_size": 5, "frame_shape": SHAPE, **arguments})


@pytest.mark.parametrize("encoder", [partial(ConvolutionalEncoder, output_size=6, channels=[2, 3]), SLOTS])
def test_the_answer_is_read_at_the_last_picture(encoder: Any) -> None:
    task = make_task(encoder=encoder).eval()
    batch = next(iter(make_data(train_length=3).train_dataloader()))
    outputs, _ = task(batch.inputs)
    assert outputs.shape == (4, 4, 5)
    (record, *_) = task.predict_step(batch, 0)
    torch.testing.assert_close(torch.tensor(record["probabilities"]), outputs[0, -1].softmax(dim=-1))
    assert record["target"] == batch.targets[0].item()


def test_a_shape_that_no_data_module_gave_is_asked_for() -> None:
    with pytest.raises(
        ConfigError, match="FrameClassificationTask needs frame_shape, which the data module does not"
    ):
        FrameClassificationTask(SMALL_RIM, output_size=5)  # type: ignore[arg-type, call-arg]


def test_slots_need_a_backbone_that_reads_slots() -> None:
    task = make_task(backbone=SMALL_LSTM, encoder=SLOTS)
    with pytest.raises(ConfigError, match=r"This LSTM reads one vector per step, .* got shape \(2, 4, 3, 6\)"):
        task(torch.zeros(2, 4, *SHAPE, dtype=torch.uint8))


@pytest.mark.slow
def test_a_colour_is_kept_until_it_is_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = make_data(
        train_balls=1,
        test_balls=[1],
        train_length=2,
        test_lengths=[2],
        num_colours=2,
        batch_size=16,
        test_size=200,
    )
    task = make_task(
        backbone=partial(GRU, hidden_size=16),
        output_size=2,
        encoder=partial(ConvolutionalEncoder, output_size=16, channels=[4, 8]),
        optimizer=partial(Adam, lr=0.01),
    )
    trainer = make_trainer(tmp_path, max_steps=150, limit_val_batches=0)
    trainer.fit(task, data)
    (scores,) = trainer.test(task, data, verbose=False)
    assert scores["test/balls_1_length_2/accuracy"] > 0.9  # guessing scores .5
