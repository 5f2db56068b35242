"""Losses of proximal policy optimisation, as pure functions (Schulman et al. 2017, arXiv:1707.06347).

Every function takes one number for each step, in any shape, and returns the mean over all steps, a scalar.
A log-ratio is the log-probability of an action under the policy that is trained, less that under the policy that
collected it.
"""

import torch
from torch import Tensor


def clipped_policy_loss(log_ratios: Tensor, advantages: Tensor, *, clip: float) -> Tensor:
    """Return the clipped surrogate loss (eq. 7): an action gains nothing once its ratio has left 1 ± ``clip``.

    Args:
        log_ratios: (…), nats.
        advantages: (…): how much better each action was than expected.
        clip: How far the ratio may leave 1 with a gain, above 0.

    Returns:
        The loss, a scalar.

    Example:
        >>> ratios = torch.tensor([1.5, 0.5])
        >>> clipped_policy_loss(ratios.log(), torch.tensor([1.0, 1.0]), clip=0.2)  # −(1.2 + 0.5) / 2
        tensor(-0.8500)
    """
    ratios = log_ratios.exp()
    clipped = ratios.clamp(1 - clip, 1 + clip)
    return -torch.min(ratios * advantages, clipped * advantages).mean()


def clipped_value_loss(values: Tensor, returns: Tensor, old_values: Tensor, *, clip: float | None) -> Tensor:
    """Return half the squared error of the values; one gains nothing once it has left its old value by ``clip``.

    Args:
        values: (…).
        returns: (…): targets of the values.
        old_values: (…): values at the time of collection.
        clip: How far a value may leave the old one with a gain, above 0; None: without a limit.

    Returns:
        The loss, a scalar.

    Example:
        >>> clipped_value_loss(torch.tensor([3.0]), torch.tensor([4.0]), torch.tensor([1.0]), clip=0.5)  # 2.5² / 2
        tensor(3.1250)
    """
    errors = (values - returns).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.max(errors, (clipped - returns).square())
    return errors.mean() / 2


def estimate_kl(log_ratios: Tensor) -> Tensor:
    """Estimate the divergence from the policy that collected to the one that is trained.

    The estimator is r − 1 − log r, which is never negative.

    Args:
        log_ratios: (…), nats, of actions drawn from the policy that collected.

    Returns:
        The divergence, nats, a scalar without a gradient.

    Example:
        >>> estimate_kl(torch.tensor([0.0, 1.0]))  # (0 + e − 2) / 2
        tensor(0.3591)
    """
    log_ratios = log_ratios.detach()
    return (log_ratios.exp() - 1 - log_ratios).mean()


def clip_fraction(log_ratios: Tensor, *, clip: float) -> Tensor:
    """Return the share of steps whose ratio has left 1 by more than ``clip``.

    Args:
        log_ratios: (…), nats.
        clip: Distance of a ratio from 1, above 0.

    Returns:
        The share, 0 to 1, a scalar without a gradient.

    Example:
        >>> clip_fraction(torch.tensor([1.0, 1.1, 1.5, 0.5]).log(), clip=0.2)
        tensor(0.5000)
    """
    return ((log_ratios.detach().exp() - 1).abs() > clip).float().mean()
