"""The adding task (Hochreiter and Schmidhuber 1997), at the lengths of Goyal et al. 2021 (arXiv:1909.10893).

A step holds a number drawn evenly from 0 to 1 and a mark. One number in each half of a sequence is marked; the
target is the sum of the two. Always answering 1 has a squared error of 1/6.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rimlit.checks import require_at_least
from rimlit.data.base import DataModule, Split
from rimlit.data.drawn import DrawnDataset
from rimlit.errors import ConfigError


class AddingDataset(DrawnDataset[tuple[Tensor, Tensor]]):
    """Adding sequences; sample i is a function of (seed, split, i) and of nothing else.

    Args:
        length: Steps, at least 2.
        split: Split, part of each sample's seed.
        seed: Part of each sample's seed.
        size: Samples; None for an endless stream.

    Example:
        >>> inputs, target = AddingDataset(6, "train", 0, None)[0]
        >>> inputs.shape, bool(target[0] == inputs[inputs[:, 1] == 1, 0].sum())
        (torch.Size([6, 2]), True)
    """

    def __init__(self, length: int, split: Split, seed: int, size: int | None) -> None:
        super().__init__(split, seed, size)
        self.length = length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return numbers and marks (length, 2) and their marked sum (1,)."""
        generator = self.generator(index)
        inputs = np.zeros((self.length, 2), dtype=np.float32)
        inputs[:, 0] = generator.random(self.length, dtype=np.float32)
        half = self.length // 2
        marked = [generator.integers(0, half), generator.integers(half, self.length)]
        inputs[marked, 1] = 1
        return torch.from_numpy(inputs), torch.from_numpy(inputs[marked, 0].sum(keepdims=True))


class Adding(DataModule):
    """Two marked numbers to add, and tests at other lengths than trained on.

    Args:
        train_length: Steps in training and validation, at least 2 (paper: 50, and 500).
        test_lengths: Lengths tested in one run, steps, each at least 2 (paper: 200, and 1000).
        train_size: Sequences in an epoch; None for an endless stream of fresh ones.
        val_size: Validation sequences.
        test_size: Test sequences for each length.
        batch_size: Sequences in a batch over all processes, at least 1 and a multiple of their number.
        num_workers: Loader processes, 0 to load in the training process.
        seed: Seed of all samples; None takes the run's ``seed_everything``, or 0.

    Raises:
        ConfigError: A value is out of its range.

    Example:
        >>> data = Adding(train_length=10, test_lengths=[10, 40])
        >>> data.input_size, data.output_size, data.group_names("test")
        (2, 1, ['length_10', 'length_40'])
        >>> next(iter(data.train_dataloader())).targets.shape
        torch.Size([64, 1])
    """

    name = "adding"
    input_size = 2
    output_size = 1

    def __init__(
        self,
        *,
        train_length: int = 50,
        test_lengths: Sequence[int] = (50, 200),
        train_size: int | None = None,
        val_size: int = 1024,
        test_size: int = 1024,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        require_at_least(2, train_length=train_length, test_lengths=test_lengths)
        require_at_least(1, val_size=val_size, test_size=test_size, train_size=train_size)
        if not test_lengths:
            raise ConfigError("test_lengths must name at least one length; got test_lengths=[].")
        self.train_length = train_length
        self.test_lengths = tuple(dict.fromkeys(test_lengths))
        self._sizes = {"train": train_size, "val": val_size, "test": test_size, "predict": test_size}

    def datasets(self, split: Split) -> Mapping[str, AddingDataset]:
        """Return one dataset for training and validation, and one per length for test and predict."""
        lengths = {"": self.train_length}
        if split in ("test", "predict"):
            lengths = {f"length_{length}": length for length in self.test_lengths}
        return {
            name: AddingDataset(length, split, self.seed, self._sizes[split]) for name, length in lengths.items()
        }

    def floors(self) -> dict[str, float]:
        """Return what a model scores that always answers 1."""
        return {"mse": 1 / 6, "mae": 1 / 3}
