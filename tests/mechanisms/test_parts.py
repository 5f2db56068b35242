"""Every part, found by introspection, keeps the laws; what builds parts answers mistakes."""

import copy
import functools
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.mechanisms import (
    AttentionCommunication,
    Balance,
    Choice,
    Communication,
    Dynamics,
    LeastNull,
    NoCommunication,
    Part,
    Selection,
    SharedSharing,
    Sharing,
    Talk,
    TalkInputs,
    known_parts,
    short_name,
)
from rimlit.testing import check_part, laws_of, rim_with
from rimlit.types import GRUState
from tests.conftest import random_tensor

KINDS: dict[str, type[Part]] = {
    "selection": Selection,
    "cell": Dynamics,
    "communication": Communication,
    "sharing": Sharing,
    "balance": Balance,
}
# further arguments that are rules of their own
VARIANTS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "continuous": ("selection", {"margin": "scores"}, {}),
    "continuous_gru": (
        "selection",
        {"margin": "scores"},
        {"cell": "gru", "communication": {"output": "cell_gate"}},
    ),
    "probabilities": ("selection", {"margin": "probabilities", "width": 0.25}, {"input_heads": 2}),
    "near_best": ("selection", {"margin": "best"}, {"cell": "gru"}),
    "near_best_of_all": ("selection", {"margin": "best", "width": 0.7}, {"num_active": 5}),
    "near_best_dynamic": ("selection", {"margin": "best", "dynamic": True}, {"score_bias": 1.0}),
    "graded": ("selection", {"graded": True}, {"soft_cap": 2.0}),
    "dynamic": ("selection", {"dynamic": True}, {"score_bias": 1.0}),
    "dynamic_continuous": ("selection", {"dynamic": True, "margin": "scores"}, {"score_bias": 1.0}),
    "entmax_of_all": ("selection", {"entmax": {"alpha": 1.5}}, {"num_active": 5}),
    "hard_concrete_of_all": ("selection", "hard_concrete", {"num_active": 5, "cell": "gru"}),
    "gumbel_continuous": ("selection", {"gumbel_top_k": {"margin": "scores"}}, {}),
    "several_balances": (
        "balance",
        ["loss_free_bias", "random_activation", {"switch": {"coefficient": 0.1}}],
        {"selection": "gumbel_top_k"},
    ),
    "normalized": ("selection", "least_null", {"normalize_scores": True}),
    "tanh": ("communication", {"output": "tanh"}, {}),
    "candidate": ("communication", {"output": "gated", "inactive": "candidate"}, {}),
    "cell_gate": ("communication", {"output": "cell_gate"}, {"num_layers": 2}),
}


def cases() -> list[Any]:
    found = []
    for kind, base in KINDS.items():
        for name, cls in known_parts(base).items():
            if cls.__module__.startswith("rimlit."):
                found.append(pytest.param(kind, name, {}, id=f"{kind}-{name}"))
    return found + [pytest.param(*case, id=name) for name, case in VARIANTS.items()]


@pytest.mark.parametrize("law", laws_of("rim"), ids=lambda law: law.__name__)
@pytest.mark.parametrize(("kind", "part", "others"), cases())
def test_a_rim_with_a_part_keeps_the_law(kind: str, part: Any, others: dict[str, Any], law: Any) -> None:
    law(rim_with(**{kind: part}, **others))


@pytest.mark.parametrize("law", laws_of("selection"), ids=lambda law: law.__name__)
@pytest.mark.parametrize(("kind", "part", "others"), [case for case in cases() if case.values[0] == "selection"])
def test_a_selection_keeps_the_law(kind: str, part: Any, others: dict[str, Any], law: Any) -> None:
    law(lambda: rim_with(**{kind: part}, **others)().layers[0].selection)


@pytest.mark.parametrize("case", ["continuous_gru", "dynamic_continuous", "cell_gate", "normalized"])
def test_a_rim_with_new_rules_keeps_the_laws_of_backbones(case: str) -> None:
    kind, part, others = VARIANTS[case]
    check_part(kind, part, **others)


class EveryOther(Selection):
    """Marks too many."""

    def choose(self, relevance: Tensor, offset: Tensor | None = None) -> Choice:
        return Choice(torch.ones_like(relevance, dtype=torch.bool))


