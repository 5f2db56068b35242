"""What follows tensors through Python code: transforms, exporters, compilers, shards, hooks, in-place changes."""

import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from rimlit import RIM
from rimlit.kernels.cpu.build import load
from rimlit.types import detach_state
from tests.conftest import random_tensor
from tests.laws.backbone_cases import SMALL, nested

D, H = 3, 12

FAST = ("eager", "function", "cpu")
CHOICES: dict[str, dict[str, Any]] = {
    "lstm": {},
    "official_gru": {"preset": "official", "cell": "gru"},
    "heads_and_layers": {"input_heads": 2, "num_layers": 2},
    "across_mechanisms": {"selection": "across_mechanisms"},
    "unattended": {"input_attention": False, "num_active": 4},
}
needs_cpu_loop = pytest.mark.skipif(load()[0] is None, reason="the C++ loop cannot be built here")


def make_rim(**arguments: Any) -> RIM:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"num_mechanisms": 4, "num_active": 2, "learn_initial_state": True, **SMALL}
    return RIM(D, H, **nested({**defaults, **arguments})).eval()


def inputs_of(batch_size: int = 2, steps: int = 3, slots: int | None = None) -> Tensor:
    return random_tensor(*((batch_size, steps, D) if slots is None else (batch_size, steps, slots, D)))


# torch.func


def test_functions_of_torch_func_take_the_eager_loop_by_themselves() -> None:
    rim, inputs = make_rim(), inputs_of()
    parameters = dict(rim.named_parameters())

    def loss(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        features, _ = torch.func.functional_call(rim, parameters, (inputs,))
        return features.square().sum()

    found = torch.func.grad(loss)(parameters, inputs)
    expected = torch.autograd.grad(loss(parameters, inputs), list(parameters.values()))
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    of_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, inputs[:, None])
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(of_each[name].sum(dim=0), gradient, rtol=1e-4, atol=1e-5)
    jacobian = torch.func.jacrev(lambda inputs: rim(inputs)[0].sum(dim=(0, 2)))(inputs)
    assert jacobian.shape == (3, 2, 3, D)
    assert not jacobian[0, :, 1:].count_nonzero()  # nothing later changes what was


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # used by torch itself
def test_derivatives_in_forward_mode_name_the_loop_that_has_them() -> None:
    inputs = inputs_of()

    def slope(backend: str) -> Tensor:
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(inputs, torch.ones_like(inputs))
            features, _ = make_rim(backend=backend)(dual)
            tangent: Tensor = torch.autograd.forward_ad.unpack_dual(features).tangent
            return tangent

    assert slope("eager").count_nonzero()
    with pytest.raises(NotImplementedError, match=r"no derivative in forward mode .* use RIM\(backend='eager'\)"):
        slope("function")


# One line for loops that cannot


def call_func(rim: RIM) -> Any:
    return torch.func.vmap(lambda inputs: rim(inputs)[0])(inputs_of(2)[:, None])


def call_export(rim: RIM) -> Any:
    return torch.export.export(rim, (inputs_of(),))


def call_trace(rim: RIM) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.trace(rim, (inputs_of(),))


def call_meta(rim: RIM) -> Any:
    return rim.to("meta")(inputs_of().to("meta"))


CALLS: dict[str, Callable[[RIM], Any]] = {
    "torch.func": call_func,
    "torch.export": call_export,
    "torch.jit.trace": call_trace,
    "the meta device": call_meta,
}


@pytest.mark.parametrize("backend", ["cpu", "function", "reference"])
@pytest.mark.parametrize(("place", "call"), CALLS.items(), ids=CALLS)
def test_a_loop_that_cannot_run_somewhere_names_the_one_that_can(
    place: str, call: Callable[[RIM], Any], backend: str
) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^backend='{backend}': this loop does not run under {place}\. Allowed here: 'auto', 'eager'",
    ):
        call(make_rim(backend=backend))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_auto_takes_the_loop_that_can(call: Callable[[RIM], Any]) -> None:
    assert call(make_rim()) is not None


def test_the_override_of_the_environment_is_named_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIMLIT_BACKEND", "function")
    with pytest.raises(ValueError, match=r"^RIMLIT_BACKEND='function': this loop does not run under the meta"):
        make_rim().to("meta").resolve_backend()


# Exporters


