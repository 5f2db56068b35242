"""Encoders: from what the data holds to what a backbone reads."""

from rimlit.encoders.embedding import Embedding
from rimlit.encoders.identity import Identity

__all__ = ["Embedding", "Identity"]
