"""Laws of backbones in other people's code: what an ``nn.LSTM`` accepts, and what torch does with modules."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from rimlit.backbones import Backbone, Bidirectional
from rimlit.testing.backbones import Subject, causal
from rimlit.testing.laws import law, make, require, require_close
from rimlit.testing.modules import exact, gradients_of, inputs_for, some_state, weighted_sum
from rimlit.types import State, flat_state, map_state


@law("backbone")
def check_sizes_have_their_names(build: Subject, inputs: Tensor | None = None) -> None:
    """``input_size``, ``hidden_size``, ``num_layers``, ``batch_first``, ``bidirectional`` are those of nn.LSTM."""
    backbone = exact(build)
    features, _ = backbone(inputs_for(backbone, inputs))
    for name in ("input_size", "hidden_size", "output_size", "num_layers"):
        value = getattr(backbone, name, None)
        require(isinstance(value, int) and value >= 1, f"{name} is {value!r} and no number from 1")
    require(backbone.batch_first is True, f"batch_first is {backbone.batch_first!r}")
    require(isinstance(backbone.bidirectional, bool), f"bidirectional is {backbone.bidirectional!r}")
    directions = 1 + backbone.bidirectional
    require(
        backbone.output_size % directions == 0, f"output_size={backbone.output_size} is odd, in two directions"
    )
    require(features.shape[-1] == backbone.output_size, f"features have {features.shape[-1]} numbers a step")


@law("backbone")
def check_one_sequence_needs_no_batch(build: Subject, inputs: Tensor | None = None) -> None:
    """One sequence (T, D), with state and resets without a batch dimension, gives what a batch of one gives."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    if inputs.dim() == 4:
        return  # (T, N, D) is a batch of N steps
    own, resets = slice(1, 2), torch.zeros(1, inputs.shape[1], dtype=torch.bool)
    resets[0, 2] = True
    start = map_state(lambda part: part[own], some_state(backbone, inputs))
    squeezed = map_state(lambda part: part.squeeze(0), start)
    for given, whole in (((), ()), ((squeezed, resets[0]), (start, resets))):
        expected = map_state(lambda part: part.squeeze(0), tuple(backbone(inputs[own], *whole)))
        require_close("result of one sequence", tuple(backbone(inputs[1], *given)), expected)


