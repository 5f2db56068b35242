"""Loops in CUDA graphs: what is recorded and kept, on the CPU; that it gives the same, traced and on a GPU."""

import logging
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rimlit import RIM
from rimlit.kernels import graphs
from tests.conftest import counting_tensor, random_tensor
from tests.kernels.test_backends import CASES, assert_agree, run
from tests.kernels.test_triton import ONE_SLOT, TILES, TOLERANCE, compiled
from tests.laws.backbone_cases import SMALL, nested

LIMIT = 10**9
TELLING = ("resets", "paper_tanh_gru", "dropout_everywhere", "tokens_two_heads")


# What a graph would do, on the CPU


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> graphs._Graphs:
    """Loops are traced where a GPU would record them, and the trace runs on what its inputs then hold."""
    kept = graphs._Graphs()
    monkeypatch.setattr(graphs, "_capture", trace)
    monkeypatch.setattr(graphs, "run", lambda *arguments: kept.run(*arguments, "stream", LIMIT))
    return kept


def trace(
    function: graphs.Function, plan: Any, inputs: graphs.Tensors, stream: Any, pool: Any
) -> tuple[Any, Any, Any]:
    there = [tensor for tensor in inputs if tensor is not None]

    def of_those_there(*tensors: Tensor) -> list[Tensor]:
        rest = iter(tensors)
        results = function(plan, tuple(None if tensor is None else next(rest) for tensor in inputs))
        return [result for result in results if result is not None]

    steps = make_fx(of_those_there)(*there)
    results = function(plan, inputs)

    def replay() -> None:
        new = iter(steps(*there))
        for result in results:
            if result is not None:
                result.copy_(next(new))

    return results, replay, pool


