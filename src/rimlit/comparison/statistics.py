"""Statistics over tasks and seeds (Agarwal et al. 2021, arXiv:2108.13264), with intervals by stratified bootstrap.

A stratum is a task: its seeds are drawn again with replacement, and those of no other. Interquartile mean and
performance profile are the paper's (sec. 4). The probability of improvement departs from it: runs of one seed are
compared with each other, as they saw the same data in the same order, and not every run with every run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
LEAST_SEEDS = 2
"""Seeds that every task must have for an interval."""


class Interval(NamedTuple):
    """A statistic with the ends of its 95 % interval, None where a task has a single seed."""

    value: float
    low: float | None = None
    high: float | None = None


class Profile(NamedTuple):
    """The share of runs above each threshold, with the ends of its 95 % interval; None with single seeds."""

    thresholds: list[float]
    shares: list[float]
    low: list[float] | None = None
    high: list[float] | None = None


def interquartile_mean(tasks: Sequence[Sequence[float]]) -> Interval:
    """Return the mean of the middle half of all runs; of fewer than four it is the mean.

    Args:
        tasks: Scores on one scale, one sequence over seeds per task.

    Raises:
        ValueError: There is no score.

    Example:
        >>> interquartile_mean([[0.0, 0.5, 0.5, 0.5], [0.25, 0.75, 0.5, 9.0]]).value
        0.5
    """
    from scipy.stats import trim_mean

    def middle(*samples: Any, axis: int) -> Any:
        return trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)

    return _with_interval([np.asarray(task, dtype=float) for task in tasks], middle)


def probability_of_improvement(
    first: Sequence[Mapping[int, float]], second: Sequence[Mapping[int, float]], *, higher_is_better: bool = True
) -> Interval | None:
    """Return how often the first model is better than the second with the same seed; a tie counts one half.

    It is the mean over tasks of the mean over the seeds that both models have.

    Args:
        first: The first model's scores by seed, one mapping per task.
        second: Those of the second, tasks in the same order.
        higher_is_better: Whether the better score is the higher one.

    Returns:
        The probability, 0 to 1; None where the models share no seed in any task.

    Example:
        >>> rim = [{0: 0.5, 1: 0.75}, {0: 1.0, 1: 0.25}]
        >>> lstm = [{0: 0.25, 1: 0.5}, {0: 1.0, 1: 0.5}]
        >>> probability_of_improvement(rim, lstm).value
        0.625
    """
    sign = 1 if higher_is_better else -1
    samples = [
        np.array([(1 + np.sign(sign * (ours[seed] - theirs[seed]))) / 2 for seed in ours if seed in theirs])
        for ours, theirs in zip(first, second, strict=True)
    ]
    samples = [sample for sample in samples if len(sample)]
    if not samples:
        return None
    return _with_interval(samples, _mean_over_tasks)


def performance_profile(tasks: Sequence[Sequence[float]], thresholds: Sequence[float]) -> Profile:
    """Return the share of runs whose score is above each threshold, a mean over tasks.

    Args:
        tasks: Scores on one scale, one sequence over seeds per task.
        thresholds: Thresholds on that scale.

    Example:
        >>> performance_profile([[0.25, 0.75], [0.5, 1.0]], [0.0, 0.5, 1.0]).shares
        [1.0, 0.5, 0.0]
    """
    bounds = np.asarray(thresholds, dtype=float)[:, None]
    samples = [(np.asarray(task, dtype=float)[None] > bounds).astype(float) for task in tasks]  # (thresholds, n)
    shares = _mean_over_tasks(*samples, axis=-1)
    ends = _ends(samples, _mean_over_tasks)
    low, high = (None, None) if ends is None else (end.tolist() for end in ends)
    return Profile(list(thresholds), shares.tolist(), low, high)


def _mean_over_tasks(*samples: Any, axis: int) -> Any:
    return sum(sample.mean(axis=axis) for sample in samples) / len(samples)


def _with_interval(samples: list[Any], statistic: Callable[..., Any]) -> Interval:
    value = float(statistic(*samples, axis=-1))
    ends = _ends(samples, statistic)
    return Interval(value) if ends is None else Interval(value, float(ends[0]), float(ends[1]))


def _ends(samples: list[Any], statistic: Callable[..., Any]) -> tuple[Any, Any] | None:
    """Return the ends of the percentile interval of a statistic, None where a task has too few seeds."""
    from scipy.stats import bootstrap

    if min(sample.shape[-1] for sample in samples) < LEAST_SEEDS:
        return None
    interval = bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(0),  # the same runs give the same interval
    ).confidence_interval
    return interval.low, interval.high
