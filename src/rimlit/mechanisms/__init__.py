"""The replaceable parts of a RIM layer: selection, dynamics, communication, sharing, balance."""

from rimlit.mechanisms.balance import Balance, CombinedBalance, NoBalance
from rimlit.mechanisms.balances import (
    DeadReset,
    ExpectedSparsity,
    GshardBalance,
    LossFreeBias,
    NoisyTopK,
    RandomActivation,
    SwitchBalance,
    UsageFloor,
    ZLoss,
)
from rimlit.mechanisms.base import Choice, Part, PartLike, PartsLike, known_parts, part_factory, short_name
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
from rimlit.mechanisms.selections import (
    Entmax,
    GumbelTopK,
    HardConcrete,
    SkipUpdate,
    Sparsemax,
    StraightThrough,
)
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
    "CombinedBalance",
    "Communication",
    "DeadReset",
    "Dynamics",
    "EmbeddedSharing",
    "Entmax",
    "ExpectedSparsity",
    "GRUDynamics",
    "GshardBalance",
    "GumbelTopK",
    "HardConcrete",
    "IndependentSharing",
    "LSTMDynamics",
    "LayerWeights",
    "LeastNull",
    "LossFreeBias",
    "LowRankSharing",
    "NoBalance",
    "NoCommunication",
    "NoisyTopK",
    "Part",
    "PartLike",
    "PartsLike",
    "QuantizedCommunication",
    "RIMLayer",
    "RandomActivation",
    "SchemataDynamics",
    "Selection",
    "SharedSharing",
    "Sharing",
    "SkipUpdate",
    "Sparsemax",
    "StraightThrough",
    "SwitchBalance",
    "Talk",
    "TalkInputs",
    "Update",
    "UsageFloor",
    "WorkspaceCommunication",
    "ZLoss",
    "known_parts",
    "part_factory",
    "short_name",
]