class Jumping(LeastNull):
    """Says that it is continuous, and is not."""

    @property
    def is_continuous(self) -> bool:
        return True


class Coupled(Selection):
    """One sample's relevance reaches the others."""

    def choose(self, relevance: Tensor, offset: Tensor | None = None) -> Choice:
        return super().choose(relevance * relevance.mean(dim=1, keepdim=True), offset)


class Deaf(Selection):
    """Does not look at the offset."""

    def choose(self, relevance: Tensor, offset: Tensor | None = None) -> Choice:
        return super().choose(relevance)


class Loud(Selection):
    """Gates above 1."""

    def choose(self, relevance: Tensor, offset: Tensor | None = None) -> Choice:
        active = super().choose(relevance, offset).active
        return Choice(active, 2.0 * active)


@pytest.mark.parametrize(
    ("cls", "broken"),
    [
        (EveryOther, "5 mechanisms are active, and num_active=2"),
        (Jumping, "a gate jumps by 1 in a step"),
        (Coupled, "nan leaves other samples alone"),
        (Deaf, "a mechanism with an offset of −∞ is active"),
        (Loud, "gates are between 0 and 2; expected 0 to 1"),
    ],
)
def test_a_law_catches_a_rule_that_breaks_it(cls: type[Selection], broken: str) -> None:
    with pytest.raises(AssertionError, match=broken):
        check_part("selection", cls)


class Forgetting(AttentionCommunication):
    """Changes what is visible under the name of a known part: no compiled loop may take it for its parent."""

    def forward(self, inputs: TalkInputs) -> Talk:
        return super().forward(inputs._replace(candidate=2 * inputs.candidate))


def test_a_subclass_with_a_rule_of_its_own_never_runs_as_its_parent() -> None:
    rim = rim_with(communication=Forgetting)()
    name, reason = rim.resolve_backend()
    assert name == "eager"
    assert reason == "cpu: does not support Forgetting; function: does not support Forgetting"
    rim.backend = "cpu"
    with pytest.raises(
        ConfigError, match=r"^backend='cpu': this loop does not support Forgetting\. Allowed here: 'auto', 'eager'"
    ):
        rim(torch.ones(1, 2, 3))


class Leaky(Dynamics):
    """h ← tanh(read), a cell with one gate."""

    num_gates: ClassVar[int] = 1
    state_type = GRUState

    def update(self, read: Tensor, state: Any, weights: tuple[Tensor, ...]) -> tuple[Any, Tensor | None]:
        return GRUState((read + state.hidden).tanh()), None


class Whiteboard(Communication):
    """Carries a running mean of what active mechanisms propose, and adds it."""

    def initial_carried(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, self.size, dtype=torch.get_default_dtype())

    def forward(self, inputs: TalkInputs) -> Talk:
        assert inputs.carried is not None
        proposed = (inputs.candidate * inputs.active[..., None]).mean(dim=0)
        carried = 0.9 * inputs.carried + 0.1 * proposed
        return Talk(0.5 * carried.expand_as(inputs.candidate), None, carried)


def test_a_cell_of_ones_own_keeps_the_laws() -> None:
    check_part("cell", Leaky)


def assert_carried(rim: RIM, inputs: Tensor) -> None:
    """Two halves of 6 steps give what all steps give, and a reset starts again."""
    features, state = rim(inputs)
    first, middle = rim(inputs[:, :3])
    second, last = rim(inputs[:, 3:], middle)
    torch.testing.assert_close(torch.cat([first, second], dim=1), features)
    torch.testing.assert_close(last.carried, state.carried)
    resets = torch.zeros(2, 6, dtype=torch.bool)
    resets[:, 3] = True
    again, _ = rim(inputs, resets=resets)
    torch.testing.assert_close(again[:, 3:], rim(inputs[:, 3:])[0])


