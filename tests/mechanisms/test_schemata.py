"""States that share schemata: against an independent computation, in value and gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.mechanisms import SchemataDynamics, SharedSharing
from rimlit.testing import check_part, rim_with
from rimlit.types import GRUState
from tests.conftest import random_tensor
from tests.mechanisms.independent import Cell, gru, require_same, run


def make(num_schemata: int = 2, **options: Any) -> RIM:
    cell = {
        "class_path": "schemata",
        "init_args": {"num_schemata": num_schemata, "key_size": 5, "temperature": 0.7},
    }
    return rim_with(cell=cell, communication="none", **options)().double().eval()


def cell_of(rim: RIM, chosen: list[int]) -> Cell:
    dynamics = rim.layers[0].dynamics
    number, size = dynamics.num_schemata, dynamics.hidden.inner
    weight = dynamics.hidden.weight[0].view(size, number, 3 * size)
    bias = dynamics.bias.weight[0, 0].view(number, 4 * size)

    def cell(m: int, read: Tensor, state: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        reads = read.view(number, 3 * size)
        found = [gru(weight[:, j], bias[j], reads[j], state[0]) for j in range(number)]
        query = dynamics.query.weight[0].T @ state[0]
        fit = torch.stack([(dynamics.key.weight[0].T @ new) @ query for new, _ in found])
        best = int(fit.argmax())
        chosen.append(best)
        soft = functional.softmax(fit / dynamics.temperature, dim=0)
        one_hot = functional.one_hot(torch.tensor(best), number) + soft - soft.detach()
        return [sum(one_hot[j] * found[j][0] for j in range(number))], found[best][1]

    return cell


@pytest.mark.parametrize("options", [{}, {"sharing": "shared", "num_active": 5}])
def test_schemata_equal_an_independent_computation(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    rim, inputs, chosen = make(3, **options), 3 * random_tensor(2, 6, 3, dtype=torch.float64), []
    with torch.no_grad():
        rim.layers[0].dynamics.query.weight.mul_(5)
    with rim.record_activity() as activities:
        features, _ = rim(inputs)
    expected = run(rim, inputs, cell_of(rim, chosen))
    assert activities[0].schema is not None
    assert activities[0].schema.flatten().tolist() == chosen
    assert len(set(chosen)) > 1, "one schema drives everything"
    require_same(rim, features, expected)


def test_one_schema_is_a_gru_that_all_states_share() -> None:
    rim = make(1)
    other = rim_with(cell="gru", communication="none", sharing="shared")().double().eval()
    with torch.no_grad():
        for name in ("input", "hidden", "bias"):
            mine, theirs = (getattr(each.layers[0].dynamics, name).weight for each in (rim, other))
            theirs.copy_(mine)
        other.layers[0].input_key.weight.copy_(rim.layers[0].input_key.weight)
        other.layers[0].input_value.weight.copy_(rim.layers[0].input_value.weight)
        other.initial.hidden.copy_(rim.initial.hidden)
        rim.layers[0].input_query.weight.copy_(other.layers[0].input_query.weight.expand(5, -1, -1))
    inputs = random_tensor(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(rim(inputs)[0], other(inputs)[0])


def test_noise_is_gumbel_s_in_training_and_none_in_evaluation() -> None:
    torch.manual_seed(0)
    dynamics = SchemataDynamics(1, 2, 3, SharedSharing, num_schemata=2)
    read, state = 2 * random_tensor(1, 1, 18), GRUState(random_tensor(1, 1, 3, seed=1))
    weights = tuple(weight.detach() for weight in dynamics.weights())
    hidden, bias, query, key = (weight[0] for weight in weights)
    fit = []
    for j in range(2):
        new, _ = gru(hidden.view(3, 2, 9)[:, j], bias.view(2, 12)[j], read[0, 0, 9 * j :][:9], state.hidden[0, 0])
        fit.append((key.T @ new) @ (query.T @ state.hidden[0, 0]))
    many, states = read.expand(1, 40_000, 18), GRUState(state.hidden.expand(1, 40_000, 3))
    still = dynamics.eval().update(many, states, weights).schema
    assert still is not None and still.unique().tolist() == [int(torch.stack(fit).argmax())]
    drawn = dynamics.train().update(many, states, weights).schema
    assert drawn is not None
    # the argmax of scores with Gumbel noise falls on each as often as their softmax says
    share = torch.stack(fit).softmax(dim=0)[1].item()
    assert (drawn == 1).double().mean().item() == pytest.approx(share, abs=0.01)


def test_recomputed_parts_draw_the_same_noise() -> None:
    gradients = []
    for every in (None, 3):
        torch.manual_seed(1)
        rim = rim_with(cell="schemata", checkpoint_every=every)().double().train()
        torch.manual_seed(2)
        rim(random_tensor(2, 7, 3, dtype=torch.float64))[0].square().sum().backward()
        gradients.append([parameter.grad for parameter in rim.parameters()])
    for once, again in zip(*gradients, strict=True):
        torch.testing.assert_close(once, again)


def test_a_rim_with_schemata_keeps_the_laws_of_backbones() -> None:
    # all are active: rounding in autocast changes no choice of mechanisms, but may change that of a schema
    check_part("cell", "schemata", num_active=5, skip=["check_autocast_stays_near"])


def test_the_number_of_states_can_be_raised() -> None:
    rim = rim_with(cell="schemata", sharing="shared", num_active=5)().eval()
    more = rim.with_mechanisms(8)
    with more.record_activity() as activities:
        features, state = more(random_tensor(2, 4, 3))
    assert (features.shape, state.hidden.shape, more.num_active) == ((2, 4, 32), (2, 1, 8, 4), 8)
    assert activities[0].schema is not None and activities[0].schema.shape == (2, 4, 8)
    assert sum(p.numel() for p in more.parameters()) == sum(p.numel() for p in rim.parameters()) + 3 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_schemata": 0}, r"num_schemata must be at least 1; got num_schemata=0\."),
        ({"temperature": 0.0}, r"temperature must be above 0 and finite; got temperature=0\.0\."),
    ],
)
def test_an_argument_out_of_its_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rim_with(cell={"class_path": "schemata", "init_args": options})()
