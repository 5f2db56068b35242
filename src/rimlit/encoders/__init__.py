"""Encoders: from what the data holds to what a backbone reads."""

from rimlit.encoders.base import Encoder, EncoderFactory
from rimlit.encoders.convolutional import ConvolutionalEncoder
from rimlit.encoders.dense import DenseEncoder
from rimlit.encoders.embedding import Embedding
from rimlit.encoders.grid import GridEncoder
from rimlit.encoders.identity import Identity
from rimlit.encoders.objects import ObjectEncoder
from rimlit.encoders.screens import ScreenEncoder

__all__ = [
    "ConvolutionalEncoder",
    "DenseEncoder",
    "Embedding",
    "Encoder",
    "EncoderFactory",
    "GridEncoder",
    "Identity",
    "ObjectEncoder",
    "ScreenEncoder",
]