def test_what_a_part_carries_is_part_of_the_state() -> None:
    rim = rim_with(communication=Whiteboard)().eval()
    inputs = random_tensor(2, 6, 3)
    _, state = rim(inputs)
    assert type(state).__name__ == "CarryingLSTMState"
    assert state.carried.shape == (2, 1, rim.hidden_size // 5)
    assert state.carried.abs().sum() > 0
    assert_carried(rim, inputs)


class Pushed(Balance):
    """Knocks the first mechanism out and counts."""

    def __init__(self, num_mechanisms: int, num_active: int, weight: float = 2.0) -> None:
        super().__init__(num_mechanisms, num_active)
        self.weight, self.steps = weight, 0

    def offset(self, num_steps: int, batch_size: int) -> Tensor:
        offset = torch.zeros(1, self.num_mechanisms, 1)
        offset[:, 0] = -torch.inf
        return offset

    def penalty(self, relevance: Tensor, active: Tensor) -> Tensor:
        assert relevance.shape == active.shape
        return self.weight * relevance.square().mean()

    def after_step(self, layer: nn.Module, rate: float) -> None:
        self.steps += 1


@pytest.mark.parametrize("backend", ["eager", "function", "cpu", "reference"])
@pytest.mark.parametrize("slots", [None, 2])
def test_a_balance_ranks_penalises_and_follows_in_every_loop(backend: str, slots: int | None) -> None:
    rim = rim_with(balance=Pushed, backend=backend, input_dropout=0.0, communication_dropout=0.0)().train()
    inputs = random_tensor(2, 4, 3) if slots is None else random_tensor(2, 4, slots, 3)
    with rim.record_activity() as activities:
        rim(inputs)
    assert not activities[0].active[..., 0].any()
    assert (activities[0].active.sum(dim=-1) == 2).all()
    penalty = rim.penalty()
    assert penalty is not None
    key, query = rim.layers[0].input_key.weight, rim.layers[0].input_query.weight
    for weight, gradient in zip((key, query), torch.autograd.grad(penalty, (key, query)), strict=True):
        assert gradient.shape == weight.shape
        assert gradient.abs().sum() > 0
    rim.after_step()
    assert rim.layers[0].balance.steps == 1
    assert rim.eval()(inputs) is not None
    assert rim.penalty() is None


def test_the_penalty_is_that_of_the_scores_in_the_loop() -> None:
    rim = rim_with(balance=functools.partial(Pushed, weight=1.0))().double().train()
    layer = rim.layers[0]
    seen: list[Tensor] = []
    attend = layer.selection.attend
    layer.selection.attend = lambda scores: (seen.append(scores), attend(scores))[1]
    rim.backend, layer.input_dropout, layer.communication_dropout = "eager", 0.0, 0.0
    resets = torch.tensor([[False, False, True, False]] * 2)
    rim(random_tensor(2, 4, 3, dtype=torch.float64), resets=resets)
    torch.testing.assert_close(rim.penalty(), torch.stack(seen).square().mean())


def test_a_message_lists_the_parts_of_the_package_and_of_this_file_but_not_those_of_other_tests() -> None:
    other = type("AnotherTest", (Leaky,), {"__module__": "tests.another"})
    with pytest.raises(
        ConfigError, match=r"^cell must be one of gru, leaky, lstm, schemata, or a class path; got"
    ):
        rim_with(cell="rnn")()
    assert isinstance(rim_with(cell=other)().layers[0].dynamics, other)


def test_parts_may_be_given_in_every_way() -> None:
    ways: list[Any] = [
        {"margin": "scores", "width": 0.3},
        {"class_path": "least_null", "init_args": {"margin": "scores", "width": 0.3}},
        {"class_path": "rimlit.mechanisms.LeastNull", "init_args": {"margin": "scores", "width": 0.3}},
        functools.partial(LeastNull, margin="scores", width=0.3),
        LeastNull(5, 2, margin="scores", width=0.3),
    ]
    for way in ways:
        selection = rim_with(selection=way)().layers[0].selection
        assert (type(selection), selection.margin, selection.width) == (LeastNull, "scores", 0.3)
        assert (selection.num_mechanisms, selection.num_active) == (5, 2)
    assert type(rim_with(communication="none")().layers[0].communication) is NoCommunication
    assert type(rim_with(sharing=SharedSharing)().layers[0].dynamics.hidden) is SharedSharing


def test_layers_never_share_a_part_that_was_given_as_an_instance() -> None:
    rim = rim_with(selection=LeastNull(5, 2), num_layers=2)()
    assert rim.layers[0].selection is not rim.layers[1].selection


def test_a_part_describes_itself_without_what_the_layer_passes() -> None:
    assert LeastNull(5, 2, margin="scores").spec == {
        "class_path": "rimlit.mechanisms.LeastNull",
        "init_args": {"margin": "scores", "width": 0.5, "graded": False, "dynamic": False},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"selection": "least"},
            r"selection must be one of .*least_null.*, or a class path; got selection='least'\.",
        ),
        (
            {"selection": {"margins": "x"}},
            r"^selection: LeastNull takes margin, width, graded, dynamic; got margins='x'",
        ),
        (
            {"selection": {"margin": "x"}},
            r"^selection: margin must be one of none, scores, probabilities, best; got margin='x'",
        ),
        (
            {"selection": {"margin": "scores", "width": 0}},
            r"^selection: width must be above 0 and finite; got width=0\.",
        ),
        (
            {"selection": LeastNull(4, 2)},
            r"selection must be made for num_mechanisms=5 .* got one for num_mechanisms=4",
        ),
        ({"communication": LeastNull(5, 2)}, r"communication must be a Communication; got a LeastNull\."),
        ({"communication": False}, r"communication must be one of .*none.*; got communication=False\."),
        ({"communication": {"heads": 0}}, r"^communication: heads must be at least 1; got heads=0\."),
        ({"soft_cap": 0.0}, r"soft_cap must be above 0 and finite, or None; got soft_cap=0\.0\."),
        (
            {"selection": {"margin": "scores"}, "learn_initial_state": False},
            r"learn_initial_state must be true where selection has a margin: .* got learn_initial_state=False",
        ),
        (
            {"selection": {"dynamic": True}, "learn_initial_state": False},
            r"learn_initial_state must be true, or score_bias above 0, where selection is dynamic",
        ),
    ],
)
def test_a_mistake_names_key_value_and_what_is_allowed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rim_with(**arguments)()


