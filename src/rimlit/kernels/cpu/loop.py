"""The recurrence and its derivative by way of ``loop.cpp``, whole or in parts of which only the last is kept."""

import torch
from torch import Tensor

from rimlit.kernels.autograd import Gradients, Operands, Outputs
from rimlit.kernels.cpu import memory
from rimlit.kernels.cpu.call import Call, RowTape, arranged
from rimlit.kernels.layer import LayerInputs, LayerOptions, parts_of
from rimlit.types import MaybeTensor


class CPULoop:
    """The recurrence and its derivative.

    With ``checkpoint_every`` the derivative writes the tape of every part but the last when it comes to it. This
    second pass finds no output again: states are among the features, and attention and who was active are kept.
    """

    def forward(
        self, options: LayerOptions, inputs: LayerInputs, operands: Operands, is_taped: bool
    ) -> tuple[Outputs, tuple[MaybeTensor, ...]]:
        """Run the forward pass; see :class:`rimlit.kernels.autograd.TapedLoop`."""
        if inputs.tokens is not None:
            _require_range(inputs.tokens, operands.keys.shape[1])
        operands = arranged(operands, inputs)
        parts = _parts(inputs, operands)
        batch_size, mechanisms, size = operands.hidden.shape
        features = memory.empty(batch_size, parts[-1].stop, mechanisms, size, dtype=operands.hidden.dtype)
        state = operands.hidden, operands.memory
        tape: MaybeTensor = None
        walked: list[Outputs] = []
        for steps in parts:
            part = _part_of(inputs, operands, state, steps)
            call = Call(options, *part, is_taped=is_taped and steps is parts[-1])
            outputs, tape = call.empty_outputs(features[:, steps]), call.empty_tape()
            call.run("rimlit_forward", outputs, tape)
            state = outputs.hidden, outputs.memory
            walked.append(outputs)
        if not is_taped:
            return _join(walked, features), ()
        memories = [part.memory for part in walked[:-1] if part.memory is not None]
        return _join(walked, features), (*tape, torch.stack(memories) if memories else None)

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
        last_tape, memories = RowTape(*tape[:-1]), tape[-1]
        operands = arranged(operands, inputs)
        parts = _parts(inputs, operands)
        threads = int(last_tape.threads)  # the tape lies as the threads of the forward wrote it
        found, others = _empty_gradients(inputs, operands, threads)
        from_features, *from_state, from_relevance = gradients
        for index, steps in reversed(list(enumerate(parts))):
            is_first, is_last = index == 0, steps is parts[-1]
            state = operands.hidden, operands.memory
            if not is_first:
                hidden = outputs.features[:, steps.start - 1].contiguous()
                state = hidden, None if memories is None else memories[index - 1]
            call = Call(
                options,
                *_part_of(inputs, operands, state, steps),
                threads,
                later_are_done=not is_last,
                earlier_follow=not is_first,
            )
            walked, part_tape = _outputs_of(outputs, steps), last_tape
            if not is_last:  # the tape before this one is gone by now
                part_tape = call.empty_tape()
                call.run("rimlit_forward", walked, part_tape)
            into = _gradients_of(found, operands, inputs, steps)
            part_relevance = None if from_relevance is None else from_relevance[:, steps]
            part_gradients = (from_features[:, steps], *from_state, part_relevance)
            call.run("rimlit_backward", walked, part_tape, into, others, part_gradients)
            from_state = [into.hidden, into.memory]
        return found._replace(hidden=from_state[0], memory=from_state[1])


def _part_of(
    inputs: LayerInputs, operands: Operands, state: tuple[Tensor, MaybeTensor], steps: slice
) -> tuple[LayerInputs, Operands]:
    """Return what the library reads for ``steps``, from the state before them."""
    operands = operands._replace(hidden=state[0], memory=state[1])
    if inputs.tokens is None:
        operands = operands._replace(keys=operands.keys[:, steps], values=operands.values[:, steps])
    return inputs.steps(steps), operands


def _gradients_of(found: Operands, operands: Operands, inputs: LayerInputs, steps: slice) -> Operands:
    """Return where the gradients of ``steps`` belong: in ``found``, but for that of the state before them."""
    if inputs.tokens is None:
        found = found._replace(keys=found.keys[:, steps], values=found.values[:, steps])
    return found._replace(
        hidden=torch.empty_like(operands.hidden),
        memory=None if operands.memory is None else torch.empty_like(operands.memory),
    )


def _parts(inputs: LayerInputs, operands: Operands) -> list[slice]:
    num_steps = operands.keys.shape[1] if inputs.tokens is None else inputs.tokens.shape[1]
    return parts_of(num_steps, inputs.checkpoint_every or num_steps)


def _outputs_of(outputs: Outputs, steps: slice) -> Outputs:
    """Return ``outputs`` at ``steps``, without what no pass over them reads."""
    return outputs._replace(
        hidden=None,  # type: ignore[arg-type]
        memory=None,
        features=outputs.features[:, steps],
        active=outputs.active[:, steps].contiguous(),
        attention=outputs.attention[:, steps].contiguous(),
        null_attention=None,
        communication=None,
        gate=None if outputs.gate is None else outputs.gate[:, steps].contiguous(),
        relevance=None if outputs.relevance is None else outputs.relevance[:, steps].contiguous(),
        total=None if outputs.total is None else outputs.total[:, steps].contiguous(),
    )


def _join(parts: list[Outputs], features: Tensor) -> Outputs:
    """Join what consecutive parts returned, whose ``features`` lie together."""
    last = parts[-1]
    if len(parts) == 1:
        return last._replace(features=features)

    def joined(name: str) -> MaybeTensor:
        pieces = [getattr(part, name) for part in parts]
        return None if pieces[0] is None else torch.cat(pieces, dim=1)

    return Outputs(
        features,
        last.hidden,
        last.memory,
        *map(joined, ("active", "attention", "null_attention", "communication", "gate", "relevance", "total")),
    )


def _empty_gradients(inputs: LayerInputs, operands: Operands, threads: int) -> tuple[Operands, dict[str, Tensor]]:
    """Return memory for gradients, zero where they are added to it, and of what each thread adds up by itself.

    The state's are not among them: every part has its own.
    """
    # samples belong to one thread each; to the rest all threads add, all but the first in memory of their own
    apart = {"initial_hidden", "initial_memory"}
    if inputs.tokens is None:
        apart |= {"keys", "values"}
    added = apart - {"keys"} if operands.input_query is None else apart
    found: dict[str, MaybeTensor] = dict.fromkeys(Operands._fields)
    shapes = {}
    for name, operand in operands._asdict().items():
        if operand is None or name in {"hidden", "memory"}:
            continue
        found[name] = memory.empty_like(operand)
        if name in added:
            found[name].zero_()
        if name not in apart:
            shapes[name] = threads - 1, *operand.shape
    return Operands(**found), memory.empty_together(shapes, {}, operands.hidden.dtype)


def _require_range(tokens: Tensor, vocabulary_size: int) -> None:
    least, greatest = (int(bound) for bound in torch.aminmax(tokens))
    if least < 0 or greatest >= vocabulary_size:
        wrong = least if least < 0 else greatest
        raise IndexError(f"tokens must be from 0 to {vocabulary_size - 1}, the table's rows; got {wrong}.")
