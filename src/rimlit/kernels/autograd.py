"""A time loop under autograd: one Function over the whole sequence, with a derivative that the loop computes.

Autograd would keep a graph of some fifty nodes per step and add up every weight's gradient step by step. A
:class:`TapedLoop` keeps only what its derivative needs, runs back over the steps, and forms the gradient of each
weight in few large products.
"""

from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from rimlit.kernels import eager
from rimlit.kernels.layer import Activity, LayerInputs, LayerOptions, LayerResult, describe, steps_of
from rimlit.kernels.projection import Projected
from rimlit.mechanisms import Keep, LayerWeights, RIMLayer
from rimlit.nn.surroundings import without_autocast
from rimlit.types import GRUState, LSTMState, State

MaybeTensor: TypeAlias = Any
"""A tensor, or None in layers without that part: the options say which, once, and not a type at every use."""


class Operands(NamedTuple):
    """Every tensor that a loop is differentiated by; shapes as in Projected, LayerWeights and LayerInputs."""

    keys: Tensor
    values: Tensor
    hidden: Tensor  # (B, M, d)
    memory: MaybeTensor  # None for a GRU
    initial_hidden: Tensor
    initial_memory: MaybeTensor
    input_query: MaybeTensor  # None where the keys hold it
    cell_input: MaybeTensor  # None where the values hold it
    cell_hidden: Tensor
    cell_bias: Tensor
    communication: MaybeTensor
    communication_output: MaybeTensor
    communication_bias: MaybeTensor
    score_bias: MaybeTensor  # (M,)


class Setting(NamedTuple):
    """All that a loop reads and is not differentiated by."""

    options: LayerOptions
    tokens: MaybeTensor  # (T, B): rows of keys and values that the steps read
    resets: MaybeTensor  # (B, T) bool
    keep: Keep
    offset: MaybeTensor  # (T or 1, M, B or 1)
    record: bool
    is_differentiated: bool
    checkpoint_every: int | None = None  # see LayerInputs
    layer: RIMLayer | None = None  # for derivatives of derivatives

    def offset_at(self, step: int) -> MaybeTensor:
        """Return what is added to the relevance in a step, (M, B or 1)."""
        return None if self.offset is None else self.offset[step if len(self.offset) > 1 else 0]

    @property
    def records_null(self) -> bool:
        """Whether a loop returns the attention to the null slot; across mechanisms there is none."""
        return self.record and self.options.selection == "least_null"

    @property
    def has_totals(self) -> bool:
        """Whether the derivative of the gates reads the heads' scores one by one."""
        return self.options.is_gated and self.options.input_heads > 1

    def steps(self, steps: slice) -> "Setting":
        """Return the setting of these steps."""
        return self._replace(
            tokens=None if self.tokens is None else self.tokens[steps],
            resets=None if self.resets is None else self.resets[:, steps],
            keep=self.keep.steps(steps),
            offset=steps_of(self.offset, steps),
        )


class Outputs(NamedTuple):
    """What a loop computes."""

    features: Tensor  # (B, T, M, d)
    hidden: Tensor  # (B, M, d)
    memory: MaybeTensor
    active: Tensor  # (B, T, M) bool
    attention: Tensor  # (B, T, M, I, N)
    null_attention: MaybeTensor  # (B, T, M): mean over heads, only where Setting.records_null
    communication: MaybeTensor  # (B, T, M, M), only where it is recorded
    gate: MaybeTensor  # (B, T, M), only where LayerOptions.is_gated; 0 where inactive
    relevance: MaybeTensor  # the same
    total: MaybeTensor  # (B, T, M, I): logsumexp of each head's scores, only where Setting.has_totals


Gradients = tuple[Tensor, Tensor, MaybeTensor]
"""Gradients of features, hidden and memory."""


class TapedLoop(Protocol):
    """A recurrence and its derivative."""

    def forward(self, setting: Setting, operands: Operands) -> tuple[Outputs, tuple[MaybeTensor, ...]]:
        """Return the outputs and the tape that :meth:`backward` reads."""

    def backward(
        self,
        setting: Setting,
        operands: Operands,
        outputs: Outputs,
        tape: tuple[MaybeTensor, ...],
        gradients: Gradients,
    ) -> Operands:
        """Return the gradient of every operand. Neither the tape nor ``gradients`` may be changed."""


