"""Datasets of a user's sequences: their scales, labels and next steps."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rimlit.data.sequence_layout import SequenceData
from rimlit.metrics import IGNORED


class Scale(NamedTuple):
    """What numbers are standardised by."""

    mean: list[float]
    deviation: list[float]

    @classmethod
    def of(cls, values: np.ndarray) -> "Scale":
        """Measure values (n, D); a column of equal values keeps a deviation of 1."""
        deviation = values.std(axis=0, dtype=np.float64)
        deviation[(values.min(axis=0) == values.max(axis=0)) | (deviation == 0)] = 1.0
        return cls(values.mean(axis=0, dtype=np.float64).tolist(), deviation.tolist())

    def standardized(self, values: np.ndarray) -> np.ndarray:
        """Return values (…, D) with mean 0 and deviation 1."""
        scaled: np.ndarray = ((values - self.mean) / self.deviation).astype(np.float32)
        return scaled


class SequenceSet(Dataset[tuple[Tensor, Tensor]]):
    """Sequences of any lengths, kept end to end.

    Args:
        inputs: (steps, D) numbers or (steps,) token ids.
        lengths: (N,) steps of each sequence.
        targets: (N, …), or (steps, …) where each step has one.
        per_step: Whether each step has a target.

    Example:
        >>> data = SequenceSet(torch.arange(5), [2, 3], torch.tensor([7, 8]), per_step=False)
        >>> data[1]
        (tensor([2, 3, 4]), tensor(8))
    """

    def __init__(self, inputs: Tensor, lengths: Sequence[int], targets: Tensor, *, per_step: bool) -> None:
        self.inputs = torch.split(inputs, list(lengths))
        self.targets = torch.split(targets, list(lengths)) if per_step else targets

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return inputs (T, D) or (T,) and the target of the sequence or of its steps."""
        return self.inputs[index], self.targets[index]


def next_steps(inputs: np.ndarray, lengths: np.ndarray, *, is_predicted: bool) -> SequenceSet:
    """Return all steps but the last of each sequence, and as targets all but the first.

    To be predicted are all steps; the target of the last one is not known.
    """
    rows = torch.split(torch.from_numpy(inputs), lengths.tolist())
    if is_predicted:
        unknown = rows[0].new_full((1, *rows[0].shape[1:]), torch.nan if rows[0].is_floating_point() else IGNORED)
        targets = [part for row in rows for part in (row[1:], unknown)]
        return SequenceSet(torch.cat(rows), lengths.tolist(), torch.cat(targets), per_step=True)
    return SequenceSet(
        torch.cat([row[:-1] for row in rows]),
        [len(row) - 1 for row in rows],
        torch.cat([row[1:] for row in rows]),
        per_step=True,
    )


def sorted_labels(parts: Iterable[np.ndarray | None]) -> list[Any]:
    """Return each label once, in order: integers and texts that are integers by their value, others as text."""
    labels = {label for part in parts if part is not None for label in part.tolist()}
    if all(str(label).removeprefix("-").isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), str(label)))
    return sorted(labels, key=str)


def digests_of(part: SequenceData, per_step: bool) -> Iterator[bytes]:
    """Yield a digest of each sequence with its target."""
    ends = np.cumsum(part.lengths)
    for place, (start, end) in enumerate(zip(ends - part.lengths, ends, strict=True)):
        digest = hashlib.blake2b(part.inputs[start:end].tobytes(), digest_size=16)
        if part.targets is not None:
            targets = part.targets[start:end] if per_step else part.targets[place : place + 1]
            digest.update(repr(targets.tolist()).encode())
        yield digest.digest()
