"""The laws that every head keeps, and what each is for."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from rimlit.errors import ConfigError
from rimlit.heads import AttentionHead, Head, LinearHead, MixtureHead, SumHead
from rimlit.testing import Law, classes_in
from tests.conftest import random_tensor
from tests.laws.cases import law_cases, name_of

MECHANISMS, SIZE, OUTPUTS = 4, 3, 64  # a frame of 8 × 8, for the heads that draw

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "AttentionHead": {"features": {"query": "features", "num_heads": 2, "key_size": 7}},
    "MixtureHead": {"places": {"place_size": 4, "hidden_size": 6}},
    "SumHead": {"hidden": {"hidden_size": 6}},
}


HEADS = classes_in("rimlit.heads", Head)
every_head = pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        pytest.param(cls, arguments, id=f"{cls.__name__}-{name}")
        for cls in HEADS
        for name, arguments in {"default": {}, **VARIANTS.get(cls.__name__, {})}.items()
    ],
)


def make_head(cls: type[Head], arguments: dict[str, Any], num_mechanisms: int = MECHANISMS) -> Head:
    return cls(MECHANISMS * SIZE, OUTPUTS, num_mechanisms, **arguments).double().eval()


def some_features(*shape: int) -> Tensor:
    return random_tensor(*shape, MECHANISMS * SIZE, seed=3, dtype=torch.float64)


def permuted(features: Tensor, order: list[int]) -> Tensor:
    """Put the mechanisms of ``features`` in another order."""
    return features.unflatten(-1, (MECHANISMS, SIZE))[..., order, :].flatten(-2)


def test_introspection_finds_the_heads_that_are_public() -> None:
    assert {AttentionHead, LinearHead, SumHead} <= set(HEADS)


@pytest.mark.parametrize("num_mechanisms", [1, MECHANISMS])
@pytest.mark.parametrize("law", law_cases("head"))
@every_head
def test_a_head_keeps_the_law(law: Law, cls: type[Head], arguments: dict[str, Any], num_mechanisms: int) -> None:
    # with one mechanism the attention has nothing to choose
    if num_mechanisms == 1 and cls is AttentionHead and name_of(law) == "every_parameter_gets_a_gradient":
        pytest.skip("keys and queries get a gradient of zeros")
    law(lambda: cls(MECHANISMS * SIZE, OUTPUTS, num_mechanisms, **arguments))


@every_head
def test_dropout_acts_in_training_only(cls: type[Head], arguments: dict[str, Any]) -> None:
    if "dropout" not in inspect.signature(cls).parameters:
        pytest.skip("a head without dropout")
    head, features = make_head(cls, {**arguments, "dropout": 0.5}), some_features(2, 6)
    assert torch.equal(head(features), head(features))
    head.train()
    assert not torch.equal(head(features), head(features))


@every_head
def test_features_that_do_not_fall_into_equal_parts_are_refused(
    cls: type[Head], arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"divisible by num_mechanisms; got input_size=12, num_mechanisms=5\."):
        make_head(cls, arguments, num_mechanisms=5)


@every_head
def test_a_size_below_1_is_refused(cls: type[Head], arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"output_size must be at least 1; got output_size=0\."):
        cls(12, 0, **arguments)
    for name, value in (("num_heads", 0), ("key_size", -1), ("hidden_size", 0), ("dropout", 1.0)):
        if name in inspect.signature(cls).parameters:
            with pytest.raises(ValueError, match=f"{name} must be .*; got {name}={value}"):
                cls(12, OUTPUTS, **{**arguments, name: value})


@pytest.mark.parametrize("query", ["learned", "features"])
def test_attention_does_not_see_the_order_of_the_mechanisms(query: Any) -> None:
    head, features = make_head(AttentionHead, {"query": query}), some_features(2, 6)
    outputs = head(permuted(features, [2, 0, 3, 1]))
    torch.testing.assert_close(outputs, head(features), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(make_head(LinearHead, {})(features.flip(-1)), make_head(LinearHead, {})(features))


def test_attention_weighs_the_mechanisms_of_each_step_and_chooses_among_them() -> None:
    head, features = make_head(AttentionHead, {"num_heads": 2}), some_features(2, 6)
    weights = head.attention(head.by_mechanism(features))
    assert weights.shape == (2, 6, 2, MECHANISMS)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 6, 2, dtype=torch.float64))
    assert weights.std(dim=-1).min() > 0
    with torch.no_grad():  # a query that matches mechanism 1 only reads mechanism 1 only
        head.key.weight.zero_()
        head.key.weight[:, 0] = 1
        head.learned_query.fill_(100)
    features = torch.zeros(1, 1, MECHANISMS * SIZE, dtype=torch.float64)
    features[..., SIZE], features[..., SIZE + 1] = 1, 0.5
    expected = head.linear(torch.tensor([1, 0.5, 0] * 2, dtype=torch.float64))
    torch.testing.assert_close(head(features)[0, 0], expected)


def test_an_unknown_query_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"query must be one of learned, features; got query='state'\."):
        AttentionHead(12, 3, 4, query="state")  # type: ignore[arg-type]


def test_the_sum_of_linear_maps_is_a_linear_map_of_everything() -> None:
    head, linear, features = make_head(SumHead, {}), make_head(LinearHead, {}), some_features(2, 6)
    with torch.no_grad():
        linear.linear.weight.copy_(head.linear.weight.flatten(0, 1).T)
        linear.linear.bias.copy_(head.bias)
    torch.testing.assert_close(head(features), linear(features), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("hidden_size", [None, 6])
def test_a_contribution_depends_on_its_own_mechanism_only(hidden_size: int | None) -> None:
    head, features = make_head(SumHead, {"hidden_size": hidden_size}), some_features(2, 6)
    changed = features.clone()
    changed[..., SIZE : 2 * SIZE] += 1  # mechanism 1
    before, after = head.contributions(features), head.contributions(changed)
    is_same = (before - after).abs().amax(dim=(0, 1, 3)) < 1e-12
    assert is_same.tolist() == [True, False, True, True]
    torch.testing.assert_close(before.sum(dim=-2) + head.bias, head(features))


@pytest.mark.parametrize("hidden_size", [None, 6])
def test_permuting_the_mechanisms_with_their_maps_leaves_the_sum(hidden_size: int | None) -> None:
    head, features, order = make_head(SumHead, {"hidden_size": hidden_size}), some_features(2, 6), [2, 0, 3, 1]
    expected = head(features)
    with torch.no_grad():
        for part in (head.linear, head.hidden):
            for parameter in () if part is None else part.parameters():
                parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(head(permuted(features, order)), expected, rtol=1e-10, atol=1e-12)


def test_a_mixture_weighs_what_mechanisms_say_place_by_place() -> None:
    head = MixtureHead(MECHANISMS * SIZE, 12, MECHANISMS, place_size=3, hidden_size=5).double().eval()
    features = some_features(2, 3)
    spoken = [head.decoder(features[..., m * SIZE : (m + 1) * SIZE]) for m in range(MECHANISMS)]
    shares = torch.stack([each[..., 12:] for each in spoken]).softmax(dim=0)  # (M, B, T, places)
    for place in range(4):
        expected = sum(
            shares[m][..., [place]] * spoken[m][..., 3 * place : 3 * place + 3] for m in range(MECHANISMS)
        )
        torch.testing.assert_close(head(features)[..., 3 * place : 3 * place + 3], expected)
    torch.testing.assert_close(head.masks(features), shares.permute(1, 2, 0, 3))


def test_a_mixture_reads_any_number_of_mechanisms_in_any_order() -> None:
    head = MixtureHead(MECHANISMS * SIZE, 12, MECHANISMS, place_size=3, hidden_size=5)
    more = MixtureHead(7 * SIZE, 12, 7, place_size=3, hidden_size=5)
    more.load_state_dict(head.state_dict())
    features = random_tensor(2, 3, 7, SIZE)
    order = torch.tensor([3, 1, 0, 6, 2, 5, 4])
    torch.testing.assert_close(more(features[:, :, order].flatten(2)), more(features.flatten(2)))


def test_places_that_do_not_divide_the_outputs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"divisible by place_size; got output_size=64, place_size=10\."):
        MixtureHead(12, 64, 4, place_size=10)
