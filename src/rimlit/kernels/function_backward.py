"""The derivative of the loop in ``function.py``: one pass back over the steps, then one product per weight."""

import math

import torch
from torch import Tensor

from rimlit.kernels.autograd import Gradients, Operands, Outputs
from rimlit.kernels.layer import LayerInputs, LayerOptions
from rimlit.kernels.tape import StepGradients, StepTape, cell_gate, operand_gradients, split_heads
from rimlit.mechanisms.selection import gate_gradient, log_odds_gradient
from rimlit.types import MaybeTensor


class BackwardPass:
    """The derivative: one pass back over the steps; the products after it are in :mod:`rimlit.kernels.tape`."""

    def __init__(
        self,
        options: LayerOptions,
        inputs: LayerInputs,
        operands: Operands,
        outputs: Outputs,
        tape: StepTape,
        gradients: Gradients,
    ) -> None:
        self.options, self.inputs, self.operands, self.tape = options, inputs, operands, tape
        self.gradients = gradients
        self.gate: MaybeTensor = None
        if outputs.gate is not None:
            self.gate = outputs.gate.permute(2, 1, 0)  # (M, T, B)
            self.relevance = outputs.relevance.permute(2, 1, 0)
        self.total = None if outputs.total is None else outputs.total.permute(2, 1, 0, 3)  # (M, T, B, I)
        self.attention = outputs.attention.permute(2, 1, 0, 3, 4)  # (M, T, B, I, N)
        self.active = outputs.active.permute(2, 1, 0)[..., None]  # (M, T, B, 1)
        self.num_steps = operands.keys.shape[1]
        new = torch.empty_like
        self.gates = new(tape.gates)
        self.cell_gate: MaybeTensor = None  # gradient of what the communication was multiplied by
        self.recurrent = self.gates if self.options.cell == "lstm" else new(tape.gates)
        self.scores = torch.empty(self.attention.shape, dtype=tape.hidden.dtype, device=tape.hidden.device)
        # a new tensor of this size in every step would be mapped and unmapped each time
        self.scratch: MaybeTensor = None
        if operands.cell_input is None:
            self.scratch = torch.empty_like(operands.values[:, 0], memory_format=torch.contiguous_format)
        self.attended: MaybeTensor = None if tape.attended is None else new(tape.attended)
        self.query: MaybeTensor = None if tape.query is None else new(tape.query)
        self.projected: MaybeTensor = None if tape.projected is None else new(tape.projected)
        self.output: MaybeTensor = None
        if tape.projected is not None:
            self.output = new(tape.hidden) if tape.output is None else new(tape.output)

    def run(self) -> Operands:
        """Return the gradient of every operand."""
        resets = self.inputs.resets
        features, last_hidden, last_memory, _ = self.gradients
        features = features.permute(2, 1, 0, 3)
        hidden = last_hidden.transpose(0, 1)
        memory = None if last_memory is None else last_memory.transpose(0, 1)
        initial_hidden = torch.zeros_like(hidden)
        initial_memory = None if memory is None else torch.zeros_like(memory)
        self.score_bias: MaybeTensor = None
        if self.operands.score_bias is not None:
            self.score_bias = torch.zeros_like(self.operands.score_bias)
        for step in reversed(range(self.num_steps)):
            hidden, memory = self._step(step, hidden + features[:, step], memory)
            if resets is not None:
                was_reset = resets[None, :, step, None]
                initial_hidden += hidden * was_reset
                hidden = hidden.masked_fill(was_reset, 0)
                if memory is not None:
                    initial_memory += memory * was_reset
                    memory = memory.masked_fill(was_reset, 0)
        walk = StepGradients(
            gates=self.gates,
            recurrent=self.recurrent,
            scores=self.scores,
            score_bias=self.score_bias,
            attended=self.attended,
            query=self.query,
            projected=self.projected,
            output=self.output,
            hidden=hidden,
            memory=memory,
            initial_hidden=initial_hidden,
            initial_memory=initial_memory,
        )
        return operand_gradients(self.options, self.inputs, self.operands, self.tape, self.attention, walk)

    def _step(self, step: int, hidden: Tensor, memory: MaybeTensor) -> tuple[Tensor, MaybeTensor]:
        """Return the gradients of the state before ``step``, given those of the state after it."""
        is_active, tape = self.active[:, step], self.tape
        from_gate = None
        if self.gate is None:
            kept, candidate = hidden.masked_fill(is_active, 0), hidden.masked_fill(~is_active, 0)
            if memory is not None:
                kept_memory, memory = memory.masked_fill(is_active, 0), memory.masked_fill(~is_active, 0)
        else:
            gate = self.gate[:, step, :, None]
            from_gate = (hidden * tape.moved[:, step]).sum(dim=-1)
            candidate = hidden * gate
            kept = hidden - candidate
            if memory is not None:
                i, f, _, g = tape.gates[:, step].chunk(4, dim=-1)
                old = tape.memory[:, step]
                from_gate += (memory * (torch.addcmul(i * g, f, old) - old)).sum(dim=-1)
                kept_memory, memory = memory - memory * gate, memory * gate
        if self.options.communication_heads:
            visible = self._communicate(step, candidate)
            candidate = candidate + visible.masked_fill(~is_active, 0)
            if self.options.inactive == "preserved":
                kept = kept + visible.masked_fill(is_active, 0)
        if self.options.cell == "lstm":
            memory = torch.add(kept_memory, self._lstm(step, candidate, memory))
            through_cell = self.gates[:, step]
        else:
            kept = kept + self._gru(step, candidate)
            through_cell = self.recurrent[:, step]
        hidden = torch.baddbmm(kept, through_cell, self.operands.cell_hidden.mT)
        return hidden + self._attend(step, from_gate), memory

    def _communicate(self, step: int, candidate: Tensor) -> Tensor:
        """Return the gradient of the visible states (M, B, d)."""
        options, operands, tape = self.options, self.operands, self.tape
        keep = self.inputs.keep_communication
        output = self.output[:, step]
        if options.communication_output == "linear":
            output.copy_(candidate)
        elif options.communication_output != "gated":
            added = tape.output[:, step]
            through = candidate
            if options.communication_output == "cell_gate":
                self.cell_gate = candidate * added
                through = candidate * cell_gate(tape, step)
            torch.addcmul(through, added.square(), through, value=-1, out=output)
        else:
            gate, content = tape.output[:, step].chunk(2, dim=-1)
            gate_gradient, content_gradient = output.chunk(2, dim=-1)
            torch.mul(candidate * content, gate * (1 - gate), out=gate_gradient)
            torch.mul(candidate * gate, 1 - content.square(), out=content_gradient)
        read = torch.matmul(output, operands.communication_output.mT)  # (M, B, C·value)
        read = read.view(*read.shape[:2], options.communication_heads, -1).permute(1, 2, 0, 3)
        query, key, value = split_heads(tape.projected[:, step], options)
        attention = tape.weights[:, step]
        kept = attention if keep is None else attention * keep[step]
        weights = read @ value.mT
        if keep is not None:
            weights *= keep[step]
        scores = torch._softmax_backward_data(weights, attention, -1, attention.dtype)
        scores = scores / math.sqrt(options.communication_key_size)
        into_query, into_key, into_value = split_heads(self.projected[:, step], options)
        into_query.copy_(scores @ key)
        into_key.copy_(scores.mT @ query)
        into_value.copy_(kept.mT @ read)
        return torch.bmm(self.projected[:, step], operands.communication.mT)

    def _lstm(self, step: int, candidate: Tensor, memory: Tensor) -> Tensor:
        """Write the gates' gradient; return that of the memory before the step, through the candidate's."""
        tape = self.tape
        i, f, o, g = tape.gates[:, step].chunk(4, dim=-1)  # input, forget, output, new
        squashed = tape.squashed[:, step]
        new = torch.addcmul(memory, candidate * o, torch.addcmul(_one(o), squashed, squashed, value=-1))
        into_i, into_f, into_o, into_g = self.gates[:, step].chunk(4, dim=-1)
        torch.mul(new, g, out=into_i)
        torch.mul(new, tape.memory[:, step], out=into_f)
        torch.mul(candidate, squashed, out=into_o)
        if self.cell_gate is not None:
            into_o += self.cell_gate
        sigmoids = tape.gates[:, step, :, : 3 * i.shape[-1]]
        self.gates[:, step, :, : 3 * i.shape[-1]].mul_(torch.addcmul(sigmoids, sigmoids, sigmoids, value=-1))
        torch.mul(new * i, torch.addcmul(_one(g), g, g, value=-1), out=into_g)
        return new * f

    def _gru(self, step: int, candidate: Tensor) -> Tensor:
        """Write the gates' gradient; return the part of the hidden state's that does not pass through them."""
        tape = self.tape
        r, z, n = tape.gates[:, step].chunk(3, dim=-1)  # reset, update, new
        into_r, into_z, into_n = self.gates[:, step].chunk(3, dim=-1)
        torch.mul(candidate * (1 - z), 1 - n.square(), out=into_n)
        through_z = candidate * (tape.hidden[:, step] - n)
        if self.cell_gate is not None:
            through_z = through_z - self.cell_gate
        torch.mul(through_z, z * (1 - z), out=into_z)
        torch.mul(into_n * tape.inside[:, step], r * (1 - r), out=into_r)
        self.recurrent[:, step].copy_(self.gates[:, step])
        self.recurrent[:, step].chunk(3, dim=-1)[2].mul_(r)
        return candidate * z

    def _attend(self, step: int, from_gate: MaybeTensor) -> Tensor:
        """Return the gradient (M, B, d) that the scores send to the hidden state, given that of the gates."""
        options, operands = self.options, self.operands
        keep, value = self.inputs.keep_input, operands.values[:, step]
        if operands.cell_input is None:
            torch.mul(self.gates[:, step, :, None], value, out=self.scratch)
            read = self.scratch.sum(dim=-1, keepdim=True)  # (M, B, I, 1)
        else:
            torch.bmm(self.gates[:, step], operands.cell_input.mT, out=self.attended[:, step])
            attended = self.attended[:, step].unflatten(-1, (1, options.input_heads, -1))
            read = (attended * value).sum(dim=-1).transpose(2, 3)  # (M, B, I, N)
        attention = self.attention[:, step]
        if keep is not None:
            read = read * keep[step]
        if options.selection == "across_mechanisms":
            scores = attention * (read - (attention * read).sum(dim=0))
        else:
            scores = attention * (read - (attention * read).sum(dim=-1, keepdim=True))
        from_relevance = self._relevance(step, from_gate)
        if from_relevance is not None:
            scores = scores + from_relevance
        if self.score_bias is not None:
            self.score_bias += scores.sum(dim=(1, 2, 3))
        if self.tape.capped is not None:
            scores = scores - scores * self.tape.capped[:, step].square()
        self.scores[:, step].copy_(scores)
        key: Tensor = operands.keys[:, step]
        if operands.input_query is None:
            through: Tensor = (scores * key).sum(dim=2)
            return through
        query = (scores.transpose(2, 3)[..., None] * key).sum(dim=2) / math.sqrt(key.shape[-1])
        self.query[:, step].copy_(query)
        return torch.bmm(query.flatten(2), operands.input_query.mT)

    def _relevance(self, step: int, from_gate: MaybeTensor) -> MaybeTensor:
        """Return the gradient that gates and penalty send to the scores (M, B, I, N), by way of the relevance."""
        from_penalty = self.gradients[3]
        found = None if from_penalty is None else from_penalty[:, step].mT  # (M, B)
        if from_gate is not None:
            from_gate = gate_gradient(
                from_gate,
                self.relevance[:, step],
                self.inputs.offset_at(step),
                self.active[:, step, :, 0],
                self.options.rule,
            )
            found = from_gate if found is None else from_gate + found
        if found is None:
            return None
        through = found[:, :, None, None]
        attention = self.attention[:, step]
        if attention.shape[3] > 1:
            least = torch.finfo(attention.dtype).tiny  # no slot is read at all: then 0
            through = through * attention / attention.sum(dim=-1, keepdim=True).clamp(min=least)
        if self.total is not None:
            through = through * log_odds_gradient(self.total[:, step])[..., None]
        return through


def _one(like: Tensor) -> Tensor:
    return like.new_ones(())
