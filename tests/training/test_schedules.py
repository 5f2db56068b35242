"""Learning rates over a run."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch.optim import SGD

from rimlit.training.schedules import WarmupCosine


def rates(steps: int, *, base: float = 0.4, **arguments: Any) -> list[float]:
    """The rates of the first ``steps`` optimiser steps."""
    optimizer = SGD([torch.ones(1, requires_grad=True)], lr=base)
    schedule = WarmupCosine(optimizer, **arguments)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def cosine(step: int, total: int) -> float:
    return (1 + math.cos(math.pi * step / total)) / 2


def test_the_rate_rises_linearly_to_its_peak_while_the_cosine_begins() -> None:
    seen = rates(5, warmup_steps=4, total_steps=1_000_000)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_without_warmup_it_is_half_a_cosine_from_peak_to_zero() -> None:
    assert rates(11, total_steps=10) == pytest.approx([0.4 * cosine(step, 10) for step in range(11)], abs=1e-12)


def test_warmup_multiplies_the_cosine() -> None:
    expected = [0.4 * min(1, (step + 1) / 3) * cosine(step, 8) for step in range(8)]
    assert rates(8, warmup_steps=3, total_steps=8) == pytest.approx(expected)


@pytest.mark.parametrize("final_ratio", [0.0, 0.25, 1.0])
def test_it_ends_at_the_final_ratio_and_stays_there(final_ratio: float) -> None:
    seen = rates(15, total_steps=10, final_ratio=final_ratio)
    assert seen[10:] == pytest.approx([0.4 * final_ratio] * 5, abs=1e-12)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(seen))


def test_each_group_of_parameters_keeps_its_own_peak() -> None:
    weights = [torch.ones(1, requires_grad=True) for _ in range(2)]
    optimizer = SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "lr": 0.5}], lr=1.0)
    schedule = WarmupCosine(optimizer, warmup_steps=2, total_steps=10)
    assert schedule.get_last_lr() == pytest.approx([0.05, 0.25])


def test_a_saved_schedule_resumes_where_it_stopped() -> None:
    def start() -> tuple[SGD, WarmupCosine]:
        optimizer = SGD([torch.ones(1, requires_grad=True)], lr=0.4)
        return optimizer, WarmupCosine(optimizer, warmup_steps=3, total_steps=9)

    optimizer, schedule = start()
    for _ in range(4):
        optimizer.step()
        schedule.step()
    other_optimizer, other = start()
    other_optimizer.load_state_dict(optimizer.state_dict())
    other.load_state_dict(schedule.state_dict())
    for pair in ((optimizer, schedule), (other_optimizer, other)):
        pair[0].step()
        pair[1].step()
    expected = 0.4 * cosine(5, 9)
    assert other_optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_steps": -1, "total_steps": 9}, r"warmup_steps must be at least 0; got warmup_steps=-1\."),
        ({"final_ratio": 1.5, "total_steps": 9}, r"final_ratio must be between 0 and 1; got final_ratio=1\.5\."),
        ({"final_ratio": -0.5, "total_steps": 9}, r"final_ratio must be between 0 and 1; got final_ratio=-0\.5\."),
        (
            {},
            r"needs a run of known length; got total_steps=None\. Set trainer\.max_steps or trainer\.max_epochs\.",
        ),
        ({"total_steps": 0}, r"needs a run of known length; got total_steps=0\."),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_its_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(1, **arguments)


def test_a_run_that_is_resumed_for_longer_takes_its_own_length() -> None:
    def schedule(total_steps: int) -> WarmupCosine:
        return WarmupCosine(torch.optim.SGD([torch.zeros(1)], lr=1.0), total_steps=total_steps)

    short, long = schedule(4), schedule(8)
    for _ in range(4):
        short.optimizer.step()
        short.step()
    long.load_state_dict(short.state_dict())
    long.optimizer.step()
    long.step()
    assert long.get_last_lr()[0] > 0.2
