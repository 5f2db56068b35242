"""Heads: from a backbone's features to a task's outputs."""

from rimlit.heads.attention import AttentionHead
from rimlit.heads.base import Head, HeadFactory
from rimlit.heads.dense import DenseHead
from rimlit.heads.frames import FrameHead
from rimlit.heads.linear import LinearHead
from rimlit.heads.mixture import MixtureHead
from rimlit.heads.slot_mixture import SlotMixtureHead
from rimlit.heads.sum import SumHead
from rimlit.heads.tied import TiedHead

__all__ = [
    "AttentionHead",
    "DenseHead",
    "FrameHead",
    "Head",
    "HeadFactory",
    "LinearHead",
    "MixtureHead",
    "SlotMixtureHead",
    "SumHead",
    "TiedHead",
]
