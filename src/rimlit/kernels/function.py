"""The time loop with a hand-written derivative on ATen calls: needs no compiler, runs on every device.

Mechanisms come first, (M, T, B, ·) on the tape and (M, B, ·) inside a step, so that every product is one batched
product and the gradient of every weight is one batched product over all steps.
"""

import math

import torch
from torch import Tensor

from rimlit.kernels.autograd import Gradients, Operands, Outputs
from rimlit.kernels.function_backward import BackwardPass
from rimlit.kernels.graphs import Recorded
from rimlit.kernels.layer import LayerInputs, LayerOptions
from rimlit.kernels.tape import StepTape, cell_gate, empty_tape, split_heads
from rimlit.mechanisms.selection import attend_across, attend_against_null, compete, log_odds
from rimlit.types import MaybeTensor


class ATenLoop:
    """The recurrence and its derivative."""

    def forward(
        self, options: LayerOptions, inputs: LayerInputs, operands: Operands, is_taped: bool
    ) -> tuple[Outputs, tuple[MaybeTensor, ...]]:
        """Run the forward pass; see :class:`rimlit.kernels.autograd.TapedLoop`."""
        batch_size, num_mechanisms, size = operands.hidden.shape
        num_steps = operands.keys.shape[1]
        records_null = inputs.record and options.has_null
        tape = empty_tape(options, operands, num_steps if is_taped else 1)
        features = operands.hidden.new_empty(num_mechanisms, num_steps, batch_size, size)
        active, attention, relevances, communication = [], [], [], []
        gates: list[Tensor] = []
        totals: list[Tensor] = []
        hidden = operands.hidden.transpose(0, 1)
        memory: MaybeTensor = None if operands.memory is None else operands.memory.transpose(0, 1)
        for step in range(num_steps):
            at = step if is_taped else 0
            hidden = _start(tape.hidden[:, at], hidden, operands.initial_hidden, inputs.resets, step)
            if memory is not None:
                memory = _start(tape.memory[:, at], memory, operands.initial_memory, inputs.resets, step)
            attended, relevance, total = _attend(options, inputs, operands, tape, hidden, step, at)
            if options.has_totals:
                totals.append(total)
            choice = compete(relevance, inputs.offset_at(step), options.rule)
            is_active = choice.active[..., None]  # (M, B, 1)
            gate = None if choice.gate is None else choice.gate[..., None]
            if options.cell == "lstm":
                candidate, new = _lstm(tape, memory, at)
                memory = torch.where(is_active, new if gate is None else memory + gate * (new - memory), memory)
            else:
                candidate = _gru(tape, hidden, at)
            if options.communication_heads:
                candidate = _communicate(options, inputs, operands, tape, hidden, candidate, is_active, step, at)
                if inputs.record:
                    communication.append(tape.weights[:, at].mean(dim=1) * is_active.transpose(0, 1))
            if gate is not None:
                moved = torch.sub(candidate, hidden, out=tape.moved[:, at])
                candidate = torch.addcmul(hidden, gate, moved)
                assert choice.gate is not None
                gates.append(choice.gate)
            hidden = torch.where(is_active, candidate, hidden, out=features[:, step])
            active.append(choice.active)
            attention.append(attended)
            if records_null or options.keeps_relevance:
                relevances.append(relevance)
        relevance = _stacked(relevances)
        outputs = Outputs(
            features.permute(2, 1, 0, 3),
            hidden.transpose(0, 1).clone(),
            None if memory is None else memory.transpose(0, 1).clone(),
            _stacked(active),
            torch.stack(attention).permute(2, 0, 1, 3, 4),
            (-relevance).sigmoid() if records_null else None,
            torch.stack(communication, dim=1) if communication else None,
            _stacked(gates),
            relevance if options.keeps_relevance else None,
            torch.stack(totals).permute(2, 0, 1, 3) if totals else None,
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
        return BackwardPass(options, inputs, operands, outputs, StepTape(*tape), gradients).run()


LOOP = Recorded(ATenLoop())


def _stacked(steps: list[Tensor]) -> MaybeTensor:
    """Return the (M, B) of all steps as (B, T, M), or None where there are none."""
    return torch.stack(steps).permute(2, 0, 1) if steps else None


def _start(into: Tensor, state: Tensor, initial: Tensor, resets: MaybeTensor, step: int) -> Tensor:
    """Write the state (M, B, d) that a step starts from into the tape."""
    if resets is None:
        return into.copy_(state)
    return torch.where(resets[:, step, None], initial.transpose(0, 1), state, out=into)


def _attend(
    options: LayerOptions,
    inputs: LayerInputs,
    operands: Operands,
    tape: StepTape,
    hidden: Tensor,
    step: int,
    at: int,
) -> tuple[Tensor, Tensor, MaybeTensor]:
    """Write what the gates get from state and input.

    Returns:
        Attention (M, B, I, N), relevance (M, B) and, against null, the logsumexp of each head's scores (M, B, I).
    """
    key, value = operands.keys[:, step], operands.values[:, step]
    keep = None if inputs.keep_input is None else inputs.keep_input[step]
    if operands.input_query is None:
        scores = (hidden[:, :, None] * key).sum(dim=-1, keepdim=True)  # (M, B, I, 1)
    else:
        query = torch.bmm(hidden, operands.input_query, out=tape.query[:, at].flatten(2))
        query = query.view(*query.shape[:2], options.input_heads, -1) / math.sqrt(key.shape[-1])
        scores = (query[:, :, None] * key).sum(dim=-1).transpose(2, 3)  # (M, B, I, N)
    if tape.capped is not None:
        scores = options.soft_cap * torch.tanh(scores / options.soft_cap, out=tape.capped[:, at])
    if operands.score_bias is not None:
        scores = scores + operands.score_bias[:, None, None, None]
    if options.selection == "across_mechanisms":
        (attention, relevance), total = attend_across(scores), None
    else:
        attention, total = attend_against_null(scores)
        relevance = log_odds(total)
    read = attention if keep is None else attention * keep
    gates = tape.gates[:, at]
    if tape.inside is None:
        torch.bmm(hidden, operands.cell_hidden, out=gates).add_(operands.cell_bias[:, None])
    else:
        _start_gru(operands, tape, hidden, at)
    if operands.cell_input is None:
        for head in range(options.input_heads):
            gates.addcmul_(read[:, :, head], value[:, :, head])
        return attention, relevance, total
    # (M, B, I, N) times (·, B, N, I, value)
    attended = (read.transpose(2, 3)[..., None] * value).sum(dim=2)  # (M, B, I, value)
    tape.attended[:, at].copy_(attended.flatten(2))
    gates.baddbmm_(tape.attended[:, at], operands.cell_input)
    return attention, relevance, total


def _start_gru(operands: Operands, tape: StepTape, hidden: Tensor, at: int) -> None:
    """Write the state's part of the gates; the new gate's is scaled by the reset gate first."""
    size = hidden.shape[-1]
    recurrent = torch.bmm(hidden, operands.cell_hidden)
    bias = operands.cell_bias[:, None]
    torch.add(recurrent[..., 2 * size :], bias[..., 3 * size :], out=tape.inside[:, at])
    recurrent[..., 2 * size :].zero_()
    torch.add(recurrent, bias[..., : 3 * size], out=tape.gates[:, at])


def _lstm(tape: StepTape, memory: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """Return the candidate's hidden state and memory (M, B, d)."""
    gates, size = tape.gates[:, at], memory.shape[-1]
    gates[..., : 3 * size].sigmoid_()
    gates[..., 3 * size :].tanh_()
    i, f, o, g = gates.chunk(4, dim=-1)  # input, forget, output, new
    new = torch.addcmul(i * g, f, memory)
    squashed = torch.tanh(new, out=tape.squashed[:, at])
    return o * squashed, new


def _gru(tape: StepTape, hidden: Tensor, at: int) -> Tensor:
    """Return the candidate (M, B, d)."""
    gates, size = tape.gates[:, at], hidden.shape[-1]
    r, z = gates[..., : 2 * size].sigmoid_().chunk(2, dim=-1)  # reset, update
    n = gates[..., 2 * size :].addcmul_(r, tape.inside[:, at]).tanh_()  # new
    return torch.lerp(n, hidden, z)


def _communicate(
    options: LayerOptions,
    inputs: LayerInputs,
    operands: Operands,
    tape: StepTape,
    hidden: Tensor,
    candidate: Tensor,
    is_active: Tensor,
    step: int,
    at: int,
) -> Tensor:
    """Return the candidate (M, B, d) with what it read from the others."""
    if options.inactive == "preserved":
        visible = torch.where(is_active, candidate, hidden, out=tape.visible[:, at])
    else:
        visible = tape.visible[:, at].copy_(candidate)
    projected = torch.bmm(visible, operands.communication, out=tape.projected[:, at])
    query, key, value = split_heads(projected, options)
    attention = (query @ key.mT).mul_(1 / math.sqrt(options.communication_key_size))
    attention = torch.softmax(attention, dim=-1, out=tape.weights[:, at])
    if inputs.keep_communication is not None:
        attention = attention * inputs.keep_communication[step]
    read = tape.read[:, at]  # (M, B, C·value)
    read.view(*read.shape[:2], options.communication_heads, -1).copy_((attention @ value).permute(2, 0, 1, 3))
    if options.communication_output == "linear":
        return torch.baddbmm(candidate, read, operands.communication_output)
    output: Tensor = tape.output[:, at]
    if options.communication_output in ("tanh", "cell_gate"):
        torch.bmm(read, operands.communication_output, out=output)
        output.tanh_()
        return candidate + (output if options.communication_output == "tanh" else cell_gate(tape, at) * output)
    torch.matmul(read, operands.communication_output, out=output)
    output += operands.communication_bias[:, None]
    gate, content = output.chunk(2, dim=-1)
    return torch.addcmul(candidate, gate.sigmoid_(), content.tanh_())