@pytest.mark.parametrize("slots", [None, 2])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_an_exported_rim_takes_any_batch(choice: dict[str, Any], slots: int | None) -> None:
    if slots and choice.get("input_attention") is False:
        pytest.skip("reads one vector per step")
    rim, inputs = make_rim(**choice), inputs_of(3, slots=slots)
    state = detach_state(rim.initial_state(3))
    sizes = {0: torch.export.Dim("batch", min=2, max=64)}
    shapes = (sizes, type(state)(*(sizes for _ in state)))
    exported = torch.export.export(rim, (inputs, state), dynamic_shapes=shapes).module()
    others, start = inputs_of(7, slots=slots), detach_state(rim.initial_state(7))
    torch.testing.assert_close(exported(others, start), rim(others, start), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch would rather export
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of numbers that are the same in every batch
@pytest.mark.parametrize("slots", [None, 2])
def test_a_traced_rim_takes_any_batch(slots: int | None) -> None:
    rim = make_rim(input_heads=2)
    traced = torch.jit.trace(rim, (inputs_of(3, slots=slots),), check_trace=False)
    others = inputs_of(7, slots=slots)
    torch.testing.assert_close(traced(others)[0], rim(others)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_onnx_holds_the_selection(choice: dict[str, Any]) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    rim, inputs, file = make_rim(**choice), inputs_of(3), io.BytesIO()
    sizes = {0: torch.export.Dim("batch", min=2, max=64)}
    torch.onnx.export(rim, (inputs,), file, dynamo=True, dynamic_shapes=(sizes,), verbose=False)
    session = runtime.InferenceSession(file.getvalue())
    others = inputs_of(7)
    features, *_ = session.run(None, {session.get_inputs()[0].name: others.numpy()})
    torch.testing.assert_close(torch.from_numpy(features), rim(others)[0].detach(), rtol=1e-4, atol=1e-5)


# torch.compile


@pytest.fixture
def graphs() -> Iterator[list[int]]:
    """Nodes of every graph that :func:`counting` compiles."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def counting(rim: nn.Module, counts: list[int], **options: Any) -> Callable[..., Any]:
    def compile_graph(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        counts.append(len(graph.graph.nodes))
        return graph.forward

    return torch.compile(rim, backend=compile_graph, **options)


# where a graph breaks, torch looks at .grad of tensors inside it
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("backend", ["auto", "function"])
def test_a_compiled_rim_runs_its_loop_outside_the_graph(backend: str, graphs: list[int]) -> None:
    rim, inputs = make_rim(backend=backend), inputs_of(steps=40)
    encoder = nn.Linear(D, D)
    features, state = counting(nn.Sequential(encoder, rim), graphs)(inputs)
    expected, expected_state = rim(encoder(inputs))
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(state, expected_state)
    assert 0 < sum(graphs) < 40  # fewer nodes than steps
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in rim.parameters())


@needs_cpu_loop
def test_a_single_graph_round_a_loop_outside_it_names_the_one_inside(graphs: list[int]) -> None:
    with pytest.raises(
        torch._dynamo.exc.Unsupported, match=r"fullgraph=True\) build the RIM with backend='eager'"
    ):
        counting(make_rim(), graphs, fullgraph=True)(inputs_of())


def test_a_compiled_eager_loop_serves_batches_of_any_size(graphs: list[int]) -> None:
    rim = make_rim(backend="eager")
    compiled = counting(rim, graphs, fullgraph=True, dynamic=True)
    for batch_size in (5, 7, 9):  # another number than any other size, which torch would take for the same
        inputs = inputs_of(batch_size)
        torch.testing.assert_close(compiled(inputs)[0], rim(inputs)[0], rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


# Sharding, hooks, changes in place


@pytest.fixture
def one_process() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning")
@pytest.mark.parametrize("learn_initial_state", [True, False])
@pytest.mark.parametrize("backend", ["auto", "function", "eager"])
def test_layers_may_be_sharded_one_by_one(backend: str, learn_initial_state: bool, one_process: None) -> None:
    inputs = inputs_of()
    plain, sharded = (
        make_rim(backend=backend, num_layers=2, dropout=0.1, learn_initial_state=learn_initial_state).train()
        for _ in range(2)
    )
    for layer in sharded.layers:
        fully_shard(layer, mesh=distributed.init_device_mesh("cpu", (1,)))
    fully_shard(sharded, mesh=distributed.init_device_mesh("cpu", (1,)))
    for rim in (plain, sharded):
        torch.manual_seed(1)
        rim(inputs)[0].square().sum().backward()
    for own, other in zip(plain.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(other.grad.full_tensor(), own.grad)
    plain.eval(), sharded.eval()
    with torch.no_grad():
        features, _ = sharded.step(inputs[:, 0], plain.initial_state(2))
        torch.testing.assert_close(features, plain.step(inputs[:, 0], plain.initial_state(2))[0])


def test_shards_inside_a_layer_are_refused_with_what_to_shard(one_process: None) -> None:
    rim = make_rim(backend="function")
    fully_shard(rim.layers[0].input_key, mesh=distributed.init_device_mesh("cpu", (1,)))
    with (
        pytest.warns(UserWarning, match="Hooks on input_key"),
        pytest.raises(ValueError, match=r"got weights of type DTensor\. With FSDP shard the RIM or its layers"),
    ):
        rim(inputs_of())


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_hooks_on_a_layer_are_called_by_every_loop(backend: str) -> None:
    rim, called = make_rim(backend=backend), []
    rim.layers[0].register_forward_hook(lambda _, inputs, result: called.append(result[0].shape))
    rim(inputs_of())
    assert called == [(2, 3, 4, 3)]


@pytest.mark.parametrize("has_run", [False, True])
def test_hooks_that_no_loop_calls_are_named_once(has_run: bool) -> None:
    rim = make_rim()
    if has_run:
        rim(inputs_of())
    rim.layers[0].dynamics.hidden.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match=r"Hooks on dynamics\.hidden of a RIM's layer are never called"):
        rim(inputs_of())
    rim(inputs_of())  # a second warning would be an error


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("sizes", [{}, {"num_mechanisms": 1, "num_active": 1}, {"num_mechanisms": H}])
def test_features_may_change_in_place_or_the_loop_that_allows_it_is_named(
    sizes: dict[str, int], backend: str
) -> None:
    rim, inputs = make_rim(backend=backend, **sizes), inputs_of().requires_grad_()
    features, _ = rim(inputs)
    (expected,) = torch.autograd.grad((2 * features).sum(), inputs, retain_graph=True)
    features.mul_(2)
    if backend == "cpu" or (backend == "function" and sizes):  # elsewhere the loop reads a copy
        with pytest.raises(
            RuntimeError, match=r"was changed in place after the forward.* use RIM\(backend='eager'\)"
        ):
            torch.autograd.grad(features.sum(), inputs)
    else:
        (gradient,) = torch.autograd.grad(features.sum(), inputs)
        torch.testing.assert_close(gradient, expected)
