"""Sequences of frames from a user's files, for the prediction of frames."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rimlit.checks import require_at_least, require_fractions
from rimlit.data.base import DataModule, Split
from rimlit.data.bouncing_balls import COPY, FrameBatch
from rimlit.data.frame_sources import FrameFiles, digest_frames, read_frames
from rimlit.data.identity import digest_parts
from rimlit.errors import ConfigError, DataError
from rimlit.metrics.frames import copied_frame_scores, summarise

Curves = dict[str, dict[str, dict[str, Tensor]]]


class FrameSequences(NamedTuple):
    """Sequences of one size."""

    frames: np.ndarray  # (N, T, height, width[, channels]): uint8 or bool or float32
    names: list[str | int]


class FrameSet(Dataset[Tensor]):
    """Sequences of frames as the task takes them, 0 to 1.

    Args:
        frames: (N, T, height, width[, channels]): bool, uint8 from 0 to ``most``, or float32 from 0 to 1.
        most: The number that is white.
        places: Which of the sequences; None for all.

    Example:
        >>> frames = np.full((2, 3, 8, 8), 255, dtype=np.uint8)
        >>> FrameSet(frames, 255)[0].shape, FrameSet(frames, 255)[0].max().item()
        (torch.Size([3, 8, 8]), 1.0)
    """

    def __init__(self, frames: np.ndarray, most: int, places: np.ndarray | None = None) -> None:
        self.frames = frames
        self.most = most
        self.places = np.arange(len(frames)) if places is None else places

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        """Return frames (T, height, width) or (T, channels, height, width)."""
        frames = torch.from_numpy(np.ascontiguousarray(self.frames[self.places[index]])).float() / self.most
        return frames if frames.dim() == 3 else frames.movedim(-1, 1).contiguous()


class Frames(DataModule):
    """Your own frames, for :class:`rimlit.tasks.FramePredictionTask`; ``docs/your_own_data.md`` has the layouts.

    An array file (.npy, .npz) holds (sequences, T, height, width) or, in colour, a last dimension of channels:
    integers from 0 to 255, true and false, or numbers from 0 to 1. Or a GIF is a sequence, or a folder of pictures
    (.png, .jpg, .bmp) whose names order them. Sequences are drawn into training, validation and test.

    Args:
        path: A file, a folder of GIFs, or a folder with a folder of pictures for each sequence.
        is_time_first: Whether an array file is (T, sequences, …), as ``mnist_test_seq.npy`` of Moving MNIST is.
        frame_size: Pixels of a side, a multiple of 8; other frames are resized. None: as they are.
        is_grey: Whether colours become grey; None for as they are.
        context_length: True frames before a rollout, at least 1.
        rollout_length: Frames of a rollout, the model's own, that are scored, at least 1.
        num_frames: Frames of a sequence that are read, from its first; None for as many as the shortest has.
        predict_path: Other sequences to predict; None for those of the test.
        val_fraction: Share of the sequences drawn for validation, 0 to 1.
        test_fraction: Share of the sequences drawn for the test, 0 to 1.
        batch_size: Sequences in a batch over all processes, at least 1 and a multiple of their number.
        eval_batch_size: The same outside training.
        num_workers: Loader processes, 0 to load in the training process.
        seed: Seed of the drawn split and of the order; None takes the run's ``seed_everything``, or 0.

    Raises:
        ConfigError: A value is out of its range.
        DataError: A file cannot be read or does not hold what it should. Raised when the frames are first needed.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/films.npy"
        >>> np.save(path, np.zeros((10, 6, 16, 16), dtype=np.uint8))
        >>> data = Frames(path, context_length=2, rollout_length=3, batch_size=4)
        >>> data.frame_size, data.num_channels, next(iter(data.train_dataloader())).frames.shape
        (16, 1, torch.Size([4, 6, 16, 16]))
    """

    name = "frames"

    def __init__(
        self,
        path: str,
        *,
        is_time_first: bool = False,
        frame_size: int | None = None,
        is_grey: bool | None = None,
        context_length: int = 10,
        rollout_length: int = 10,
        num_frames: int | None = None,
        predict_path: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        require_at_least(1, context_length=context_length, rollout_length=rollout_length)
        require_at_least(1, eval_batch_size=eval_batch_size)
        require_at_least(context_length + rollout_length, num_frames=num_frames)
        if frame_size is not None and (frame_size < 8 or frame_size % 8):
            raise ConfigError(f"frame_size must be a multiple of 8; got frame_size={frame_size}.")
        require_fractions(val_fraction, test_fraction)
        self.path, self.predict_path = path, predict_path
        self.is_time_first = is_time_first
        self.context_length, self.rollout_length = context_length, rollout_length
        self.eval_batch_size = eval_batch_size
        self.fractions = (val_fraction, test_fraction)
        self._size, self._is_grey, self._num_frames = frame_size, is_grey, num_frames
        self._learned: dict[str, Any] | None = None
        self._read: dict[str, FrameSequences] = {}
        self._digest: str | None = None
        self._datasets: dict[str, FrameSet] = {}
        self._floor_curves: Curves | None = None

    # Sizes

    @property
    def learned(self) -> dict[str, Any]:
        """What the frames of the file are: ``frame_size``, ``num_channels``, the number ``most`` that is white."""
        if self._learned is None:
            frames = self._whole(self.path).frames
            most = 255 if frames.dtype == np.uint8 and frames.max() > 1 else 1
            between = (frames > 0) & (frames < most)
            self._learned = {
                "frame_size": frames.shape[2],
                "num_channels": 1 if frames.ndim == 4 else frames.shape[4],
                "has_shades": bool(between.any()),
                "most": most,
            }
        return self._learned

    @property
    def frame_size(self) -> int:
        """Pixels of a side."""
        return int(self.learned["frame_size"])

    @property
    def num_channels(self) -> int:
        """Channels: 1 for grey, 3 for colours."""
        return int(self.learned["num_channels"])

    @property
    def has_shades(self) -> bool:
        """Whether there are pixels between black and white."""
        return bool(self.learned["has_shades"])

    def state_dict(self) -> dict[str, Any]:
        """Return what the frames are, for the checkpoint."""
        return dict(self.learned)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what the frames of a checkpoint are."""
        self._learned = dict(state_dict)
        self._datasets.clear()

    @property
    def digest(self) -> str:
        """A SHA-256 of the content of the files; see :attr:`DataModule.digest`."""
        if self._digest is None:
            self._digest = digest_parts({"": digest_frames(Path(self.path))})
        return self._digest

    # Reading

    def _whole(self, path: str) -> FrameSequences:
        """Return all sequences of a file or folder, of one size and length."""
        if path not in self._read:
            self._read[path] = self._aligned(path, read_frames(Path(path), is_time_first=self.is_time_first))
        return self._read[path]

    def _aligned(self, path: str, read: FrameFiles) -> FrameSequences:
        kept = [self._converted(frames) for frames in read.frames]
        least, lengths = self.context_length + self.rollout_length, [len(frames) for frames in kept]
        number = min(lengths) if self._num_frames is None else self._num_frames
        if min(lengths) < max(number, least):
            short = lengths.index(min(lengths))
            raise DataError(
                f"{path}: sequence {read.names[short]} has {lengths[short]} frames; each needs "
                f"{max(number, least)}: context_length={self.context_length}, "
                f"rollout_length={self.rollout_length}, num_frames={self._num_frames}."
            )
        if (longer := sum(length > number for length in lengths)) and self._num_frames is None:
            self.warn_once(f"{path}: {longer} sequence(s) are longer than {number} frames; the rest is not read.")
        for name, frames in zip(read.names, kept, strict=True):
            if frames.shape[1:] != kept[0].shape[1:] or frames.dtype != kept[0].dtype:
                raise DataError(
                    f"{path}: sequence {name} has frames of {_shape_text(frames)}, sequence {read.names[0]} of "
                    f"{_shape_text(kept[0])}; all must be of one size and kind (see frame_size, is_grey)."
                )
        height, width = kept[0].shape[1:3]
        if height != width or height % 8:
            raise DataError(
                f"{path}: frames are {height} × {width}; they must be square with sides that are a multiple of 8. "
                "frame_size resizes them."
            )
        return FrameSequences(np.stack([frames[:number] for frames in kept]), read.names)

    def _converted(self, frames: np.ndarray) -> np.ndarray:
        """Return the frames (T, height, width[, channels]) of a sequence, in grey and resized where asked for."""
        if frames.ndim == 4 and frames.shape[-1] == 1:
            frames = frames[..., 0]
        kind = frames.dtype
        if frames.ndim == 4 and self._is_grey is not False:
            colours = frames[..., :3].astype(np.float32)
            if self._is_grey or (frames.shape[-1] >= 3 and bool(np.ptp(colours, axis=-1).max() == 0)):
                weights = np.array([0.299, 0.587, 0.114], np.float32)  # of the eye, ITU-R BT.601
                grey = colours @ weights if frames.shape[-1] >= 3 else colours.mean(axis=-1)
                frames = grey.round().astype(kind) if kind == np.uint8 else grey.astype(np.float32)
        size = self._size
        if size is not None and frames.shape[1:3] != (size, size):
            pictures = torch.from_numpy(frames.astype(np.float32))
            pictures = pictures[:, None] if frames.ndim == 3 else pictures.movedim(-1, 1)
            resized = torch.nn.functional.interpolate(pictures, (size, size), mode="bilinear", antialias=True)
            array = (resized[:, 0] if frames.ndim == 3 else resized.movedim(1, -1)).numpy()
            frames = array.round().clip(0, 255).astype(kind) if kind == np.uint8 else array.clip(0, 1)
        return frames

    def places(self, split: Split) -> np.ndarray:
        """Return which sequences of the file, or of ``predict_path``, a split has."""
        if split == "predict" and self.predict_path is not None:
            return np.arange(len(self._whole(self.predict_path).frames))
        number = len(self._whole(self.path).frames)
        order = np.random.default_rng(self.seed).permutation(number)
        val, test = (round(fraction * number) for fraction in self.fractions)
        parts = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
        places = np.sort(parts["test" if split == "predict" else split])
        if not len(places):
            raise DataError(
                f"{self.path} leaves no sequence for {split}: it has {number}, with "
                f"val_fraction={self.fractions[0]}, test_fraction={self.fractions[1]}."
            )
        return places

    def _of(self, split: Split) -> FrameSequences:
        return self._whole(self.predict_path if split == "predict" and self.predict_path else self.path)

    def setup(self, stage: str) -> None:
        """Read and check the frames before any work is done."""
        splits: tuple[Split, ...] = ("predict",) if stage == "predict" else ("train", "val", "test")
        for split in splits:
            self.datasets(split)

    def datasets(self, split: Split) -> Mapping[str, FrameSet]:
        """Return the one dataset of a split."""
        if split not in self._datasets:
            frames, learned = self._of(split).frames, self.learned
            shape = [frames.shape[2], 1 if frames.ndim == 4 else frames.shape[4]]
            if shape != [learned["frame_size"], learned["num_channels"]]:
                size = learned["frame_size"]
                raise DataError(
                    f"{self.predict_path or self.path}: frames are {shape[0]} × {shape[0]} with {shape[1]} "
                    f"channel(s); the model expects {size} × {size} with {learned['num_channels']}."
                )
            most = learned["most"] if frames.dtype == np.uint8 else 1
            self._datasets[split] = FrameSet(frames, most, self.places(split))
        return {"": self._datasets[split]}

    def group_names(self, split: Split) -> list[str]:
        """Return the one unnamed group."""
        return [""]

    def sample_name(self, split: Split, group: str, index: int) -> str | int:
        """Return the name of a sequence's file or folder, or its index in an array file."""
        return self._of(split).names[int(self.datasets(split)[""].places[index])]

    def collate(self, samples: list[Tensor]) -> FrameBatch:
        """Put sequences into a batch, in which no ball is known."""
        frames = torch.stack(samples)
        nothing = torch.zeros(*frames.shape[:2], 0, 2)
        return FrameBatch(frames, nothing, nothing, torch.zeros(len(frames), 0), torch.zeros(len(frames), 3))

    def floor_curves(self) -> Curves:
        """Return the scores of repeating the last true frame by group, prediction, metric: (rollout_length,)."""
        if self._floor_curves is None:
            data = self.datasets("test")[""]
            totals: dict[str, Tensor] = {}
            for index in range(len(data)):
                now, end = self.context_length, self.context_length + self.rollout_length
                frames = data[index][None]
                for metric, (total, count) in copied_frame_scores(frames[:, now - 1], frames[:, now:end]).items():
                    totals[metric] = totals.get(metric, torch.zeros(2, len(total), dtype=torch.float64))
                    totals[metric] += torch.stack([total.double(), count.double()])
            curves = {metric: total / count.clamp(min=1) for metric, (total, count) in totals.items()}
            self._floor_curves = {"": {COPY: curves}}
        return self._floor_curves

    def floors(self) -> dict[str, float]:
        """Return what repeating the last true frame scores, a pixel of it counted as .99 or .01 at most."""
        curves = self.floor_curves()[""][COPY]
        return {
            name: value.item()
            for metric, curve in curves.items()
            for name, value in summarise(metric, curve).items()
        }


def _shape_text(frames: np.ndarray) -> str:
    return f"{frames.shape[1]} × {frames.shape[2]}{' in colour' if frames.ndim == 4 else ''} ({frames.dtype})"
