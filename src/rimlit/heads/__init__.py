"""Heads: from a backbone's features to a task's outputs."""

from rimlit.heads.linear import LinearHead
from rimlit.heads.tied import TiedHead

__all__ = ["LinearHead", "TiedHead"]
