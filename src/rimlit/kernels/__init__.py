"""The time loop of a RIM layer: one obvious reference and the fast loops that agree with it.

A fast loop is a ``scan``: it takes what :func:`rimlit.kernels.projection.project` computed for all steps at
once and walks the recurrence. To add one, write ``kernels/<name>.py`` with a ``scan`` of the same signature
as :func:`rimlit.kernels.eager.scan` and enter it in ``SCANS``; the tests compare it with the reference.
"""

import os

from rimlit.kernels import cpu, eager, function, reference
from rimlit.kernels.layer import Activity, Keep, LayerInputs, LayerOptions, LayerResult, LayerWeights
from rimlit.kernels.projection import project

__all__ = [
    "BACKENDS",
    "Activity",
    "Keep",
    "LayerInputs",
    "LayerOptions",
    "LayerResult",
    "LayerWeights",
    "resolve_backend",
    "run_layer",
]

SCANS = {"eager": eager.scan, "function": function.scan, "cpu": cpu.scan}
BACKENDS = ("auto", "reference", *SCANS)


def resolve_backend(requested: str) -> tuple[str, str]:
    """Choose the loop that runs and say why.

    Args:
        requested: One of ``BACKENDS``; the environment variable ``RIMLIT_BACKEND`` overrides it.

    Returns:
        The loop's name and the reason for it, in words.

    Raises:
        ValueError: The name is not known.
    """
    override = os.environ.get("RIMLIT_BACKEND")
    name, reason = (override, "RIMLIT_BACKEND") if override else (requested, "asked for")
    if name not in BACKENDS:
        source = "RIMLIT_BACKEND" if override else "backend"
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}; got {source}={name!r}.")
    if name == "auto":
        return "function", "auto takes the fastest loop this version has"
    return name, reason


def run_layer(backend: str, weights: LayerWeights, options: LayerOptions, inputs: LayerInputs) -> LayerResult:
    """Run one RIM layer over a sequence with the loop named ``backend`` (resolved)."""
    if backend == "reference":
        return reference.run(weights, options, inputs)
    values_hold_cell = backend != "cpu" or cpu.values_hold_cell(weights, options, inputs)
    projected = project(weights, options, inputs, values_hold_cell=values_hold_cell)
    return SCANS[backend](projected, weights, options, inputs)
