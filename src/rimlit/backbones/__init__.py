"""Backbones: recurrent networks under one contract, :class:`Backbone`."""

from rimlit.backbones.base import Backbone, BackboneFactory, Bidirectional
from rimlit.backbones.brim import BRIM
from rimlit.backbones.dnc import DNC
from rimlit.backbones.entnet import EntNet
from rimlit.backbones.gru import GRU
from rimlit.backbones.lstm import LSTM
from rimlit.backbones.mingru import MinGRU
from rimlit.backbones.ntm import NTM
from rimlit.backbones.rim import RIM
from rimlit.backbones.rmc import RMC
from rimlit.backbones.rnn import RNN
from rimlit.backbones.transformer import Transformer

__all__ = [
    "BRIM",
    "DNC",
    "GRU",
    "LSTM",
    "NTM",
    "RIM",
    "RMC",
    "RNN",
    "Backbone",
    "BackboneFactory",
    "Bidirectional",
    "EntNet",
    "MinGRU",
    "Transformer",
]
