"""The order in which samples are taken: a function of seed and epoch, sharded over any number of processes."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from torch.utils.data import BatchSampler, Sampler

from rimlit.errors import ConfigError


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes, (0, 1) without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def share_of(batch_size: int, *, key: str = "batch_size", world_size: int | None = None) -> int:
    """Return how many sequences of a batch each process takes.

    Args:
        batch_size: Sequences in a batch over all processes.
        key: What the setting is called.
        world_size: Processes; None for those of torch.distributed.

    Raises:
        ConfigError: The batch cannot be sharded evenly.

    Example:
        >>> share_of(64, world_size=4)
        16
    """
    if world_size is None:
        world_size = rank_and_world_size()[1]
    if batch_size % world_size:
        raise ConfigError(
            f"{key} counts the sequences of all processes and must be a multiple of their number; got "
            f"{key}={batch_size} with {world_size} processes."
        )
    return batch_size // world_size


class IndexSampler(Sampler[int]):
    """Distribute sample indices over the processes in turn, none left out.

    The k-th batches of all processes together are the k-th batch of a single one, at any number of processes.
    Without shuffling no index is drawn twice, so that evaluation scores every sample once. With shuffling all
    processes get as many batches, because in training the last one would wait for the others: where the last batch
    of an epoch has fewer samples than there are processes, each takes all of it, which has the same gradient.

    Args:
        size: Number of samples; None for an endless stream 0, 1, 2, ….
        shuffle: Whether to permute a finite set again in each epoch.
        seed: Seed of the permutations.
        batch_size: Samples of a batch over all processes, a multiple of their number.

    Example:
        >>> list(IndexSampler(3))
        [0, 1, 2]
    """

    def __init__(
        self, size: int | None, *, shuffle: bool = False, seed: int = 0, batch_size: int | None = None
    ) -> None:
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.batch_size = batch_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's permutation; Lightning calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield this process's share."""
        rank, world_size = rank_and_world_size()
        if self.size is None:
            return itertools.count(rank, world_size)
        if not self.shuffle:
            return iter(range(rank, self.size, world_size))
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        order = torch.randperm(self.size, generator=generator)
        whole = self._in_whole_batches(world_size)
        rest = order[whole:]
        share = rest[rank::world_size] if len(rest) >= world_size else rest
        return iter(torch.cat([order[rank:whole:world_size], share]).tolist())

    def _in_whole_batches(self, world_size: int) -> int:
        assert self.size is not None
        return self.size - self.size % (self.batch_size or world_size)


class FiniteIndexSampler(IndexSampler):
    """An :class:`IndexSampler` whose length is known."""

    size: int

    def __len__(self) -> int:
        """Return the number of samples this process gets."""
        rank, world_size = rank_and_world_size()
        if not self.shuffle:
            return len(range(rank, self.size, world_size))
        whole = self._in_whole_batches(world_size)
        rest = self.size - whole
        return whole // world_size + (len(range(rank, rest, world_size)) if rest >= world_size else rest)


def index_sampler(size: int | None, **options: Any) -> IndexSampler:
    """Return the sampler for ``size``: an endless one has no length, which is how Lightning knows it."""
    return (IndexSampler if size is None else FiniteIndexSampler)(size, **options)


class EpochBatches(BatchSampler):
    """The batches of an epoch of a shuffled :class:`FiniteIndexSampler`, the last of which is all that is left.

    Args:
        sampler: Deals this process's share.
        batch_size: Indices of this process in a whole batch.
        first: Batches to leave out the first time, at least 0.
    """

    sampler: FiniteIndexSampler

    def __init__(self, sampler: FiniteIndexSampler, batch_size: int, first: int = 0) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        self.first = first

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches."""
        first, self.first = self.first, 0
        indices = itertools.islice(iter(self.sampler), first * self.batch_size, None)
        for _ in range(first, len(self) - 1):
            yield list(itertools.islice(indices, self.batch_size))
        if rest := list(indices):  # more than batch_size where each process takes all of a small batch
            yield rest

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return math.ceil(self.sampler.size / (self.batch_size * rank_and_world_size()[1]))


class StartingAt(Sampler[int]):
    """Yield the items of another sampler, but skip the first ones the first time.

    Args:
        sampler: The other sampler.
        first: Items to leave out, at least 0.

    Example:
        >>> sampler = StartingAt(IndexSampler(4), 3)
        >>> list(sampler), list(sampler), len(FiniteStartingAt(FiniteIndexSampler(4), 3))
        ([3], [0, 1, 2, 3], 4)
    """

    def __init__(self, sampler: Sampler[int], first: int) -> None:
        self.sampler = sampler
        self.first = first

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on."""
        if isinstance(self.sampler, IndexSampler):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        """Yield the items."""
        first, self.first = self.first, 0
        return itertools.islice(iter(self.sampler), first, None)


class FiniteStartingAt(StartingAt):
    """A :class:`StartingAt` whose length is known: the other sampler's, because an epoch is as long as ever."""

    def __len__(self) -> int:
        """Return the number of items of a whole epoch."""
        return len(self.sampler)  # type: ignore[arg-type]
