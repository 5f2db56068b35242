"""The laws that every backbone keeps, tried on every backbone there is."""

import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import rimlit.backbones
from rimlit.backbones import GRU, LSTM, RIM, Backbone, Transformer
from rimlit.errors import ConfigError
from rimlit.types import State, detach_state, map_state
from tests.conftest import counting_tensor, random_tensor
from tests.laws.backbone_cases import HIDDEN_SIZE, INPUT_SIZE, backbone_cases, backbone_classes, make_backbone

BATCH, STEPS = 3, 6
Make = Callable[[], Backbone]

every_backbone = pytest.mark.parametrize(("cls", "arguments"), backbone_cases())


def inputs_of(dtype: torch.dtype = torch.float64, steps: int = STEPS) -> Tensor:
    return random_tensor(BATCH, steps, INPUT_SIZE, seed=1, dtype=dtype)


def exact(cls: type[Backbone], arguments: dict[str, Any]) -> Backbone:
    """A backbone in float64 without dropout."""
    return make_backbone(cls, arguments).double().eval()


def some_state(backbone: Backbone) -> State:
    """A state that can occur, and that differs from the initial one in every sample."""
    with torch.no_grad():
        _, state = backbone(3 * random_tensor(BATCH, 4, INPUT_SIZE, seed=2, dtype=torch.float64))
    return detach_state(state)


def assert_same_state(state: State, expected: State, **tolerance: Any) -> None:
    assert type(state) is type(expected)
    map_state(lambda one, other: torch.testing.assert_close(one, other, **tolerance) or one, state, expected)


def test_introspection_finds_the_backbones_that_are_public() -> None:
    public = {value for value in vars(rimlit.backbones).values() if isinstance(value, type)} - {Backbone}
    assert {GRU, LSTM, RIM} <= public
    assert public <= set(backbone_classes())


