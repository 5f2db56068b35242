"""Metrics of sequences, as torchmetrics objects."""

import rimlit._train  # noqa: F401
from rimlit.metrics.forecast import Coverage, ForecastAbsoluteError, ForecastSquaredError, Pinball
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
    "Coverage",
    "CrossEntropy",
    "ForecastAbsoluteError",
    "ForecastSquaredError",
    "FrameScores",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Perplexity",
    "Pinball",
    "SequenceAccuracy",
    "SymbolAccuracy",
]
