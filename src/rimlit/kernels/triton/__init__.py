"""The time loop in Triton: three kernels a step forward, four back, replayed as one CUDA graph.

A time step is so small that its time is latency. One kernel that walked all steps of its samples would read every
weight, some two megabytes, through the memory port of a single multiprocessor in every step: by estimate more than
10 µs. So each step is spread over mechanisms, samples and features, and is cut in kernels only where a mechanism
needs what all features or all mechanisms computed before. All mechanisms are computed and masks decide: index
lists would save little at K close to M and cost a pass. A CUDA graph takes the launches from the host.

Checked in Triton's interpreter, on the CPU, against the other loops; not yet run on a GPU. Those numbers are
estimates, and ``auto`` does not choose this loop.
"""

import functools
import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rimlit.errors import install_command
from rimlit.kernels.autograd import Gradients, Operands, Outputs
from rimlit.kernels.graphs import Recorded
from rimlit.kernels.layer import LayerInputs, LayerOptions, describe
from rimlit.kernels.tape import StepGradients, StepTape, empty_tape, operand_gradients
from rimlit.mechanisms import RIMLayer
from rimlit.types import MaybeTensor

DTYPES = (torch.float32, torch.float64)

BATCH_TILE = 16  # samples of a program: what the units that multiply matrices take at least
WIDEST_TILE = {torch.float32: 32, torch.float64: 16}  # features of a program; depth of its products' parts
LARGEST_BLOCK = 4096  # numbers in a block of three dimensions: 32 in each thread of four warps


class Kernels(NamedTuple):
    """The modules of device code, and whether Triton interprets it."""

    forward: ModuleType
    backward: ModuleType
    is_interpreted: bool


@functools.cache
def load() -> tuple[Kernels | None, str]:
    """Return the kernels, or None and the reason in one line."""
    try:
        from rimlit.kernels.triton import backward, device, forward
    except ImportError as error:
        return None, f"Triton cannot be imported, {install_command('gpu')}: {error}"
    return Kernels(forward, backward, device.IS_INTERPRETED), "kernels in Triton"


def cannot(layer: RIMLayer) -> str | None:
    """Return which choice of the layer's parts the kernels do not support, or None."""
    options = describe(layer)
    if options.is_gated or options.dynamic:
        return "does not support margins, graded updates and dynamic counts"
    if options.gives_relevance:
        return "does not support a balance with a penalty"
    if options.soft_cap or layer.score_bias is not None or layer.has_offset:
        return "does not support a cap, a bias or an offset of scores"
    return (
        "does not support communication through the cell's gate"
        if options.communication_output == "cell_gate"
        else None
    )


