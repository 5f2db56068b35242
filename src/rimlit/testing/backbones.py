"""Laws of backbones: the contract of :class:`rimlit.backbones.Backbone`, tried in float64, in evaluation."""

import io
import itertools
import pickle
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias
from unittest import SkipTest

import torch
from torch import Tensor

from rimlit.backbones import Backbone
from rimlit.testing.laws import check_laws, law, make, require, require_close, tensors_in
from rimlit.testing.modules import exact, gradients_of, inputs_for, some_state, weighted_sum
from rimlit.types import State, flat_state, map_state

Subject: TypeAlias = Backbone | Callable[[], Backbone]
"""A backbone, which is copied, or what builds one."""


def check_backbone(
    build: Subject,
    inputs: Tensor | None = None,
    *,
    slow: bool = False,
    gpu: bool = False,
    skip: Iterable[str] = (),
) -> None:
    """Run every law of backbones; see :func:`rimlit.testing.check_laws`.

    Args:
        build: Builds a small backbone; a backbone is copied instead.
        inputs: (B, T, input_size), or (B, T, N, input_size) for one that reads slots, at least 2 samples and 5
            steps; by default random vectors.
        slow: Whether to run the slow laws too: torch.compile and torch.export.
        gpu: Whether to run the laws that need a CUDA device too.
        skip: Names of laws that are not run.

    Example:
        >>> from rimlit import GRU
        >>> check_backbone(lambda: GRU(5, 8))
    """
    check_laws("backbone", build, inputs, slow=slow, gpu=gpu, skip=skip)


def causal(build: Subject) -> Backbone:
    """Return the backbone of a law about single steps, in float64; a bidirectional one has none."""
    backbone: Backbone = exact(build)
    if backbone.bidirectional:
        raise SkipTest("it reads whole sequences")
    return backbone


@law("backbone")
def check_shapes(build: Subject, inputs: Tensor | None = None) -> None:
    """Features are (B, T, output_size); the state has the fields and shapes of the initial one, batch first."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    require(inputs.shape[-1] == backbone.input_size, f"input_size={backbone.input_size} is not that of the inputs")
    require(backbone.hidden_size >= 1, f"hidden_size={backbone.hidden_size} is below 1")
    features, state = backbone(inputs)
    expected = (*inputs.shape[:2], backbone.output_size)
    require(tuple(features.shape) == expected, f"features have shape {tuple(features.shape)}; expected {expected}")
    require_close(
        "state", *(map_state(torch.zeros_like, each) for each in (state, backbone.initial_state(len(inputs))))
    )
    for name, part in tensors_in("state", state):
        require(
            len(part) == len(inputs), f"{name} has shape {tuple(part.shape)}; its first dimension is the batch"
        )


@law("backbone")
def check_no_state_means_the_initial_state(build: Subject, inputs: Tensor | None = None) -> None:
    """Without a state a sequence starts from ``initial_state``."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    expected = backbone(inputs, backbone.initial_state(len(inputs)))
    require_close("result", backbone(inputs), expected)


