"""The copying task's data: layout, seeds, spans, padding, floors, refusals."""

import math
from itertools import islice
from typing import Any

import pytest
import torch

from rimlit.data import Copying
from rimlit.data.copying import CopyingDataset
from rimlit.errors import ConfigError
from rimlit.metrics import IGNORED
from rimlit.tasks import CopyingTask

LSTM_24 = {"class_path": "rimlit.backbones.LSTM", "init_args": {"hidden_size": 24}}


def make_data(**arguments: Any) -> Copying:
    return Copying(
        **{"train_span": 5, "test_spans": [5, 9], "batch_size": 4, "val_size": 6, "seed": 3, **arguments}
    )


def dataset(data: Copying, split: Any, group: str = "") -> CopyingDataset:
    return data.datasets(split)[group]


def test_a_sequence_is_as_in_the_paper() -> None:
    inputs, targets = dataset(Copying(train_span=50), "train")[7]
    assert len(inputs) == len(targets) == 70
    symbols = inputs[:10]
    assert ((symbols >= 1) & (symbols <= 8)).all()
    assert (inputs[10:59] == 0).all()  # 49 blanks
    assert inputs[59] == 9  # the marker replaces the last blank
    assert (inputs[60:] == 0).all()
    assert (targets[:60] == 0).all()
    assert torch.equal(targets[60:], symbols)


def test_the_longest_test_has_220_steps_and_10_tokens() -> None:
    data = Copying()
    assert data.vocabulary_size == 10
    assert data.group_names("test") == ["span_50", "span_100", "span_200"]
    assert len(dataset(data, "test", "span_200")[0][0]) == 220


def test_all_eight_symbols_are_drawn_about_evenly() -> None:
    samples = dataset(make_data(), "train")
    drawn = torch.cat([samples[index][0][:10] for index in range(400)])
    counts = drawn.bincount(minlength=10)
    assert counts[[0, 9]].tolist() == [0, 0]
    assert counts[1:9].min() > 400
    assert counts[1:9].max() < 600


def test_a_sample_is_a_function_of_seed_split_and_index_alone() -> None:
    first = [inputs.tolist() for inputs, _ in islice(dataset(make_data(), "train"), 12)]
    assert first == [dataset(make_data(batch_size=3), "train")[index][0].tolist() for index in range(12)]
    assert first[11] == dataset(make_data(), "train")[11][0].tolist()  # in any order
    batches = list(islice(make_data(batch_size=6).train_dataloader(), 2))
    assert torch.cat([batch.inputs for batch in batches]).tolist() == first
    batches = list(islice(make_data(batch_size=3).train_dataloader(), 4))
    assert torch.cat([batch.inputs for batch in batches]).tolist() == first
    assert len({tuple(sample) for sample in first}) == 12


def test_splits_and_seeds_differ() -> None:
    samples = {
        tuple(dataset(make_data(seed=seed), split, group)[0][0].tolist())
        for seed in (3, 4)
        for split, group in (("train", ""), ("val", ""), ("test", "span_5"), ("predict", "span_5"))
    }
    assert len(samples) == 8


def test_the_seed_is_the_run_s_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_data(seed=None).seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    data = make_data(seed=None)
    assert data.seed == 12
    assert data.spec["init_args"]["seed"] == 12  # a checkpoint makes the same data again


def test_spans_are_drawn_from_the_whole_range_and_shared_by_consecutive_samples() -> None:
    samples = dataset(make_data(min_train_span=2, samples_per_span=4), "train")
    spans = [len(samples[index][0]) - 20 for index in range(400)]
    assert set(spans) == {2, 3, 4, 5}
    assert all(len(set(spans[start : start + 4])) == 1 for start in range(0, 400, 4))


def test_without_a_least_span_all_spans_are_the_greatest() -> None:
    samples = dataset(make_data(), "train")
    assert {len(samples[index][0]) - 20 for index in range(300)} == {5}


def test_training_is_endless_unless_it_has_a_size() -> None:
    assert make_data().size_of(dataset(make_data(), "train")) is None
    with pytest.raises(TypeError, match="endless stream"):
        len(dataset(make_data(), "train"))
    assert [len(batch.inputs) for batch in make_data(train_size=10).train_dataloader()] == [4, 4, 2]


