"""The order in which samples are taken: a function of seed, epoch and rank."""

import itertools
from collections.abc import Iterator

import torch
from torch import distributed
from torch.utils.data import Sampler


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes, (0, 1) without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class IndexSampler(Sampler[int]):
    """Deal sample indices to the processes in turn, none twice.

    Without shuffling none is left out either, so that evaluation scores every sample once. With shuffling all
    processes get as many, because in training the last one would wait for the others; the remainder of a
    division by their number sits an epoch out.

    Args:
        size: Number of samples; None for an endless stream 0, 1, 2, ….
        shuffle: Whether to permute a finite set anew in each epoch.
        seed: Seed of the permutations.

    Example:
        >>> list(IndexSampler(3))
        [0, 1, 2]
    """

    def __init__(self, size: int | None, *, shuffle: bool = False, seed: int = 0) -> None:
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
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
        return iter(order[rank : self.size - self.size % world_size : world_size].tolist())


class FiniteIndexSampler(IndexSampler):
    """An :class:`IndexSampler` whose length is known."""

    size: int

    def __len__(self) -> int:
        """Return the number of samples this process gets."""
        rank, world_size = rank_and_world_size()
        return self.size // world_size if self.shuffle else len(range(rank, self.size, world_size))


def index_sampler(size: int | None, *, shuffle: bool = False, seed: int = 0) -> IndexSampler:
    """Return the sampler for ``size``: an endless one has no length, which is how Lightning knows it."""
    sampler = IndexSampler if size is None else FiniteIndexSampler
    return sampler(size, shuffle=shuffle, seed=seed)


class StartingAt(Sampler[int]):
    """Deal what another sampler deals, but leave out the first of its items the first time.

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
        """Hand the epoch on."""
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