def test_short_names_are_snake_case_without_the_kind() -> None:
    assert short_name(AttentionCommunication, Communication) == "attention"
    assert short_name(NoCommunication, Communication) == "none"
    assert {"least_null", "across_mechanisms"} <= set(known_parts(Selection))


# What the rules do


def test_at_a_tie_the_state_stays_and_grows_with_the_lead() -> None:
    selection = LeastNull(3, 1, margin="scores", width=0.5)
    for lead, gate in ((0.0, 0.0), (0.1, 0.2), (0.5, 1.0), (2.0, 1.0)):
        choice = selection.choose(torch.tensor([[1.0 + lead], [1.0], [0.0]]))
        assert choice.active.flatten().tolist() == [True, False, False]
        torch.testing.assert_close(choice.gate.flatten(), torch.tensor([gate, 0.0, 0.0]))


def test_the_competition_has_a_gradient_for_the_winner_and_the_best_loser() -> None:
    relevance = torch.tensor([[1.2], [1.0], [0.0]], requires_grad=True)
    gate = LeastNull(3, 1, margin="scores", width=0.5).choose(relevance).gate
    (gradient,) = torch.autograd.grad(gate.sum(), relevance)
    assert gradient.flatten().tolist() == [2.0, -2.0, 0.0]


def test_near_the_best_gates_fall_with_the_distance_from_the_strongest() -> None:
    relevance = torch.tensor([[-1.0], [-1.25], [-1.6], [3.0]], requires_grad=True)
    choice = LeastNull(4, 4, margin="best", width=0.5).choose(
        relevance, torch.tensor([[0.0], [0.0], [0.0], [-9.0]])
    )
    assert choice.active.flatten().tolist() == [True, True, False, False]
    assert choice.gate.flatten().tolist() == [1.0, 0.5, 0.0, 0.0]
    (gradient,) = torch.autograd.grad(choice.gate[1].sum(), relevance)
    assert gradient.flatten().tolist() == [-2.0, 2.0, 0.0, 0.0]


def test_near_the_best_at_most_the_allowed_number_is_active() -> None:
    choice = LeastNull(3, 2, margin="best", width=1.0).choose(torch.tensor([[0.1], [0.0], [0.2]]))
    assert choice.active.flatten().tolist() == [True, False, True]


def test_a_dynamic_count_wakes_those_that_read_more_than_null_and_no_more_than_allowed() -> None:
    relevance = torch.tensor([[2.0, -1.0], [0.5, -2.0], [0.1, -0.1]])
    assert LeastNull(3, 3, dynamic=True).choose(relevance).active.sum(dim=0).tolist() == [3, 0]
    assert LeastNull(3, 2, dynamic=True).choose(relevance).active.sum(dim=0).tolist() == [2, 0]


