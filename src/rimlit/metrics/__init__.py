"""Metrics of sequences, as torchmetrics objects."""

import rimlit._train  # noqa: F401
from rimlit.metrics.frames import FrameScores
from rimlit.metrics.regression import MeanAbsoluteError, MeanSquaredError
from rimlit.metrics.sequence import (
    IGNORED,
    BitsPerCharacter,
    CrossEntropy,
    Perplexity,
    SequenceAccuracy,
    SymbolAccuracy,
)

__all__ = [
    "IGNORED",
    "BitsPerCharacter",
    "CrossEntropy",
    "FrameScores",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Perplexity",
    "SequenceAccuracy",
    "SymbolAccuracy",
]
