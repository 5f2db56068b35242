"""The time loop of a RIM layer: the step in plain torch, a slow reference, and loops that agree with both.

``loops.py`` says which loop can run what, and chooses.
"""

import functools

import torch
from torch.utils.checkpoint import checkpoint

from rimlit.checks import require_known
from rimlit.kernels.layer import (
    Activity,
    LayerInputs,
    LayerOptions,
    LayerResult,
    UnknownPartError,
    describe,
    join_results,
    parts_of,
)
from rimlit.kernels.loops import BACKENDS, LOOPS, Where, choose_loop, overriding_backend, require_plain
from rimlit.mechanisms import LayerWeights, RIMLayer

__all__ = [
    "BACKENDS",
    "LOOPS",
    "Activity",
    "LayerInputs",
    "LayerOptions",
    "LayerResult",
    "UnknownPartError",
    "Where",
    "choose_loop",
    "describe",
    "overriding_backend",
    "run_layer",
]


def run_layer(name: str, layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs) -> LayerResult:
    """Run one RIM layer over a sequence.

    Args:
        name: The time loop, as :func:`choose_loop` returned it.
        layer: The layer.
        weights: Its parameters.
        inputs: What it runs on.

    Raises:
        ConfigError: The name is not that of a loop, or the weights are of a type that the loop cannot read.
    """
    require_known(backend=(name, tuple(LOOPS)))
    require_plain(name, weights)
    run = functools.partial(LOOPS[name].run, layer, weights)
    every, num_steps = inputs.checkpoint_every, inputs.num_steps
    if every is None or every >= num_steps or not torch.is_grad_enabled():
        return run(inputs._replace(checkpoint_every=None))
    if name == "cpu":  # recomputes by itself
        return run(inputs)
    inputs = inputs._replace(checkpoint_every=None)
    parts = []
    for steps in parts_of(num_steps, every):
        part = inputs.steps(steps)
        if steps.stop == num_steps:  # the backward begins here: nothing is gained by going twice
            result = run(part)
        else:  # parts may draw in a step; what other loops need was drawn before
            result = checkpoint(run, part, use_reentrant=False, preserve_rng_state=name == "eager")
        inputs = inputs._replace(state=result[1])
        parts.append(result)
    return join_results(parts)
