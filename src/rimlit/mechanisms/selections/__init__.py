"""Rules of the competition beside the paper's; :mod:`rimlit.mechanisms.selection` has what they share."""

from rimlit.mechanisms.selections.entmax import Entmax, Sparsemax
from rimlit.mechanisms.selections.gumbel import GumbelTopK
from rimlit.mechanisms.selections.hard_concrete import HardConcrete
from rimlit.mechanisms.selections.skip_update import SkipUpdate
from rimlit.mechanisms.selections.straight_through import StraightThrough

__all__ = ["Entmax", "GumbelTopK", "HardConcrete", "SkipUpdate", "Sparsemax", "StraightThrough"]
