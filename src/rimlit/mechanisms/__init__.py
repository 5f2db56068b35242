"""The replaceable parts of a RIM layer: selection, dynamics, communication, sharing, balance."""

from rimlit.mechanisms.balance import Balance, NoBalance
from rimlit.mechanisms.balances import ExpectedSparsity
from rimlit.mechanisms.base import Choice, Part, PartLike, known_parts, part_factory, short_name
from rimlit.mechanisms.communication import (
    AttentionCommunication,
    Communication,
    NoCommunication,
    Talk,
    TalkInputs,
)
from rimlit.mechanisms.dynamics import Dynamics, GRUDynamics, LSTMDynamics
from rimlit.mechanisms.layer import LayerWeights, RIMLayer
from rimlit.mechanisms.selection import AcrossMechanisms, LeastNull, Selection
from rimlit.mechanisms.sharing import IndependentSharing, SharedSharing, Sharing

__all__ = [
    "AcrossMechanisms",
    "AttentionCommunication",
    "Balance",
    "Choice",
    "Communication",
    "Dynamics",
    "ExpectedSparsity",
    "GRUDynamics",
    "IndependentSharing",
    "LSTMDynamics",
    "LayerWeights",
    "LeastNull",
    "NoBalance",
    "NoCommunication",
    "Part",
    "PartLike",
    "RIMLayer",
    "Selection",
    "SharedSharing",
    "Sharing",
    "Talk",
    "TalkInputs",
    "known_parts",
    "part_factory",
    "short_name",
]
