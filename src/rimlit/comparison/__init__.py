"""Models side by side: widths at which they are equally large, runs over seeds, tables and figures."""

from rimlit.comparison.matching import Match, match_parameters
from rimlit.comparison.results import Comparison

__all__ = ["Comparison", "Match", "match_parameters"]
