"""Images pixel by pixel, at one resolution in training and at others in the test.

Sequential MNIST of Goyal et al. 2021, sec. 4.1 (arXiv:1909.10893): 14 × 14 in training, 16, 19 and 24 in the test.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from rimlit.checks import require_at_least
from rimlit.data.base import DataModule, Split
from rimlit.data.identity import digest_arrays, digest_parts
from rimlit.data.image_sources import (
    LabelledImages,
    read_digits,
    read_idx_folder,
    read_image_dataset,
    read_pictures,
)
from rimlit.errors import CheckpointError, ConfigError, DataError
from rimlit.metrics import IGNORED


class PixelSequences(Dataset[tuple[Tensor, Tensor]]):
    """Binary images as sequences of tokens 0 (dark) and 1 (lit), row by row.

    Args:
        images: (N, height, width) bool or 0 and 1.
        labels: (N,) integers.

    Example:
        >>> pixels, label = PixelSequences(torch.eye(2), torch.tensor([3, 5]))[0]
        >>> pixels.tolist(), label.item()
        ([1, 0], 3)
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.pixels = images.flatten(1).byte()
        self.labels = labels.long()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the pixels (height·width,) and the label ()."""
        return self.pixels[index].long(), self.labels[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the samples of a batch, which the loader asks for at once."""
        return list(zip(self.pixels[indices].long(), self.labels[indices], strict=True))


def binary_images(images: np.ndarray, size: int, threshold: float = 0.5) -> Tensor:
    """Resize grey images to a square by the nearest pixel, then say which pixels are lit.

    Args:
        images: (N, height, width) numbers from 0 to 255.
        size: Side of the square, pixels.
        threshold: A pixel is lit above this share of 255.

    Returns:
        (N, size, size) bool.

    Example:
        >>> binary_images(np.array([[[0, 255], [255, 0]]]), 4)[0, 0].tolist()
        [False, False, True, True]
    """
    # a copy: frombuffer's arrays cannot be written to, which torch warns of
    grey = torch.from_numpy(images.astype(np.uint8, copy=True))[:, None]
    # "nearest-exact" takes the pixel whose centre is nearest; torch's "nearest" is off by half a pixel
    return interpolate(grey, (size, size), mode="nearest-exact")[:, 0] > threshold * 255


