"""What each rule of the competition chooses, and which gradient it has."""

from typing import Any

import entmax
import pytest
import torch
from torch import Tensor

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.mechanisms import Entmax, GumbelTopK, HardConcrete, LeastNull, SkipUpdate, Sparsemax, StraightThrough
from rimlit.mechanisms.selections.entmax import entmax15, sparsemax
from rimlit.testing import rim_with
from tests.conftest import random_tensor
from tests.mechanisms.test_parts import Whiteboard, assert_carried

NOTHING = torch.empty(0)


# Gumbel top-K


def test_mechanisms_are_drawn_in_proportion_to_their_weight_in_training_alone() -> None:
    torch.manual_seed(0)
    relevance = torch.tensor([2.0, 1.0, 0.0])
    selection = GumbelTopK(3, 1)
    noise = selection.noise(1, 20_000, NOTHING)
    assert noise is not None
    drawn = selection.choose(relevance[:, None].expand(-1, 20_000), noise[0]).active
    torch.testing.assert_close(drawn.float().mean(dim=1), relevance.softmax(dim=0), rtol=0, atol=0.015)
    cold = GumbelTopK(3, 1, temperature=0.01).noise(1, 20_000, NOTHING)
    assert cold is not None
    assert selection.choose(relevance[:, None].expand(-1, 20_000), cold[0]).active[0].all()
    assert selection.eval().noise(1, 2, NOTHING) is None


def test_the_cpp_loop_draws_too() -> None:
    rim = rim_with(selection="gumbel_top_k", input_dropout=0.0, communication_dropout=0.0)()
    assert rim.resolve_backend()[0] == "cpu"
    inputs = random_tensor(4, 8, 3)
    found = []
    for mode in (True, True, False, False):
        with rim.train(mode).record_activity() as activities:
            rim(inputs)
        found.append(activities[0].active)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    plain = rim_with(selection="least_null")()
    plain.load_state_dict(rim.state_dict())
    with plain.eval().record_activity() as activities:
        plain(inputs)
    assert torch.equal(activities[0].active, found[2])


# Straight-through


def test_a_straight_through_rim_is_the_hard_one_forward() -> None:
    hard, soft = rim_with(backend="eager")().eval(), rim_with(selection="straight_through")().eval()
    soft.load_state_dict(hard.state_dict())
    inputs = random_tensor(3, 7, 3)
    (features, state), (expected, expected_state) = soft(inputs), hard(inputs)
    assert torch.equal(features, expected)
    assert all(map(torch.equal, state, expected_state))


