"""The laws that every encoder keeps, tried on every one there is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rimlit.encoders import (
    ConvolutionalEncoder,
    DenseEncoder,
    Embedding,
    Encoder,
    GridEncoder,
    Identity,
    ObjectEncoder,
    ScreenEncoder,
)
from rimlit.errors import ConfigError
from rimlit.testing import Law, classes_in
from tests.conftest import random_tensor
from tests.laws.cases import law_cases

BATCH, STEPS = 3, 5


def integers(*shape: int, below: int) -> Tensor:
    """Integers of every value, in an order that depends on the shape only."""
    return (random_tensor(BATCH, STEPS, *shape, seed=1).abs() * 1000).long() % below


FRAMES = integers(16, 16, below=2).to(torch.uint8)
COLOURS = integers(3, 16, 8, below=256).to(torch.uint8)
ENCODERS: dict[str, tuple[Callable[[], Encoder], Tensor]] = {
    "ConvolutionalEncoder": (lambda: ConvolutionalEncoder(16, 6, channels=(2, 3, 4)), FRAMES),
    "ConvolutionalEncoder-slots": (
        lambda: ConvolutionalEncoder(16, 6, channels=(2, 3), position_wise=True),
        FRAMES,
    ),
    "ConvolutionalEncoder-colours": (lambda: ConvolutionalEncoder((3, 16, 8), 6, channels=(2, 3)), COLOURS),
    "DenseEncoder": (lambda: DenseEncoder(16, 6, hidden_sizes=(5,)), FRAMES),
    "Embedding": (lambda: Embedding(7, 6, dropout=0.2), integers(below=7)),
    "GridEncoder": (lambda: GridEncoder((3, 4, 2), 6, cell_size=5), integers(3, 4, 2, below=16).to(torch.uint8)),
    "Identity": (lambda: Identity(5), random_tensor(BATCH, STEPS, 5)),
    "ObjectEncoder": (lambda: ObjectEncoder(16, 6, num_slots=3, channels=(2, 3)), FRAMES),
    "ObjectEncoder-colours": (
        lambda: ObjectEncoder((3, 16, 8), 6, num_slots=3, num_iterations=1, channels=(2, 3)),
        COLOURS,
    ),
    "ScreenEncoder": (lambda: ScreenEncoder((4, 36, 36), 6), integers(4, 36, 36, below=256).to(torch.uint8)),
}


def test_every_encoder_is_tried() -> None:
    assert {cls.__name__ for cls in classes_in("rimlit.encoders", Encoder)} == {
        name.split("-")[0] for name in ENCODERS
    }


@pytest.mark.parametrize("law", law_cases("encoder"))
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_keeps_the_law(name: str, law: Law) -> None:
    law(*ENCODERS[name])


def test_slots_are_a_dimension_of_their_own() -> None:
    build, frames = ENCODERS["ConvolutionalEncoder-slots"]
    assert build()(frames).shape == (BATCH, STEPS, 16, 6)


@pytest.mark.parametrize("name", ENCODERS)
def test_example_inputs_are_of_the_kind_that_is_read(name: str) -> None:
    build, inputs = ENCODERS[name]
    encoder = build()
    example = encoder.example_inputs(2, 4, torch.Generator().manual_seed(0))
    assert example.shape == (2, 4, *inputs.shape[2:])
    assert encoder(example).shape[:2] == (2, 4)
    assert torch.equal(example, encoder.example_inputs(2, 4, torch.Generator().manual_seed(0)))
    assert not torch.equal(example[:, 0], example[:, 1])
    assert (example != 0).any()


def test_an_encoder_without_a_size_is_asked_for_its_example() -> None:
    class Unsized(Encoder):
        output_size = 3

    with pytest.raises(
        ConfigError, match=r"^Unsized must have an input_size or override example_inputs; got input_size=None\.$"
    ):
        Unsized().example_inputs(1, 1, torch.Generator())