@law("backbone")
def check_empty_batch(build: Subject, inputs: Tensor | None = None) -> None:
    """A batch without samples gives features and a state without samples, and zeros as gradients."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    expected = map_state(lambda part: part[:0], tuple(backbone(inputs)))
    for given in ((), (backbone.initial_state(0),)):
        backbone.zero_grad()
        result = tuple(backbone(inputs[:0], *given))
        require_close("result", result, expected)
        torch.autograd.backward(result[0].sum())
        for name, gradient in gradients_of(backbone).items():
            require(not gradient.count_nonzero(), f"the gradient of {name} is not zero")


@law("backbone")
def check_padding_changes_nothing(build: Subject, inputs: Tensor | None = None) -> None:
    """With ``lengths`` a padded sequence has features, state and gradients of the sequence alone; after it, zeros.

    Tried with NaN as padding, a sequence of no steps, a state, resets, and lengths in a tensor or a list.
    """
    backbone = exact(build)
    inputs, lengths = _padded(inputs_for(backbone, inputs))
    start = some_state(backbone, inputs.nan_to_num())
    resets = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    resets[0, 2] = resets[1, 0] = resets[-1, -1] = True
    for given, marks in ((None, None), (start, resets)):
        backbone.zero_grad()
        result = tuple(backbone(inputs, given, marks, lengths=lengths))
        alone = [_alone(backbone, inputs, sample, size, given, marks) for sample, size in enumerate(lengths)]
        expected = map_state(lambda *parts: torch.cat(parts), *alone)
        require_close("result of padded sequences", result, expected)
        require_close("result", tuple(backbone(inputs, given, marks, lengths=torch.tensor(lengths))), expected)
        torch.autograd.backward(weighted_sum(result[0]))
        gradients = gradients_of(backbone)
        backbone.zero_grad()
        torch.autograd.backward(weighted_sum(expected[0]))
        require_close("gradients of padded sequences", gradients, gradients_of(backbone), rtol=1e-8)
    whole = backbone(inputs.nan_to_num(), start, lengths=[inputs.shape[1]] * len(inputs))
    require_close("result of lengths that leave no padding", whole, backbone(inputs.nan_to_num(), start))


def _padded(inputs: Tensor) -> tuple[Tensor, list[int]]:
    """Return inputs with NaN after ends, in no order, the last after no step, and the ends."""
    num_steps = inputs.shape[1]
    lengths = [max(num_steps - sample - 1, 1) for sample in range(len(inputs) - 1)]
    lengths = [num_steps - 2, *lengths[1:], 0] if len(inputs) > 2 else [num_steps - 2, num_steps]
    padded = inputs.clone()
    for sample, length in enumerate(lengths):
        padded[sample, length:] = torch.nan
    return padded, lengths


def _alone(
    backbone: Backbone, inputs: Tensor, sample: int, length: int, state: State | None, resets: Tensor | None
) -> tuple[Tensor, State]:
    """Return features (1, T, output_size), zero after ``length``, and the state of one sequence by itself."""
    own = slice(sample, sample + 1)
    start = backbone.initial_state(1) if state is None else map_state(lambda part: part[own], state)
    whole = inputs.new_zeros(1, inputs.shape[1], backbone.output_size)
    if length == 0:
        return whole + sum(part.sum() * 0 for part in backbone.parameters()), start
    features, last = backbone(inputs[own, :length], start, None if resets is None else resets[own, :length])
    return torch.cat([features, whole[:, length:]], dim=1), last


@law("backbone")
def check_packed_sequences_are_read(build: Subject, inputs: Tensor | None = None) -> None:
    """A PackedSequence, sorted or not, gives a PackedSequence: that of padded sequences with lengths."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    start = some_state(backbone, inputs)
    for lengths in ([inputs.shape[1] - sample for sample in range(len(inputs))], [2, *[4] * (len(inputs) - 1)]):
        is_sorted = lengths[0] != 2
        sequences = [sequence[:length] for sequence, length in zip(inputs, lengths, strict=True)]
        packed = pack_sequence(sequences, enforce_sorted=is_sorted)
        features, state = backbone(packed, start)
        require(isinstance(features, PackedSequence), f"features are a {type(features).__name__}")
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            require_close(f"{name} of the features", getattr(features, name), getattr(packed, name))
        padded, _ = pad_packed_sequence(features, batch_first=True)
        expected = backbone(inputs[:, : max(lengths)], start, lengths=lengths)
        require_close("result of a PackedSequence", (padded, state), tuple(expected))