def differentiate(
    loop: TapedLoop, projected: Projected, layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs
) -> LayerResult:
    """Run ``loop`` over all steps, under autograd where a gradient is asked for."""
    dtype = weights.cell_input.dtype
    state, initial, options = inputs.state, inputs.initial, describe(layer)
    has_memory = options.cell == "lstm"
    cell_hidden, cell_bias = weights.dynamics
    communication, communication_output, communication_bias = weights.communication or (None, None, None)
    operands = Operands(
        keys=projected.keys.to(dtype),
        values=projected.values.to(dtype),
        hidden=state.hidden,
        memory=state.memory if has_memory else None,
        initial_hidden=initial.hidden,
        initial_memory=initial.memory if has_memory else None,
        input_query=None if projected.keys_hold_query else weights.input_query,
        cell_input=None if projected.values_hold_cell else weights.cell_input,
        cell_hidden=cell_hidden,
        cell_bias=cell_bias,
        communication=communication,
        communication_output=communication_output,
        communication_bias=communication_bias,
        score_bias=weights.score_bias,
    )
    is_differentiated = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in operands
    )
    setting = Setting(
        options,
        projected.tokens,
        inputs.resets,
        inputs.keep,
        None if inputs.offset is None else inputs.offset.detach().to(dtype),
        inputs.record,
        is_differentiated,
        inputs.checkpoint_every,
        layer,
    )
    with without_autocast(state.hidden.device.type):
        if is_differentiated:
            outputs = Outputs(*_Scan.apply(loop, setting, *operands))  # type: ignore[no-untyped-call]
        else:
            outputs, _ = loop.forward(setting, operands)
    last = GRUState(outputs.hidden) if outputs.memory is None else LSTMState(outputs.hidden, outputs.memory)
    return LayerResult(outputs.features, last, _activity(outputs) if inputs.record else None)


def _activity(outputs: Outputs) -> Activity:
    slots = outputs.attention.mean(dim=3)  # (B, T, M, N)
    null = 1 - slots.mean(dim=-1) if outputs.null_attention is None else outputs.null_attention
    return Activity(outputs.active, null, slots, outputs.communication, outputs.gate)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loop: TapedLoop, setting: Setting, *tensors: MaybeTensor) -> tuple[MaybeTensor, ...]:
        outputs, tape = loop.forward(setting, Operands(*tensors))
        outputs = outputs._replace(features=_without_base(outputs.features))
        ctx.loop, ctx.setting = loop, setting
        ctx.save_for_backward(*tensors, *outputs, *tape)
        ctx.mark_non_differentiable(*(tensor for tensor in outputs[3:] if tensor is not None))
        return tuple(outputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            "This time loop has no derivative in forward mode (torch.autograd.forward_ad): "
            "use RIM(backend='eager')."
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[MaybeTensor, ...]:
        try:
            saved = ctx.saved_tensors
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise RuntimeError(
                "What the backward of this RIM's time loop reads was changed in place after the forward: its "
                "features, inputs, state or weights. Change a copy (such as features.clone()), or "
                "use RIM(backend='eager')."
            ) from error
        first, second = len(Operands._fields), len(Operands._fields) + len(Outputs._fields)
        operands, outputs, tape = Operands(*saved[:first]), Outputs(*saved[first:second]), saved[second:]
        wanted = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # a derivative of the derivative is asked for: autograd knows it
            return None, None, *_differentiable_gradients(ctx.setting, operands, gradients[:3], wanted)
        with without_autocast(operands.hidden.device.type):  # as in the forward pass
            found = ctx.loop.backward(ctx.setting, operands, outputs, tape, gradients[:3])
        return None, None, *(tensor if want else None for tensor, want in zip(found, wanted, strict=True))


def _without_base(tensor: Tensor) -> Tensor:
    """Return the same memory as a tensor that is no view: views that a Function made must not change in place."""
    if not tensor._is_view():
        return tensor
    whole = tensor.new_empty(0)
    return whole.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _differentiable_gradients(
    setting: Setting, operands: Operands, gradients: tuple[MaybeTensor, ...], wanted: tuple[bool, ...]
) -> list[MaybeTensor]:
    """Return the gradients by way of the eager loop, so that they can be differentiated again."""
    projected = Projected(
        operands.keys,
        operands.values,
        keys_hold_query=operands.input_query is None,
        values_hold_cell=operands.cell_input is None,
        tokens=setting.tokens,
    )
    communicates = operands.communication is not None
    weights = LayerWeights(
        input_query=operands.input_query,
        input_key=operands.keys,  # has done its work: the keys and values are there
        input_value=operands.values,
        # where the values hold it, nothing but its type is read
        cell_input=operands.cell_hidden if operands.cell_input is None else operands.cell_input,
        score_bias=operands.score_bias,
        dynamics=(operands.cell_hidden, operands.cell_bias),
        communication=tuple(operands[10:13]) if communicates else (),
    )
    state: State = GRUState(operands.hidden)
    initial: State = GRUState(operands.initial_hidden)
    if operands.memory is not None:
        state = LSTMState(operands.hidden, operands.memory)
        initial = LSTMState(operands.initial_hidden, operands.initial_memory)
    inputs = LayerInputs(
        operands.keys, None, state, initial, setting.resets, setting.keep, setting.offset, record=False
    )
    assert setting.layer is not None
    result = eager.scan(projected, setting.layer, weights, inputs)
    found = iter(
        torch.autograd.grad(
            (result.features, *result.state),
            [tensor for tensor, want in zip(operands, wanted, strict=True) if want],
            gradients[: 1 + len(result.state)],
            create_graph=True,
            materialize_grads=True,
        )
    )
    return [next(found) if want else None for want in wanted]
