"""Samples that are drawn and not read."""

from typing import Literal, TypeVar

import numpy as np
from torch.utils.data import Dataset

T = TypeVar("T")

Split = Literal["train", "val", "test", "predict"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "predict")


class DrawnDataset(Dataset[T]):
    """Base of datasets whose sample i is a function of (seed, split, i) and of nothing else.

    Args:
        split: Split, part of each sample's seed.
        seed: Part of each sample's seed.
        size: Samples; None for an endless stream.
    """

    def __init__(self, split: Split, seed: int, size: int | None) -> None:
        self.split = split
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        """Return the number of samples of a finite set."""
        if self.size is None:
            raise TypeError("An endless stream has no length.")
        return self.size

    def generator(self, index: int) -> np.random.Generator:
        """Return what the sample ``index`` is drawn with."""
        return np.random.default_rng((self.seed, SPLITS.index(self.split), index))