@every_backbone
def test_features_and_state_have_the_contract_s_shapes(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = exact(cls, arguments)
    assert backbone.input_size == INPUT_SIZE
    assert backbone.output_size == HIDDEN_SIZE
    features, state = backbone(inputs_of())
    assert features.shape == (BATCH, STEPS, HIDDEN_SIZE)
    initial = backbone.initial_state(BATCH)
    assert isinstance(state, tuple)
    assert state._fields == initial._fields
    assert [tensor.shape for tensor in state] == [tensor.shape for tensor in initial]
    assert all(tensor.shape[0] == BATCH for tensor in state)
    again, _ = backbone(inputs_of(), state)  # a state that came out goes in
    assert not torch.allclose(again, features)


@every_backbone
def test_step_by_step_equals_the_whole_sequence(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = exact(cls, arguments)
    inputs, start = inputs_of(), some_state(backbone)
    whole, last = backbone(inputs, start)
    state, pieces = start, []
    for step in range(STEPS):
        features, state = backbone.step(inputs[:, step], state)
        pieces.append(features)
    torch.testing.assert_close(torch.stack(pieces, dim=1), whole, rtol=1e-10, atol=1e-12)
    assert_same_state(state, last, rtol=1e-10, atol=1e-12)
    features, _ = backbone.stepping(BATCH)(inputs[:, 0], start)  # with gradients, as step gives them
    assert features.requires_grad
    torch.testing.assert_close(features, pieces[0], rtol=0, atol=0)
    with torch.no_grad():  # where a backbone may take another way
        for run in (backbone.step, backbone.stepping(BATCH)):
            state, pieces = start, []
            for step in range(STEPS):
                features, state = run(inputs[:, step], state)
                pieces.append(features)
            torch.testing.assert_close(torch.stack(pieces, dim=1), whole, rtol=1e-10, atol=1e-12)
            assert_same_state(state, last, rtol=1e-10, atol=1e-12)


@every_backbone
@pytest.mark.parametrize("vocabulary_size", [4, 40])  # fewer and more rows than tokens
def test_tokens_of_a_table_equal_their_vectors(
    vocabulary_size: int, cls: type[Backbone], arguments: dict[str, Any]
) -> None:
    backbone = exact(cls, arguments)
    tokens = torch.arange(BATCH * STEPS).view(BATCH, STEPS) ** 2 % vocabulary_size
    table = random_tensor(vocabulary_size, INPUT_SIZE, dtype=torch.float64).requires_grad_()
    resets = tokens % 3 == 1
    features, state = backbone.forward_tokens(tokens, table, some_state(backbone), resets)
    expected, last = backbone(table[tokens], some_state(backbone), resets)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    assert_same_state(state, last, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(features.square().sum(), table)
    (other,) = torch.autograd.grad(expected.square().sum(), table)
    torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-11)


@every_backbone
def test_no_state_means_the_initial_state(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = exact(cls, arguments)
    without, _ = backbone(inputs_of())
    given, _ = backbone(inputs_of(), backbone.initial_state(BATCH))
    assert torch.equal(without, given)


@every_backbone
def test_the_sizes_have_the_names_that_torch_gives_them(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = make_backbone(cls, arguments)
    assert (backbone.input_size, backbone.hidden_size) == (INPUT_SIZE, HIDDEN_SIZE)
    assert backbone.num_layers == arguments.get("num_layers", 6 if cls is Transformer else 1)
    assert backbone.batch_first is True


@every_backbone
def test_a_state_may_be_a_plain_tuple_a_list_or_the_tensor_of_one_field(
    cls: type[Backbone], arguments: dict[str, Any]
) -> None:
    backbone = exact(cls, arguments)
    start = some_state(backbone)
    expected, last = backbone(inputs_of(), start)
    for plain in (tuple(start), list(start), *(start if len(start) == 1 else ())):
        features, state = backbone(inputs_of(), plain)
        assert torch.equal(features, expected)
        assert_same_state(state, last, rtol=0, atol=0)
        for is_differentiated in (True, False):
            with torch.set_grad_enabled(is_differentiated):
                for run in (backbone.step, backbone.stepping(BATCH)):
                    features, state = run(inputs_of()[:, 0], plain)
                    torch.testing.assert_close(features, expected[:, 0], rtol=1e-10, atol=1e-12)
                    assert type(state) is type(last)


@every_backbone
def test_a_state_that_does_not_fit_is_refused_in_one_line(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = exact(cls, arguments)
    start = some_state(backbone)
    wrong = {
        "too_few": start[:-1],
        "too_many": (*start, start[0]),
        "another_batch": map_state(lambda part: part[:-1], start),
        "integers": map_state(Tensor.int, start),
        "elsewhere": map_state(lambda part: part.to("meta"), start),
        "a_name": dict(start._asdict()),
    }
    for name, state in wrong.items():
        with pytest.raises(ValueError, match=r"^state must be \w+\(.*\), batch first; got .*\.$") as caught:
            backbone(inputs_of(), state)
        assert "\n" not in str(caught.value), name


@every_backbone
def test_a_saved_state_loads_as_plain_data(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    state, file = some_state(exact(cls, arguments)), io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert_same_state(torch.load(file, weights_only=True), state, rtol=0, atol=0)


@pytest.mark.parametrize("cls", backbone_classes())
def test_a_packed_sequence_is_refused_with_what_to_pass(cls: type[Backbone]) -> None:
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3, INPUT_SIZE), torch.ones(2, INPUT_SIZE)])
    with pytest.raises(
        ValueError, match=r"got a PackedSequence\. .*pad_packed_sequence\(inputs, batch_first=True\)"
    ):
        make_backbone(cls, {})(packed)


@every_backbone
def test_a_reset_in_the_middle_is_a_new_start_for_its_sample_only(
    cls: type[Backbone], arguments: dict[str, Any]
) -> None:
    backbone = exact(cls, arguments)
    inputs, start = inputs_of(), some_state(backbone)
    resets = torch.zeros(BATCH, STEPS, dtype=torch.bool)
    resets[0, 0] = resets[0, 4] = resets[1, 2] = resets[1, 3] = True  # the last sample is never reset
    features, state = backbone(inputs, start, resets)
    for sample, cuts in enumerate(([0, 4, STEPS], [0, 2, 3, STEPS], [0, STEPS])):
        own: State | None = map_state(lambda tensor, at=sample: tensor[at : at + 1], start)
        if sample == 0:
            own = None
        for begin, end in itertools.pairwise(cuts):
            expected, last = backbone(inputs[sample : sample + 1, begin:end], own)
            torch.testing.assert_close(features[sample : sample + 1, begin:end], expected, rtol=1e-10, atol=1e-12)
            own = None
        mine = map_state(lambda tensor, at=sample: tensor[at : at + 1], state)
        assert_same_state(mine, last, rtol=1e-10, atol=1e-12)


@every_backbone
def test_resets_that_mark_nothing_change_nothing(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = exact(cls, arguments)
    start = some_state(backbone)
    plain, _ = backbone(inputs_of(), start)
    marked, _ = backbone(inputs_of(), start, torch.zeros(BATCH, STEPS, dtype=torch.bool))
    torch.testing.assert_close(marked, plain, rtol=1e-12, atol=1e-14)


@every_backbone
def test_what_comes_later_does_not_change_what_was(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = exact(cls, arguments)
    inputs = inputs_of()
    changed = inputs.clone()
    changed[:, 4:] += 3
    features, _ = backbone(inputs)
    others, _ = backbone(changed)
    torch.testing.assert_close(others[:, :4], features[:, :4], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(others[:, 4:], features[:, 4:])


@every_backbone
def test_permuting_the_batch_permutes_the_output(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = exact(cls, arguments)
    order = torch.tensor([2, 0, 1])
    start = some_state(backbone)
    features, state = backbone(inputs_of(), start)
    permuted, permuted_state = backbone(inputs_of()[order], map_state(lambda tensor: tensor[order], start))
    torch.testing.assert_close(permuted, features[order], rtol=1e-10, atol=1e-12)
    assert_same_state(permuted_state, map_state(lambda tensor: tensor[order], state), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("with_state", [False, True])
@every_backbone
def test_every_parameter_gets_a_gradient_from_the_features(
    cls: type[Backbone], arguments: dict[str, Any], with_state: bool
) -> None:
    backbone = make_backbone(cls, arguments).double().train()
    features, _ = backbone(inputs_of(), some_state(backbone) if with_state else None)
    (features * counting_tensor(*features.shape, dtype=torch.float64)).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.startswith("initial."):
            assert bool(parameter.grad.count_nonzero()) is not with_state, name


@every_backbone
def test_gradients_reach_the_inputs_and_a_state_that_was_passed_in(
    cls: type[Backbone], arguments: dict[str, Any]
) -> None:
    backbone = exact(cls, arguments)
    inputs = inputs_of().requires_grad_()
    start = some_state(backbone)
    numbers = [tensor.requires_grad_() for tensor in start if tensor.is_floating_point()]
    features, _ = backbone(inputs, start)
    (features * counting_tensor(*features.shape, dtype=torch.float64)).sum().backward()
    assert inputs.grad is not None
    assert all(row.count_nonzero() for row in inputs.grad.flatten(0, 1))
    assert all(tensor.grad is not None and tensor.grad.count_nonzero() for tensor in numbers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@every_backbone
def test_features_and_state_follow_the_dtype_of_the_weights(
    cls: type[Backbone], arguments: dict[str, Any], dtype: torch.dtype
) -> None:
    backbone = make_backbone(cls, arguments).to(dtype)
    assert all(tensor.dtype in (dtype, torch.bool) for tensor in backbone.initial_state(2))
    features, state = backbone(inputs_of(dtype))
    again, _ = backbone(inputs_of(dtype), state, torch.eye(BATCH, STEPS, dtype=torch.bool))
    assert features.dtype == again.dtype == dtype
    assert all(tensor.dtype in (dtype, torch.bool) for tensor in state)
    again.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in backbone.parameters())


@every_backbone
def test_features_and_state_live_where_the_weights_do(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = make_backbone(cls, arguments).to("meta")
    features, state = backbone(inputs_of(torch.float32).to("meta"))
    assert features.is_meta
    assert all(tensor.is_meta for tensor in (*state, *backbone.initial_state(2)))
    features.sum().backward()


@pytest.mark.gpu
@every_backbone
def test_a_gpu_gives_what_the_cpu_gives(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = exact(cls, arguments)
    resets = torch.eye(BATCH, STEPS, dtype=torch.bool)
    expected, last = backbone(inputs_of(), some_state(backbone), resets)
    start = map_state(Tensor.cuda, some_state(backbone))
    features, state = backbone.cuda()(inputs_of().cuda(), start, resets.cuda())
    torch.testing.assert_close(features.cpu(), expected, rtol=1e-8, atol=1e-10)
    assert_same_state(map_state(Tensor.cpu, state), last, rtol=1e-8, atol=1e-10)
    features.sum().backward()


@every_backbone
def test_autocast_trains_and_stays_near_full_precision(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    if cls is RIM:  # rounding may change which mechanism wins a step: compare where none has to lose
        arguments = {**arguments, "num_active": arguments.get("num_mechanisms", 6)}
    backbone = make_backbone(cls, arguments).eval()
    inputs = inputs_of(torch.float32)
    expected, expected_state = backbone(inputs)
    later, _ = backbone(inputs, expected_state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, state = backbone(inputs)
        carried, _ = backbone(inputs, state)
    torch.testing.assert_close(features.float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(carried.float(), later, rtol=0.05, atol=0.05)
    carried.float().square().sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


# oneDNN, which torch's LSTM takes on a CPU, has none in float16
@pytest.mark.parametrize(("cls", "arguments"), [case for case in backbone_cases() if case.values[0] is not LSTM])
def test_autocast_to_float16_keeps_gradients_finite_over_many_steps(
    cls: type[Backbone], arguments: dict[str, Any]
) -> None:
    backbone = make_backbone(cls, arguments).eval()
    with torch.autocast("cpu", dtype=torch.float16):
        features, _ = backbone(3 * random_tensor(BATCH, 40, INPUT_SIZE, seed=1))
    features.float().square().mean().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@every_backbone
def test_saved_weights_loaded_as_plain_data_give_the_same_output(
    cls: type[Backbone], arguments: dict[str, Any]
) -> None:
    backbone = exact(cls, arguments)
    file = io.BytesIO()
    torch.save(backbone.state_dict(), file)
    file.seek(0)
    other = exact(cls, arguments)
    expected, _ = backbone(inputs_of())
    before, _ = other(inputs_of())
    assert not torch.allclose(before, expected)
    other.load_state_dict(torch.load(file, weights_only=True))
    after, _ = other(inputs_of())
    assert torch.equal(after, expected)


@pytest.mark.parametrize("shape", [(3, 6, 4), (6, 5), (3, 0, 5), (0, 6, 5), (3, 6, 2, 2, 5)])
@every_backbone
def test_inputs_of_another_shape_are_refused_with_their_shape(
    cls: type[Backbone], arguments: dict[str, Any], shape: tuple[int, ...]
) -> None:
    backbone = make_backbone(cls, arguments)
    with pytest.raises(ValueError, match=r"got shape \(.*\), input_size=5") as caught:
        backbone(torch.ones(shape))
    assert str(tuple(shape)) in str(caught.value)


@pytest.mark.parametrize("cls", [cls for cls in backbone_classes() if cls is not RIM])
def test_several_slots_are_refused_by_what_reads_one_vector(cls: type[Backbone]) -> None:
    message = rf"This {cls.__name__} reads one vector per step, .* no input slots; got shape \(3, 6, 2, 5\)\. An"
    with pytest.raises(ConfigError, match=rf"{message} encoder with position_wise=True"):
        make_backbone(cls, {})(torch.ones(3, 6, 2, 5))


@pytest.mark.filterwarnings("ignore:The tensor attributes self.recurrent._flat_weights:UserWarning")  # torch's own
@pytest.mark.slow
@every_backbone
def test_an_exported_backbone_takes_any_batch(cls: type[Backbone], arguments: dict[str, Any]) -> None:
    backbone = exact(cls, arguments)
    inputs, start = inputs_of(), some_state(backbone)
    sizes = {0: torch.export.Dim("batch", min=2, max=64)}
    shapes = (sizes, map_state(lambda _: sizes, start))
    exported = torch.export.export(backbone, (inputs, start), dynamic_shapes=shapes).module()
    twice = map_state(lambda part: torch.cat([part, part]), start)
    inputs = torch.cat([inputs, inputs])
    (features, state), (expected, last) = exported(inputs, twice), backbone(inputs, twice)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    assert_same_state(state, last, rtol=1e-10, atol=1e-12)


# where torch breaks the graph at its own LSTM and GRU, it looks at .grad of tensors inside the graph
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.slow
@every_backbone
def test_a_compiled_backbone_gives_what_the_eager_one_gives(
    cls: type[Backbone], arguments: dict[str, Any]
) -> None:
    torch._dynamo.reset()
    if cls is RIM:  # the loop that is traced; the others break the graph
        arguments = {**arguments, "backend": "eager"}
    backbone = exact(cls, arguments)
    start = some_state(backbone)
    # torch.nn's own LSTM and GRU break the graph by torch's choice
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=cls is RIM)
    expected, expected_state = backbone(inputs_of(), start)
    features, state = compiled(inputs_of(), start)
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)
    assert_same_state(state, expected_state, rtol=1e-10, atol=1e-12)
    (features * counting_tensor(*features.shape, dtype=torch.float64)).sum().backward()
    gradients = [parameter.grad.clone() for parameter in backbone.parameters()]
    backbone.zero_grad()
    (expected * counting_tensor(*features.shape, dtype=torch.float64)).sum().backward()
    for gradient, parameter in zip(gradients, backbone.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-11)
