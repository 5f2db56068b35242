"""What ``torch.compile`` does not trace. Imported in the middle of a trace: it imports the compiler."""

from collections.abc import Callable
from typing import Any

import torch

from rimlit.kernels.cpu.build import load


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def loaded_cpu() -> tuple[bool, str]:
    """Return whether the C++ loop is built and why not, or how: a constant for ``torch.compile``."""
    library, reason = load()
    return library is not None, reason


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="this RIM's time loop runs outside the graph, at its own speed; for one graph (fullgraph=True) build "
    "the RIM with backend='eager', which torch.compile unrolls step by step"
)
def run_outside_graph(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``function(*arguments)``, which ``torch.compile`` does not trace."""
    return function(*arguments)
