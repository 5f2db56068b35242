"""Samples that cannot be used are named by index and split, before the model meets them."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rimlit.data import Copying, DataModule
from rimlit.data.base import Split
from rimlit.errors import DataError, NonFiniteError
from rimlit.tasks import RegressionTask
from rimlit.training import FiniteGuard
from tests.conftest import counting_tensor
from tests.tasks.running import SMALL_LSTM, make_trainer, quiet

pytestmark = quiet


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.pairs[index]


class Own(DataModule):
    """Vectors of two features and a target for each sequence, with what a test puts in their place."""

    name = "own"
    input_size = 2
    output_size = 1

    def __init__(self, wrong: Any = None, split: str = "train", size: int = 12, **options: Any) -> None:
        super().__init__(batch_size=4, **options)
        self.wrong, self.split, self.size = wrong, split, size

    def datasets(self, split: Split) -> Mapping[str, Pairs]:
        good = (counting_tensor(3, 2), counting_tensor(1))
        pairs = [good] * (self.size if split == self.split else 8)
        for index, pair in (self.wrong or {}).items() if split == self.split else ():
            pairs[index] = pair
        return {"": Pairs(pairs)}


class OwnTokens(Own):
    """The same of token ids, and a class for each sequence."""

    input_size = None  # type: ignore[assignment]
    vocabulary_size = 5
    output_size = 3

    def datasets(self, split: Split) -> Mapping[str, Pairs]:
        pairs = [(torch.tensor([0, 4, 2]), torch.tensor(2))] * 8
        for index, pair in (self.wrong or {}).items():
            pairs[index] = pair
        return {"": Pairs(pairs)}


def vectors(value: float, step: int = 1) -> Tensor:
    vectors = counting_tensor(3, 2)
    vectors[step, 0] = value
    return vectors


ONE = counting_tensor(1)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((vectors(math.nan), ONE), "sample 7 has nan in its inputs at step 1; they must be finite."),
        ((vectors(-math.inf, 2), ONE), "sample 7 has -inf in its inputs at step 2; they must be finite."),
        ((vectors(1), ONE * math.nan), "sample 7 has nan in its targets at step 0; they must be finite."),
        (
            (counting_tensor(4, 2), ONE),
            "sample 7 is (float32 (4, 2), float32 (1,)) and sample 4 is (float32 (3, 2), float32 (1,)): no batch.",
        ),
        (
            (vectors(1), 3),
            "sample 7 is (float32 (3, 2), int) and sample 4 is (float32 (3, 2), float32 (1,)): no batch.",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_a_sample_that_cannot_be_used_is_named(pair: tuple[Any, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        list(Own({7: pair}, split="val").val_dataloader()[0])
    assert str(caught.value) == f"The val data of Own: {message}"


@pytest.mark.parametrize(
    ("inputs", "target", "message"),
    [
        ([0, 5, 1], 2, "sample 3 has 5 in its inputs at step 1; they must be between 0 and 4."),
        ([0, 1, -1], 2, "sample 3 has -1 in its inputs at step 2; they must be between 0 and 4."),
        ([0, 1, 2], 3, "sample 3 has 3 in its targets; they must be between 0 and 2."),
        ([0, 1, 2], -1, "sample 3 has -1 in its targets; they must be between 0 and 2."),
    ],
)
def test_a_token_or_class_out_of_range_is_named(inputs: list[int], target: int, message: str) -> None:
    data = OwnTokens({3: (torch.tensor(inputs), torch.tensor(target))})
    with pytest.raises(DataError) as caught:
        list(data.val_dataloader()[0])
    assert str(caught.value) == f"The val data of OwnTokens: {message}"


def test_a_target_that_is_not_scored_may_stand_there() -> None:
    data = OwnTokens({3: (torch.tensor([0, 1, 2]), torch.tensor(-100))})
    assert -100 in [int(target) for batch in data.val_dataloader()[0] for target in batch.targets]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Own(size=0), "The train data of Own: there are 0 samples."),
        (Own(size=3), "The train data of Own: there are 3 samples, fewer than a batch; got batch_size=4."),
        (Own(size=0, split="val"), "The val data of Own: there are 0 samples."),
        (Own(size=0, split="test"), "The test data of Own: there are 0 samples."),
        (
            Own({0: (counting_tensor(3, 5), ONE)}),
            "The train data of Own: inputs must have input_size=2 features; got 5.",
        ),
        (
            Own({0: (torch.ones(3, 2, dtype=torch.int64), ONE)}),
            "The train data of Own: inputs must be torch.float32; got torch.int64.",
        ),
        (
            Own({0: (counting_tensor(3, 2, dtype=torch.float64), ONE)}),
            "The train data of Own: inputs must be torch.float32; got torch.float64.",
        ),
        (
            OwnTokens({0: (counting_tensor(3), torch.tensor(0))}),
            "The train data of OwnTokens: inputs are token ids and must be integers; got torch.float32.",
        ),
    ],
)
def test_data_that_cannot_be_used_are_refused_before_any_work(data: DataModule, message: str) -> None:
    with pytest.raises(DataError) as caught:
        data.setup("fit")
    assert str(caught.value) == message


def test_a_small_set_is_enough_for_all_but_training() -> None:
    Own(size=1, split="val").setup("validate")
    Own(size=1, split="test").setup("test")
    Own(size=4).setup("fit")


def test_batches_that_are_good_come_through_unchanged() -> None:
    data = Copying(train_span=3, test_spans=[3], batch_size=4, samples_per_span=2, min_train_span=1)
    batch = next(iter(data.train_dataloader()))
    samples = [data.datasets("train")[""][index] for index in range(4)]
    wanted = data.collate(samples)
    assert all(torch.equal(*pair) for pair in zip(batch, wanted, strict=True))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_nan_in_the_data_is_distinguished_from_a_training_that_diverges(tmp_path: Any, workers: int) -> None:
    def fit(data: DataModule, **optimizer: Any) -> None:
        options: dict[str, Any] = {"class_path": "torch.optim.SGD", "init_args": optimizer}
        task = RegressionTask(SMALL_LSTM, output_size=1, input_size=2, optimizer=options)
        make_trainer(tmp_path, callbacks=[FiniteGuard()], max_steps=9).fit(task, data)

    with pytest.raises(DataError, match="sample 5 has nan in its inputs at step 1"):
        fit(Own({5: (vectors(math.nan), ONE)}, num_workers=workers), lr=0.1)
    if not workers:
        with pytest.raises(NonFiniteError):
            fit(Own(), lr=1e30)