def test_losers_get_the_gradient_of_what_they_would_have_done() -> None:
    rim = rim_with(selection="straight_through", communication="none")().double().eval()
    with rim.record_activity() as activities:
        features, _ = rim(random_tensor(1, 1, 3, dtype=torch.float64))
    inactive = ~activities[0].active[0, 0]
    (gradient,) = torch.autograd.grad(features.view(5, 4)[inactive].sum(), rim.layers[0].input_query.weight)
    assert (gradient[inactive].abs().sum(dim=(1, 2)) > 0).all()
    hard = rim_with(selection="least_null", communication="none", backend="eager")().double().eval()
    hard.load_state_dict(rim.state_dict())
    features, _ = hard(random_tensor(1, 1, 3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(features.view(5, 4)[inactive].sum(), hard.layers[0].input_query.weight)
    assert (gradient == 0).all()


def test_the_soft_mask_is_centred_on_the_border() -> None:
    relevance = torch.tensor([[3.0], [1.0], [0.0], [-2.0]])
    soft = StraightThrough(4, 2, temperature=0.5).choose(relevance).soft
    torch.testing.assert_close(soft, ((relevance - 0.5) / 0.5).sigmoid())
    assert StraightThrough(4, 4).choose(relevance).soft is None


def test_a_mechanism_that_reads_nan_does_not_reach_its_sleeping_state() -> None:
    selection = StraightThrough(3, 2)
    rim = rim_with(selection=StraightThrough(5, 2))()
    query = rim.layers[0].input_query.weight
    with torch.no_grad():
        query[0] = torch.nan
    with rim.record_activity() as activities:
        features, _ = rim(random_tensor(2, 3, 3))
    assert not activities[0].active[..., 0].any()
    assert torch.isfinite(features).all()
    assert selection.num_active == 2


# Entmax


@pytest.mark.parametrize(("own", "oracle"), [(sparsemax, entmax.sparsemax), (entmax15, entmax.entmax15)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_sparse_shares_and_their_gradient_are_the_library_s(own: Any, oracle: Any, scale: float) -> None:
    logits = scale * random_tensor(6, 50, dtype=torch.float64)
    weights = random_tensor(6, 50, dtype=torch.float64)
    found = []
    for function in (own, lambda values: oracle(values, dim=0)):
        values = logits.clone().requires_grad_()
        shares = function(values)
        found.append((shares.detach(), torch.autograd.grad((shares * weights).sum(), values)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found[0][0].sum(dim=0), torch.ones(50, dtype=torch.float64))


def test_the_strongest_moves_in_full_and_weak_ones_not_at_all() -> None:
    relevance = torch.tensor([[2.0], [1.8], [-1.0]])
    for selection in (Sparsemax(3, 3), Entmax(3, 3, alpha=1.5)):
        choice = selection.choose(relevance)
        assert choice.active.flatten().tolist() == [True, True, False]
        assert choice.gate is not None
        assert choice.gate[0] == 1
        assert 0 < choice.gate[1] < 1
        assert choice.gate[2] == 0
    warm = Sparsemax(3, 3, temperature=10.0).choose(relevance)
    assert warm.active.all()
    assert Sparsemax(3, 1, temperature=10.0).choose(relevance).active.sum() == 1


# Hard concrete


def test_gates_are_exactly_0_and_1_with_the_probability_of_the_paper() -> None:
    torch.manual_seed(0)
    selection = HardConcrete(1, 1)
    relevance = torch.full((1, 50_000), 0.3)
    noise = selection.noise(1, 50_000, NOTHING)
    assert noise is not None
    gate = selection.choose(relevance, noise[0]).gate
    assert gate is not None
    border = 2 / 3 * torch.tensor(0.1 / 1.1).log()
    expected = [float((-0.3 + border).sigmoid()), float((0.3 + border).sigmoid())]  # P(0), P(1): symmetric
    assert float((gate == 0).float().mean()) == pytest.approx(expected[0], abs=0.01)
    assert float((gate == 1).float().mean()) == pytest.approx(expected[1], abs=0.01)
    still = selection.eval().choose(relevance[:, :1]).gate
    torch.testing.assert_close(still, (torch.tensor([[0.3]]).sigmoid() * 1.2 - 0.1))


# Skip


def test_updates_come_when_attention_has_gathered_and_at_most_k_at_once() -> None:
    relevance = torch.tensor([[-1.0], [-3.0], [2.0]])  # Δ = 0.27, 0.05, 0.88
    selection, carried, rows = SkipUpdate(3, 2), torch.ones(1, 3), []
    for _ in range(24):
        choice = selection.choose(relevance, None, carried)
        assert choice.carried is not None
        carried = choice.carried
        rows.append(choice.active.flatten().tolist())
    assert rows[0] == [True, False, True]
    assert rows[1] == [False, True, True]
    assert [row[0] for row in rows[2:8]] == [True, False] * 3
    assert [step for step, row in enumerate(rows) if row[1]] == [
        1,
        13,
    ]  # ready at 12, when the others are ranked first
    assert all(row[2] for row in rows)


def test_what_is_gathered_is_part_of_the_state_and_learns() -> None:
    rim = rim_with(selection="skip_update", num_active=5)().double()
    inputs = random_tensor(2, 6, 3, dtype=torch.float64)
    features, state = rim.eval()(inputs)
    assert state.carried.shape == (2, 1, 5)
    assert_carried(rim, inputs)
    (gradient,) = torch.autograd.grad(features.square().sum(), rim.layers[0].input_query.weight)
    assert (gradient.abs().sum(dim=(1, 2)) > 0).all()


def test_a_selection_and_a_communication_may_both_carry() -> None:
    rim = rim_with(selection="skip_update", communication=Whiteboard, num_active=3)().eval()
    inputs = random_tensor(2, 6, 3)
    _, state = rim(inputs)
    assert state.carried.shape == (2, 1, 5 + 4)
    own, board = rim.layers[0].split_carried(state.carried[:, 0])
    assert own is not None
    assert board is not None
    assert (own.shape, board.shape) == ((2, 5), (2, 4))
    assert board.abs().sum() > 0
    assert_carried(rim, inputs)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"gumbel_top_k": {"temperature": 0}}, r"selection: temperature must be above 0 and finite; got .*=0\."),
        ({"straight_through": {"temperature": -1}}, r"temperature must be above 0 and finite; got .*=-1\."),
        ({"entmax": {"alpha": 3}}, r"^selection: alpha must be 1\.5 or 2; got alpha=3\."),
        ({"hard_concrete": {"temperature": 2}}, r"temperature must be above 0 and at most 1; got .*=2\."),
        ({"entmax": 2}, r"^selection: entmax takes a mapping of arguments; got entmax=2\."),
        (["entmax"], r"got .*'entmax'"),
    ],
)
def test_a_value_out_of_its_range_is_named(selection: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RIM(3, 16, num_mechanisms=4, num_active=2, selection=selection)


def test_a_short_name_may_have_arguments() -> None:
    rim = RIM(3, 16, num_mechanisms=4, num_active=2, selection={"gumbel_top_k": {"temperature": 2.0}})
    selection: Any = rim.layers[0].selection
    assert (type(selection), selection.temperature) == (GumbelTopK, 2.0)
    plain: Any = RIM(3, 16, num_mechanisms=4, num_active=2, selection={"least_null": None}).layers[0].selection
    assert type(plain) is LeastNull


def test_the_noise_has_the_type_of_the_weights() -> None:
    like: Tensor = torch.empty(0, dtype=torch.float64)
    for selection in (GumbelTopK(2, 1), HardConcrete(2, 1)):
        noise = selection.noise(3, 4, like)
        assert noise is not None
        assert (noise.dtype, noise.shape) == (torch.float64, (3, 2, 4))
        assert torch.isfinite(noise).all()
