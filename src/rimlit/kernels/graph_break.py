"""Where ``torch.compile`` breaks its graph. Imported in the middle of a trace: it imports the compiler."""

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="this RIM's time loop runs outside the graph, at its own speed; for one graph (fullgraph=True) build "
    "the RIM with backend='eager', which torch.compile unrolls step by step"
)
def run_outside_graph(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)``, which ``torch.compile`` does not trace."""
    return function(*arguments)
