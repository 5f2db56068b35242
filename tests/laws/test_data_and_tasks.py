"""The laws of tasks and data modules, tried on every one there is."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rimlit.cli.checks import metric_names
from rimlit.data import (
    Adding,
    BlinkingBalls,
    BouncingBalls,
    Copying,
    DataModule,
    Frames,
    Sequences,
    SequentialImages,
    Series,
    Text,
)
from rimlit.encoders import ConvolutionalEncoder, DenseEncoder, ObjectEncoder
from rimlit.heads import DenseHead
from rimlit.tasks import (
    ClassificationTask,
    CopyingTask,
    ForecastTask,
    FrameClassificationTask,
    FramePredictionTask,
    LanguageModelingTask,
    RegressionTask,
    Task,
)
from rimlit.testing import Law, classes_in
from tests.laws.cases import law_cases
from tests.tasks.running import SMALL_RIM, make_trainer

FRAMES = {"frame_size": 16, "context_length": 3, "rollout_length": 10}
SMALL = {"batch_size": 4, "val_size": 8, "test_size": 8, "seed": 1}
PROSE = "".join(f"{number} bottles stand on the wall, {number + 1} in the hall.\n" for number in range(60))

DATA: dict[str, Callable[[Path], DataModule]] = {
    "Adding": lambda _: Adding(train_length=6, test_lengths=[6, 9], **SMALL),
    "BlinkingBalls": lambda _: BlinkingBalls(
        train_balls="1-3", test_balls=[2, 4], train_length=4, test_lengths=[4, 6], frame_size=16, **SMALL
    ),
    "BlinkingBalls-most": lambda _: BlinkingBalls(
        question="most", train_length=4, test_lengths=[5], frame_size=16, train_size=16, num_colours=2, **SMALL
    ),
    "BouncingBalls": lambda _: BouncingBalls(
        train_balls=2, test_balls=[2, "curtain"], num_frames=14, train_size=16, **FRAMES, **SMALL
    ),
    "Copying": lambda _: Copying(
        train_span=5, min_train_span=1, samples_per_span=1, test_spans=[3, 6], train_size=24, **SMALL
    ),
    "Copying-endless": lambda _: Copying(train_span=5, test_spans=[3], **SMALL),
    "Sequences": lambda folder: Sequences(
        str(write_sequences(folder)), target="value", target_per_step=True, batch_size=4, seed=1
    ),
    "Frames": lambda folder: Frames(
        str(write_frames(folder)), context_length=3, rollout_length=10, batch_size=4, eval_batch_size=2, seed=1
    ),
    "Series": lambda folder: Series(
        str(write_series(folder)), window=6, horizon=3, batch_size=4, val_fraction=0.2, test_fraction=0.2, seed=1
    ),
    "SequentialImages": lambda _: SequentialImages(image_size=8, test_sizes=[8], batch_size=4, seed=1),
    "Text": lambda folder: Text(
        path=str(write_text(folder)), level="byte", chunk_length=7, batch_size=3, eval_batch_size=2
    ),
}

DRAWN = partial(
    FramePredictionTask,
    SMALL_RIM,
    encoder=partial(DenseEncoder, output_size=8, hidden_sizes=[12]),
    head=partial(DenseHead, hidden_size=12),
    **FRAMES,
)
MODEL = partial(
    LanguageModelingTask, SMALL_RIM, vocabulary_size=256, level="byte", embedding_size=6, dropout=0.3, num_tokens=5
)
TASKS: dict[str, tuple[str, Callable[[], Task]]] = {
    "ForecastTask": (
        "Series",
        partial(ForecastTask, SMALL_RIM, output_size=2, input_size=2, window=6, horizon=3, num_paths=4),
    ),
    "ForecastTask-mean": (
        "Series",
        partial(ForecastTask, SMALL_RIM, output_size=2, input_size=2, window=6, horizon=3, quantiles=()),
    ),
    "ClassificationTask": (
        "SequentialImages",
        partial(ClassificationTask, SMALL_RIM, output_size=10, vocabulary_size=2, embedding_size=6),
    ),
    "CopyingTask": (
        "Copying",
        partial(CopyingTask, SMALL_RIM, vocabulary_size=10, recall_length=10, embedding_size=6),
    ),
    "FrameClassificationTask": (
        "BlinkingBalls",
        partial(
            FrameClassificationTask,
            SMALL_RIM,
            output_size=5,
            frame_shape=(3, 16, 16),
            encoder=partial(ConvolutionalEncoder, output_size=6, channels=[2, 3]),
        ),
    ),
    "FrameClassificationTask-objects": (
        "BlinkingBalls-most",
        partial(
            FrameClassificationTask,
            SMALL_RIM,
            output_size=2,
            frame_shape=(3, 16, 16),
            encoder=partial(ObjectEncoder, output_size=6, num_slots=3, channels=[2, 3]),
        ),
    ),
    "FramePredictionTask": ("BouncingBalls", DRAWN),
    "FramePredictionTask-shades": ("Frames", partial(DRAWN, has_shades=True)),
    "FramePredictionTask-motion": ("BouncingBalls", partial(DRAWN, prediction="motion")),
    "LanguageModelingTask": ("Text", MODEL),
    "LanguageModelingTask-tied": ("Text", partial(MODEL, tie_embeddings=True)),
    "RegressionTask": ("Sequences", partial(RegressionTask, SMALL_RIM, output_size=2, input_size=3)),
}


def write_sequences(folder: Path) -> Path:
    generator, lengths = np.random.default_rng(3), np.arange(40) % 5 + 3
    inputs, targets = generator.normal(size=(40, 7, 3)), generator.normal(size=(40, 7, 2))
    np.savez(folder / "waves.npz", inputs=inputs, targets=targets, lengths=lengths)
    return folder / "waves.npz"


def write_series(folder: Path) -> Path:
    np.save(folder / "series.npy", np.random.default_rng(3).normal(size=(60, 2)).cumsum(axis=0))
    return folder / "series.npy"


def write_frames(folder: Path) -> Path:
    frames = np.random.default_rng(3).integers(0, 256, (20, 13, 16, 16), dtype=np.uint8)
    np.save(folder / "frames.npy", frames)
    return folder / "frames.npy"


def write_text(folder: Path) -> Path:
    (folder / "prose.txt").write_text(PROSE)
    return folder / "prose.txt"


def test_every_data_module_and_task_is_tried() -> None:
    assert {cls.__name__ for cls in classes_in("rimlit.data", DataModule)} == {name.split("-")[0] for name in DATA}
    assert {cls.__name__ for cls in classes_in("rimlit.tasks", Task)} == {name.split("-")[0] for name in TASKS}


@pytest.mark.parametrize("name", ["Copying", "Sequences"])
def test_some_batches_are_padded(tmp_path: Path, name: str) -> None:
    batch = next(iter(DATA[name](tmp_path).train_dataloader()))
    assert len(set(batch.lengths.tolist())) > 1


@pytest.mark.parametrize("law", law_cases("data_module"))
@pytest.mark.parametrize("name", DATA)
def test_a_data_module_keeps_the_law(tmp_path: Path, name: str, law: Law) -> None:
    law(lambda: DATA[name](tmp_path))


@pytest.mark.parametrize("law", law_cases("task"))
@pytest.mark.parametrize("name", TASKS)
def test_a_task_keeps_the_law(tmp_path: Path, name: str, law: Law) -> None:
    data, build = TASKS[name]
    law(build, lambda: DATA[data](tmp_path))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_knows_the_names_of_its_metrics_before_they_are_logged(tmp_path: Path, name: str) -> None:
    data, build = TASKS[name]
    task = build()
    trainer = make_trainer(tmp_path, limit_val_batches=1)
    trainer.validate(task, datamodule=DATA[data](tmp_path), verbose=False)
    logged = {metric.rpartition("/")[2] for metric in trainer.callback_metrics}
    assert len(logged) > 1 and logged <= {"loss", *metric_names(task)}