def call_again(
    function: graphs.Function, plan: Any, inputs: graphs.Tensors, stream: Any, pool: Any
) -> tuple[Any, Any, Any]:
    """Stand for a graph where not how it computes is asked for, but what is kept."""
    results = function(plan, inputs)

    def replay() -> None:
        for result, new in zip(results, function(plan, inputs), strict=True):
            if result is not None:
                result.copy_(new)

    return results, replay, pool


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if name in TELLING else pytest.mark.slow) for name in CASES]
)
def test_a_loop_that_is_replayed_agrees_with_the_reference_in_everything(
    case: str, traced: graphs._Graphs
) -> None:
    arguments = {"steps": 2} | CASES[case]
    for draw in (1, 2):  # launched, then recorded, with other weights, inputs, resets and dropout
        run("function", arguments, torch.float64, draw=draw)
    recorded = set(traced.recorded)
    replayed = run("function", arguments, torch.float64)
    assert recorded
    assert set(traced.recorded) == recorded
    assert_agree(replayed, run("reference", arguments, torch.float64), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_a_loop_waits_for_nothing_on_the_host(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walks, run_now = [], graphs.run
    monkeypatch.setattr(graphs, "run", lambda *arguments: walks.append(arguments) or run_now(*arguments))
    run("function", CASES[case], torch.float64)
    assert walks
    for function, plan, tensors in walks:
        without_numbers = tuple(None if tensor is None else tensor.to("meta") for tensor in tensors)
        with OnlyMeta(), torch.no_grad():  # who asks for a number fails
            function(plan, without_numbers)


class OnlyMeta(TorchDispatchMode):
    """Whoever makes a tensor elsewhere would copy it to the GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, results)):
            assert not isinstance(leaf, Tensor) or leaf.device.type == "meta", function
        return results


def test_a_graph_that_was_recorded_in_inference_mode_serves_training_and_the_other_way(
    traced: graphs._Graphs,
) -> None:
    rim = make_rim()
    with torch.no_grad():
        expected, _ = rim(make_inputs())
    results = []
    for is_inference in (True, True, False, True):
        with torch.inference_mode(is_inference), torch.no_grad():
            results.append(rim(make_inputs())[0])
    assert len(traced.recorded) == 1
    assert [tensor.is_inference() for tensor in results] == [True, True, False, True]
    assert all(torch.equal(features, expected) for features in results)


def test_parts_that_are_computed_again_share_one_graph_each_way(
    traced: graphs._Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_capture", call_again)

    def kept(steps: int, checkpoint_every: int | None) -> tuple[int, int]:
        traced.clear()
        rim = make_rim(checkpoint_every=checkpoint_every)
        for _ in range(2):
            rim(make_inputs(steps=steps))[0].sum().backward()
        return len(traced.recorded), sum(graph.num_bytes for graph in traced.recorded.values())

    number, num_bytes = kept(12, 3)
    assert number == 2
    assert kept(24, 3) == (number, num_bytes)
    assert kept(24, None)[0] == 2
    assert kept(24, None)[1] > 4 * num_bytes


def test_who_watches_has_a_graph_forward_and_shares_the_one_back(
    traced: graphs._Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_capture", call_again)
    rim = make_rim()
    for _ in range(2):
        rim(make_inputs())[0].sum().backward()
        with rim.record_activity() as activities:
            rim(make_inputs())[0].sum().backward()
        assert activities[0].communication is not None
    assert len(traced.recorded) == 3


def make_rim(**arguments: Any) -> RIM:
    torch.manual_seed(0)
    arguments = {"num_mechanisms": 4, "num_active": 2, "learn_initial_state": True, **nested(SMALL), **arguments}
    return RIM(3, 12, backend="function", **arguments).double().eval()


def make_inputs(steps: int = 4) -> Tensor:
    return random_tensor(2, steps, 3, dtype=torch.float64)


# What is recorded, and what makes room


def double(_: Any, tensors: graphs.Tensors) -> graphs.Tensors:
    return (2 * tensors[0], None)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> graphs._Graphs:
    monkeypatch.setattr(graphs, "_capture", call_again)
    return graphs._Graphs()


def sizes(kept: graphs._Graphs) -> list[int]:
    return [graph.inputs[0].numel() for graph in kept.recorded.values()]


def call(kept: graphs._Graphs, *numbers: int, limit: int = LIMIT, plan: str = "plan") -> None:
    for number in numbers:
        kept.run(double, plan, (counting_tensor(number), None), "stream", limit)


def test_a_graph_is_recorded_when_a_shape_comes_back(kept: graphs._Graphs) -> None:
    call(kept, 2, 3)
    assert sizes(kept) == []
    call(kept, 2)
    assert sizes(kept) == [2]
    graph = next(iter(kept.recorded.values()))
    call(kept, 2, 3)
    assert sizes(kept) == [2, 3]
    assert next(iter(kept.recorded.values())) is graph


def test_another_stream_type_plan_or_precision_is_another_graph(
    kept: graphs._Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = counting_tensor(2)
    precision = ("ieee", False)
    monkeypatch.setattr(graphs, "_precision", lambda: precision)
    for _ in range(2):
        kept.run(double, "plan", (numbers,), "stream", LIMIT)
        kept.run(double, "plan", (numbers,), "another", LIMIT)
        kept.run(double, "plan", (numbers.double(),), "stream", LIMIT)
        kept.run(double, "other plan", (numbers,), "stream", LIMIT)
    assert len(kept.recorded) == 4
    precision = ("tf32", False)
    for _ in range(2):
        kept.run(double, "plan", (numbers,), "stream", LIMIT)
    assert len(kept.recorded) == 5


def test_the_precision_of_products_is_read_where_torch_keeps_it() -> None:
    before = torch.get_float32_matmul_precision()
    exact = graphs._precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert graphs._precision() != exact
    finally:
        torch.set_float32_matmul_precision(before)


def test_results_are_copies_and_any_layout_is_read(kept: graphs._Graphs) -> None:
    results = []
    for tensor in (
        counting_tensor(2, 3),
        counting_tensor(3, 2).t(),
        counting_tensor(2, 1).expand(2, 3),
        counting_tensor(2, 3).add(1).requires_grad_(),
    ):
        result, nothing = kept.run(double, "plan", (tensor, None), "stream", LIMIT)
        assert nothing is None
        results.append((tensor, result))
    assert len(kept.recorded) == 1
    assert all(torch.equal(result, 2 * tensor) for tensor, result in results)


def test_a_graph_makes_room_only_after_it_was_long_unused(
    kept: graphs._Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    monkeypatch.setattr(graphs, "PATIENCE", 6)
    call(kept, 2, 2, 3, 3)
    for _ in range(3):  # lengths that take turns: nothing is recorded again
        call(kept, 4, 3, 2)
    assert sizes(kept) == [3, 2]
    call(kept, 4, 2, 2, 2)
    assert sizes(kept) == [3, 2]
    call(kept, 2, 4)
    assert sizes(kept) == [2, 4]


def test_what_graphs_keep_has_a_limit(kept: graphs._Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PATIENCE", 2)
    both = 2 * 4  # bytes of a number in and out
    call(kept, 10, 10, 10, limit=10 * both - 1)
    assert sizes(kept) == []  # too large, however often
    call(kept, 3, 3, 5, 5, limit=8 * both)
    assert sizes(kept) == [3, 5]
    call(kept, 1, 1, limit=8 * both)
    assert sizes(kept) == [5, 1]  # the first one made room
    assert sum(graph.num_bytes for graph in kept.recorded.values()) == 6 * both
    kept.clear()
    call(kept, 5)
    assert sizes(kept) == []


def test_shapes_that_do_not_come_back_are_forgotten(kept: graphs._Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PATIENCE", 3)
    call(kept, 1, 2, 3, 4, 1)
    assert sizes(kept) == []
    call(kept, 3)
    assert sizes(kept) == [3]


def test_what_finds_no_memory_is_launched_and_others_are_recorded(
    kept: graphs._Graphs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = count()

    def fail(function: Any, plan: Any, inputs: Any, stream: Any, pool: Any) -> Any:
        if len(inputs[0]) == 2:
            next(tried)
            raise torch.OutOfMemoryError("no memory")
        return call_again(function, plan, inputs, stream, pool)

    monkeypatch.setattr(graphs, "_capture", fail)
    with caplog.at_level(logging.WARNING, logger="rimlit"):
        call(kept, 2, 2, 2, 2, 3, 3)
    assert next(tried) == 1
    assert sizes(kept) == [3]
    assert "no memory for a CUDA graph" in caplog.text


def test_what_cannot_be_recorded_is_launched_and_tried_once(
    kept: graphs._Graphs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = count()

    def fail(*_: Any) -> None:
        next(tried)
        raise RuntimeError("a stream that forbids it")

    monkeypatch.setattr(graphs, "_capture", fail)
    with caplog.at_level(logging.WARNING, logger="rimlit"):
        call(kept, 2, 2, 2, 3, 3)
        results = kept.run(double, "plan", (counting_tensor(2), None), "stream", LIMIT)
    assert next(tried) == 1
    assert torch.equal(results[0], 2 * counting_tensor(2))
    assert caplog.messages == [
        "The time loop cannot be recorded in a CUDA graph and is launched step by step: a stream that forbids it"
    ]


def test_graphs_of_a_stream_share_their_scratch(kept: graphs._Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = []

    def remember(function: Any, plan: Any, inputs: Any, stream: Any, pool: Any) -> Any:
        pools.append(pool)
        return *call_again(function, plan, inputs, stream, pool)[:2], pool or f"pool {len(pools)}"

    monkeypatch.setattr(graphs, "_capture", remember)
    for stream in ("one", "one", "two"):
        for _ in range(2):
            kept.run(double, len(pools), (counting_tensor(2),), stream, LIMIT)
    assert pools == [None, "pool 1", None]


def test_on_the_cpu_nothing_is_copied_or_kept() -> None:
    tensors = (None, counting_tensor(3, 2).t())
    for _ in range(3):
        assert graphs.run(lambda _, given: given, "plan", tensors) is tensors
    assert not graphs._graphs.recorded
    assert not graphs._graphs.launched


def test_on_a_gpu_auto_takes_the_loop_that_is_captured() -> None:
    name, reason = RIM(4, 12).resolve_backend(device=torch.device("cuda"))
    assert name == "function"
    assert reason.startswith("cpu: runs float32 and float64 on the CPU; got weights of torch.float32 on cuda")


# On a GPU: launched, recorded, replayed


@pytest.fixture
def recorded() -> Iterator[Any]:
    graphs.clear()
    yield graphs._graphs.recorded
    graphs.clear()


# the Triton loop supports one slot
EITHER_CASE = [("function", case) for case in [*CASES, "tiles"]] + [
    pytest.param("triton", case, marks=compiled) for case in [*ONE_SLOT, "tiles"]
]
quiet = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 announces another default
either = pytest.mark.parametrize("backend", ["function", pytest.param("triton", marks=compiled)])


@pytest.mark.gpu
@quiet
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize(("backend", "case"), EITHER_CASE)
def test_a_loop_agrees_on_a_gpu_launched_recorded_and_replayed(
    backend: str, case: str, dtype: torch.dtype, recorded: Any
) -> None:
    arguments = TILES if case == "tiles" else CASES[case]
    for draw in (1, 2, 0):
        found = run(backend, arguments, dtype, torch.device("cuda"), draw)
        assert recorded or draw == 1
        assert_agree(found, run("eager", arguments, dtype, torch.device("cuda"), draw), **TOLERANCE[dtype])


@pytest.mark.gpu
@quiet
@either
@pytest.mark.parametrize("case", ["resets", "two_layers", "dropout_everywhere"])
def test_parts_that_are_computed_again_agree_on_a_gpu(backend: str, case: str, recorded: Any) -> None:
    arguments = CASES[case] | {"checkpoint_every": 3}
    expected = run("eager", CASES[case], torch.float64, torch.device("cuda"))
    for _ in range(3):
        found = run(backend, arguments, torch.float64, torch.device("cuda"))
        assert_agree(found, expected, **TOLERANCE[torch.float64])
    assert recorded


@pytest.mark.gpu
@quiet
@either
def test_shapes_may_change_on_a_gpu(backend: str, recorded: Any) -> None:
    for steps in (2, 3, 2, 3, 5, 3, 2):
        arguments = {"steps": steps, "resets": True}
        expected = run("eager", arguments, torch.float64, torch.device("cuda"))
        found = run(backend, arguments, torch.float64, torch.device("cuda"))
        assert_agree(found, expected, **TOLERANCE[torch.float64])
    assert len(recorded) == 4


@pytest.mark.gpu
@quiet
@either
def test_autocast_and_inference_mode_take_the_same_way_on_a_gpu(backend: str, recorded: Any) -> None:
    rims = {}
    for name in ("eager", backend):
        torch.manual_seed(0)
        rims[name] = RIM(3, 12, num_mechanisms=4, num_active=2, backend=name, **nested(SMALL)).cuda().eval()
    for seed in range(3):
        inputs = random_tensor(2, 5, 3, seed=seed).cuda()
        results = {}
        for name, rim in rims.items():
            rim.zero_grad()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                features, _ = rim(inputs)
            features.square().sum().backward()
            with torch.inference_mode():
                again, _ = rim(inputs)
            results[name] = (features, again, *(parameter.grad for parameter in rim.parameters()))
        for found, expected in zip(results[backend], results["eager"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    assert len(recorded) == 3  # forward and back, and forward alone
