"""Models side by side: widths at which they are equally large, runs over seeds, tables and figures."""

from typing import TYPE_CHECKING

import rimlit._train  # noqa: F401
from rimlit._lazy import lazy

if TYPE_CHECKING:
    from rimlit.comparison.comparing import compare
    from rimlit.comparison.matching import Match, match_parameters
    from rimlit.comparison.results import Comparison
    from rimlit.comparison.study import Study

__all__ = ["Comparison", "Match", "Study", "compare", "match_parameters"]

_HOMES = {
    "Comparison": "rimlit.comparison.results",
    "Match": "rimlit.comparison.matching",
    "Study": "rimlit.comparison.study",
    "compare": "rimlit.comparison.comparing",
    "match_parameters": "rimlit.comparison.matching",
}
# the command line's parser takes some of these modules, and compare takes the parser
__getattr__ = lazy(__name__, _HOMES)
