"""The time loop of a RIM layer: one obvious reference and the fast loops that agree with it.

A fast loop is a ``scan``: it takes what :func:`rimlit.kernels.projection.project` computed for all steps at
once and walks the recurrence. To add one, write ``kernels/<name>.py`` with a ``scan`` of the same signature
as :func:`rimlit.kernels.eager.scan` and enter it in ``SCANS``; the tests compare it with the reference. One that
does not run on every CPU is entered in ``ALL_SCANS`` alone and brings its own tests.
"""

import functools
import os

import torch
from torch.utils.checkpoint import checkpoint

from rimlit.checks import require_known
from rimlit.kernels import cpu, eager, function, reference, triton
from rimlit.kernels.cpu.build import load as load_cpu
from rimlit.kernels.layer import (
    Activity,
    Keep,
    LayerInputs,
    LayerOptions,
    LayerResult,
    LayerWeights,
    join_results,
    parts_of,
)
from rimlit.kernels.projection import project, project_halfway
from rimlit.nn.surroundings import find_tracer, is_plain

__all__ = [
    "BACKENDS",
    "Activity",
    "Keep",
    "LayerInputs",
    "LayerOptions",
    "LayerResult",
    "LayerWeights",
    "overriding_backend",
    "resolve_backend",
    "run_layer",
]

SCANS = {"eager": eager.scan, "function": function.scan, "cpu": cpu.scan}
ALL_SCANS = SCANS | {"triton": triton.scan}
BACKENDS = ("auto", "reference", *ALL_SCANS)


def overriding_backend() -> str | None:
    """Return the loop that the environment variable ``RIMLIT_BACKEND`` asks for, if it does.

    Raises:
        ValueError: The name is not known.
    """
    override = os.environ.get("RIMLIT_BACKEND")
    if override and override not in BACKENDS:
        raise ValueError(f"RIMLIT_BACKEND must be one of {', '.join(BACKENDS)}; got RIMLIT_BACKEND={override!r}.")
    return override or None


def resolve_backend(requested: str, device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """Choose the loop that runs and say why.

    Args:
        requested: One of ``BACKENDS``; the environment variable ``RIMLIT_BACKEND`` overrides it.
        device: Where the weights are.
        dtype: Their type.

    Returns:
        The loop's name and the reason for it, in words.

    Raises:
        ValueError: The name is not known, or the loop does not run there.
    """
    override = overriding_backend()
    name, reason = (override, "RIMLIT_BACKEND") if override else (requested, "asked for")
    source = "RIMLIT_BACKEND" if override else "backend"
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got backend={name!r}.")
    tracer = find_tracer(device)
    if tracer and name not in ("auto", "eager"):
        raise ValueError(
            f"{source}={name!r} does not run under {tracer}: use backend='eager', or 'auto', which takes it there."
        )
    if tracer:
        return "eager", f"{tracer} follows it" if name == "auto" else reason
    fits_cpu = device.type == "cpu" and dtype in cpu.DTYPES
    if name == "cpu":
        if not fits_cpu:
            raise ValueError(
                f"{source}='cpu' runs float32 and float64 on the CPU; got weights of {dtype} on {device}."
            )
        is_built, reason = _load_cpu()
        return ("cpu" if is_built else "function"), reason
    if name == "triton":
        kernels, reason = triton.load()
        is_interpreted = kernels is not None and kernels.IS_INTERPRETED
        if dtype not in triton.DTYPES or not (device.type == "cuda" or is_interpreted):
            raise ValueError(
                f"{source}='triton' runs float32 and float64 on CUDA devices, or anywhere with TRITON_INTERPRET=1 "
                f"set before the start; got weights of {dtype} on {device}."
            )
        return ("triton", reason) if kernels is not None else ("function", reason)
    if name != "auto":
        return name, reason
    if fits_cpu:
        is_built, reason = _load_cpu()
        return ("cpu" if is_built else "function"), reason
    captured = ", captured in a CUDA graph" if device.type == "cuda" else ""
    return "function", f"{dtype} on {device.type}: one autograd.Function{captured}"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _load_cpu() -> tuple[bool, str]:
    library, reason = load_cpu()
    return library is not None, reason


def run_layer(
    backend: str,
    weights: LayerWeights,
    options: LayerOptions,
    inputs: LayerInputs,
    checkpoint_every: int | None = None,
) -> LayerResult:
    """Run one RIM layer over a sequence.

    Args:
        backend: The time loop, resolved.
        weights: The layer's parameters.
        options: The layer's choices.
        inputs: What it runs on.
        checkpoint_every: Steps whose intermediate results are computed again in the backward instead of kept.

    Raises:
        ValueError: The name is not that of a loop, or the weights are of a type that the loop cannot read.
    """
    require_known(backend=(backend, ("reference", *ALL_SCANS)))
    for weight in weights:
        if backend != "eager" and not (weight is None or is_plain(weight)):
            raise ValueError(
                f"backend={backend!r} reads plain tensors; got weights of type {type(weight).__name__}. With FSDP "
                "shard the RIM or its layers, not the modules inside a layer; else use backend='eager'."
            )
    num_steps = inputs.num_steps
    if checkpoint_every is None or checkpoint_every >= num_steps or not torch.is_grad_enabled():
        return _run_steps(backend, weights, options, inputs)
    if backend == "cpu":
        return _run_steps(backend, weights, options, inputs._replace(checkpoint_every=checkpoint_every))
    parts = []
    for steps in parts_of(num_steps, checkpoint_every):
        part = inputs.steps(steps)
        if steps.stop == num_steps:  # the backward begins here: nothing is gained by going twice
            result = _run_steps(backend, weights, options, part)
        else:  # all randomness was drawn before: there is no generator to keep
            run = functools.partial(_run_steps, backend, weights, options)
            result = checkpoint(run, part, use_reentrant=False, preserve_rng_state=False)
        inputs = inputs._replace(state=result.state)
        parts.append(result)
    return join_results(parts)


def _run_steps(backend: str, weights: LayerWeights, options: LayerOptions, inputs: LayerInputs) -> LayerResult:
    if backend == "reference":
        return reference.run(weights, options, inputs)
    is_cpu = backend == "cpu"
    if is_cpu and inputs.checkpoint_every is not None and inputs.tokens is None:
        projected, weights = project_halfway(weights, options, inputs, cpu.multiply)
        return cpu.scan(projected, weights, options, inputs)
    projected = project(
        weights,
        options,
        inputs,
        values_hold_cell=not is_cpu or cpu.values_hold_cell(weights, options, inputs),
        multiply=cpu.multiply if is_cpu else torch.mm,
        by_samples=is_cpu,
    )
    return ALL_SCANS[backend](projected, weights, options, inputs)