def test_scores_are_bounded_and_biased() -> None:
    rim = rim_with(soft_cap=1.5, score_bias=2.0)()
    with torch.no_grad():
        rim.layers[0].input_query.weight.mul_(100)
    with rim.record_activity() as activities:
        rim(100 * random_tensor(4, 3, 3))
    # P_null = 1 / (1 + e^s) with s between 2 − 1.5 and 2 + 1.5
    null = activities[0].null_attention
    bounds = torch.sigmoid(-torch.tensor([0.5, 3.5]))
    assert null.max() <= bounds[0] + 1e-6
    assert null.min() >= bounds[1] - 1e-6


def test_communication_through_the_gate_cannot_write_where_the_cell_does_not() -> None:
    rim = rim_with(cell="gru", communication={"output": "cell_gate"}, backend="eager")()
    layer = rim.layers[0]
    with torch.no_grad():
        layer.dynamics.bias.weight[..., 4:8] = 100.0  # update gates of 1
        layer.communication.projection.weight.mul_(100)
    state = rim.initial_state(2)
    features, _ = rim(random_tensor(2, 3, 3), state)
    torch.testing.assert_close(features[:, -1], state.hidden.flatten(1))


# More mechanisms than were trained


def test_mechanisms_that_share_weights_can_be_more_or_fewer() -> None:
    rim = rim_with(sharing="shared", score_bias=1.0)().eval()
    for number in (3, 5, 8):
        other = rim.with_mechanisms(number, num_active=2)
        features, state = other(random_tensor(2, 4, 3))
        assert features.shape == (2, 4, number * 4)
        assert state.hidden.shape == (2, 1, number, 4)
        assert torch.equal(other.layers[0].dynamics.hidden.weight, rim.layers[0].dynamics.hidden.weight)
        assert torch.equal(other.initial.hidden[:, :3], rim.initial.hidden[:, :3])
    assert rim.num_mechanisms == 5
    same = rim.with_mechanisms(5)
    inputs = random_tensor(2, 4, 3)
    assert torch.equal(same(inputs)[0], rim(inputs)[0])
    copied = copy.deepcopy(rim.with_mechanisms(8))
    assert torch.isfinite(copied(inputs)[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"with_mechanisms needs weights that all mechanisms share, .*; input_query is IndependentSharing\."),
        ({"sharing": "shared", "num_layers": 2}, r"with_mechanisms needs num_layers=1: .* got num_layers=2\."),
    ],
)
def test_more_mechanisms_are_refused_where_weights_are_not_shared(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rim_with(**arguments)().with_mechanisms(7)


def test_normalised_scores_are_cosines() -> None:
    rim = rim_with(normalize_scores=True)().double()
    inputs = random_tensor(3, 1, 3, dtype=torch.float64)
    name, reason = rim.resolve_backend()
    assert name == "eager"
    assert "does not normalise queries and keys" in reason
    with rim.record_activity() as once:
        rim(inputs)
    with torch.no_grad():
        rim.layers[0].input_query.weight.mul_(7)
    with rim.record_activity() as again:
        rim(inputs)
    torch.testing.assert_close(once[0].null_attention, again[0].null_attention)
    bound = torch.sigmoid(torch.tensor(4**0.5))
    assert once[0].null_attention.max() <= bound


def test_the_constructor_s_defaults_are_the_paper_s_rule() -> None:
    rim = RIM(3, 20, num_mechanisms=5, num_active=2)
    assert rim.layers[0].selection.spec["init_args"]["margin"] == "none"


@pytest.mark.parametrize("backend", ["eager", "function", "cpu"])
@pytest.mark.parametrize("margin", ["scores", "probabilities", "best"])
def test_a_mechanism_that_may_not_win_sends_no_nan_back(backend: str, margin: str) -> None:
    selection = {"margin": margin, "width": 0.5, "graded": True}
    options = {"selection": selection, "balance": Pushed, "learn_initial_state": True, "backend": backend}
    rim = RIM(3, 12, num_mechanisms=3, num_active=2, **options).train()
    features, _ = rim(random_tensor(2, 4, 3))
    features.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in rim.parameters())
