"""The adding task's data: layout, seeds, floors, refusals."""

import pickle
from typing import Any

import lightning as L
import pytest
import torch

from rimlit.data import Adding
from rimlit.data.adding import AddingDataset
from rimlit.errors import ConfigError


@pytest.mark.parametrize("length", [2, 7, 50])
def test_one_number_in_each_half_is_marked_and_the_target_is_their_sum(length: int) -> None:
    data = AddingDataset(length, "train", 3, None)
    places = set()
    for index in range(60):
        inputs, target = data[index]
        assert inputs.shape == (length, 2)
        numbers, marks = inputs.unbind(dim=1)
        assert ((numbers >= 0) & (numbers < 1)).all()
        first, second = marks.nonzero().flatten().tolist()
        assert first < length // 2 <= second
        assert set(marks.tolist()) <= {0.0, 1.0}
        torch.testing.assert_close(target, (numbers * marks).sum()[None])
        places |= {first, second}
    assert places == set(range(length)) or length == 50


def test_always_answering_1_scores_the_floors() -> None:
    data = Adding()
    targets = torch.stack([data.datasets("train")[""][index][1] for index in range(4000)])
    floors = data.floors()
    assert (
        (targets - 1).square().mean().item()
        == pytest.approx(floors["mse"], rel=0.06)
        == pytest.approx(1 / 6, rel=0.06)
    )
    assert (targets - 1).abs().mean().item() == pytest.approx(floors["mae"], rel=0.06)


def test_a_sample_is_a_function_of_seed_split_and_index_alone() -> None:
    def sample(split: Any, index: int, **arguments: Any) -> list[float]:
        return next(iter(Adding(**arguments).datasets(split).values()))[index][0].flatten().tolist()  # type: ignore[no-any-return]

    first = sample("train", 4, seed=3)
    assert first == sample("train", 4, seed=3, batch_size=7)
    assert len({tuple(first), tuple(sample("train", 5, seed=3)), tuple(sample("train", 4, seed=2))}) == 3
    assert first != sample("val", 4, seed=3)


def test_tests_come_at_every_length_and_training_at_one() -> None:
    data = Adding(train_length=6, test_lengths=[6, 20, 6], test_size=3, val_size=5, batch_size=2)
    assert data.group_names("test") == data.group_names("predict") == ["length_6", "length_20"]
    short, long = data.test_dataloader()
    assert [batch.inputs.shape for batch in long] == [(2, 20, 2), (1, 20, 2)]
    assert next(iter(short)).lengths.tolist() == [6, 6]
    assert next(iter(data.train_dataloader())).inputs.shape == (2, 6, 2)
    assert sum(len(batch.inputs) for batch in data.val_dataloader()[0]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_length": 1}, "train_length must be at least 2; got train_length=1."),
        ({"test_lengths": [50, 0]}, r"test_lengths\[1\] must be at least 2; got test_lengths\[1\]=0."),
        ({"test_lengths": []}, "test_lengths must name at least one length"),
        ({"test_size": 0}, "test_size must be at least 1; got test_size=0."),
        ({"train_size": 0}, "train_size must be at least 1; got train_size=0."),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Adding(**arguments)


def test_a_spawned_worker_gets_the_data_module_without_its_trainer() -> None:
    data = Adding()
    data.trainer = L.Trainer(logger=False, enable_checkpointing=False)
    data.trainer.unpicklable = lambda: None  # type: ignore[attr-defined]
    copy = pickle.loads(pickle.dumps(data.collate)).__self__
    assert copy.trainer is None
    assert copy.batch_size == data.batch_size
    assert data.trainer is not None
