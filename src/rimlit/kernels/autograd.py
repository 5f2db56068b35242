"""A time loop under autograd: one Function over the whole sequence, with a derivative that the loop computes.

Autograd would keep a graph of some fifty nodes per step and add up every weight's gradient step by step. A
:class:`TapedLoop` keeps only what its derivative needs, runs back over the steps, and forms the gradient of each
weight in few large products.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rimlit.kernels import eager
from rimlit.kernels.layer import Activity, LayerInputs, LayerOptions, LayerResult, describe
from rimlit.mechanisms import LayerWeights, RIMLayer
from rimlit.nn.surroundings import without_autocast
from rimlit.types import GRUState, LSTMState, MaybeTensor, State


class Operands(NamedTuple):
    """Every tensor that a loop is differentiated by; shapes as in LayerInputs and LayerWeights."""

    keys: Tensor
    values: Tensor
    hidden: Tensor  # (B, M, d)
    memory: MaybeTensor  # None for a GRU
    initial_hidden: Tensor
    initial_memory: MaybeTensor
    input_query: MaybeTensor  # None where keys are folded with it
    cell_input: MaybeTensor  # None where values are folded with it
    cell_hidden: Tensor
    cell_bias: Tensor
    communication: MaybeTensor
    communication_output: MaybeTensor
    communication_bias: MaybeTensor
    score_bias: MaybeTensor  # (M,)


class Outputs(NamedTuple):
    """What a loop computes."""

    features: Tensor  # (B, T, M, d)
    hidden: Tensor  # (B, M, d)
    memory: MaybeTensor
    active: Tensor  # (B, T, M) bool
    attention: Tensor  # (B, T, M, I, N)
    null_attention: MaybeTensor  # (B, T, M): mean over heads, only where it is recorded and there is a null slot
    communication: MaybeTensor  # (B, T, M, M), only where it is recorded
    gate: MaybeTensor  # (B, T, M), only where LayerOptions.is_gated; 0 where inactive
    relevance: MaybeTensor  # (B, T, M), only where LayerOptions.keeps_relevance
    total: MaybeTensor  # (B, T, M, I): logsumexp of each head's scores, only where LayerOptions.has_totals


Gradients = tuple[Tensor, Tensor, MaybeTensor, MaybeTensor]
"""Gradients of features, hidden, memory and, where :attr:`LayerOptions.gives_relevance`, relevance."""


class TapedLoop(Protocol):
    """A recurrence and its derivative. Of ``inputs`` it reads what has no gradient; operands hold the rest."""

    def forward(
        self, options: LayerOptions, inputs: LayerInputs, operands: Operands, is_taped: bool
    ) -> tuple[Outputs, tuple[MaybeTensor, ...]]:
        """Return the outputs and, if ``is_taped``, the tape that :meth:`backward` reads."""

    def backward(
        self,
        options: LayerOptions,
        inputs: LayerInputs,
        operands: Operands,
        outputs: Outputs,
        tape: tuple[MaybeTensor, ...],
        gradients: Gradients,
    ) -> Operands:
        """Return the gradient of every operand. Neither the tape nor ``gradients`` may be changed."""


def differentiate(loop: TapedLoop, layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs) -> LayerResult:
    """Run ``loop`` over all steps of inputs that are projected, under autograd where a gradient is asked for."""
    state, initial, options = inputs.state, inputs.initial, describe(layer)
    has_memory = options.cell == "lstm"
    cell_hidden, cell_bias = weights.dynamics
    communication, communication_output, communication_bias = weights.communication or (None, None, None)
    operands = Operands(
        keys=inputs.keys,
        values=inputs.values,
        hidden=state.hidden,
        memory=state.memory if has_memory else None,
        initial_hidden=initial.hidden,
        initial_memory=initial.memory if has_memory else None,
        input_query=weights.input_query,
        cell_input=weights.cell_input,
        cell_hidden=cell_hidden,
        cell_bias=cell_bias,
        communication=communication,
        communication_output=communication_output,
        communication_bias=communication_bias,
        score_bias=weights.score_bias,
    )
    is_taped = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in operands)
    offset = None if inputs.offset is None else inputs.offset.detach().to(cell_hidden.dtype)
    # autograd frees the operands after the backward pass, and inputs are kept longer
    inputs = inputs._replace(keys=None, values=None, state=None, initial=None, offset=offset)
    with without_autocast(state.hidden.device.type):
        if is_taped:
            outputs = Outputs(*_Scan.apply(loop, layer, options, inputs, *operands))  # type: ignore[no-untyped-call]
        else:
            outputs, _ = loop.forward(options, inputs, operands, is_taped)
    last = GRUState(outputs.hidden) if outputs.memory is None else LSTMState(outputs.hidden, outputs.memory)
    return outputs.features, last, _activity(outputs) if inputs.record else None


def _activity(outputs: Outputs) -> Activity:
    slots = outputs.attention.mean(dim=3)  # (B, T, M, N)
    null = 1 - slots.mean(dim=-1) if outputs.null_attention is None else outputs.null_attention
    own = outputs.active, null, slots, outputs.communication, outputs.gate
    return Activity(*own, relevance=outputs.relevance)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loop: TapedLoop,
        layer: RIMLayer,
        options: LayerOptions,
        inputs: LayerInputs,
        *tensors: MaybeTensor,
    ) -> tuple[MaybeTensor, ...]:
        outputs, tape = loop.forward(options, inputs, Operands(*tensors), True)
        outputs = outputs._replace(features=_without_base(outputs.features))
        ctx.loop, ctx.layer, ctx.options, ctx.inputs = loop, layer, options, inputs
        ctx.save_for_backward(*tensors, *outputs, *tape)
        others = outputs._replace(features=None, hidden=None, memory=None)  # type: ignore[arg-type]
        if options.gives_relevance:
            others = others._replace(relevance=None)
        ctx.mark_non_differentiable(*(tensor for tensor in others if tensor is not None))
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
        from_relevance = Outputs(*gradients).relevance if ctx.options.gives_relevance else None
        of_outputs = (*gradients[:3], from_relevance)
        nothing = (None,) * (len(ctx.needs_input_grad) - first)
        wanted = ctx.needs_input_grad[len(nothing) :]
        if torch.is_grad_enabled():  # a derivative of the derivative is asked for: autograd knows it
            return *nothing, *_differentiable_gradients(ctx.layer, ctx.inputs, operands, of_outputs, wanted)
        with without_autocast(operands.hidden.device.type):  # as in the forward pass
            found = ctx.loop.backward(ctx.options, ctx.inputs, operands, outputs, tape, of_outputs)
        return *nothing, *(tensor if want else None for tensor, want in zip(found, wanted, strict=True))


def _without_base(tensor: Tensor) -> Tensor:
    """Return a tensor on the same memory that is not a view: a Function's views must not change in place."""
    if not tensor._is_view():
        return tensor
    whole = tensor.new_empty(0)
    return whole.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _differentiable_gradients(
    layer: RIMLayer,
    inputs: LayerInputs,
    operands: Operands,
    gradients: tuple[MaybeTensor, ...],
    wanted: tuple[bool, ...],
) -> list[MaybeTensor]:
    """Return the gradients by way of the eager loop, so that they can be differentiated again."""
    weights = LayerWeights(
        input_query=operands.input_query,
        input_key=None,
        input_value=None,
        cell_input=operands.cell_input,
        score_bias=operands.score_bias,
        dynamics=(operands.cell_hidden, operands.cell_bias),
        communication=() if operands.communication is None else tuple(operands[10:13]),
    )
    state: State = GRUState(operands.hidden)
    initial: State = GRUState(operands.initial_hidden)
    if operands.memory is not None:
        state = LSTMState(operands.hidden, operands.memory)
        initial = LSTMState(operands.initial_hidden, operands.initial_memory)
    inputs = inputs._replace(keys=operands.keys, values=operands.values, state=state, initial=initial, record=True)
    features, last, activity = eager.scan(layer, weights, inputs)
    assert activity is not None and activity.relevance is not None
    results = (features, *last) if gradients[3] is None else (features, *last, activity.relevance)
    found = iter(
        torch.autograd.grad(
            results,
            [tensor for tensor, want in zip(operands, wanted, strict=True) if want],
            [gradient for gradient in gradients if gradient is not None],
            create_graph=True,
            materialize_grads=True,
        )
    )
    return [next(found) if want else None for want in wanted]
