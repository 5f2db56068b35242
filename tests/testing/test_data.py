"""Every law of data modules can fail, and the message names class, law and values."""

import uuid
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from rimlit.data import DataModule
from rimlit.data.base import SPLITS, Split
from rimlit.testing import check_data_module, laws_of
from tests.laws.cases import law_cases


class Waves(Dataset[tuple[Tensor, Tensor]]):
    """Random inputs (7, 3) and targets (2,), by seed and index."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self.seed, self.scale = seed, scale

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        return self.scale * torch.rand(7, 3, generator=generator), torch.rand(2, generator=generator)


class WaveData(DataModule):
    """Keeps every law; what is below breaks one each."""

    name = "waves"
    input_size, output_size = 3, 2

    def __init__(self, scale: float = 2.0, *, batch_size: int = 4, seed: int | None = 1) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self.scale = scale

    def datasets(self, split: Split) -> Mapping[str, Dataset[Any]]:
        return {"": Waves(4 * self.seed + SPLITS.index(split), self.scale)}


class DrawsAnew(WaveData):
    def __init__(self) -> None:
        super().__init__(float(torch.rand(())))


class ForgetsItsScale(WaveData):
    @property
    def spec(self) -> dict[str, Any]:
        spec = super().spec
        del spec["init_args"]["scale"]
        return spec


class TrainsOnTheTest(WaveData):
    def datasets(self, split: Split) -> Mapping[str, Dataset[Any]]:
        return {"": Waves(7 if split == "val" else 9)}


class DeclaresOneTarget(WaveData):
    output_size = 1


class NamesMore(WaveData):
    def group_names(self, split: Split) -> list[str]:
        return ["one", "two"] if split == "test" else [""]


class HasAnotherDigest(WaveData):
    @property
    def digest(self) -> str:
        return uuid.uuid4().hex * 2


class StartsOver(WaveData):
    def start_training_at(self, epoch: int, batch: int) -> None:
        pass


class KnowsItsWorker(WaveData):
    def collate(self, samples: list[Any]) -> Any:
        batch = super().collate(samples)
        return batch._replace(inputs=batch.inputs + (get_worker_info() is not None))


NUMBERS = r"got [\d.]+, expected [\d.]+; \d+ of 84 numbers differ"

BROKEN: dict[str, tuple[Any, str]] = {
    "seed_fixes_the_batches": (DrawsAnew, rf"batches of train\[0\]\[0\]\.inputs at \[0, 0, 0\]: {NUMBERS}"),
    "spec_gives_the_batches": (
        lambda: ForgetsItsScale(3.0),
        rf"batches of train\[0\]\[0\]\.inputs at \[0, 0, 0\]: {NUMBERS}",
    ),
    "splits_are_disjoint": (TrainsOnTheTest, "16 of 16 samples are in train and in test"),
    "sizes_match_the_batches": (DeclaresOneTarget, "targets of train have 2 features; output_size=1"),
    "groups_have_loaders": (NamesMore, r"test has 1 loaders and 2 groups: \['one', 'two'\]"),
    "digest_is_stable": (HasAnotherDigest, r"the digest is \w{64} at first and \w{64} after reading"),
    "resuming_continues_the_stream": (StartsOver, rf"batch 2\[0\]\.inputs at \[0, 0, 0\]: {NUMBERS}"),
    "workers_give_the_same": (KnowsItsWorker, rf"batches\[0\]\[0\]\.inputs at \[0, 0, 0\]: {NUMBERS}"),
}


def test_every_law_has_a_class_that_breaks_it() -> None:
    laws = laws_of("data_module", slow=True, gpu=True)
    assert {law.__name__.removeprefix("check_") for law in laws} == set(BROKEN)


@pytest.mark.parametrize("law", law_cases("data_module"))
def test_a_law_catches_what_breaks_it_and_says_what_it_saw(law: Any) -> None:
    build, message = BROKEN[law.__name__.removeprefix("check_")]
    name = type(build()).__name__
    with pytest.raises(AssertionError, match=f"^{name} breaks the law '[a-z ]+': {message}"):
        law(build)


def test_a_plain_data_module_keeps_every_law() -> None:
    check_data_module(WaveData)
    check_data_module(WaveData(batch_size=5), slow=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocabulary_size": 2, "input_size": None}, "inputs are token ids and must be integers"),
        ({"input_size": 4}, "inputs must have input_size=4 features; got 3"),
    ],
)
def test_inputs_that_are_not_as_declared_are_caught(changed: dict[str, Any], message: str) -> None:
    law = next(law for law in laws_of("data_module") if "sizes" in law.__name__)
    with pytest.raises(AssertionError, match=message):
        law(type("Other", (WaveData,), changed))
