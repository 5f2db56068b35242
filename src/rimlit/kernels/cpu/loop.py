"""The recurrence and its derivative by way of the C++ library, whole or in parts of which only the last is kept."""

from typing import NamedTuple

import torch
from torch import Tensor

from rimlit.kernels.autograd import Gradients, MaybeTensor, Operands, Outputs, Setting
from rimlit.kernels.cpu import memory
from rimlit.kernels.cpu.call import Call, Tape, arranged
from rimlit.kernels.cpu.tiles import multiply
from rimlit.kernels.layer import parts_of
from rimlit.kernels.projection import hold_query


class CPULoop:
    """The recurrence and its derivative, by way of ``loop.cpp``.

    With ``checkpoint_every`` the derivative computes the tapes of all parts but the last again, from the memory that
    a part began with, the features before it, and the knowledge of who was active.
    """

    def forward(self, setting: Setting, operands: Operands) -> tuple[Outputs, tuple[MaybeTensor, ...]]:
        """Walk forward; see :class:`rimlit.kernels.autograd.Loop`."""
        if setting.tokens is not None:
            _require_range(setting.tokens, operands.keys.shape[1])
        operands = arranged(operands, setting)
        parts = _parts(setting, operands)
        batch_size, mechanisms, size = operands.hidden.shape
        features = memory.empty(batch_size, parts[-1].stop, mechanisms, size, dtype=operands.hidden.dtype)
        state = operands.hidden, operands.memory
        tape: MaybeTensor = None
        walked: list[Outputs] = []
        for steps in parts:
            part = _Part.of(setting, operands, state, steps, is_differentiated=False)
            call = Call(part.setting, part.operands, is_taped=setting.is_differentiated and steps is parts[-1])
            outputs, tape = call.empty_outputs(features[:, steps]), call.empty_tape()
            call.run("rimlit_forward", outputs, tape)
            state = outputs.hidden, outputs.memory
            walked.append(outputs)
        if not setting.is_differentiated:
            return _join(walked, features), ()
        memories = [part.memory for part in walked[:-1] if part.memory is not None]
        return _join(walked, features), (*tape, torch.stack(memories) if memories else None)

    def backward(
        self,
        setting: Setting,
        operands: Operands,
        outputs: Outputs,
        tape: tuple[MaybeTensor, ...],
        gradients: Gradients,
    ) -> Operands:
        """Walk back; see :class:`rimlit.kernels.autograd.Loop`."""
        *last_tape, memories = tape
        operands = arranged(operands, setting)
        parts = _parts(setting, operands)
        threads = int(Tape(*last_tape).threads)  # the tape lies as the threads of the forward wrote it
        found, others = _empty_gradients(setting, operands, threads)
        from_features, *from_state = gradients
        for index, steps in reversed(list(enumerate(parts))):
            is_first, is_last = index == 0, steps is parts[-1]
            state = operands.hidden, operands.memory
            if not is_first:
                state = outputs.features[:, steps.start - 1].contiguous(), None if memories is None else memories[index - 1]
            part = _Part.of(setting, operands, state, steps, is_differentiated=True)
            active = outputs.active[:, steps].contiguous()
            call = Call(
                part.setting,
                part.operands,
                threads,
                known=None if is_last else active,
                adds_to_later=not is_last,
                earlier_follow=not is_first,
            )
            if is_last:
                walked, part_tape = _steps_of(outputs, steps), Tape(*last_tape)
            else:
                walked = call.empty_outputs(memory.empty_like(outputs.features[:, steps]))
                part_tape = call.empty_tape()
                call.run("rimlit_forward", walked, part_tape)
            into = part.gradients(found)
            call.run("rimlit_backward", walked, part_tape, into, others, (from_features[:, steps], *from_state))
            part.add_gradients(into, found)
            from_state = [into.hidden, into.memory]
        return found._replace(hidden=from_state[0], memory=from_state[1])