def test_there_is_one_loader_per_test_span() -> None:
    loaders = make_data(test_size=3).test_dataloader()
    assert [next(iter(loader)).inputs.shape for loader in loaders] == [(3, 25), (3, 29)]
    assert len(make_data().val_dataloader()) == 1


def test_a_batch_of_mixed_spans_is_padded_at_the_end_and_marked() -> None:
    data = make_data(min_train_span=1, samples_per_span=1, batch_size=8)
    batch = next(iter(data.train_dataloader()))
    samples = dataset(data, "train")
    assert len(set(batch.lengths.tolist())) > 1
    for index, length in enumerate(batch.lengths.tolist()):
        assert torch.equal(batch.inputs[index, :length], samples[index][0])
        assert torch.equal(batch.targets[index, :length], samples[index][1])
        assert (batch.targets[index, length:] == IGNORED).all()
        assert batch.mask[index].tolist() == [step < length for step in range(batch.inputs.shape[1])]


def test_floors_are_those_of_a_model_that_knows_the_format_only() -> None:
    floors = Copying().floors()
    assert floors["cross_entropy"] == pytest.approx(math.log(8))
    assert floors["span_50/cross_entropy_all"] == pytest.approx(0.297, abs=5e-4)
    assert floors["span_200/cross_entropy_all"] == pytest.approx(0.0945, abs=5e-5)
    assert floors["symbol_accuracy"] == 1 / 8
    assert floors["sequence_accuracy"] == pytest.approx(8**-10)


def test_a_model_that_knows_the_format_only_scores_the_floors() -> None:
    data = Copying(train_span=50, test_spans=[50], test_size=4, batch_size=4)
    batch = next(iter(data.test_dataloader()[0]))
    outputs = torch.full((*batch.inputs.shape, 10), -1e4)
    outputs[:, :60, 0] = 0
    outputs[:, 60:, 1:9] = 0
    task = CopyingTask(LSTM_24, 10, 10)
    metrics = task.metrics()
    for metric in metrics.values():
        metric.update(outputs, batch.targets)
    assert metrics["cross_entropy"].compute().item() == pytest.approx(data.floors()["cross_entropy"])
    all_steps = data.floors()["span_50/cross_entropy_all"]
    assert metrics["cross_entropy_all"].compute().item() == pytest.approx(all_steps)
    assert task.loss(outputs, batch).item() == pytest.approx(all_steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_span": 0}, "train_span must be at least 1; got train_span=0."),
        ({"min_train_span": 0}, "min_train_span must be at least 1; got min_train_span=0."),
        (
            {"min_train_span": 6},
            "min_train_span must be at most train_span; got min_train_span=6, train_span=5.",
        ),
        ({"test_spans": []}, "test_spans must name at least one span; got test_spans=[]."),
        ({"test_spans": [5, 0]}, "test_spans[1] must be at least 1; got test_spans[1]=0."),
        ({"num_symbols": 0}, "num_symbols must be at least 1; got num_symbols=0."),
        ({"recall_length": -1}, "recall_length must be at least 1; got recall_length=-1."),
        ({"train_size": 0}, "train_size must be at least 1; got train_size=0."),
        ({"val_size": 0}, "val_size must be at least 1; got val_size=0."),
        ({"test_size": 0}, "test_size must be at least 1; got test_size=0."),
        ({"samples_per_span": 0}, "samples_per_span must be at least 1; got samples_per_span=0."),
        ({"batch_size": 0}, "batch_size must be at least 1; got batch_size=0."),
        ({"num_workers": -1}, "num_workers must be at least 0; got num_workers=-1."),
        ({"seed": -2}, "seed must be at least 0; got seed=-2."),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_its_key(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_data(**arguments)
    assert str(caught.value) == message


def test_a_test_span_named_twice_is_tested_once() -> None:
    assert make_data(test_spans=[9, 5, 9]).group_names("test") == ["span_9", "span_5"]


@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [2, 9, 30, 5]])  # of one span, and of several
def test_a_batch_that_is_made_at_once_holds_the_same_samples(indices: list[int]) -> None:
    samples = dataset(make_data(min_train_span=1), "train")
    for (inputs, targets), index in zip(samples.__getitems__(indices), indices, strict=True):
        expected_inputs, expected_targets = samples[index]
        assert torch.equal(inputs, expected_inputs)
        assert torch.equal(targets, expected_targets)
