"""Backbones: recurrent networks under one contract, :class:`Backbone`."""

from rimlit.backbones.base import Backbone, BackboneFactory
from rimlit.backbones.gru import GRU
from rimlit.backbones.lstm import LSTM
from rimlit.backbones.rim import RIM

__all__ = ["GRU", "LSTM", "RIM", "Backbone", "BackboneFactory"]
