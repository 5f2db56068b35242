"""The order of samples: every index dealt once, at any number of processes."""

import itertools

import pytest

from rimlit.data import sampling
from rimlit.data.sampling import IndexSampler, index_sampler


def shares(monkeypatch: pytest.MonkeyPatch, sampler: IndexSampler, world_size: int) -> list[list[int]]:
    """What each process is dealt; of an endless stream the first 5."""
    dealt = []
    for rank in range(world_size):
        monkeypatch.setattr(sampling, "rank_and_world_size", lambda rank=rank: (rank, world_size))
        dealt.append(list(itertools.islice(sampler, 5 if sampler.size is None else None)))
        if sampler.size is not None:
            assert len(sampler) == len(dealt[-1])
    return dealt


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_in_evaluation_every_index_is_dealt_exactly_once(monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    dealt = shares(monkeypatch, index_sampler(11), world_size)
    assert sorted(itertools.chain(*dealt)) == list(range(11))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize(("world_size", "left_out"), [(1, 0), (2, 1), (3, 2), (4, 3)])
def test_in_training_all_processes_get_as_many_and_none_the_same(
    monkeypatch: pytest.MonkeyPatch, world_size: int, left_out: int
) -> None:
    dealt = shares(monkeypatch, index_sampler(11, shuffle=True, seed=4), world_size)
    assert {len(share) for share in dealt} == {(11 - left_out) // world_size}
    assert len(set(itertools.chain(*dealt))) == 11 - left_out


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
