"""Backbones: recurrent networks under one contract, :class:`Backbone`."""

from rimlit.backbones.base import Backbone, BackboneFactory
from rimlit.backbones.gru import GRU
from rimlit.backbones.lstm import LSTM
from rimlit.backbones.ntm import NTM
from rimlit.backbones.rim import RIM
from rimlit.backbones.rnn import RNN

__all__ = ["GRU", "LSTM", "NTM", "RIM", "RNN", "Backbone", "BackboneFactory"]
