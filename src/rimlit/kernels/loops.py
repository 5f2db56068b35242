"""Which time loop can run which layer where, and the choice among them.

A loop is a module or object with ``cannot(layer, where)``, which returns None or the reason in words, and
``run(layer, weights, inputs)``. To add one, enter it in ``LOOPS``; the tests compare it with ``eager``.
"""

import os
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rimlit.checks import require_known
from rimlit.errors import ConfigError
from rimlit.kernels import cpu, eager, function, reference, triton
from rimlit.kernels.autograd import differentiate
from rimlit.kernels.cpu.build import load as load_cpu
from rimlit.kernels.layer import LayerInputs, LayerResult, unknown_part
from rimlit.kernels.projection import expand_tokens, project, project_halfway
from rimlit.mechanisms import LayerWeights, RIMLayer
from rimlit.nn.surroundings import find_tracer, is_plain


class Where(NamedTuple):
    """The surroundings in which a layer is to run."""

    device: torch.device
    dtype: torch.dtype
    num_slots: int = 1
    tracer: str | None = None  # what follows the computation, as nn.surroundings.find_tracer names it

    @classmethod
    def of(cls, weight: Tensor, num_slots: int = 1) -> "Where":
        """Return the surroundings of now, for weights like ``weight``."""
        return cls(weight.device, weight.dtype, num_slots, find_tracer(weight.device))


class Loop(Protocol):
    """A time loop."""

    def cannot(self, layer: RIMLayer, where: Where) -> str | None:
        """Return why the loop cannot run ``layer``, in words that follow "it …", or None."""

    def run(self, layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs) -> LayerResult:
        """Run the layer over a sequence."""


class Eager:
    """Calls the parts step by step, under autograd."""

    def cannot(self, layer: RIMLayer, where: Where) -> str | None:
        """It runs everything."""
        return None

    def run(self, layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs) -> LayerResult:
        """See :class:`Loop`."""
        return eager.scan(layer, *project(layer, weights, inputs))


class Compiled:
    """Base of the loops that read the parts' arguments and read plain tensors."""

    def cannot(self, layer: RIMLayer, where: Where) -> str | None:
        """See :class:`Loop`."""
        if where.tracer is not None:
            return f"does not run under {where.tracer}"
        return unknown_part(layer)


class Function(Compiled):
    """One autograd.Function on ATen calls, captured in CUDA graphs on a GPU."""

    def run(self, layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs) -> LayerResult:
        """See :class:`Loop`."""
        weights, inputs = project(layer, weights, inputs)
        return differentiate(function.LOOP, layer, weights, expand_tokens(inputs))


class CPU(Compiled):
    """C++, built on first use."""

    def cannot(self, layer: RIMLayer, where: Where) -> str | None:
        """See :class:`Loop`."""
        if reason := super().cannot(layer, where):
            return reason
        if where.device.type != "cpu" or where.dtype not in cpu.DTYPES:
            return f"runs float32 and float64 on the CPU; got weights of {where.dtype} on {where.device}"
        return _why_not_built()

    def run(self, layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs) -> LayerResult:
        """See :class:`Loop`."""
        if inputs.checkpoint_every is not None and inputs.tokens is None:
            weights, inputs = project_halfway(layer, weights, inputs, cpu.multiply)
        else:
            folds_values = cpu.folds_values(layer, weights, inputs)
            weights, inputs = project(
                layer, weights, inputs, folds_values=folds_values, multiply=cpu.multiply, by_samples=True
            )
        return differentiate(cpu.CPULoop(), layer, weights, inputs)


