"""The C++ loop where C++ goes wrong: odd sizes, changing sizes, threads, forks, bad numbers, builds."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rimlit import RIM
from rimlit.kernels import cpu
from rimlit.kernels.cpu import call, memory, tiles
from rimlit.kernels.cpu.build import load
from rimlit.kernels.layer import LayerInputs
from rimlit.kernels.projection import project, project_halfway
from tests.conftest import random_tensor
from tests.kernels.test_backends import CASES, assert_agree, run

pytestmark = pytest.mark.skipif(load()[0] is None, reason="the C++ loop cannot be built here")

# sizes that are not a multiple of a vector, smaller than one, just above one, and around the tiles of product.h
ODD = [
    {"input_size": 1, "size": 1, "num_mechanisms": 1, "num_active": 1, "batch": 1, "steps": 1},
    {"input_size": 7, "size": 5, "num_mechanisms": 3, "num_active": 2, "batch": 9, "steps": 6},
    {"input_size": 33, "size": 17, "num_mechanisms": 5, "num_active": 1, "batch": 2, "steps": 11},
    {"input_size": 16, "size": 32, "num_mechanisms": 6, "num_active": 4, "batch": 35, "steps": 3},
    {"input_size": 50, "size": 49, "num_mechanisms": 2, "num_active": 2, "batch": 17, "steps": 5},
    {"input_size": 3, "size": 8, "num_mechanisms": 16, "num_active": 3, "batch": 3, "steps": 40},
    {"input_size": 20, "size": 13, "num_mechanisms": 4, "num_active": 3, "batch": 150, "steps": 2},
]
# enough rows for the tiles of amx.h, of which the last ones are not full
TILED = {"input_size": 70, "size": 41, "num_mechanisms": 2, "num_active": 2, "batch": 77, "steps": 3}
ODD.append(TILED)
# rows enough for values to be multiplied ahead, in two goes of which the second is not full
AHEAD = {"input_size": 40, "size": 23, "num_mechanisms": 3, "num_active": 2, "batch": 30, "steps": 14}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("folds_values", [True, False])
def test_threads_and_where_values_are_multiplied_change_nothing(
    count: int, folds_values: bool, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(count)
    monkeypatch.setattr(cpu, "folds_values", lambda *_: folds_values)
    for case in CASES.values():
        assert_agree(run("cpu", case, torch.float64), run("eager", case, torch.float64), rtol=1e-9, atol=1e-11)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the loops of a test multiply values ahead, call by call; values do not hold the cell's weights."""
    decisions: list[bool] = []
    decide = call.Call._multiplies_ahead

    def note(call: Any) -> bool:
        decisions.append(decide(call))
        return decisions[-1]

    monkeypatch.setattr(call.Call, "_multiplies_ahead", note)
    monkeypatch.setattr(cpu, "folds_values", lambda *_: False)
    return decisions


@pytest.mark.parametrize("count", [1, 3])
def test_a_gradient_keeps_no_memory_of_other_threads(count: int, threads: Any) -> None:
    threads(count)
    rim = RIM(5, 12, num_mechanisms=3, num_active=2, backend="cpu")
    features, _ = rim(random_tensor(4, 3, 5))
    features.sum().backward()
    for parameter in rim.parameters():
        assert parameter.grad is not None
        assert parameter.grad.untyped_storage().nbytes() == parameter.grad.nbytes


def gradients_of(backend: str, dtype: torch.dtype, options: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    options = dict(options)
    input_size, size, batch, steps = (options.pop(name) for name in ("input_size", "size", "batch", "steps"))
    torch.manual_seed(0)
    rim = RIM(input_size, size * options["num_mechanisms"], backend=backend, learn_initial_state=True, **options)
    rim = rim.to(dtype).eval()
    features, _ = rim(random_tensor(batch, steps, input_size, dtype=dtype))
    return features, list(torch.autograd.grad(features.square().sum(), list(rim.parameters())))


@pytest.mark.parametrize("count", [1, 2])
def test_odd_sizes_one_after_the_other_agree(count: int, threads: Any) -> None:
    threads(count)
    for preset in ("paper", "official"):
        for cell in ("lstm", "gru"):
            for sizes in [*ODD, *reversed(ODD)]:  # a workspace that is used again has grown and is too large
                options = {**sizes, "preset": preset, "cell": cell}
                features, gradients = gradients_of("cpu", torch.float64, options)
                expected, expected_gradients = gradients_of("eager", torch.float64, options)
                torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-11)
                for gradient, other in zip(gradients, expected_gradients, strict=True):
                    torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("folds_values", [True, False])