@law("backbone")
def check_final_features(build: Subject, inputs: Tensor | None = None) -> None:
    """``final_features`` are those of each sequence's last step; backwards, those of its first."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    lengths = [inputs.shape[1] - sample % 3 for sample in range(len(inputs))]
    found = backbone.final_features(backbone(inputs, lengths=lengths)[0], lengths)
    sequences = [sequence[:length] for sequence, length in zip(inputs, lengths, strict=True)]
    packed = backbone.final_features(backbone(pack_sequence(sequences, enforce_sorted=False))[0])
    require_close("final_features of a PackedSequence", packed, found)
    for sample, sequence in enumerate(sequences):
        features, _ = backbone(sequence[None])
        require_close(f"final_features of sample {sample}", found[sample], backbone.final_features(features)[0])
        require_close("final_features of one sequence", backbone.final_features(features[0]), found[sample])
        size = backbone.output_size // (1 + backbone.bidirectional)
        expected = torch.cat([features[0, -1, :size], features[0, 0, size:]])
        require_close("final_features", found[sample], expected)


@law("backbone")
def check_two_directions_are_two_backbones(build: Subject, inputs: Tensor | None = None) -> None:
    """A bidirectional one of its kind has the features of two, of which one reads each sequence from its end."""
    causal(build)
    pair = Bidirectional(lambda: make(build)).double().eval()
    with torch.no_grad():
        for parameter in pair.backwards.parameters():
            parameter.mul_(1.5)
    inputs = inputs_for(pair, inputs)
    start, lengths = some_state(pair, inputs), [inputs.shape[1] - 1 - sample % 2 for sample in range(len(inputs))]
    resets = torch.zeros(inputs.shape[:2], dtype=torch.bool)
    resets[0, 3] = True
    features, state = pair(inputs, start, resets, lengths=lengths)
    for sample, length in enumerate(lengths):
        own = slice(sample, sample + 1)
        first, second = (map_state(lambda part, at=own: part[at], each) for each in start)
        cuts = torch.zeros(1, length, dtype=torch.bool)
        if sample == 0:  # a cut between steps 2 and 3
            cuts[0, length - 3] = True
        forwards = pair.forwards(inputs[own, :length], first, resets[own, :length])
        backwards = pair.backwards(inputs[own, :length].flip(1), second, cuts)
        expected = torch.cat([forwards[0], backwards[0].flip(1)], dim=-1)
        require_close(f"features of sample {sample}", features[own, :length], expected)
        last = map_state(lambda part, at=own: part[at], tuple(state))
        require_close(f"state of sample {sample}", last, (forwards[1], backwards[1]))


@law("backbone")
def check_in_place_changes_are_safe(build: Subject, inputs: Tensor | None = None) -> None:
    """Features that change in place leave state, inputs and gradients as they are, or a RuntimeError says so."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)
    start = some_state(backbone, inputs)
    for run in (torch.no_grad()(backbone), backbone):
        features, state = run(inputs, start)
        kept = [part.clone() for part in (*flat_state(state), *flat_state(start), inputs)]
        if features.requires_grad:
            expected = torch.autograd.grad((2 * features).sum(), list(backbone.parameters()), retain_graph=True)
        features.mul_(2)
        require_close("state and inputs", [*flat_state(state), *flat_state(start), inputs], kept, rtol=0, atol=0)
    try:
        found = torch.autograd.grad(features.sum(), list(backbone.parameters()))
    except RuntimeError as error:
        require("in place" in str(error) or "inplace" in str(error), f"RuntimeError: {error}")
    else:
        require_close("gradients", found, expected)


@law("backbone")
def check_hooks_are_called_or_named(build: Subject, inputs: Tensor | None = None) -> None:
    """Forward hooks on inner modules are called, or a warning names one that is not; so are those on the whole."""
    backbone = exact(build)
    inputs, called = inputs_for(backbone, inputs), set()
    modules = {name: module for name, module in backbone.named_modules() if list(module.parameters())}
    modules = {name: module for name, module in modules.items() if not isinstance(module, nn.ModuleList)}
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backbone(inputs, lengths=[inputs.shape[1] - 1] * len(inputs))
    require("" in called, "the hook on the backbone itself is not called")
    silent = [name for name in modules if name not in called]
    is_said = any("Hooks on" in str(warning.message) for warning in caught)
    require(not silent or is_said, f"the hook on {', '.join(silent)} is not called, and no warning says so")


@law("backbone")
def check_torch_func_works(build: Subject, inputs: Tensor | None = None) -> None:
    """``functional_call``, ``grad``, ``vmap`` and ``jacrev`` of torch.func give what autograd gives."""
    backbone = exact(build)
    with warnings.catch_warnings():
        # what torch has no batching rule for it runs sample by sample, and says that this is slow
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        _try_torch_func(backbone, inputs_for(backbone, inputs))


def _try_torch_func(backbone: Backbone, inputs: Tensor) -> None:
    start = some_state(backbone, inputs)
    parameters: dict[str, Tensor] = dict(backbone.named_parameters())
    resets = torch.eye(*inputs.shape[:2], dtype=torch.bool)
    lengths = torch.tensor([inputs.shape[1] - sample % 2 for sample in range(len(inputs))])

    def loss(parameters: Mapping[str, Tensor], inputs: Tensor, *given: Any) -> Tensor:
        state, resets, lengths = given
        arguments, names = (inputs, state, resets), {"lengths": lengths}
        features, _ = torch.func.functional_call(backbone, dict(parameters), arguments, names)
        return weighted_sum(features)

    whole = loss(parameters, inputs, start, resets, None)
    expected = dict(zip(parameters, torch.autograd.grad(whole, list(parameters.values())), strict=True))
    found = torch.func.grad(loss)(parameters, inputs, start, resets, None)
    require_close("torch.func.grad", found, expected, rtol=1e-8)
    batches = map_state(lambda part: part[:, None], (inputs, start, resets, lengths))
    features = torch.func.vmap(lambda *each: backbone(*each[:3], lengths=each[3])[0])(*batches)
    require_close("torch.func.vmap", features[:, 0], backbone(inputs, start, resets, lengths=lengths)[0])
    of_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0, 0))(parameters, *batches)
    for sample in range(len(inputs)):
        one = map_state(lambda part, at=sample: part[at], batches)
        own = torch.autograd.grad(loss(parameters, *one), list(parameters.values()))
        mapped = [gradient[sample] for gradient in of_each.values()]
        require_close("torch.func.vmap of torch.func.grad", mapped, list(own), rtol=1e-8)
    jacobian = torch.func.jacrev(lambda inputs: backbone(inputs, start)[0].sum(dim=(0, 2)))(inputs)
    known = inputs.clone().requires_grad_()
    (last,) = torch.autograd.grad(backbone(known, start)[0][:, -1].sum(), known)
    require_close("torch.func.jacrev", jacobian[-1], last, rtol=1e-8)