class Triton(Compiled):
    """Kernels in Triton, for CUDA devices; checked in Triton's interpreter only."""

    def cannot(self, layer: RIMLayer, where: Where) -> str | None:
        """See :class:`Loop`."""
        if reason := super().cannot(layer, where):
            return reason
        kernels, reason = triton.load()
        if kernels is None:
            return f"is not there: {reason}"
        if where.dtype not in triton.DTYPES or not (where.device.type == "cuda" or kernels.is_interpreted):
            return (
                "runs float32 and float64 on CUDA devices, or anywhere with TRITON_INTERPRET=1 set before the "
                f"start; got weights of {where.dtype} on {where.device}"
            )
        if where.num_slots > 1:
            return f"reads one input slot; got {where.num_slots}"
        return triton.cannot(layer)

    def run(self, layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs) -> LayerResult:
        """See :class:`Loop`."""
        weights, inputs = project(layer, weights, inputs)
        return differentiate(triton.LOOP, layer, weights, expand_tokens(inputs))


class Reference(Compiled):
    """Explicit loops over batch, time, mechanism and head: the slow one that the others are compared with."""

    def run(self, layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs) -> LayerResult:
        """See :class:`Loop`."""
        return reference.run(layer, weights, inputs)


LOOPS: dict[str, Loop] = {
    "cpu": CPU(),
    "function": Function(),
    "eager": Eager(),
    "triton": Triton(),
    "reference": Reference(),
}
AUTOMATIC = ("cpu", "function", "eager")
"""The loops that ``auto`` tries, the fastest first."""
BACKENDS = ("auto", *LOOPS)


def overriding_backend() -> str | None:
    """Return the loop that the environment variable ``RIMLIT_BACKEND`` asks for, if it does.

    Raises:
        ConfigError: The name is not known.
    """
    override = os.environ.get("RIMLIT_BACKEND") or None
    if override:
        require_known(RIMLIT_BACKEND=(override, BACKENDS))
    return override


def choose_loop(requested: str, layer: RIMLayer, where: Where) -> tuple[str, str]:
    """Choose the loop that runs ``layer`` and say why.

    Args:
        requested: One of ``BACKENDS``; the environment variable ``RIMLIT_BACKEND`` overrides it.
        layer: What is to run.
        where: In which surroundings.

    Returns:
        The loop's name and the reason in words: what was asked for, or what the loops before it cannot do.

    Raises:
        ConfigError: The name is not known, or the loop that was asked for cannot run this here.
    """
    override = overriding_backend()
    name = override or requested
    require_known(backend=(name, BACKENDS))
    if name != "auto":
        source = "RIMLIT_BACKEND" if override else "backend"
        if reason := LOOPS[name].cannot(layer, where):
            able = ", ".join(f"{other!r}" for other in ("auto", *AUTOMATIC) if _can(other, layer, where))
            raise ConfigError(f"{source}={name!r}: this loop {reason}. Allowed here: {able}.")
        return name, "RIMLIT_BACKEND" if override else "asked for"
    reasons = []
    for name in AUTOMATIC:
        reason = LOOPS[name].cannot(layer, where)
        if reason is None:
            break
        reasons.append(f"{name}: {reason}")
    return name, "; ".join(reasons) or _why(name)


def _can(name: str, layer: RIMLayer, where: Where) -> bool:
    return name == "auto" or LOOPS[name].cannot(layer, where) is None


def _why(name: str) -> str:
    return _load_cpu()[1] if name == "cpu" else "the fastest that runs here"


def _why_not_built() -> str | None:
    is_built, reason = _load_cpu()
    return None if is_built else f"is not built: {reason}"


def _load_cpu() -> tuple[bool, str]:
    """Return whether the C++ loop is built and why not, or how."""
    if torch.compiler.is_compiling():
        from rimlit.kernels.graph_break import loaded_cpu

        found: tuple[bool, str] = loaded_cpu()
        return found
    library, reason = load_cpu()
    return library is not None, reason


def require_plain(name: str, weights: LayerWeights) -> None:
    """Raise a ConfigError if a weight is not a plain tensor and the loop ``name`` reads its memory."""
    for weight in weights.tensors():
        if name != "eager" and not is_plain(weight):
            raise ConfigError(
                f"backend={name!r} reads plain tensors; got weights of type {type(weight).__name__}. With FSDP "
                "shard the RIM or its layers, not the modules inside a layer; else use backend='eager'."
            )