class SequentialImages(DataModule):
    """Images to classify after their last pixel: sequential MNIST, and others in its format.

    Images are resized by the nearest pixel to a square and then made black and white; the tokens are dark 0 and
    lit 1, row by row. Validation images are drawn from the training file by ``seed``; the test file stays a test.

    Args:
        path: Folder with MNIST's four idx files, or those of a dataset in its format, each as it is or as .gz.
            None, with no ``dataset``: scikit-learn's 1,797 digits of 8 × 8 pixels, the last 360 as the test.
        dataset: Hugging Face id or local folder instead of ``path``, with columns ``image`` and ``label`` and
            splits ``train`` and ``test`` (``ylecun/mnist``); needs the extra ``data``.
        dataset_name: Configuration of ``dataset``.
        image_size: Side of the images in training and validation, pixels, at least 1 (paper: 14).
        test_sizes: Sides tested in one run, pixels, each at least 1 (paper: 16, 19, 24).
        threshold: A pixel is lit above this share of white, 0 to 1.
        val_fraction: Share of the training file that is validation, 0 to 1 (the authors' code: 12,000 of 60,000).
        train_size: Training images that are used; None for all that are not validation.
        predict_path: New images without labels to predict at ``image_size``, grey on black like those of training:
            an idx file, a picture, or a folder of pictures. None for the test. With a checkpoint the files of
            ``path`` need not exist.
        strict: Whether doubtful data are an error and not a warning: one class only, or a test all of whose images
            are in training too.
        batch_size: Sequences in a batch over all processes, at least 1 and a multiple of their number.
        num_workers: Loader processes, 0 to load in the training process.
        seed: Seed of the split and of the order; None takes the run's ``seed_everything``, or 0.

    Raises:
        ConfigError: A value is out of its range.
        DataError: The images cannot be found or read, or a split is empty. Raised when they are first needed.

    Example:
        >>> data = SequentialImages(image_size=8, test_sizes=[8, 11])
        >>> data.output_size, data.vocabulary_size, data.group_names("test")
        (10, 2, ['size_8', 'size_11'])
        >>> next(iter(data.train_dataloader())).inputs.shape
        torch.Size([64, 64])
    """

    name = "sequential_mnist"
    vocabulary_size = 2

    def __init__(
        self,
        *,
        path: str | None = None,
        dataset: str | None = None,
        dataset_name: str | None = None,
        image_size: int = 14,
        test_sizes: Sequence[int] = (14, 16, 19, 24),
        threshold: float = 0.5,
        val_fraction: float = 0.2,
        train_size: int | None = None,
        predict_path: str | None = None,
        strict: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        require_at_least(1, image_size=image_size, train_size=train_size, test_sizes=test_sizes)
        if path is not None and dataset is not None:
            raise ConfigError(f"Give path or dataset, not both; got path={path!r}, dataset={dataset!r}.")
        if not test_sizes:
            raise ConfigError("test_sizes must name at least one size; got test_sizes=[].")
        for name, share in (("threshold", threshold), ("val_fraction", val_fraction)):
            if not 0 < share < 1:
                raise ConfigError(f"{name} must be above 0 and below 1; got {name}={share}.")
        self.path = path
        self.dataset = dataset
        self.dataset_name = dataset_name
        self.image_size = image_size
        self.test_sizes = tuple(dict.fromkeys(test_sizes))
        self.threshold = threshold
        self.val_fraction = val_fraction
        self.train_size = train_size
        self.predict_path = predict_path
        self.strict = strict
        self._num_classes: int | None = None
        self._digest: str | None = None
        self._new: tuple[list[np.ndarray], list[str | int]] | None = None
        self._read: dict[str, LabelledImages] | None = None
        self._datasets: dict[str, dict[str, PixelSequences]] = {}

    @property
    def source(self) -> str:
        """Where the images come from, in words."""
        return self.dataset or self.path or "scikit-learn's digits"

    @property
    def output_size(self) -> int:
        """Number of classes: one more than the greatest label of the training file."""
        if self._num_classes is None:
            self._num_classes = int(max(self.images(split).labels.max() for split in ("train", "val"))) + 1
        return self._num_classes

    def state_dict(self) -> dict[str, Any]:
        """Return the number of classes, for the checkpoint."""
        return {"num_classes": self.output_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the number of classes of a checkpoint.

        Raises:
            CheckpointError: It is not what :meth:`state_dict` returns.
        """
        number = state_dict.get("num_classes") if isinstance(state_dict, dict) else None
        if type(number) is not int or number < 1:
            raise CheckpointError("The checkpoint is not one that rimlit wrote: the number of classes is missing.")
        self._num_classes = number

    @property
    def digest(self) -> str:
        """A SHA-256 of the images and labels as they are read; see :attr:`DataModule.digest`."""
        if self._digest is None:
            self.images("train")
        assert self._digest is not None
        return self._digest

    def images(self, split: Split) -> LabelledImages:
        """Return the grey images of a split as they were read."""
        if self._read is None:
            if self.dataset is not None:
                read = read_image_dataset(self.dataset, self.dataset_name)
            else:
                read = read_digits() if self.path is None else read_idx_folder(Path(self.path))
            self._digest = digest_parts({split: digest_arrays(*part) for split, part in read.items()})
            self._read = self._divided(read)
        return self._read["test" if split == "predict" else split]

    def _divided(self, read: Mapping[str, LabelledImages]) -> dict[str, LabelledImages]:
        """Draw validation from training; check that the test shows what the training does."""
        (images, labels), test = read["train"], read["test"]
        number = round(self.val_fraction * len(labels))
        if not 0 < number < len(labels):
            raise DataError(
                f"val_fraction={self.val_fraction} of the {len(labels)} training images of {self.source} is "
                f"{number}; training and validation need at least one each."
            )
        unknown = np.setdiff1d(test.labels, labels)
        if len(unknown):
            index = int(np.flatnonzero(test.labels == unknown[0])[0])
            raise DataError(
                f"Test image {index} of {self.source} has the label {unknown[0]}, which no training image has."
            )
        order = np.random.default_rng(self.seed).permutation(len(labels))
        train, val = order[number:][: self.train_size], order[:number]
        return {
            "train": LabelledImages(images[train], labels[train]),
            "val": LabelledImages(images[val], labels[val]),
            "test": test,
        }

    def setup(self, stage: str) -> None:
        """Read and check the images before any work is done."""
        if stage != "predict" or self.predict_path is None:
            self.images("train")
        super().setup(stage)
        if stage == "fit":
            self._question()

    def _question(self) -> None:
        """Report data that can be used, and from which nothing can be learned or concluded."""
        train, test = self.images("train"), self.images("test")
        if len(np.unique(train.labels)) == 1:
            self.report_doubt(f"All training images of {self.source} have the label {train.labels[0]}.")
        known, tested = ({hashlib.sha256(image).digest() for image in part.images} for part in (train, test))
        if tested <= known:
            self.report_doubt(
                f"Every test image of {self.source} is also in training; scores say nothing of others."
            )

    def new_images(self) -> tuple[list[np.ndarray], list[str | int]]:
        """Return the images of ``predict_path`` and what each is called."""
        assert self.predict_path is not None
        if self._new is None:
            self._new = read_pictures(Path(self.predict_path))
        return self._new

    def sample_name(self, split: Split, group: str, index: int) -> str | int:
        """Return the name of a picture, or the index of an image."""
        return index if split != "predict" or self.predict_path is None else self.new_images()[1][index]

    def datasets(self, split: Split) -> Mapping[str, PixelSequences]:
        """Return one dataset for training and validation, and one per size for test and predict."""
        if split == "predict" and self.predict_path is not None:
            return {"": self._new_dataset()}
        split = "test" if split == "predict" else split
        if split not in self._datasets:
            images, labels = self.images(split)
            is_test = split == "test"
            self._datasets[split] = {
                f"size_{size}" if is_test else "": PixelSequences(
                    binary_images(images, size, self.threshold), torch.from_numpy(labels.astype(np.int64))
                )
                for size in (self.test_sizes if is_test else [self.image_size])
            }
        return self._datasets[split]

    def _new_dataset(self) -> PixelSequences:
        if "predict" not in self._datasets:
            images, _ = self.new_images()
            pixels = [binary_images(image[None], self.image_size, self.threshold) for image in images]
            labels = torch.full((len(images),), IGNORED)
            self._datasets["predict"] = {"": PixelSequences(torch.cat(pixels), labels)}
        return self._datasets["predict"][""]

    def group_names(self, split: Split) -> list[str]:
        """Return the group name of each loader of a split, without reading an image."""
        is_new = split == "predict" and self.predict_path is not None
        return [""] if is_new or split in ("train", "val") else [f"size_{size}" for size in self.test_sizes]

    def floors(self) -> dict[str, float]:
        """Return the test scores of a model that only knows how often each class occurs in training."""
        counts = np.bincount(self.images("train").labels, minlength=self.output_size) + 1.0
        nats = -np.log(counts / counts.sum())[self.images("test").labels]
        is_most_frequent = self.images("test").labels == counts.argmax()
        return {"cross_entropy": float(nats.mean()), "accuracy": float(is_most_frequent.mean())}
