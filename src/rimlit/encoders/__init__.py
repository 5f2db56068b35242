"""Encoders: from what the data holds to what a backbone reads."""

from rimlit.encoders.embedding import Embedding

__all__ = ["Embedding"]
