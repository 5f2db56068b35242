"""The replaceable parts of a RIM layer: selection, dynamics, communication, sharing, balance."""

from rimlit.mechanisms.balance import Balance, NoBalance
from rimlit.mechanisms.base import Choice, Part, PartLike, known_parts, part_factory, short_name
from rimlit.mechanisms.communication import (
    AttentionCommunication,
    Communication,
    NoCommunication,
    Talk,
    TalkInputs,
)
from rimlit.mechanisms.dynamics import Dynamics, GRUDynamics, LSTMDynamics, Update
from rimlit.mechanisms.layer import LayerWeights, RIMLayer
from rimlit.mechanisms.quantized import QuantizedCommunication
from rimlit.mechanisms.schemata import SchemataDynamics
from rimlit.mechanisms.selection import AcrossMechanisms, LeastNull, Selection
from rimlit.mechanisms.sharing import (
    EmbeddedSharing,
    IndependentSharing,
    LowRankSharing,
    SharedSharing,
    Sharing,
)
from rimlit.mechanisms.workspace import WorkspaceCommunication

__all__ = [
    "AcrossMechanisms",
    "AttentionCommunication",
    "Balance",
    "Choice",
    "Communication",
    "Dynamics",
    "EmbeddedSharing",
    "GRUDynamics",
    "IndependentSharing",
    "LSTMDynamics",
    "LayerWeights",
    "LeastNull",
    "LowRankSharing",
    "NoBalance",
    "NoCommunication",
    "Part",
    "PartLike",
    "QuantizedCommunication",
    "RIMLayer",
    "SchemataDynamics",
    "Selection",
    "SharedSharing",
    "Sharing",
    "Talk",
    "TalkInputs",
    "Update",
    "WorkspaceCommunication",
    "known_parts",
    "part_factory",
    "short_name",
]