@pytest.mark.parametrize("sizes", [{**ODD[3], "steps": 20}, TILED], ids=["few_rows", "many_rows"])
def test_single_precision_is_as_near_to_double_as_the_eager_loop(
    sizes: dict[str, Any], folds_values: bool, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "folds_values", lambda *_: folds_values)
    options = {**sizes, "cell": cell}
    _, exact = gradients_of("eager", torch.float64, options)

    def errors(backend: str) -> list[float]:
        _, gradients = gradients_of(backend, torch.float32, options)
        return [
            ((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(gradients, exact, strict=True)
        ]

    for ours, theirs in zip(errors("cpu"), errors("eager"), strict=True):
        assert ours < 3 * theirs + 3e-7  # some five roundings


AHEAD_CASES: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru_two_heads": {"cell": "gru", "input_heads": 2},
    "separate_projections": {"input_sharing": "independent", "input_heads": 2},
    "official": {"preset": "official", "num_active": 3},
    "official_gru": {"preset": "official", "cell": "gru", "input_sharing": "independent"},
    "across_mechanisms": {"selection": "across_mechanisms"},
    "recomputed": {"input_size": 80, "checkpoint_every": 13},  # the first part has too few rows
    "recomputed_official": {"input_size": 80, "steps": 28, "checkpoint_every": 14, "preset": "official"},
    "recomputed_apart": {"input_size": 80, "steps": 28, "checkpoint_every": 14, "input_sharing": "independent"},
    "recomputed_together": {"input_size": 80, "steps": 28, "checkpoint_every": 14},
    "one_row_for_many_samples": {"batch": 300, "steps": 2},
}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", AHEAD_CASES.values(), ids=AHEAD_CASES)
def test_values_that_are_multiplied_ahead_give_what_the_eager_loop_gives(
    case: dict[str, Any], count: int, threads: Any, ahead: list[bool]
) -> None:
    threads(count)
    options = {**AHEAD, **case}
    features, gradients = gradients_of("cpu", torch.float32, options)
    assert any(ahead) == tiles.are_available()
    exact_features, exact = gradients_of("eager", torch.float64, options)
    _, theirs = gradients_of("eager", torch.float32, options)
    torch.testing.assert_close(features.double(), exact_features, rtol=1e-5, atol=1e-6)

    def error(gradient: Tensor, exact: Tensor) -> float:
        return ((gradient.double() - exact).abs().max() / exact.abs().max()).item()

    for ours, other, truth in zip(gradients, theirs, exact, strict=True):
        assert error(ours, truth) < 4 * error(other, truth) + 1e-6


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_dropout_of_the_input_is_the_same_where_values_are_multiplied_ahead(
    cell: str, ahead: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for has_tiles in (tiles.are_available(), False):
        monkeypatch.setattr(tiles, "are_available", lambda has_tiles=has_tiles: has_tiles)
        torch.manual_seed(0)
        rim = RIM(
            40, 69, num_mechanisms=3, num_active=2, cell=cell, input_heads=2, input_dropout=0.4, backend="cpu"
        )
        inputs = random_tensor(AHEAD["batch"], AHEAD["steps"], 40).requires_grad_()
        features, _ = rim.train()(inputs)
        found.append(torch.autograd.grad(features.square().sum(), [inputs, *rim.parameters()]))
        assert any(ahead) == has_tiles
        ahead.clear()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("place", ["inputs", "input", "hidden", "gradient"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3.4e38])
def test_numbers_that_tiles_cannot_hold_spoil_what_they_spoil_without_tiles(
    bad: float, place: str, ahead: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for has_tiles in (tiles.are_available(), False):
        monkeypatch.setattr(tiles, "are_available", lambda has_tiles=has_tiles: has_tiles)
        torch.manual_seed(0)
        rim = RIM(AHEAD["input_size"], 3 * AHEAD["size"], num_mechanisms=3, num_active=2, backend="cpu").eval()
        inputs = random_tensor(AHEAD["batch"], AHEAD["steps"], AHEAD["input_size"]) / 100  # no product overflows
        if place == "inputs":
            inputs[5, 3, 7] = bad
        elif place != "gradient":
            with torch.no_grad():
                weight = getattr(rim.layers[0].dynamics, place).weight
                weight[1, 5, 7] = bad
        features, _ = rim(inputs.requires_grad_())
        gradient = torch.ones_like(features)
        if place == "gradient":
            gradient[5, 3, 7] = bad
        gradients = torch.autograd.grad(features, [inputs, *rim.parameters()], gradient)
        found.append([features.detach(), *gradients])
        assert any(ahead) == has_tiles
        ahead.clear()
    non_finite = [[~torch.isfinite(tensor) for tensor in tensors] for tensors in found]
    if bad != 3.4e38:
        assert any(bool(tensor.any()) for tensor in non_finite[0])
    assert any(not bool(tensor.all()) for tensor in non_finite[0])
    for ours, theirs in zip(*non_finite, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_parts_agree_with_the_whole_in_everything(case: dict[str, Any], every: int, threads: Any) -> None:
    threads(2)
    case = case | {"steps": 7}
    parts = run("cpu", case | {"checkpoint_every": every}, torch.float64)
    assert_agree(parts, run("cpu", case, torch.float64), rtol=1e-10, atol=1e-12)


def test_the_backward_pass_over_parts_leaves_what_the_forward_pass_returned() -> None:
    torch.manual_seed(0)
    rim = RIM(4, 12, num_mechanisms=4, num_active=2, backend="cpu", checkpoint_every=3)
    features, state = rim(random_tensor(2, 8, 4))
    before = [tensor.clone() for tensor in (features, *state)]
    gradients = [
        torch.autograd.grad(features.square().sum(), list(rim.parameters()), retain_graph=True) for _ in range(2)
    ]
    for tensor, copy in zip((features, *state), before, strict=True):
        assert torch.equal(tensor, copy)
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("input_size", [3, 60])
def test_what_is_kept_of_a_projection_comes_to_the_whole_of_it(input_size: int, heads: int) -> None:
    torch.manual_seed(0)
    rim = RIM(
        input_size, 12, num_mechanisms=2, num_active=1, input_heads=heads, input_key_size=5, input_value_size=7
    )
    layer, state = rim.layers[0], rim.initial_state(4)
    inputs = LayerInputs(
        random_tensor(4, 6, 1, input_size), None, state, state, None, None, None, None, record=False
    )
    _, whole = project(layer, layer.weights(), inputs)
    weights, kept = project_halfway(layer, layer.weights(), inputs, tiles.multiply)
    assert (kept.keys.shape[-1], kept.values.shape[-1]) == ((3, 3) if input_size == 3 else (5, 7))
    query = weights.input_query.unflatten(-1, (heads, -1)) / kept.keys.shape[-1] ** 0.5
    keys = torch.einsum("tbik,mdik->mtbid", kept.keys[0, :, :, 0], query)
    torch.testing.assert_close(keys, whole.keys, rtol=1e-5, atol=1e-6)
    cell_input = weights.cell_input.unflatten(1, (heads, -1))
    values = torch.einsum("tbiv,mivg->mtbig", kept.values[0, :, :, 0], cell_input)
    torch.testing.assert_close(values, whole.values, rtol=1e-5, atol=1e-6)


def test_values_of_a_narrow_input_are_the_input_itself() -> None:
    rim = RIM(3, 12, num_mechanisms=2, num_active=1, input_value_size=7)
    layer, state = rim.layers[0], rim.initial_state(4)
    sequence = random_tensor(4, 60, 1, 3)
    inputs = LayerInputs(sequence, None, state, state, None, None, None, None, record=False)
    assert not cpu.folds_values(layer, layer.weights(), inputs)
    own = {"folds_values": False, "by_samples": True, "multiply": tiles.multiply}
    weights, kept = project(layer, layer.weights(), inputs, **own)
    assert weights.cell_input.shape[1] == 3
    torch.testing.assert_close(kept.values[0, :, :, 0, 0], sequence[:, :, 0].transpose(0, 1), rtol=0, atol=0)
    _, folded = project(layer, layer.weights(), inputs)
    values = torch.einsum("tbv,mvg->mtbg", kept.values[0, :, :, 0, 0], weights.cell_input)
    torch.testing.assert_close(values, folded.values[..., 0, :], rtol=1e-5, atol=1e-6)


def test_the_first_pass_of_a_part_that_is_computed_again_keeps_no_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    allocate = memory.empty_together

    def note(shapes: dict[str, tuple[int, ...]], *arguments: Any) -> dict[str, Tensor]:
        kept.extend(shape[0] for name, shape in shapes.items() if name == "gates")
        return allocate(shapes, *arguments)

    monkeypatch.setattr(memory, "empty_together", note)
    rim = RIM(4, 12, num_mechanisms=4, num_active=2, backend="cpu", checkpoint_every=3)
    features, _ = rim(random_tensor(2, 8, 4))
    assert kept == [1, 1, 3]  # steps
    features.sum().backward()
    assert kept[3:] == [3, 2]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("slots", [1, 3])
def test_a_bad_number_spoils_its_own_sample_only(bad: float, slots: int) -> None:
    rim = RIM(4, 12, num_mechanisms=4, num_active=2, backend="cpu").eval()
    inputs = random_tensor(3, 5, slots, 4)
    expected, _ = rim(inputs)
    inputs[1, 2, 0, 1] = bad
    with rim.record_activity() as activities:
        features, _ = rim(inputs)
    rim.backend = "eager"
    with rim.record_activity() as theirs:
        torch.testing.assert_close(features, rim(inputs)[0], rtol=1e-4, atol=1e-5, equal_nan=True)
    assert torch.equal(activities[0].active, theirs[0].active)
    # close, not equal: which rows a product holds decides how its sums are ordered
    torch.testing.assert_close(features[[0, 2]], expected[[0, 2]], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features[1, :2], expected[1, :2], rtol=1e-5, atol=1e-6)
    assert (activities[0].active.sum(dim=-1) == 2).all()
    features.sum().backward()  # and nothing is read outside its tensor


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3.4e38])
def test_numbers_that_are_not_finite_spoil_the_same_gradients_as_in_the_eager_loop(
    bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "folds_values", lambda *_: False)
    found = []
    for backend in ("cpu", "eager"):
        torch.manual_seed(0)
        options = {"num_mechanisms": 2, "num_active": 2, "communication": "none", "backend": backend}
        rim = RIM(TILED["input_size"], 2 * TILED["size"], **options).eval()
        features, _ = rim(random_tensor(TILED["batch"], 1, TILED["input_size"]))
        gradient = torch.ones_like(features)
        gradient[5, 0, 7] = bad  # of one gate's units in the first mechanism
        found.append(torch.autograd.grad(features, list(rim.parameters()), gradient))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found[1]) == (bad == 3.4e38)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True)  # and infinities are equal


