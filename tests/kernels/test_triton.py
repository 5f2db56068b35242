"""The Triton loop: in the interpreter without a GPU, and compiled for one that is not there.

The interpreter has to be chosen before Triton is imported, and would stay chosen for every other test. So the
tests marked ``interpreted`` run in a process of their own, which the first two tests start.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.kernels import triton
from tests.conftest import random_tensor
from tests.kernels.test_backends import CASES, assert_agree, loop_of, run
from tests.laws.backbone_cases import SMALL, nested

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None

interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="runs in the process that starts the interpreter")
compiled = pytest.mark.skipif(IS_INTERPRETED or not HAS_TRITON, reason="Triton interprets or is not installed")

ONE_SLOT = {name: case for name, case in CASES.items() if case.get("slots") in (None, 1)}
TELLING = ("resets", "across_mechanisms", "dropout_official_gru", "tokens_two_heads")
# more than one tile of samples, of features, of depth and of scores, none of them full
TILES: dict[str, Any] = {
    "num_mechanisms": 3,
    "hidden_size": 3 * 33,
    "batch": 17,
    "steps": 2,
    "resets": True,
    "input_key_size": 5,
    "input_value_size": 7,
    "communication.heads": 2,
    "communication.key_size": 9,
    "communication.value_size": 17,
}

TOLERANCE = {torch.float32: {"rtol": 1e-3, "atol": 1e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-11}}


def interpret(marks: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, __file__],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-2000:]
    assert " passed" in finished.stdout


@compiled
def test_the_telling_tests_pass_in_the_interpreter() -> None:
    interpret("not slow and not gpu")


@compiled
@pytest.mark.slow
def test_the_other_tests_pass_in_the_interpreter() -> None:
    interpret("slow and not gpu")


# In the interpreter


@interpreted
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if name in TELLING else pytest.mark.slow) for name in ONE_SLOT]
)
def test_the_kernels_agree_in_everything(case: str) -> None:
    expected = run("function", CASES[case], torch.float64)
    assert_agree(run("triton", CASES[case], torch.float64), expected, rtol=1e-9, atol=1e-11)


@interpreted
@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"communication.output": "tanh", "selection": "across_mechanisms", "input_heads": 2}, torch.float32),
        pytest.param({"preset": "official", "cell": "gru"}, torch.float64, marks=pytest.mark.slow),
    ],
    ids=["lstm", "official_gru"],
)
def test_sizes_need_not_fill_the_tiles(changes: dict[str, Any], dtype: torch.dtype) -> None:
    expected = run("function", TILES | changes, dtype)
    assert_agree(run("triton", TILES | changes, dtype), expected, **TOLERANCE[dtype])


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("case", ["paper_lstm", "official_gru", "dropout"])
def test_the_kernels_agree_in_single_precision(case: str) -> None:
    expected = run("function", CASES[case], torch.float32)
    assert_agree(run("triton", CASES[case], torch.float32), expected, rtol=1e-3, atol=1e-4)


@interpreted
@pytest.mark.parametrize("record", [False, True])
def test_nothing_changes_where_nothing_is_differentiated(record: bool) -> None:
    rim = make_rim().eval()
    inputs = random_tensor(2, 3, 3, dtype=torch.float64)
    features, state = rim(inputs)
    activities = []
    with torch.no_grad():
        if record:
            with rim.record_activity() as activities:
                again, last = rim(inputs)
        else:
            again, last = rim(inputs)
    assert len(activities) == record
    assert torch.equal(again, features)
    assert all(torch.equal(a, b) for a, b in zip(last, state, strict=True))


@interpreted
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_ties_go_to_the_lowest_index_and_nan_is_least() -> None:
    masks = []
    for backend in ("function", "triton"):
        rim = make_rim(backend=backend, learn_initial_state=False).eval()
        state = rim.initial_state(3)  # zeros: all scores tie
        state.hidden[1, 0, 0] = torch.nan  # the first mechanism's in one sample, all mechanisms' after it
        with torch.no_grad(), rim.record_activity() as activities:
            rim(random_tensor(3, 2, 3, dtype=torch.float64), state)
        masks.append(activities[0].active)
    assert masks[0][:, 0].tolist() == [
        [True, True, False, False],
        [False, True, True, False],
        [True, True, False, False],
    ]
    assert torch.equal(masks[1], masks[0])


@interpreted
@pytest.mark.slow
def test_what_is_kept_for_the_backward_serves_twice() -> None:
    rim = make_rim()
    features, _ = rim(random_tensor(2, 3, 3, dtype=torch.float64))
    first = torch.autograd.grad(features.sum(), list(rim.parameters()), retain_graph=True)
    second = torch.autograd.grad(features.sum(), list(rim.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def make_rim(backend: str = "triton", **arguments: Any) -> RIM:
    torch.manual_seed(0)
    arguments = {"num_mechanisms": 4, "num_active": 2, "learn_initial_state": True, **nested(SMALL), **arguments}
    return RIM(3, 12, backend=backend, **arguments).double()


# Compiled


@compiled
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 announces another default
@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        (torch.float32, {"resets": True}),
        (torch.float32, {"preset": "official", "cell": "gru", "dropped": True, "input_heads": 2}),
        (torch.float64, {"communication.output": "tanh", "selection": "across_mechanisms"}),
        (torch.float32, {"communication": "none", "num_mechanisms": 1, "num_active": 1}),
    ],
    ids=["lstm", "official_gru", "double", "silent"],
)
def test_the_kernels_compile_for_a_gpu_that_is_not_there(
    dtype: torch.dtype, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels, _ = triton.load()
    assert kernels is not None
    forward, backward = CompiledKernels(kernels.forward), CompiledKernels(kernels.backward)
    launched = kernels._replace(forward=forward, backward=backward)
    monkeypatch.setattr(triton, "load", lambda: (launched, "compiled"))
    monkeypatch.setattr("rimlit.backbones.layered.choose_loop", lambda *_: ("triton", "for this test"))
    run("triton", {"steps": 2, **case}, dtype)
    number = 3 if case.get("communication") == "none" else 7
    assert len(forward.names) + len(backward.names) == number


class CompiledKernels:
    """Kernels that are compiled with the arguments they are launched with, and not run."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.names = module, set[str]()

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.module, name)
        return type(
            "Kernel", (), {"__getitem__": lambda _, grid: lambda *a, **k: self.compile(name, kernel, a, k)}
        )()

    def compile(self, name: str, kernel: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        import triton as compiler
        from triton.backends.compiler import GPUTarget

        if name in self.names:
            return
        self.names.add(name)
        types = {torch.float32: "*fp32", torch.float64: "*fp64", torch.uint8: "*u8"}
        options = {"num_warps": named.pop("num_warps", 4)}
        arguments = dict(zip(kernel.arg_names, positional, strict=False)) | named
        signature, constants = {}, {}
        for parameter in kernel.params:
            value = arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            else:
                signature[parameter.name] = types[value.dtype] if isinstance(value, Tensor) else "i32"
        source = compiler.compiler.ASTSource(kernel, signature, constants)
        assert compiler.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["cubin"]


# What is asked for: without Triton and without a GPU


def test_the_loop_is_refused_where_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "load", lambda: (None, "Triton is missing"))
    with pytest.raises(
        ConfigError, match=r"backend='triton': this loop is not there: Triton is missing\. Allowed"
    ):
        loop_of("triton", torch.device("cuda"))