@law("backbone")
def check_plain_states_are_read(build: Subject, inputs: Tensor | None = None) -> None:
    """A state may be given in plain tuples or lists, unpickled, and as a bare tensor where it has one field."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    start = some_state(backbone, inputs)
    expected = backbone(inputs, start)
    bare = start if len(start) == 1 else ()
    for plain in (_plain(start, tuple), _plain(start, list), pickle.loads(pickle.dumps(start)), *bare):
        require_close(f"result of a {type(plain).__name__}", backbone(inputs, plain), expected)
        for with_gradients in (True, False) if not backbone.bidirectional else ():
            with torch.set_grad_enabled(with_gradients):
                for run in (backbone.step, backbone.stepper(len(inputs))):
                    features, state = run(inputs[:, 0], plain)
                    require_close(f"features of a step from a {type(plain).__name__}", features, expected[0][:, 0])
                    require(type(state) is type(start), f"a step returns a {type(state).__name__} as state")


def _plain(state: State, kind: type) -> Any:
    return state if isinstance(state, Tensor) else kind(_plain(part, kind) for part in state)


@law("backbone")
def check_saved_states_load_as_data(build: Subject, inputs: Tensor | None = None) -> None:
    """A saved state loads with ``weights_only=True``; ``rimlit.types.loads_as_data`` registers its class."""
    backbone = exact(build)
    state, file = some_state(backbone, inputs_for(backbone, inputs)), io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    require_close("loaded state", torch.load(file, weights_only=True), state, rtol=0, atol=0)


@law("backbone")
def check_step_equals_sequence(build: Subject, inputs: Tensor | None = None) -> None:
    """Single steps, each from the state the last one returned, give what the whole sequence gives."""
    backbone = causal(build)
    inputs = inputs_for(backbone, inputs)
    start = some_state(backbone, inputs)
    expected = backbone(inputs, start)
    # without gradients a backbone may take another way
    for with_gradients, name in itertools.product((True, False), ("step", "stepper")):
        with torch.set_grad_enabled(with_gradients):
            run = backbone.step if name == "step" else backbone.stepper(len(inputs))
            state, pieces = start, []
            for step in range(inputs.shape[1]):
                features, state = run(inputs[:, step], state)
                has_graph = with_gradients and name == "step"
                carry = "carry no gradient" if has_graph else "carry a gradient"
                require(features.requires_grad == has_graph, f"features of {name} {carry}")
                pieces.append(features)
        require_close(f"features of {name}", torch.stack(pieces, dim=1), expected[0])
        require_close(f"state of {name}", state, expected[1])


@law("backbone")
def check_tokens_equal_their_vectors(build: Subject, inputs: Tensor | None = None) -> None:
    """``forward_tokens`` gives what ``forward`` gives for the vectors of the tokens, with the same gradient.

    Tried with fewer and with more rows in the table than there are tokens.
    """
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    if inputs.dim() != 3:
        raise SkipTest("tokens are vectors, and the backbone reads slots")
    start, number = some_state(backbone, inputs), inputs[..., 0].numel()
    for size in (4, 2 * number):
        tokens = torch.arange(number).view(inputs.shape[:2]) ** 2 % size
        table = torch.randn(size, backbone.input_size, dtype=torch.float64, requires_grad=True)
        resets = tokens % 3 == 1
        result, expected = (
            backbone.forward_tokens(tokens, table, start, resets),
            backbone(table[tokens], start, resets),
        )
        require_close("result of forward_tokens", result, expected)
        gradients = [torch.autograd.grad(weighted_sum(features), table)[0] for features, _ in (result, expected)]
        require_close("gradient of the table", *gradients, rtol=1e-9, atol=1e-11)


@law("backbone")
def check_reset_starts_again(build: Subject, inputs: Tensor | None = None) -> None:
    """A reset replaces the state of its sample, and of no other, by the initial one before the step."""
    backbone = causal(build)
    inputs = inputs_for(backbone, inputs)
    start, (size, steps) = some_state(backbone, inputs), inputs.shape[:2]
    resets = torch.zeros(size, steps, dtype=torch.bool)
    resets[0, 0] = resets[0, 4] = resets[1, 2] = resets[1, 3] = True
    features, state = backbone(inputs, start, resets)
    for sample in range(size):
        own = slice(sample, sample + 1)
        cuts = sorted({0, *resets[sample].nonzero().flatten().tolist(), steps})
        last = map_state(lambda part, at=own: part[at], start)
        for begin, end in itertools.pairwise(cuts):
            piece, last = backbone(inputs[own, begin:end], None if resets[sample, begin] else last)
            require_close(f"features of sample {sample} from step {begin}", features[own, begin:end], piece)
        require_close(f"state of sample {sample}", map_state(lambda part, at=own: part[at], state), last)


@law("backbone")
def check_no_reset_changes_nothing(build: Subject, inputs: Tensor | None = None) -> None:
    """Resets that mark no step give what no resets give."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    start, resets = some_state(backbone, inputs), torch.zeros(inputs.shape[:2], dtype=torch.bool)
    require_close("result", backbone(inputs, start, resets), backbone(inputs, start))


@law("backbone")
def check_later_inputs_change_nothing_before(build: Subject, inputs: Tensor | None = None) -> None:
    """Causality: features of a step depend on the inputs up to it; later features depend on the change."""
    backbone = causal(build)
    inputs = inputs_for(backbone, inputs)
    changed = torch.cat([inputs[:, :4], inputs[:, 4:] + 3], dim=1)
    features, others = backbone(inputs)[0], backbone(changed)[0]
    require_close("features before the change", others[:, :4], features[:, :4])
    require(
        not torch.allclose(others[:, 4:], features[:, 4:]), "features do not depend on the inputs of their step"
    )


