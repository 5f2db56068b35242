"""A user's frames: arrays, Moving MNIST's layout, GIFs and folders of pictures, in grey and in colour."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rimlit.data import Frames
from rimlit.encoders import ConvolutionalEncoder, DenseEncoder
from rimlit.errors import ConfigError, DataError, SpecError
from rimlit.heads import DenseHead, FrameHead
from rimlit.tasks import FramePredictionTask
from tests.tasks.running import SMALL_LSTM, make_trainer, quiet

pytestmark = quiet

SHADES = (np.arange(10 * 6 * 8 * 8).reshape(10, 6, 8, 8) * 37 % 256).astype(np.uint8)


def make(path: Path, **arguments: Any) -> Frames:
    defaults: dict[str, Any] = {"context_length": 2, "rollout_length": 3, "batch_size": 2, "seed": 1}
    return Frames(str(path), **{**defaults, **arguments})


def save(path: Path, array: np.ndarray, key: str = "frames") -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{key: array})
    else:
        np.save(path, array)
    return path


def everything(data: Frames) -> np.ndarray:
    """All sequences in the order of the file, 0 to 1."""
    data.setup("fit")
    found = {}
    for split in ("train", "val", "test"):
        dataset = data.datasets(split)[""]  # type: ignore[arg-type]
        for place in range(len(dataset)):
            found[data.sample_name(split, "", place)] = dataset[place].numpy()  # type: ignore[arg-type]
    return np.stack([found[name] for name in sorted(found)])


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_an_array_is_sequences_by_time(tmp_path: Path, name: str) -> None:
    data = make(save(tmp_path / name, SHADES))
    assert (data.frame_size, data.num_channels, data.has_shades) == (8, 1, True)
    assert np.allclose(everything(data), SHADES / 255, atol=1e-6)


def test_moving_mnist_has_time_first(tmp_path: Path) -> None:
    data = make(save(tmp_path / "mnist_test_seq.npy", SHADES.swapaxes(0, 1)), is_time_first=True)
    assert np.allclose(everything(data), SHADES / 255, atol=1e-6)


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.float32])
def test_black_and_white_has_no_shades_whatever_its_type(tmp_path: Path, kind: type[Any]) -> None:
    data = make(save(tmp_path / "a.npy", (SHADES > 99).astype(kind)))
    assert not data.has_shades
    assert np.array_equal(everything(data), SHADES > 99)


def test_colours_are_a_last_dimension_and_come_before_height_in_a_batch(tmp_path: Path) -> None:
    colours = np.stack([SHADES, SHADES[::-1], 255 - SHADES], axis=-1)
    data = make(save(tmp_path / "a.npy", colours))
    assert data.num_channels == 3
    assert np.allclose(everything(data), np.moveaxis(colours, -1, 2) / 255, atol=1e-6)
    grey = make(tmp_path / "a.npy", is_grey=True)
    assert grey.num_channels == 1
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(everything(grey) - colours @ weights / 255).max() < 1 / 255


def test_folders_of_pictures_are_sequences_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for index, frames in enumerate(SHADES):
        folder = tmp_path / "films" / f"film{index}"
        folder.mkdir(parents=True)
        for step, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"frame_{step + 7}.png")  # 7 to 12: 10 follows 9
    data = make(tmp_path / "films")
    assert np.allclose(everything(data), SHADES / 255, atol=1e-6)
    assert data.sample_name("predict", "", 0) in {f"film{index}" for index in range(10)}
    other = tmp_path / "films/film3/frame_8.png"
    before = make(tmp_path / "films").digest
    assert before == data.digest
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(other)
    assert make(tmp_path / "films").digest != before


def test_gifs_are_sequences(tmp_path: Path) -> None:
    for index, frames in enumerate(SHADES):
        pictures = [Image.fromarray(frame) for frame in frames]
        pictures[0].save(tmp_path / f"film{index}.gif", save_all=True, append_images=pictures[1:])
    data = make(tmp_path)
    assert np.allclose(everything(data), SHADES / 255, atol=1e-6), "grey stays one channel"
    alone = make(tmp_path, predict_path=str(tmp_path / "film4.gif"))
    assert np.allclose(alone.datasets("predict")[""][0], SHADES[4] / 255, atol=1e-6)


def test_frames_are_resized_and_longer_sequences_are_cut_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tall = np.repeat(SHADES, 2, axis=2)  # 16 × 8
    path = save(tmp_path / "a.npy", tall)
    with pytest.raises(DataError, match=r"frames are 16 × 8; they must be square"):
        make(path).setup("fit")
    assert everything(make(path, frame_size=16)).shape == (10, 6, 16, 16)
    assert everything(make(path, frame_size=8, num_frames=5)).shape == (10, 5, 8, 8)
    for index, length in enumerate([5, 6, 6, 6]):
        pictures = [Image.fromarray(frame) for frame in SHADES[index, :length]]
        pictures[0].save(tmp_path / f"film{index}.gif", save_all=True, append_images=pictures[1:])
    (tmp_path / "a.npy").unlink()
    with caplog.at_level(logging.WARNING):
        assert make(tmp_path, val_fraction=0.25, test_fraction=0.25)._whole(str(tmp_path)).frames.shape[1] == 5
    assert "3 sequence(s) are longer than 5 frames; the rest is not read" in caplog.text


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((10, 6, 8)), r"must be \(sequences, T, height, width\).* got shape \(10, 6, 8\)"),
        (np.full((10, 6, 8, 8), 2.0), "must be numbers from 0 to 1; got 2 to 2"),
        (np.full((10, 6, 8, 8), 256), "must be integers from 0 to 255"),
        (np.zeros((10, 4, 8, 8)), "sequence 0 has 4 frames; each needs 5: context_length=2"),
        (np.zeros((10, 6, 12, 12)), "sides that are a multiple of 8"),
        (np.zeros((2, 6, 8, 8)), "leaves no sequence for val: it has 2"),
        (np.array([[{}]], dtype=object), "Python objects are not loaded"),
    ],
)
def test_an_array_that_does_not_fit_is_one_line(tmp_path: Path, array: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make(save(tmp_path / "a.npy", array)).setup("fit")


def test_other_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; it must be a \.npy"):
        make(tmp_path / "a.npy").setup("fit")
    with pytest.raises(DataError, match="has no GIF and no folder of pictures"):
        make(tmp_path).setup("fit")
    (tmp_path / "a.gif").write_bytes(b"GIF89a nothing")
    with pytest.raises(DataError, match=r"a.gif cannot be read as a picture"):
        make(tmp_path).setup("fit")
    with pytest.raises(DataError, match="must hold one array called frames or inputs; it holds clips"):
        make(save(tmp_path / "a.npz", SHADES, "clips")).setup("fit")
    with pytest.raises(ConfigError, match="frame_size must be a multiple of 8; got frame_size=12"):
        make(tmp_path, frame_size=12)


def test_copying_the_last_frame_is_the_floor(tmp_path: Path) -> None:
    still = np.repeat(SHADES[:, :1], 6, axis=1)
    assert make(save(tmp_path / "a.npy", still)).floors()["mse"] == 0
    floors = make(save(tmp_path / "b.npy", SHADES)).floors()
    assert floors["mse"] > 0.05 and floors["mse_at_1"] > 0 and floors["bce"] > 0.5


@pytest.mark.parametrize("is_colour", [False, True])
def test_frames_with_shades_are_trained_rolled_out_and_written(tmp_path: Path, is_colour: bool) -> None:
    frames = np.stack([SHADES, SHADES[::-1], 255 - SHADES], axis=-1) if is_colour else SHADES
    data = make(save(tmp_path / "a.npy", frames))
    torch.manual_seed(0)
    task = FramePredictionTask(
        SMALL_LSTM,
        data.frame_size,
        2,
        3,
        num_channels=data.num_channels,
        has_shades=data.has_shades,
        encoder=partial(ConvolutionalEncoder, output_size=8, channels=[4]),
        head=partial(FrameHead, hidden_size=8, channels=[4]),
    )
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    scores = trainer.callback_metrics
    assert {"test/bce", "test/f1", "test/mse", "test/mse_at_1"} <= scores.keys()
    assert not any("position" in name for name in scores)
    channels = (3,) if is_colour else ()
    context = data.collate([data.datasets("test")[""][0]]).frames[:, :2]
    rollout = task.rollout(context).logits
    assert rollout.shape == (1, 4, *channels, 8, 8)
    (record,) = trainer.predict(task, datamodule=data)[0]  # type: ignore[index]
    with np.load(record["file"]) as written:
        assert written["predicted"].shape == written["true"].shape == (3, *channels, 8, 8)
        assert np.allclose(
            np.square(written["predicted"] - written["true"]).reshape(3, -1).mean(1), record["mse"], atol=1e-5
        )
        assert np.allclose(written["predicted"], rollout[0, 1:].sigmoid().detach(), atol=1e-5)


def test_an_encoder_without_channels_and_motion_are_refused_for_colours() -> None:
    colours: dict[str, Any] = {"num_channels": 3, "head": partial(DenseHead, hidden_size=4)}
    with pytest.raises(SpecError, match="has no argument 'num_channels'"):
        FramePredictionTask(SMALL_LSTM, 8, 2, 3, encoder=partial(DenseEncoder, output_size=4), **colours)
    with pytest.raises(ConfigError, match="moves black and white frames; got num_channels=3"):
        FramePredictionTask(SMALL_LSTM, 8, 2, 3, prediction="motion", **colours)
