"""Laws of every module that maps sequences: backbones, heads, encoders. In float64 and evaluation mode."""

import copy
import io
import pickle
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from rimlit.backbones import Backbone
from rimlit.heads import Head
from rimlit.testing.laws import BrokenError, GivenError, law, make, require, require_close, tensors_in
from rimlit.types import detach_state, map_state

MODULES = ("backbone", "head", "encoder")
BATCH_SIZE, STEPS = 3, 6


def exact(build: Any) -> Any:
    """Return a fresh module in float64 and in evaluation mode, so that nothing is dropped."""
    return make(build).double().eval()


def inputs_for(module: Any, inputs: Tensor | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the given inputs in ``dtype``, or normal numbers (3, 6, input_size) for a backbone or a head.

    Raises:
        GivenError: None are given, and the module is of another kind, or fewer than 2 samples or 5 steps are.
    """
    if inputs is None:
        if not isinstance(module, Backbone | Head):
            raise GivenError(f"inputs must be given for a {type(module).__name__}; got inputs=None.")
        inputs = torch.randn(BATCH_SIZE, STEPS, module.input_size, dtype=torch.float64)
    if len(inputs) < 2 or inputs.shape[1] < 5:
        raise GivenError(f"inputs must have at least 2 samples and 5 steps; got shape {tuple(inputs.shape)}.")
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def some_state(backbone: Backbone, inputs: Tensor) -> Any:
    """Return a state that can occur and that differs between the samples of ``inputs``."""
    with torch.no_grad():
        _, state = backbone(3 * inputs.flip(1))
    return detach_state(state)


def arguments_for(module: nn.Module, inputs: Tensor) -> tuple[Any, ...]:
    """Return arguments of a call, each with the batch first: the inputs, and a state where there is one."""
    return (inputs, some_state(module, inputs)) if isinstance(module, Backbone) else (inputs,)


def weighted_sum(outputs: Tensor) -> Tensor:
    """Return a scalar that weighs every output differently, to differentiate."""
    weights = torch.arange(1, outputs.numel() + 1, device=outputs.device, dtype=torch.float64) / outputs.numel()
    return (outputs.double() * weights.view(outputs.shape)).sum()


def outputs_in(result: Any) -> Tensor:
    """Return the outputs of a call without the state."""
    outputs: Tensor = result[0] if isinstance(result, tuple) else result
    return outputs


def gradients_of(module: nn.Module, where: str = "") -> dict[str, Tensor]:
    """Return the gradient of every parameter, of which each must be there and finite."""
    found = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is None:
            raise BrokenError(f"the gradient of {name} is None{where}")
        require(bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite{where}")
        found[name] = parameter.grad
    return found


@law(*MODULES)
def check_permuting_batch_permutes_outputs(build: Any, inputs: Tensor | None = None) -> None:
    """Samples in another order give the same outputs in that order: none looks at another."""
    module = exact(build)
    arguments = arguments_for(module, inputs_for(module, inputs))
    order = torch.arange(len(arguments[0])).roll(1)
    expected = map_state(lambda part: part[order], module(*arguments))
    require_close("outputs", module(*map_state(lambda part: part[order], arguments)), expected)


@law(*MODULES)
def check_nan_stays_in_its_sample(build: Any, inputs: Tensor | None = None) -> None:
    """NaN in one sample changes no output of another. Integers hold no NaN; there a sample is only changed."""
    module = exact(build)
    arguments = arguments_for(module, inputs_for(module, inputs))
    expected = map_state(lambda part: part[1:], module(*arguments))
    changed = arguments[0].clone()
    changed[0] = torch.nan if changed.is_floating_point() else changed[0].flip(0)
    require_close("outputs", map_state(lambda part: part[1:], module(changed, *arguments[1:])), expected)


@law(*MODULES)
def check_repeating_gives_the_same(build: Any, inputs: Tensor | None = None) -> None:
    """In evaluation, a second call gives what the first gave: nothing is drawn, nothing kept between calls."""
    module = exact(build)
    arguments = arguments_for(module, inputs_for(module, inputs))
    expected = module(*arguments)
    require_close("outputs", module(*arguments), expected, rtol=0, atol=0)


@law(*MODULES)
def check_saved_weights_give_the_same(build: Any, inputs: Tensor | None = None) -> None:
    """Weights saved and loaded with ``weights_only=True`` into another object give the same outputs."""
    saved, other = exact(build), exact(build)
    arguments = arguments_for(saved, inputs_for(saved, inputs))
    expected, file = saved(*arguments), io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    for value in other.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value))
    other.load_state_dict(torch.load(file, weights_only=True))
    require_close("outputs", other(*arguments), expected, rtol=0, atol=0)


@law(*MODULES)
def check_copies_give_the_same(build: Any, inputs: Tensor | None = None) -> None:
    """A deep copy gives the same outputs, and so does an object that was pickled."""
    module = exact(build)
    arguments = arguments_for(module, inputs_for(module, inputs))
    expected = module(*arguments)
    require_close("outputs of a copy", copy.deepcopy(module)(*arguments), expected, rtol=0, atol=0)
    pickled = pickle.loads(pickle.dumps(module))
    require_close("outputs of a pickled object", pickled(*arguments), expected, rtol=0, atol=0)


@law(*MODULES)
def check_every_parameter_gets_a_gradient(build: Any, inputs: Tensor | None = None) -> None:
    """In training, the gradient of the outputs reaches every parameter, is finite and not zero everywhere.

    Of a backbone its penalty counts too, since it is part of the loss. Where a state is passed to a backbone,
    learned initial states get zeros and not None: plain DDP waits for every parameter.
    """
    module = make(build).double().train()
    if not list(module.parameters()):
        raise SkipTest("there are no parameters")
    inputs = inputs_for(module, inputs)
    calls: list[tuple[Any, ...]] = [(inputs,)]
    if isinstance(module, Backbone):
        calls.append(arguments_for(module, inputs))
    for given in calls:
        module.zero_grad()
        loss = weighted_sum(outputs_in(module(*given)))
        if isinstance(module, Backbone) and (penalty := module.penalty()) is not None:
            loss = loss + penalty
        torch.autograd.backward(loss)
        has_state = len(given) > 1
        for name, gradient in gradients_of(module, " where a state is passed" if has_state else "").items():
            require(has_state or bool(gradient.count_nonzero()), f"the gradient of {name} is zero everywhere")


@law(*MODULES)
def check_dtype_follows_the_weights(build: Any, inputs: Tensor | None = None) -> None:
    """Outputs, and a backbone's state, are float64 where the weights are."""
    module = exact(build)
    for name, part in tensors_in("outputs", module(*arguments_for(module, inputs_for(module, inputs)))):
        is_right = part.dtype == torch.float64 or not part.is_floating_point()
        require(is_right, f"{name} has dtype {part.dtype}, and the weights have torch.float64")