class _Launch:
    """Sizes, tiles and grids that the kernels of one pass share."""

    def __init__(self, options: LayerOptions, inputs: LayerInputs, operands: Operands) -> None:
        self.num_mechanisms, self.num_steps, self.batch_size, self.heads, self.size = operands.keys.shape
        self.num_gates = operands.cell_hidden.shape[-1]
        self.widest = WIDEST_TILE[operands.hidden.dtype]
        self.mechanism_tile = _power_of_two(self.num_mechanisms)
        self.resets = None if inputs.resets is None else inputs.resets.t().contiguous().view(torch.uint8)
        self.across_mechanisms = options.selection == "across_mechanisms"
        self.reads_candidates = options.inactive == "candidate"
        self.communicates = operands.communication is not None
        self.kind = options.communication_output
        if self.communicates:
            self.communication_heads = options.communication_heads
            self.key_size = options.communication_key_size
            self.projected_size = operands.communication.shape[-1]
            self.read_size, self.output_size = operands.communication_output.shape[1:]
            self.value_size = self.read_size // self.communication_heads
            self.is_output_shared = operands.communication_output.shape[0] == 1
            self.key_tile = _power_of_two(self.key_size)
            self.value_tile = max(16, _power_of_two(self.value_size))  # a dimension of a product of matrices

    def tile(self, size: int) -> int:
        """Return how many of ``size`` numbers a program takes at a time."""
        return min(self.widest, max(16, _power_of_two(size)))

    def grid(self, num_features: int) -> tuple[int, int, int]:
        """Return a grid over mechanisms, samples and ``num_features``."""
        return self.num_mechanisms, -(-self.batch_size // BATCH_TILE), -(-num_features // self.tile(num_features))

    def pairs(self) -> dict[str, Any]:
        """Return what the kernels of pairs of mechanisms take alike."""
        return {
            "scale": 1 / math.sqrt(self.key_size),
            "num_mechanisms": self.num_mechanisms,
            "heads": self.communication_heads,
            "key_size": self.key_size,
            "value_size": self.value_size,
            "mechanism_tile": self.mechanism_tile,
            "key_tile": self.key_tile,
            "value_tile": self.value_tile,
        }


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _warps(block: int) -> int:
    """Return how many warps share a block, so that its numbers stay in their registers."""
    return min(16, max(4, 4 * block // LARGEST_BLOCK))


class TritonLoop:
    """The recurrence and its derivative, by way of ``forward.py`` and ``backward.py``."""

    def forward(
        self, options: LayerOptions, inputs: LayerInputs, operands: Operands, is_taped: bool
    ) -> tuple[Outputs, tuple[MaybeTensor, ...]]:
        """See :class:`rimlit.kernels.autograd.TapedLoop`. The tape has one state more than steps."""
        kernels, _ = load()
        assert kernels is not None
        inputs, operands = _contiguous(inputs, operands)
        launch = _Launch(options, inputs, operands)
        num_steps, batch_size, size = launch.num_steps, launch.batch_size, launch.size
        keeps_steps = is_taped or inputs.record
        num_taped, num_states = (num_steps, num_steps + 1) if keeps_steps else (1, 2)
        tape = empty_tape(options, operands, num_taped, num_states)
        new = operands.hidden.new_empty
        features = new(launch.num_mechanisms, num_steps, batch_size, size)
        active = new(launch.num_mechanisms, num_steps, batch_size, dtype=torch.uint8)
        attention = new(launch.num_mechanisms, num_steps, batch_size, launch.heads)
        null_attention = (
            new(launch.num_mechanisms, num_steps, batch_size) if inputs.record and options.has_null else None
        )
        initial_hidden = _start(tape.hidden, operands.hidden, operands.initial_hidden, inputs.resets)
        initial_memory = None
        if tape.memory is not None:
            initial_memory = _start(tape.memory, operands.memory, operands.initial_memory, inputs.resets)
        score_tile = min(_power_of_two(size), max(8, LARGEST_BLOCK // (launch.mechanism_tile * BATCH_TILE)))
        for step in range(num_steps):
            at = step if keeps_steps else 0
            old, after = (step, step + 1) if keeps_steps else (step % 2, (step + 1) % 2)
            counts = (step, at, old, after, num_steps, num_states, num_taped, batch_size)
            kernels.forward.update[launch.grid(size)](
                operands.keys,
                operands.values,
                inputs.keep_input,
                operands.cell_hidden,
                operands.cell_bias,
                initial_hidden,
                initial_memory,
                launch.resets,
                tape.hidden,
                tape.memory,
                tape.gates,
                tape.inside,
                tape.squashed,
                tape.visible,
                features,
                active,
                attention,
                null_attention,
                *counts,
                num_mechanisms=launch.num_mechanisms,
                num_active=options.num_active,
                size=size,
                num_gates=launch.num_gates,
                heads=launch.heads,
                across_mechanisms=launch.across_mechanisms,
                reads_candidates=launch.reads_candidates,
                mechanism_tile=launch.mechanism_tile,
                score_tile=score_tile,
                batch_tile=BATCH_TILE,
                depth=launch.tile(size),
                feature_tile=launch.tile(size),
                num_warps=_warps(launch.mechanism_tile * score_tile * BATCH_TILE),
            )
            if not launch.communicates:
                continue
            kernels.forward.project[launch.grid(launch.projected_size)](
                tape.visible,
                operands.communication,
                tape.projected,
                at,
                num_taped,
                batch_size,
                size=size,
                projected_size=launch.projected_size,
                batch_tile=BATCH_TILE,
                depth=launch.tile(size),
                feature_tile=launch.tile(launch.projected_size),
            )
            kernels.forward.communicate[launch.grid(size)](
                tape.projected,
                inputs.keep_communication,
                operands.communication_output,
                operands.communication_bias,
                initial_hidden,
                launch.resets,
                tape.visible,
                active,
                tape.hidden,
                tape.weights,
                tape.read,
                tape.output,
                features,
                *counts,
                **launch.pairs(),
                size=size,
                output_size=launch.output_size,
                is_output_shared=launch.is_output_shared,
                kind=launch.kind,
                batch_tile=BATCH_TILE,
                feature_tile=launch.tile(size),
                num_warps=_warps(launch.mechanism_tile * BATCH_TILE * max(launch.key_tile, launch.value_tile)),
            )
        is_active = active.view(torch.bool).permute(2, 1, 0)  # (B, T, M)
        communication = None
        if inputs.record and launch.communicates:
            communication = tape.weights.mean(dim=2) * is_active[..., None]
        last = num_steps if keeps_steps else num_steps % 2
        outputs = Outputs(
            features=features.permute(2, 1, 0, 3),
            hidden=features[:, -1].transpose(0, 1).clone(),
            memory=None if tape.memory is None else tape.memory[:, last].transpose(0, 1).clone(),
            active=is_active,
            attention=attention.permute(2, 1, 0, 3)[..., None],
            null_attention=None if null_attention is None else null_attention.permute(2, 1, 0),
            communication=communication,
            gate=None,
            relevance=None,
            total=None,
        )
        return outputs, tape if is_taped else ()

    def backward(
        self,
        options: LayerOptions,
        inputs: LayerInputs,
        operands: Operands,
        outputs: Outputs,
        tape: tuple[MaybeTensor, ...],
        gradients: Gradients,
    ) -> Operands:
        """Run the backward pass; see :class:`rimlit.kernels.autograd.TapedLoop`."""
        kernels, _ = load()
        assert kernels is not None
        inputs, operands = _contiguous(inputs, operands)
        taped = StepTape(*tape)
        features, hidden, memory, _ = gradients
        from_features = features.permute(2, 1, 0, 3).contiguous()
        from_hidden = hidden.transpose(0, 1).contiguous()
        from_memory = None if memory is None else memory.transpose(0, 1).contiguous()
        active = outputs.active.permute(2, 1, 0).contiguous().view(torch.uint8)
        attention = outputs.attention.permute(2, 1, 0, 3, 4).contiguous()
        launch = _Launch(options, inputs, operands)
        num_steps, batch_size, size = launch.num_steps, launch.batch_size, launch.size
        into_hidden = from_hidden + from_features[:, -1]
        into_initial_hidden = torch.zeros_like(into_hidden)
        into_memory = into_initial_memory = None
        if from_memory is not None:
            into_memory, into_initial_memory = from_memory.clone(), torch.zeros_like(from_memory)
        into_gates = torch.empty_like(taped.gates)
        into_recurrent = into_gates if into_memory is not None else torch.empty_like(taped.gates)
        into_scores = torch.empty_like(attention)
        into_projected = into_output = into_read = None
        if launch.communicates:
            into_projected = torch.empty_like(taped.projected)
            into_output = taped.gates.new_empty(*taped.gates.shape[:3], launch.output_size)
            into_read = taped.gates.new_empty(launch.num_mechanisms, batch_size, launch.read_size)
        grid = launch.grid(size)
        num_tiles = grid[2]
        into_attention = taped.gates.new_empty(launch.num_mechanisms, batch_size, launch.heads, num_tiles)
        for step in reversed(range(num_steps)):
            counts = (step, num_steps, batch_size)
            if launch.communicates:
                kernels.backward.back_to_read[launch.grid(launch.read_size)](
                    into_hidden,
                    active,
                    taped.output,
                    operands.communication_output,
                    into_output,
                    into_read,
                    *counts,
                    size=size,
                    read_size=launch.read_size,
                    output_size=launch.output_size,
                    is_output_shared=launch.is_output_shared,
                    kind=launch.kind,
                    batch_tile=BATCH_TILE,
                    depth=launch.tile(size),
                    feature_tile=launch.tile(launch.read_size),
                )
                # few samples a program: it owns all mechanisms
                block = launch.mechanism_tile * max(launch.key_tile, launch.value_tile)
                batch_tile = max(1, min(BATCH_TILE, LARGEST_BLOCK // 4 // block))
                kernels.backward.back_to_projected[(-(-batch_size // batch_tile), launch.communication_heads)](
                    into_read,
                    taped.projected,
                    taped.weights,
                    inputs.keep_communication,
                    into_projected,
                    *counts,
                    **launch.pairs(),
                    batch_tile=batch_tile,
                    num_warps=_warps(block * batch_tile),
                )
            kernels.backward.back_to_gates[grid](
                into_hidden,
                into_memory,
                into_projected,
                operands.communication,
                active,
                operands.values,
                taped.hidden,
                taped.memory,
                taped.gates,
                taped.inside,
                taped.squashed,
                launch.resets,
                into_initial_memory,
                into_gates,
                into_recurrent,
                into_attention,
                step,
                num_steps,
                num_steps + 1,
                batch_size,
                size=size,
                num_gates=launch.num_gates,
                heads=launch.heads,
                projected_size=launch.projected_size if launch.communicates else 0,
                reads_candidates=launch.reads_candidates,
                num_tiles=num_tiles,
                batch_tile=BATCH_TILE,
                depth=launch.tile(launch.projected_size) if launch.communicates else 16,
                feature_tile=launch.tile(size),
            )
            kernels.backward.back_to_state[grid](
                into_hidden,
                into_attention,
                into_recurrent,
                operands.cell_hidden,
                operands.keys,
                inputs.keep_input,
                attention,
                launch.resets,
                from_features,
                into_initial_hidden,
                into_scores,
                *counts,
                num_mechanisms=launch.num_mechanisms,
                size=size,
                num_gates=launch.num_gates,
                heads=launch.heads,
                across_mechanisms=launch.across_mechanisms,
                num_tiles=num_tiles,
                share_tile=_power_of_two(num_tiles),
                mechanism_tile=launch.mechanism_tile,
                batch_tile=BATCH_TILE,
                depth=launch.tile(launch.num_gates),
                feature_tile=launch.tile(size),
            )
        walk = StepGradients(
            gates=into_gates,
            recurrent=into_recurrent,
            scores=into_scores,
            score_bias=None,
            attended=None,
            query=None,
            projected=into_projected,
            output=into_output,
            hidden=into_hidden,
            memory=into_memory,
            initial_hidden=into_initial_hidden,
            initial_memory=into_initial_memory,
        )
        taped = taped._replace(hidden=taped.hidden[:, :num_steps])  # without the state after the last step
        return operand_gradients(options, inputs, operands, taped, attention, walk)


LOOP = Recorded(TritonLoop())


def _contiguous(inputs: LayerInputs, operands: Operands) -> tuple[LayerInputs, Operands]:
    """Return what the kernels read as they read it."""

    def contiguous(tensor: MaybeTensor) -> MaybeTensor:
        return None if tensor is None else tensor.contiguous()

    inputs = inputs._replace(
        keep_input=contiguous(inputs.keep_input), keep_communication=contiguous(inputs.keep_communication)
    )
    return inputs, Operands(*map(contiguous, operands))


def _start(states: Tensor, state: Tensor, initial: Tensor, resets: MaybeTensor) -> Tensor:
    """Write the state that the first step starts from; return ``initial`` (M, B, d)."""
    initial, state = initial.transpose(0, 1).contiguous(), state.transpose(0, 1)
    if resets is not None:
        state = torch.where(resets[:, 0, None], initial, state)
    states[:, 0] = state
    return initial
