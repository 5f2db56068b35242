"""Checks of samples when they become a batch: one that cannot be used is named by its index and split."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rimlit.errors import DataError
from rimlit.metrics import IGNORED
from rimlit.types import SequenceBatch


class Samples(list[Any]):
    """The samples of a batch, which know their indices."""

    indices: Sequence[int]


class Indexed(Dataset[Any]):
    """A dataset whose samples, asked for as a batch, know their indices."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        """Return a sample."""
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> Samples:
        """Return the samples of a batch."""
        at_once = getattr(self.dataset, "__getitems__", None)
        samples = Samples(at_once(indices) if at_once else [self.dataset[index] for index in indices])
        samples.indices = indices
        return samples


class FiniteIndexed(Indexed):
    """An :class:`Indexed` dataset whose length is known."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)


class Sizes(NamedTuple):
    """What a data module declares of its samples."""

    vocabulary_size: int | None
    input_size: int | None
    output_size: int | None


class CheckedCollate:
    """Turn samples into a batch and check it; costs microseconds for tokens, a pass over the batch for floats.

    Args:
        collate: Turns samples into a batch; only a :class:`SequenceBatch` is checked.
        source: What the samples are of, for messages.
        sizes: What the data module declares.
        are_targets_known: Whether targets are checked; samples to predict may have none.
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Any],
        source: str,
        sizes: Sizes,
        *,
        are_targets_known: bool = True,
    ) -> None:
        self.collate = collate
        self.source = source
        self.sizes = sizes
        self.are_targets_known = are_targets_known

    def __call__(self, samples: list[Any]) -> Any:
        """Return the batch.

        Raises:
            DataError: A sample holds NaN or infinity, a token or class out of range, or is of another type or
                shape than it should be.
        """
        indices = getattr(samples, "indices", range(len(samples)))
        try:
            batch = self.collate(samples)
        except (RuntimeError, TypeError, ValueError) as error:
            self._name_the_odd_one(samples, indices, error)
            raise
        if isinstance(batch, SequenceBatch):
            inputs, targets, _ = batch
            if len(inputs) != len(targets):
                raise DataError(f"{self.source}: {len(inputs)} inputs and {len(targets)} targets in a batch.")
            self._check_inputs(inputs, indices)
            if self.are_targets_known:
                self._check_values(
                    targets, "targets", self.sizes.output_size or self.sizes.vocabulary_size, indices
                )
        return batch

    def _check_inputs(self, inputs: Tensor, indices: Sequence[int]) -> None:
        vocabulary_size, input_size, _ = self.sizes
        if inputs.is_floating_point() and vocabulary_size is not None and input_size is None:
            raise DataError(f"{self.source}: inputs are token ids and must be integers; got {inputs.dtype}.")
        if input_size is not None and vocabulary_size is None:
            if not inputs.is_floating_point():
                raise DataError(f"{self.source}: inputs must be torch.float32; got {inputs.dtype}.")
            if inputs.shape[-1] != input_size:
                raise DataError(
                    f"{self.source}: inputs must have input_size={input_size} features; got {inputs.shape[-1]}."
                )
        self._check_values(inputs, "inputs", vocabulary_size, indices)

    def _check_values(self, values: Tensor, name: str, limit: int | None, indices: Sequence[int]) -> None:
        if values.is_floating_point():
            if values.dtype != torch.float32:
                raise DataError(f"{self.source}: {name} must be torch.float32; got {values.dtype}.")
            if values.numel() and not all(bound.isfinite() for bound in values.aminmax()):
                self._refuse(values, ~values.isfinite(), name, "must be finite", indices)
        elif limit is not None and values.dtype != torch.bool and values.numel():
            low, high = (int(bound) for bound in values.aminmax())
            if low < 0 or high >= limit:
                wrong = (values < 0) | (values >= limit)
                if name == "targets":
                    wrong &= values != IGNORED
                if wrong.any():
                    self._refuse(values, wrong, name, f"must be between 0 and {limit - 1}", indices)

    def _refuse(self, values: Tensor, wrong: Tensor, name: str, rule: str, indices: Sequence[int]) -> None:
        row, *place = wrong.nonzero()[0].tolist()
        at = f" at step {place[0]}" if place else ""
        value = values[row, *place].item()
        raise DataError(f"{self.source}: sample {indices[row]} has {value} in its {name}{at}; they {rule}.")

    def _name_the_odd_one(self, samples: list[Any], indices: Sequence[int], error: Exception) -> None:
        """Raise a DataError where the samples of a batch differ in shape, type or parts."""
        kinds = [_kind(sample) for sample in samples]
        for index, kind in zip(indices, kinds, strict=True):
            if kind != kinds[0]:
                raise DataError(
                    f"{self.source}: sample {index} is {kind} and sample {indices[0]} is {kinds[0]}: no batch."
                ) from error


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(_kind(part) for part in value)})"
    shape = f" {value.shape}" if hasattr(value, "shape") else ""
    return f"{type(value).__name__}{shape}"