class Rolled(Dataset[Tensor]):
    """Each item is what a RIM makes of it, computed in the worker."""

    def __init__(self, rim: RIM) -> None:
        self.rim = rim

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return features_of(self.rim, index)


def features_of(rim: RIM, index: int) -> Tensor:
    features, _ = rim(random_tensor(5, 3, 4, seed=index))
    return features.detach()


def test_it_runs_in_workers_that_were_forked_after_it_had_run(threads: Any) -> None:
    threads(2)
    rim = RIM(4, 12, num_mechanisms=4, num_active=2, backend="cpu").eval()
    expected = [features_of(rim, index) for index in range(4)]
    loader = DataLoader(Rolled(rim), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for features, other in zip(loader, expected, strict=True):
        torch.testing.assert_close(features, other, rtol=1e-6, atol=1e-7)


def test_it_runs_with_threads_of_its_own_after_a_fork(threads: Any) -> None:
    threads(2)
    rim = RIM(4, 12, num_mechanisms=4, num_active=2, backend="cpu").eval()
    features_of(rim, 0)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        torch.set_num_threads(1)  # OpenMP's threads did not survive the fork; the loop starts its own
        torch.get_num_threads = lambda: 2
        features_of(rim, 1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_it_runs_with_threads_of_its_own_where_it_was_only_loaded_before_a_fork() -> None:
    code = """
import os, signal, torch
from rimlit import RIM
from rimlit.kernels.cpu.build import load
torch.set_num_threads(2)
load()
torch.ones(2**22).exp().sum()  # OpenMP's threads are there, and will not be in the fork
child = os.fork()
if child == 0:
    signal.alarm(20)
    torch.set_num_threads(1)
    torch.get_num_threads = lambda: 2
    RIM(4, 12, num_mechanisms=4, num_active=2, backend="cpu")(torch.ones(5, 3, 4))
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    output, errors = start(code).communicate(timeout=60)
    assert output.strip() == "0", errors


@pytest.mark.parametrize("checkpoint_every", [None, 2])
def test_another_number_of_threads_for_the_derivative_changes_nothing(
    checkpoint_every: int | None, threads: Any
) -> None:
    def gradients(backward_threads: int) -> list[Tensor]:
        torch.manual_seed(0)
        rim = RIM(4, 12, num_mechanisms=4, num_active=2, backend="cpu", checkpoint_every=checkpoint_every).double()
        threads(2)
        features, _ = rim.eval()(random_tensor(5, 6, 4, dtype=torch.float64))
        threads(backward_threads)
        return list(torch.autograd.grad(features.sum(), list(rim.parameters())))

    for gradient, other in zip(gradients(3), gradients(1), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)


def test_the_struct_of_a_call_is_built_from_what_the_library_says() -> None:
    kind = call.structure("arguments")
    names = [name for name, _ in kind._fields_]
    assert names[:3] == ["batch", "steps", "mechanisms"]
    assert {"keys", "into_cell_bias", "others_communication_bias"} <= set(names)
    with pytest.raises(AttributeError, match="no attribute 'bacth'"):
        kind(bacth=3)


def test_a_struct_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = call.loaded()

    class Other:
        rimlit_arguments_size = staticmethod(lambda: 8)
        rimlit_arguments_fields = library.rimlit_arguments_fields

    monkeypatch.setattr(call, "loaded", Other)
    with pytest.raises(RuntimeError, match=r"The C\+\+ loop's arguments has 8 bytes and its declarations \d+\."):
        call.structure.__wrapped__("arguments")


def test_a_failure_in_cpp_arrives_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = call.Call.arguments

    def with_bad_threads(self: Any, *args: Any) -> Any:
        found = arguments(self, *args)
        found.threads = -1
        return found

    monkeypatch.setattr(call.Call, "arguments", with_bad_threads)
    rim = RIM(5, 12, num_mechanisms=3, num_active=2, backend="cpu")
    with pytest.raises(RuntimeError, match=r"The C\+\+ time loop failed: .*vector"):
        rim(random_tensor(4, 3, 5))


def test_tensors_elsewhere_are_refused_by_name() -> None:
    rim = RIM(4, 12, num_mechanisms=4, num_active=2, backend="cpu").eval()
    with pytest.raises(ValueError, match=r"reads tensors on the CPU; got inputs on meta"):
        rim.stepper()(torch.ones(1, 4, device="meta"), rim.initial_state(1))
    with pytest.raises(ValueError, match=r"reads tensors on the CPU; got resets on meta"):
        rim(torch.ones(1, 3, 4), resets=torch.zeros(1, 3, dtype=torch.bool, device="meta"))


RUN = """
import sys, torch
torch.set_num_threads(2)
from rimlit import RIM
rim = RIM(5, 12, num_mechanisms=3, num_active=2)
features, _ = rim(torch.ones(4, 6, 5))
features.sum().backward()
print(*rim.resolve_backend(), sep="|")
"""


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_without_a_working_compiler_another_loop_runs_and_one_line_says_why(tmp_path: Path) -> None:
    process = start(RUN, RIMLIT_CACHE=str(tmp_path), RIMLIT_CXXFLAGS="--no-such-flag")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.startswith("function|cpu: is not built: C++ cannot be used")
    assert errors.count("the slower 'function' runs instead") == 1
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = start(RUN, RIMLIT_CACHE=str(tmp_path / "file"))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.startswith("function|")


@pytest.mark.slow
def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    processes = [start(RUN, RIMLIT_CACHE=str(tmp_path)) for _ in range(3)]
    results = [process.communicate(timeout=300) for process in processes]
    assert [output.split("|")[0] for output, _ in results] == ["cpu"] * 3
    assert sum(errors.count("Building the C++ time loop") for _, errors in results) == 1
    assert len(list(tmp_path.glob("*/loop.so"))) == 1


@pytest.mark.slow
def test_it_touches_no_memory_that_is_not_its_own(tmp_path: Path) -> None:
    library = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("the compiler has no AddressSanitizer")
    runtime = subprocess.run(
        ["g++", "-print-file-name=libstdc++.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    code = """
import torch
from rimlit.kernels import cpu
from rimlit.kernels.cpu import tiles
from rimlit.kernels.cpu.build import load
from tests.kernels.test_cpu import AHEAD, AHEAD_CASES, ODD, gradients_of
from tests.kernels.test_backends import CASES, run
cpu.folds_values = lambda *_: False
tiles._LEAST_ROWS = tiles._LEAST_SIZE = tiles._LEAST_WORK = 1
for threads in (1, 2):
    torch.set_num_threads(threads)
    for sizes in ODD + ODD[::-1]:
        gradients_of("cpu", torch.float32, sizes)
    for case in AHEAD_CASES.values():
        gradients_of("cpu", torch.float32, {**AHEAD, **case})
    for rows, inner, columns in [(33, 513, 47), (300, 40, 33)]:
        x, y = torch.ones(rows, inner), torch.ones(inner, columns)
        cpu.multiply(x, y), cpu.multiply(x.t().contiguous().t(), y.t().contiguous().t())
    for case in CASES.values():
        run("cpu", case, torch.float64)
        run("cpu", case | {"checkpoint_every": 1}, torch.float64)
print(load()[1])
"""
    process = start(
        code,
        RIMLIT_CACHE=str(tmp_path),
        RIMLIT_CXXFLAGS="-fsanitize=address -fno-omit-frame-pointer -O1",
        LD_PRELOAD=f"{library} {runtime}",  # with the library of C++, whose exceptions it watches
        ASAN_OPTIONS="detect_leaks=0",
        PYTHONPATH=os.pathsep.join([os.getcwd(), *sys.path]),
    )
    output, errors = process.communicate(timeout=600)
    assert "AddressSanitizer" not in errors, errors[:4000]
    assert process.returncode == 0, errors[-2000:]
    assert output.startswith("built from C++")


def test_building_can_be_forbidden(tmp_path: Path) -> None:
    output, errors = start(RUN, RIMLIT_BUILD="0", RIMLIT_CACHE=str(tmp_path)).communicate(timeout=60)
    assert output.startswith("function|cpu: is not built: RIMLIT_BUILD=0"), errors


def test_auto_takes_it_on_the_cpu() -> None:
    assert RIM(4, 12).resolve_backend()[0] == "cpu"
