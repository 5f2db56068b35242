"""Metrics of sequences, as torchmetrics objects."""

from rimlit.metrics.sequence import (
    IGNORED,
    BitsPerCharacter,
    CrossEntropy,
    Perplexity,
    SequenceAccuracy,
    SymbolAccuracy,
)

__all__ = ["IGNORED", "BitsPerCharacter", "CrossEntropy", "Perplexity", "SequenceAccuracy", "SymbolAccuracy"]