@compiled
def test_the_loop_is_taken_on_a_gpu_if_asked_for_and_not_by_auto() -> None:
    cuda = torch.device("cuda")
    assert loop_of("triton", cuda)[0] == "triton"
    assert loop_of("auto", cuda)[0] == "function"
    with pytest.raises(ConfigError, match=r"this loop runs .* got weights of torch\.float32 on cpu"):
        loop_of("triton")
    with pytest.raises(ConfigError, match=r"this loop runs float32 and float64 .*; got .*bfloat16 on cuda"):
        loop_of("triton", cuda, torch.bfloat16)


@compiled
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"selection": {"margin": "scores"}, "learn_initial_state": True}, "does not support margins"),
        ({"soft_cap": 3.0}, "does not support a cap"),
        ({"communication": {"output": "cell_gate"}}, "does not support communication through the cell's gate"),
    ],
)
def test_unsupported_parts_are_refused_with_the_reason(arguments: dict[str, Any], reason: str) -> None:
    rim = RIM(4, 12, backend="triton", **arguments)
    with pytest.raises(ConfigError, match=reason):
        rim.resolve_backend(device=torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"reads one input slot; got 2"):
        RIM(4, 12, backend="triton").resolve_backend(2, torch.device("cuda"))


def test_triton_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("device", "forward", "backward"):
        monkeypatch.delitem(sys.modules, f"rimlit.kernels.triton.{name}", raising=False)
        monkeypatch.delattr(triton, name, raising=False)
    kernels, reason = triton.load.__wrapped__()
    assert kernels is None
    assert reason.startswith("Triton cannot be imported, pip install 'triton")
