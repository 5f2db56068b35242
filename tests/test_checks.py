"""Argument checks: one message, one class of error, wherever the argument is given."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rimlit.backbones import LSTM, RNN, Transformer
from rimlit.checks import (
    require_at_least,
    require_dropout,
    require_known,
    require_not_negative,
    require_positive,
    require_share,
)
from rimlit.data import Adding
from rimlit.encoders import DenseEncoder
from rimlit.errors import ConfigError, SpecError
from rimlit.heads import LinearHead
from rimlit.tasks import Task


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: require_at_least(3, few=2, fewer=1), "few must be at least 3; got few=2."),
        (lambda: require_positive(size=1, width=0), "width must be at least 1; got width=0."),
        (lambda: require_dropout(dropout=1.0), "dropout must be at least 0 and below 1; got dropout=1.0."),
        (
            lambda: require_not_negative(rate=0, coefficient=-0.1),
            "coefficient must be at least 0 and finite; got coefficient=-0.1.",
        ),
        (lambda: require_not_negative(z=float("nan")), "z must be at least 0 and finite; got z=nan."),
        (lambda: require_share(target=1.5), "target must be between 0 and 1; got target=1.5."),
        (lambda: require_known(cell=("gur", ("lstm", "gru"))), "cell must be one of lstm, gru; got cell='gur'."),
    ],
)
def test_a_check_names_argument_value_and_range(check: Callable[[], None], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check()
    assert str(raised.value) == message
    assert isinstance(raised.value, ValueError)


def test_what_is_allowed_passes() -> None:
    require_at_least(0, skip=0)
    require_positive(size=1)
    require_dropout(dropout=0.0)
    require_not_negative(coefficient=0)
    require_share(low=0, high=1)
    require_known(cell=("gru", ("lstm", "gru")))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LSTM(3, 0),
        lambda: RNN(3, 4, nonlinearity="sine"),  # type: ignore[arg-type]
        lambda: Transformer(3, 4, context=1),
        lambda: DenseEncoder(3, 0),
        lambda: LinearHead(4, 2, dropout=1.0),
        lambda: Adding(batch_size=0),
    ],
)
def test_every_part_raises_the_same_class_of_error(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_what_a_schedule_refuses_is_named_with_its_class() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    spec = {"class_path": "rimlit.training.WarmupCosine", "init_args": {"warmup_steps": -1}}
    with pytest.raises(
        ConfigError, match=r"^WarmupCosine: warmup_steps must be at least 0; got warmup_steps=-1\.$"
    ):
        Task._built(spec, torch.optim.lr_scheduler.LRScheduler, optimizer)
    spec["init_args"] = {"warm": 1}
    with pytest.raises(SpecError, match=r"^WarmupCosine has no argument 'warm'; it has"):
        Task._built(spec, torch.optim.lr_scheduler.LRScheduler, optimizer)
