"""The order of samples: every index drawn once, at any number of processes."""

import itertools

import pytest

from rimlit.data import Copying, Text, sampling
from rimlit.data.sampling import EpochBatches, FiniteIndexSampler, IndexSampler, index_sampler
from rimlit.errors import ConfigError


def shares(monkeypatch: pytest.MonkeyPatch, sampler: IndexSampler, world_size: int) -> list[list[int]]:
    """What each process draws; of an endless stream the first 5."""
    drawn = []
    for rank in range(world_size):
        monkeypatch.setattr(sampling, "rank_and_world_size", lambda rank=rank: (rank, world_size))
        drawn.append(list(itertools.islice(sampler, 5 if sampler.size is None else None)))
        if sampler.size is not None:
            assert len(sampler) == len(drawn[-1])
    return drawn


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_in_evaluation_every_index_is_drawn_exactly_once(monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    drawn = shares(monkeypatch, index_sampler(11), world_size)
    assert sorted(itertools.chain(*drawn)) == list(range(11))
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1


def batches(share: list[int], size: int) -> list[list[int]]:
    return [share[at : at + size] for at in range(0, len(share), size)]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("size", [16, 17, 18, 21, 23, 11])
def test_in_training_the_batches_of_all_processes_together_are_those_of_a_single_one(
    monkeypatch: pytest.MonkeyPatch, size: int, first: int
) -> None:
    sampler = index_sampler(size, shuffle=True, seed=4, batch_size=8)
    assert isinstance(sampler, FiniteIndexSampler)
    drawn: dict[int, list[list[list[int]]]] = {}
    for world_size in (1, 2, 4):
        for rank in range(world_size):
            monkeypatch.setattr(sampling, "rank_and_world_size", lambda rank=rank, all=world_size: (rank, all))
            loader = EpochBatches(sampler, 8 // world_size, first)
            drawn.setdefault(world_size, []).append(list(loader))
            assert len(loader) == len(list(loader)) == first + len(drawn[world_size][-1])
    (alone,) = drawn[1]
    if first == 0:
        assert sorted(itertools.chain(*alone)) == list(range(size))
    for world_size in (2, 4):
        for whole, *parts in zip(alone, *drawn[world_size], strict=True):
            # each process takes all of a batch that is too small to be shared
            expected = whole if len(whole) >= world_size else whole * world_size
            assert sorted(itertools.chain(*parts)) == sorted(expected)


def test_an_endless_stream_has_the_same_batches_at_any_number_of_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for world_size in (1, 2, 4):
        parts = []
        for rank in range(world_size):
            monkeypatch.setattr(sampling, "rank_and_world_size", lambda rank=rank, all=world_size: (rank, all))
            parts.append(
                batches(
                    list(itertools.islice(index_sampler(None, batch_size=8), 16 // world_size)), 8 // world_size
                )
            )
        for number, share in enumerate(zip(*parts, strict=True)):
            assert sorted(itertools.chain(*share)) == list(range(8 * number, 8 * number + 8))


def test_a_batch_that_cannot_be_sharded_evenly_is_refused_with_both_numbers() -> None:
    message = (
        "batch_size counts the sequences of all processes and must be a multiple of their number; "
        "got batch_size=6 with 4 processes."
    )
    with pytest.raises(ConfigError) as error:
        sampling.share_of(6, world_size=4)
    assert str(error.value) == message
    with pytest.raises(ConfigError, match="eval_batch_size=3 with 2 processes"):
        Text(batch_size=4, eval_batch_size=3).check_shares(2)
    Copying(batch_size=4).check_shares(4)


def test_without_shuffling_the_order_is_that_of_the_indices() -> None:
    assert list(index_sampler(5)) == [0, 1, 2, 3, 4]


def test_processes_take_turns_in_the_order_of_a_single_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = index_sampler(12, shuffle=True, seed=4)
    alone = shares(monkeypatch, sampler, 1)[0]
    first, second = shares(monkeypatch, sampler, 2)
    assert list(itertools.chain(*zip(first, second, strict=True))) == alone


def test_a_permutation_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = index_sampler(50, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


def test_an_endless_stream_deals_the_numbers_in_turn_and_has_no_length(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = index_sampler(None, shuffle=True)
    assert shares(monkeypatch, sampler, 2) == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    with pytest.raises(TypeError):
        len(sampler)


def test_without_distribution_there_is_one_process() -> None:
    assert sampling.rank_and_world_size() == (0, 1)
