"""The losses, against values computed by hand."""

import math

import pytest
import torch

from rimlit.rl.losses import clip_fraction, clipped_policy_loss, clipped_value_loss, estimate_kl


def log_of(*ratios: float) -> torch.Tensor:
    return torch.tensor(ratios, dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.1, 2.0, -2.2),  # inside the clip: −ratio · advantage
        (1.5, 2.0, -2.4),  # a gain beyond the clip counts as 1.2
        (0.5, 2.0, -1.0),  # a loss beyond it counts in full
        (0.5, -2.0, 1.6),  # less of a bad action: a gain, which counts as 0.8
        (1.5, -2.0, 3.0),
    ],
)
def test_the_policy_loss_is_the_smaller_of_the_clipped_and_the_unclipped_gain(
    ratio: float, advantage: float, loss: float
) -> None:
    found = clipped_policy_loss(log_of(ratio), torch.tensor([advantage]), clip=0.2)
    assert found.item() == pytest.approx(loss)


def test_the_policy_loss_is_a_mean_over_steps_of_any_shape() -> None:
    ratios, advantages = log_of(1.1, 1.5, 0.5, 0.5), torch.tensor([2.0, 2.0, 2.0, -2.0])
    flat = clipped_policy_loss(ratios, advantages, clip=0.2)
    assert flat.item() == pytest.approx((-2.2 - 2.4 - 1.0 + 1.6) / 4)
    assert torch.equal(clipped_policy_loss(ratios.view(2, 2), advantages.view(2, 2), clip=0.2), flat)


@pytest.mark.parametrize(("ratio", "gradient"), [(1.1, -1.1), (1.5, 0.0), (0.5, -0.5)])
def test_an_action_beyond_the_clip_has_no_gradient_where_it_gained(ratio: float, gradient: float) -> None:
    log_ratios = log_of(ratio).requires_grad_()
    clipped_policy_loss(log_ratios, torch.tensor([1.0]), clip=0.2).backward()
    assert log_ratios.grad is not None
    assert log_ratios.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("value", "clip", "loss"),
    [
        (3.0, None, (3 - 4) ** 2 / 2),
        (3.0, 5.0, (3 - 4) ** 2 / 2),  # within the clip
        (3.0, 0.5, (1.5 - 4) ** 2 / 2),  # from 1 to 3: counts as 1.5
        (-3.0, 0.5, (-3 - 4) ** 2 / 2),  # away from the target: counts in full
    ],
)
def test_a_value_gains_nothing_beyond_the_clip(value: float, clip: float | None, loss: float) -> None:
    found = clipped_value_loss(torch.tensor([value]), torch.tensor([4.0]), torch.tensor([1.0]), clip=clip)
    assert found.item() == pytest.approx(loss)


def test_the_divergence_is_zero_at_equal_policies_and_has_no_gradient() -> None:
    log_ratios = log_of(1.0, 1.0).requires_grad_()
    assert estimate_kl(log_ratios).item() == 0
    assert not estimate_kl(log_ratios).requires_grad
    assert estimate_kl(log_of(1.4, 0.6)).item() == pytest.approx((-math.log(1.4) - math.log(0.6)) / 2)


def test_the_expected_estimate_is_the_divergence() -> None:
    old, new = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    actions = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)  # as often as the old policy draws them
    exact = (old * (old / new).log()).sum()
    assert estimate_kl((new / old).log()[actions]).item() == pytest.approx(exact.item())


def test_the_clip_fraction_counts_ratios_on_both_sides() -> None:
    assert clip_fraction(log_of(0.7, 0.9, 1.0, 1.1, 1.3), clip=0.2).item() == pytest.approx(2 / 5)