@law("backbone", slow=True)
def check_traced_takes_any_batch(build: Subject, inputs: Tensor | None = None) -> None:
    """``torch.jit.trace``, with a state and resets, gives a module that takes a batch of any size."""
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)[:, :5]
    arguments = (inputs, some_state(backbone, inputs), torch.eye(*inputs.shape[:2], dtype=torch.bool))
    with warnings.catch_warnings(action="ignore"):  # torch would rather export
        traced: Any = torch.jit.trace(backbone, arguments, check_trace=False)  # type: ignore[no-untyped-call]
    twice = map_state(lambda part: torch.cat([part, part.roll(1, 0)]), arguments)
    found, expected = flat_state(tuple(traced(*twice))), flat_state(tuple(backbone(*twice)))
    require_close("result of the traced module", found, expected)


@law("backbone", slow=True)
def check_compiled_equals_eager(build: Subject, inputs: Tensor | None = None, *, fullgraph: bool = False) -> None:
    """``torch.compile`` gives the same features, state and gradients, for batches of any size.

    Tried with a state, resets and lengths; with ``fullgraph`` in one graph, which also serves the second size.
    """
    backbone = exact(build)
    inputs = inputs_for(backbone, inputs)[:, :3].repeat(3, *[1] * (inputs_for(backbone, inputs).dim() - 1))
    # without ties: where numbers of a state are equal, as usages of a memory are, rounding decides which is first
    state = map_state(_spread, some_state(backbone, inputs))
    arguments = (inputs, state, torch.eye(*inputs.shape[:2], dtype=torch.bool))
    lengths = torch.arange(len(inputs)) % 4
    torch._dynamo.reset()
    compiled, graphs = _compile(backbone, fullgraph=fullgraph)
    numbers, packed = [], torch.contiguous_format
    for size in (len(inputs), len(inputs) - 2):
        # a view, and strides that are not canonical, would be compiled for their one size
        *given, ends = map_state(
            lambda part, at=size: part[:at].clone(memory_format=packed), (*arguments, lengths)
        )
        results = {}
        for name, run in (("expected", backbone), ("compiled", compiled)):
            backbone.zero_grad()
            features, state = run(*given, lengths=ends)
            torch.autograd.backward(weighted_sum(features))
            results[name] = features, state, [parameter.grad for parameter in backbone.parameters()]
            backbone.zero_grad(set_to_none=True)
        require_close("result and gradients", results["compiled"], results["expected"], rtol=1e-9, atol=1e-11)
        numbers.append(len(graphs))
    torch._dynamo.reset()
    require(not fullgraph or numbers == [1, 1], f"compiled {numbers[-1]} graphs for two batch sizes; expected 1")


def _spread(part: Tensor) -> Tensor:
    if not part.is_floating_point():
        return part
    return part + torch.linspace(0, 1e-3, part.numel(), dtype=part.dtype).view(part.shape)


def _compile(backbone: Backbone, **options: Any) -> tuple[Callable[..., Any], list[int]]:
    """Return the compiled backbone and a list that gets an entry for every graph."""
    graphs: list[int] = []

    def run_as_is(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    return torch.compile(backbone, backend=run_as_is, dynamic=True, **options), graphs
