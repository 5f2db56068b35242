"""The copying task (Goyal et al. 2021, sec. 4.1, arXiv:1909.10893).

A sequence shows 10 symbols, then T blanks, the last of which is replaced by a go marker, then 10 more blanks
during which the symbols are to be emitted: T + 20 steps. Token ids: blank 0, symbols 1 to 8, marker 9.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rimlit.checks import require_at_least
from rimlit.data.base import DataModule, Split
from rimlit.data.drawn import DrawnDataset
from rimlit.errors import ConfigError
from rimlit.metrics import IGNORED
from rimlit.types import SequenceBatch

BLANK = 0


class CopyingDataset(DrawnDataset[tuple[Tensor, Tensor]]):
    """Copying sequences; sample i is a function of the arguments and of i, and of nothing else.

    Groups of consecutive samples share a generator: to seed one takes some ten times as long as to draw a sample.

    Args:
        spans: Least and greatest blank span, steps.
        num_symbols: Symbols to draw from.
        recall_length: Symbols to copy.
        split: Split, part of each group's seed.
        seed: Part of each group's seed.
        size: Samples; None for an endless stream.
        samples_per_span: Samples of a group, which share a drawn span, so that a batch needs no padding.
    """

    def __init__(
        self,
        spans: tuple[int, int],
        *,
        num_symbols: int,
        recall_length: int,
        split: Split,
        seed: int,
        size: int | None,
        samples_per_span: int,
    ) -> None:
        super().__init__(split, seed, size)
        self.spans = spans
        self.num_symbols = num_symbols
        self.recall_length = recall_length
        self.samples_per_span = samples_per_span
        # the group that was asked for last, its span and symbols
        self._group: tuple[int, int, np.ndarray] = (-1, 0, np.empty(0))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, each (span + 2·recall_length,)."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the samples of a batch, which the loader asks for at once; those of a group are made together."""
        samples: list[tuple[Tensor, Tensor]] = []
        for group, members in itertools.groupby(indices, lambda index: index // self.samples_per_span):
            span, symbols = self._draw(group)
            rows = torch.from_numpy(symbols[[index % self.samples_per_span for index in members]])
            samples += zip(*copying_sequence(rows, span, self.num_symbols + 1), strict=True)
        return samples

    def _draw(self, group: int) -> tuple[int, np.ndarray]:
        """Return the blank span (steps) and the symbols (samples_per_span, recall_length) of a group."""
        if self._group[0] != group:  # neighbours ask for the same one
            generator = self.generator(group)
            least, greatest = self.spans
            span = int(generator.integers(least, greatest + 1))
            symbols = generator.integers(1, self.num_symbols + 1, (self.samples_per_span, self.recall_length))
            self._group = group, span, symbols
        return self._group[1:]


def copying_sequence(symbols: Tensor, span: int, marker: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, each (…, span + 2·R), for ``symbols`` (…, R).

    Example:
        >>> inputs, targets = copying_sequence(torch.tensor([3, 5]), span=3, marker=9)
        >>> inputs.tolist(), targets.tolist()
        ([3, 5, 0, 0, 9, 0, 0], [0, 0, 0, 0, 0, 3, 5])
    """
    length = symbols.shape[-1]
    inputs = torch.full((*symbols.shape[:-1], span + 2 * length), BLANK)
    inputs[..., :length] = symbols
    inputs[..., length + span - 1] = marker
    targets = torch.full_like(inputs, BLANK)
    targets[..., length + span :] = symbols
    return inputs, targets


class Copying(DataModule):
    """Sequences to copy after a span of blanks, and tests at other spans than trained on.

    Args:
        train_span: Greatest blank span in training and validation, steps, at least 1.
        min_train_span: Least blank span; spans are drawn uniformly between the two. None: always
            ``train_span``, as in the paper.
        test_spans: Blank spans tested in one run, steps, each at least 1.
        num_symbols: Symbols to draw from (paper: 8).
        recall_length: Symbols to copy (paper: 10).
        train_size: Sequences in an epoch; None for an endless stream of fresh ones.
        val_size: Validation sequences.
        test_size: Test sequences for each span.
        samples_per_span: Consecutive samples that share a drawn span. A ``batch_size`` that divides it needs no
            padding; otherwise batches are padded, and the padding is not scored.
        batch_size: Sequences in a batch over all processes, at least 1 and a multiple of their number.
        num_workers: Loader processes, 0 to load in the training process.
        seed: Seed of all samples; None takes the run's ``seed_everything``, or 0.

    Raises:
        ConfigError: A value is out of its range.

    Example:
        >>> data = Copying(train_span=5, test_spans=[5, 20])
        >>> data.vocabulary_size, data.group_names("test")
        (10, ['span_5', 'span_20'])
        >>> next(iter(data.train_dataloader())).inputs.shape
        torch.Size([64, 25])
    """

    name = "copying"

    def __init__(
        self,
        *,
        train_span: int = 50,
        min_train_span: int | None = None,
        test_spans: Sequence[int] = (50, 100, 200),
        num_symbols: int = 8,
        recall_length: int = 10,
        train_size: int | None = None,
        val_size: int = 1024,
        test_size: int = 1024,
        samples_per_span: int = 64,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        least = train_span if min_train_span is None else min_train_span
        require_at_least(
            1,
            train_span=train_span,
            min_train_span=least,
            num_symbols=num_symbols,
            recall_length=recall_length,
            val_size=val_size,
            test_size=test_size,
            samples_per_span=samples_per_span,
            train_size=train_size,
            test_spans=test_spans,
        )
        if least > train_span:
            raise ConfigError(
                f"min_train_span must be at most train_span; got min_train_span={least}, train_span={train_span}."
            )
        if not test_spans:
            raise ConfigError("test_spans must name at least one span; got test_spans=[].")
        self.train_spans = (least, train_span)
        self.test_spans = tuple(dict.fromkeys(test_spans))
        self.num_symbols = num_symbols
        self.recall_length = recall_length
        self.vocabulary_size = num_symbols + 2
        self.samples_per_span = samples_per_span
        self._sizes = {"train": train_size, "val": val_size, "test": test_size, "predict": test_size}

    def datasets(self, split: Split) -> Mapping[str, CopyingDataset]:
        """Return one dataset for training and validation, and one per span for test and predict."""
        if split in ("train", "val"):
            return {"": self._dataset(split, self.train_spans)}
        return {f"span_{span}": self._dataset(split, (span, span)) for span in self.test_spans}

    def _dataset(self, split: Split, spans: tuple[int, int]) -> CopyingDataset:
        return CopyingDataset(
            spans,
            num_symbols=self.num_symbols,
            recall_length=self.recall_length,
            split=split,
            seed=self.seed,
            size=self._sizes[split],
            samples_per_span=self.samples_per_span,
        )

    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> SequenceBatch:
        """Pad sequences of different spans at the end; padding is not scored."""
        inputs, targets = zip(*samples, strict=True)
        lengths = [len(sequence) for sequence in inputs]
        if min(lengths) == max(lengths):  # much faster
            return SequenceBatch(torch.stack(inputs), torch.stack(targets), torch.tensor(lengths))
        return SequenceBatch(
            pad_sequence(list(inputs), batch_first=True, padding_value=BLANK),
            pad_sequence(list(targets), batch_first=True, padding_value=IGNORED),
            torch.tensor(lengths),
        )

    def floors(self) -> dict[str, float]:
        """Return what a model scores that knows the format and guesses the symbols evenly."""
        nats = math.log(self.num_symbols)
        floors = {
            "cross_entropy": nats,
            "symbol_accuracy": 1 / self.num_symbols,
            "sequence_accuracy": self.num_symbols**-self.recall_length,
        }
        for span in self.test_spans:
            share = self.recall_length / (span + 2 * self.recall_length)
            floors[f"span_{span}/cross_entropy_all"] = nats * share
        return floors