class _Part(NamedTuple):
    """Consecutive steps as the library reads them."""

    steps: slice
    setting: Setting
    operands: Operands
    held: tuple[Tensor, Tensor, Tensor] | None  # keys that hold the query, as a function of keys and its weights

    @classmethod
    def of(
        cls,
        setting: Setting,
        operands: Operands,
        state: tuple[Tensor, MaybeTensor],
        steps: slice,
        *,
        is_differentiated: bool,
    ) -> "_Part":
        """Return ``steps`` of a sequence, from the state before them."""
        setting = setting.steps(steps)
        operands = operands._replace(hidden=state[0], memory=state[1])
        if setting.tokens is None:
            operands = operands._replace(keys=operands.keys[:, steps], values=operands.values[:, steps])
        if not _is_query_apart(operands):
            return cls(steps, setting, operands, None)
        with torch.set_grad_enabled(is_differentiated):
            keys, query = (
                tensor.detach().requires_grad_(is_differentiated) for tensor in (operands.keys, operands.input_query)
            )
            held = hold_query(keys, query, multiply=multiply)
        operands = operands._replace(keys=held.detach(), input_query=None)
        return cls(steps, setting, operands, (held, keys, query) if is_differentiated else None)

    def gradients(self, found: Operands) -> Operands:
        """Return where the library writes: into ``found``, but for what is this part's own."""
        if self.setting.tokens is None:
            found = found._replace(keys=found.keys[:, self.steps], values=found.values[:, self.steps])
        if self.held is not None:
            found = found._replace(keys=memory.empty_like(self.operands.keys), input_query=None)
        return found._replace(
            hidden=torch.empty_like(found.hidden),
            memory=None if found.memory is None else torch.empty_like(found.memory),
        )

    def add_gradients(self, into: Operands, found: Operands) -> None:
        """Add what was written elsewhere to ``found``."""
        if self.held is not None:
            held, *leaves = self.held
            keys, query = torch.autograd.grad(held, leaves, into.keys)
            found.keys[:, self.steps] = keys
            found.input_query.add_(query)


def _parts(setting: Setting, operands: Operands) -> list[slice]:
    num_steps = operands.keys.shape[1] if setting.tokens is None else len(setting.tokens)
    return [slice(first, end) for first, end in parts_of(num_steps, setting.checkpoint_every or num_steps)]


def _is_query_apart(operands: Operands) -> bool:
    """Return whether a single slot's keys are multiplied by the query's weights part by part."""
    return operands.input_query is not None and operands.keys.shape[3] == 1


def _steps_of(outputs: Outputs, steps: slice) -> Outputs:
    return outputs._replace(
        features=outputs.features[:, steps],
        active=outputs.active[:, steps].contiguous(),
        attention=outputs.attention[:, steps].contiguous(),
        communication=None,
    )


def _join(parts: list[Outputs], features: Tensor) -> Outputs:
    """Join what consecutive parts returned, whose ``features`` lie together."""
    last = parts[-1]
    if len(parts) == 1:
        return last._replace(features=features)
    return Outputs(
        features,
        last.hidden,
        last.memory,
        torch.cat([part.active for part in parts], dim=1),
        torch.cat([part.attention for part in parts], dim=1),
        None if last.communication is None else torch.cat([part.communication for part in parts], dim=1),
    )


def _empty_gradients(setting: Setting, operands: Operands, threads: int) -> tuple[Operands, dict[str, Tensor]]:
    """Return memory for gradients, zero where they are added to it, and of what each thread adds up by itself."""
    # samples belong to one thread each; to the rest all threads add, all but the first in memory of their own
    apart = {"hidden", "memory", "initial_hidden", "initial_memory"}
    if setting.tokens is None:
        apart |= {"keys", "values"}
    added = {"initial_hidden", "initial_memory"}
    if setting.tokens is None:
        added |= {"values"}
    if operands.input_query is not None:
        added |= {"input_query" if _is_query_apart(operands) else "keys"}
    found: dict[str, MaybeTensor] = dict.fromkeys(Operands._fields)
    shapes = {}
    for name, operand in operands._asdict().items():
        if operand is None:
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