@law("backbone")
def check_gradients_reach_inputs_and_state(build: Subject, inputs: Tensor | None = None) -> None:
    """The features have a gradient for every step of the inputs and for every field of a state passed in."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    start = some_state(backbone, inputs)
    inputs = inputs.clone().requires_grad_()
    for part in flat_state(start):
        part.requires_grad_(part.is_floating_point())
    torch.autograd.backward(weighted_sum(backbone(inputs, start)[0]))
    for step in range(inputs.shape[1]):
        is_reached = inputs.grad is not None and all(row.count_nonzero() for row in inputs.grad[:, step])
        require(is_reached, f"the inputs of step {step} get no gradient")
    for name, part in tensors_in("state", start):
        is_reached = part.grad is not None and bool(part.grad.count_nonzero())
        require(is_reached or not part.is_floating_point(), f"{name} gets no gradient")


@law("backbone")
def check_bfloat16_weights_work(build: Subject, inputs: Tensor | None = None) -> None:
    """With weights in bfloat16 features, state and gradients are bfloat16."""
    backbone, dtype = make(build).to(torch.bfloat16), torch.bfloat16
    inputs = inputs_for(backbone, inputs, dtype)
    result = backbone(inputs)
    again = backbone(inputs, result[1], torch.eye(*inputs.shape[:2], dtype=torch.bool))
    torch.autograd.backward(again[0].float().sum())
    everything = {
        "initial state": backbone.initial_state(2),
        "result": result,
        "result from a state": again,
        "gradients": gradients_of(backbone),
    }
    for what, value in everything.items():
        for name, part in tensors_in(what, value):
            is_right = part.dtype == dtype or not part.is_floating_point()
            require(is_right, f"{name} has dtype {part.dtype}, and the weights have {dtype}")


@law("backbone")
def check_device_follows_the_weights(build: Subject, inputs: Tensor | None = None) -> None:
    """Features and state are where the weights are: tried on the device ``meta``, which needs no GPU."""
    backbone = make(build).to("meta")
    result = backbone(inputs_for(backbone, inputs, torch.float32).to("meta"))
    for name, part in tensors_in("result", (*result, backbone.initial_state(2))):
        require(part.is_meta, f"{name} is on {part.device}, and the weights are on meta")
    torch.autograd.backward(result[0].sum())


@law("backbone")
def check_autocast_trains(build: Subject, inputs: Tensor | None = None) -> None:
    """In autocast a returned state is accepted, and gradients have the dtype of the weights and are finite."""
    backbone = make(build).float().eval()
    _, features = _in_autocast(backbone, inputs_for(backbone, inputs, torch.float32))
    torch.autograd.backward(features.float().square().sum())
    for name, gradient in gradients_of(backbone).items():
        require(gradient.dtype == torch.float32, f"the gradient of {name} is {gradient.dtype}")


@law("backbone")
def check_autocast_stays_near(build: Subject, inputs: Tensor | None = None, tolerance: float = 0.05) -> None:
    """In autocast to bfloat16 features stay near those of float32.

    Not a law of backbones that choose, as a RIM with fewer active mechanisms than it has: rounding may change
    the choice.
    """
    backbone = make(build).float().eval()
    inputs = inputs_for(backbone, inputs, torch.float32)
    expected, state = backbone(inputs)
    later, _ = backbone(inputs, state)
    features, carried = _in_autocast(backbone, inputs)
    require_close("features", features.float(), expected, rtol=tolerance, atol=tolerance)
    require_close("features from a state", carried.float(), later, rtol=tolerance, atol=tolerance)


def _in_autocast(backbone: Backbone, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features of a sequence in autocast to bfloat16, and those from the state after it."""
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features, state = backbone(inputs)
            later, _ = backbone(inputs, state)
    except RuntimeError as error:
        if "could not create a primitive" not in str(error):
            raise
        raise SkipTest("oneDNN runs no bfloat16 LSTM on this processor") from error
    return features, later


@law("backbone", slow=True)
def check_exported_takes_any_batch(build: Subject, inputs: Tensor | None = None) -> None:
    """``torch.export`` with a batch of any size gives what the backbone gives."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    arguments = (inputs, some_state(backbone, inputs))
    sizes: Any = {0: torch.export.Dim("batch", min=2, max=64)}
    shapes = map_state(lambda _: sizes, arguments)
    exported = torch.export.export(backbone, arguments, dynamic_shapes=shapes).module()
    twice = map_state(lambda part: torch.cat([part, part]), arguments)
    require_close("result", tuple(exported(*twice)), tuple(backbone(*twice)))


@law("backbone", gpu=True)
def check_gpu_equals_cpu(build: Subject, inputs: Tensor | None = None) -> None:
    """A CUDA device gives what the CPU gives."""
    if not torch.cuda.is_available():
        raise SkipTest("no CUDA device")
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    arguments: tuple[Tensor, State, Tensor]
    arguments = inputs, some_state(backbone, inputs), torch.eye(*inputs.shape[:2], dtype=torch.bool)
    expected = backbone(*arguments)
    result = backbone.cuda()(*map_state(Tensor.cuda, arguments))
    require_close("result", map_state(Tensor.cpu, result), expected, rtol=1e-8, atol=1e-10)
    torch.autograd.backward(result[0].sum())
