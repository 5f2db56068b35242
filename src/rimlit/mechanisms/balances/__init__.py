"""Parts that influence who wins; :mod:`rimlit.mechanisms.balance` has what they share."""

from rimlit.mechanisms.balances.dead_reset import DeadReset
from rimlit.mechanisms.balances.loss_free import LossFreeBias
from rimlit.mechanisms.balances.noisy_top_k import NoisyTopK
from rimlit.mechanisms.balances.penalties import GshardBalance, Penalty, SwitchBalance, UsageFloor, ZLoss
from rimlit.mechanisms.balances.random_activation import RandomActivation
from rimlit.mechanisms.balances.sparsity import ExpectedSparsity

__all__ = [
    "DeadReset",
    "ExpectedSparsity",
    "GshardBalance",
    "LossFreeBias",
    "NoisyTopK",
    "Penalty",
    "RandomActivation",
    "SwitchBalance",
    "UsageFloor",
    "ZLoss",
]
