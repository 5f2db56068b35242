"""The laws that every backbone keeps, tried on every backbone there is, and what ours refuse."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import rimlit.backbones
from rimlit.backbones import BRIM, GRU, LSTM, RIM, Backbone, Bidirectional, Transformer
from rimlit.errors import ConfigError
from rimlit.testing import Law
from rimlit.types import map_state
from tests.conftest import random_tensor
from tests.laws.backbone_cases import (
    HIDDEN_SIZE,
    INPUT_SIZE,
    SMALL,
    backbone_cases,
    backbone_classes,
    make_backbone,
)
from tests.laws.cases import law_cases, name_of

BATCH, STEPS = 3, 6

every_backbone = pytest.mark.parametrize(("cls", "arguments"), backbone_cases())

# what these have, others of their class have too: they are not compiled and exported as well, which takes seconds
REPEATED = {
    *(
        "RIM-gru",
        "RIM-two_layers",
        "RIM-official",
        "RIM-across_mechanisms",
        "RIM-all_active",
        "LSTM-learned",
        "GRU-learned",
    ),
    *("BRIM-top", "DNC-one_head", "EntNet-one_slot", "MinGRU-default", "NTM-still", "Transformer-uneven_heads"),
}


def laws_of_backbones() -> list[Any]:
    """Return a pytest parameter (law, class, keyword arguments) for each, but no slow ones of the repeated."""
    return [
        pytest.param(*law.values, *case.values, id=f"{case.id}-{law.id}", marks=law.marks)
        for case in backbone_cases()
        for law in law_cases("backbone")
        if case.id not in REPEATED or all(mark.name != "slow" for mark in law.marks)
    ]


def test_what_is_repeated_exists() -> None:
    assert {case.id for case in backbone_cases()} > REPEATED


def test_introspection_finds_the_backbones_that_are_public() -> None:
    public = {value for value in vars(rimlit.backbones).values() if isinstance(value, type)}
    public -= {Backbone, Bidirectional}
    assert {GRU, LSTM, RIM} <= public
    assert public <= set(backbone_classes())


@pytest.mark.filterwarnings("ignore:The tensor attributes self.recurrent._flat_weights:UserWarning")  # torch's own
@pytest.mark.parametrize(("law", "cls", "arguments"), laws_of_backbones())
def test_a_backbone_keeps_the_law(law: Law, cls: type[Backbone], arguments: dict[str, Any]) -> None:
    options: dict[str, Any] = {}
    if cls is RIM and name_of(law) == "autocast_stays_near":  # where no mechanism has to lose
        arguments = {**arguments, "num_active": arguments.get("num_mechanisms", 6)}
    if cls is BRIM and name_of(law) == "autocast_stays_near":
        arguments = {**arguments, "num_active": arguments.get("num_mechanisms", (6, 3))}
    if name_of(law) == "compiled_equals_eager":
        options["fullgraph"] = True
        if cls is RIM:  # the loop that is traced
            arguments = {**arguments, "backend": "eager"}
    with torch._dynamo.config.patch(allow_rnn=True):  # without, the graph breaks at the networks of torch.nn
        law(partial(make_backbone, cls, arguments), **options)


# where torch breaks the graph, before another loop, it looks at .grad of tensors inside the graph
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("law", law_cases("backbone"))
def test_a_rim_that_reads_slots_keeps_the_law(law: Law) -> None:
    arguments: dict[str, Any] = {"learn_initial_state": True, **SMALL}
    if name_of(law) == "autocast_stays_near":
        arguments["num_active"] = 6
    law(partial(make_backbone, RIM, arguments), random_tensor(BATCH, STEPS, 2, INPUT_SIZE, seed=1))


@every_backbone
def test_the_sizes_have_the_names_that_torch_gives_them(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = make_backbone(cls, arguments)
    assert (backbone.input_size, backbone.hidden_size, backbone.output_size) == (INPUT_SIZE, *[HIDDEN_SIZE] * 2)
    layers = {Transformer: 6}
    if cls is BRIM:
        layers[BRIM] = len(arguments.get("num_mechanisms", (6, 3)))
    assert backbone.num_layers == arguments.get("num_layers", layers.get(cls, 1))
    assert backbone.batch_first is True


@every_backbone
def test_a_state_that_does_not_fit_is_refused_in_one_line(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = make_backbone(cls, arguments)
    start = backbone.initial_state(BATCH)
    wrong = {
        "too_few": start[:-1],
        "too_many": (*start, start[0]),
        "another_batch": map_state(lambda part: part[:-1], start),
        "integers": map_state(Tensor.int, start),
        "elsewhere": map_state(lambda part: part.to("meta"), start),
        "a_name": dict(start._asdict()),
    }
    for name, state in wrong.items():
        with pytest.raises(ValueError, match=r"^state must be \w+\(.*\), batch first; got .*\.$") as caught:
            backbone(random_tensor(BATCH, STEPS, INPUT_SIZE), state)
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize("cls", backbone_classes())
def test_what_is_no_sequence_is_refused(cls: type[Backbone]) -> None:
    with pytest.raises(ValueError, match=r"^inputs must be a tensor \(B, T, input_size\) or .*; got a list\.$"):
        make_backbone(cls, {})([[1.0] * INPUT_SIZE])


# oneDNN, which torch's LSTM takes on a CPU, has none in float16
@pytest.mark.parametrize(("cls", "arguments"), [case for case in backbone_cases() if case.values[0] is not LSTM])
def test_autocast_to_float16_keeps_gradients_finite_over_many_steps(
    cls: type[Backbone], arguments: dict[str, Any]
) -> None:
    backbone = make_backbone(cls, arguments).eval()
    with torch.autocast("cpu", dtype=torch.float16):
        features, _ = backbone(3 * random_tensor(BATCH, 40, INPUT_SIZE, seed=1))
    features.float().square().mean().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("shape", [(3, 6, 4), (3, 0, 5), (0, 6, 4), (3, 6, 2, 2, 5)])
@every_backbone
def test_inputs_of_another_shape_are_refused_with_their_shape(
    cls: type[Backbone], arguments: dict[str, Any], shape: tuple[int, ...]
) -> None:
    backbone = make_backbone(cls, arguments)
    with pytest.raises(ValueError, match=r"got shape \(.*\), input_size=5") as caught:
        backbone(torch.ones(shape))
    assert str((shape[0] or 1, *shape[1:])) in str(caught.value)  # no samples are run as one


@pytest.mark.parametrize("cls", [cls for cls in backbone_classes() if cls not in (RIM, BRIM)])
def test_several_slots_are_refused_by_what_reads_one_vector(cls: type[Backbone]) -> None:
    message = rf"This {cls.__name__} reads one vector per step, .* no input slots; got shape \(3, 6, 2, 5\)\. An"
    with pytest.raises(ConfigError, match=rf"{message} encoder with position_wise=True"):
        make_backbone(cls, {})(torch.ones(3, 6, 2, 5))
