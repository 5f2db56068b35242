"""Programs of torch and ONNX: every backbone, encoder and task gives what its own step gives, for any batch."""

from functools import partial
from typing import Any

import pytest
import torch

from rimlit import LSTM, RIM, Task
from rimlit.backbones import Backbone
from rimlit.errors import ConfigError
from rimlit.integrations.exporting import build_programs
from rimlit.integrations.programs import (
    TOLERANCE,
    Program,
    greatest_difference,
    torch_file,
    torch_runner,
    trace,
)
from rimlit.rl import PPOTask
from rimlit.tasks import (
    ClassificationTask,
    ForecastTask,
    FramePredictionTask,
    LanguageModelingTask,
    RegressionTask,
)
from rimlit.testing import classes_in
from tests.laws.backbone_cases import SMALL, VARIANTS, backbone_classes, nested

NAMES = {cls.__name__: cls for cls in backbone_classes()}
RIMS = {
    f"RIM-{name}": VARIANTS["RIM"][name] for name in ("official_gru", "two_layers", "across_heads", "unattended")
}
CASES: dict[str, tuple[type[Backbone], dict[str, Any]]] = {
    **{name: (cls, {}) for name, cls in NAMES.items()},
    **{name: (RIM, arguments) for name, arguments in RIMS.items()},
    "RIM-dynamic": (RIM, {"preset": "dynamic", **SMALL}),
    "RIM-cpu": (RIM, {"backend": "cpu", **SMALL}),
    "MinGRU-learned": (NAMES["MinGRU"], VARIANTS["MinGRU"]["learned"]),
}
FAST = ("RIM-dynamic", "LSTM")
IN_ONNX = (*NAMES, "RIM-dynamic", "RIM-across_heads", "motion", "previous_slot", "grid")
"""Backbones and kinds of tasks that are written as ONNX, too, which takes seconds each."""


def task_of(name: str) -> Task:
    """A small task with numbers in and out and one of the backbones."""
    cls, arguments = CASES[name]
    torch.manual_seed(0)
    backbone = partial(cls, hidden_size=24, **nested(arguments))
    return RegressionTask(backbone, output_size=2, input_size=5).eval()


def fast_or_slow(names: Any) -> list[Any]:
    return [pytest.param(name, id=name, marks=() if name in FAST else pytest.mark.slow) for name in names]


def test_every_backbone_is_among_the_cases() -> None:
    assert {cls.__name__ for cls in classes_in("rimlit.backbones", Backbone)} - {"Bidirectional"} == set(NAMES)


@pytest.mark.parametrize("name", fast_or_slow(CASES))
def test_a_program_gives_what_the_step_gives_for_any_batch(name: str) -> None:
    """``build_programs`` compares batches of 1 and 5 with a graph that was traced with 3."""
    formats = ("torch", "onnx") if name in IN_ONNX else ("torch",)
    files, differences = build_programs(Program(task_of(name)), formats)
    assert differences.keys() == set(formats) and len(files) == 2 * len(formats)
    assert all(0 <= difference <= TOLERANCE for difference in differences.values())


def rim(**arguments: Any) -> Any:
    return partial(
        RIM, hidden_size=24, **nested({**SMALL, "input_dropout": 0.0, "communication_dropout": 0.0, **arguments})
    )


def encoder(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"rimlit.encoders.{name}", "init_args": arguments}


def task_with(kind: str) -> Task:
    """A small task for each kind of input."""
    torch.manual_seed(0)
    frames = {"frame_size": 16, "context_length": 2, "rollout_length": 2}
    tasks = {
        "tokens": lambda: ClassificationTask(rim(), output_size=3, vocabulary_size=7),
        "language": lambda: LanguageModelingTask(rim(), 11, "byte", tie_embeddings=True, embedding_size=8),
        "series": lambda: ForecastTask(rim(), 2, 3, window=4, horizon=3),
        "motion": lambda: FramePredictionTask(
            rim(),
            prediction="motion",
            encoder=encoder("DenseEncoder", output_size=8),
            head={"class_path": "rimlit.heads.DenseHead", "init_args": {"hidden_size": 8}},
            **frames,
        ),
        "pixels": lambda: FramePredictionTask(rim(), **frames),
        "objects": lambda: FramePredictionTask(
            rim(), encoder=encoder("ObjectEncoder", output_size=8, num_slots=3), **frames
        ),
        "colours": lambda: FramePredictionTask(rim(), num_channels=3, **frames),
        "observations": lambda: PPOTask(rim(), [2], num_actions=2, normalize_observations=True),
        "previous": lambda: PPOTask(rim(), [2], num_actions=3, previous="concatenated"),
        "previous_slot": lambda: PPOTask(rim(), [2], action_size=2, previous="slot"),
        "grid": lambda: PPOTask(rim(), [7, 7, 3], num_choices=[2, 3], encoder=encoder("GridEncoder")),
        "screens": lambda: PPOTask(
            rim(), [4, 36, 40], num_actions=2, encoder=encoder("ScreenEncoder", output_size=9)
        ),
    }
    return tasks[kind]().eval()


KINDS = {
    "tokens": {"inputs": []},
    "language": {"inputs": []},
    "series": {"inputs": [3]},
    "motion": {"inputs": [16, 16]},
    "pixels": {"inputs": [16, 16]},
    "objects": {"inputs": [16, 16]},
    "colours": {"inputs": [3, 16, 16]},
    "observations": {"observations": [2], "starts": []},
    "previous": {"observations": [2], "actions": [], "rewards": [], "starts": []},
    "previous_slot": {"observations": [2], "actions": [2], "rewards": [], "starts": []},
    "grid": {"observations": [7, 7, 3], "starts": []},
    "screens": {"observations": [4, 36, 40], "starts": []},
}
"""What a program of each kind of task reads beside the state, and the shapes without the batch."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "tokens" else pytest.mark.slow) for kind in KINDS]
)
def test_a_program_reads_what_the_data_holds(kind: str) -> None:
    program = Program(task_with(kind))
    formats = ("torch", "onnx") if kind in IN_ONNX else ("torch",)
    read = {port.name: port.shape for port in program.inputs()}
    assert {name: read[name] for name in list(read)[: len(KINDS[kind])]} == KINDS[kind]
    _, differences = build_programs(program, formats)
    assert max(differences.values()) <= TOLERANCE


def test_an_episode_that_starts_begins_from_the_initial_state() -> None:
    program = Program(task_with("observations"))
    run = torch_runner(torch_file(trace(program)))
    observations = torch.randn(4, 2)
    state = [torch.randn(4, *part.shape[1:]) for part in program.like]
    initial = [part.expand(4, *part.shape[1:]) for part in program.like]
    restarted = run([observations, torch.ones(4, dtype=torch.bool), *state])
    expected = run([observations, torch.zeros(4, dtype=torch.bool), *initial])
    for one, other in zip(restarted, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_sequence_of_a_fixed_length_gives_what_single_steps_give() -> None:
    program = Program(task_of("LSTM"), sequence=6)
    assert program.inputs()[0].shape == [6, 5]
    assert program.outputs()[0].shape == [6, 2]
    _, differences = build_programs(program, ("torch",))
    assert 0 <= differences["torch"] <= TOLERANCE
    run = torch_runner(torch_file(trace(Program(program.task))))  # of one step
    inputs, state = torch.randn(2, 6, 5), [part.expand(2, *part.shape[1:]) for part in program.like]
    whole, *_ = torch_runner(torch_file(trace(program)))([inputs, *state])
    for step in range(6):
        now, *state = run([inputs[:, step], *state])
        torch.testing.assert_close(whole[:, step], now)


def test_a_program_keeps_the_type_of_the_weights() -> None:
    program = Program(task_of("LSTM").double())
    assert {port.dtype for port in (*program.inputs(), *program.outputs())} == {torch.float64}
    _, differences = build_programs(program, ("torch",))
    assert differences["torch"] <= 1e-12


def test_a_program_of_other_weights_is_found_to_differ() -> None:
    task = task_of("LSTM")
    run = torch_runner(torch_file(trace(Program(task))))
    with torch.no_grad():
        next(task.parameters()).add_(0.1)
    assert greatest_difference(Program(task), run) > 1e-3
    with torch.no_grad():
        next(task.parameters()).fill_(torch.nan)
    assert greatest_difference(Program(task), run) == float("inf")


def test_a_program_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rimlit.integrations.exporting.greatest_difference", lambda *_: 2e-4)
    with pytest.raises(
        ConfigError,
        match=r"^--format torch: the program differs from LSTM\.step by 2\.0e-04, more than 1e-05\. --format saf",
    ):
        build_programs(Program(task_of("LSTM")), ("torch",))


class Deciding(LSTM):
    """A backbone whose way through Python depends on its input, which torch.export cannot follow."""

    def forward(self, inputs: Any, state: Any = None, resets: Any = None) -> Any:
        if inputs.sum().item() > 0:
            inputs = inputs * 2
        return super().forward(inputs, state, resets)


def test_a_backbone_that_torch_cannot_follow_is_refused_with_the_reason_and_what_works() -> None:
    task = RegressionTask(partial(Deciding, hidden_size=4), output_size=1, input_size=2).eval()
    with pytest.raises(
        ConfigError, match=r"^torch\.export cannot follow RegressionTask with Deciding: \w+: "
    ) as raised:
        trace(Program(task))
    assert str(raised.value).endswith("--format safetensors works.")
    assert "\n" not in str(raised.value)


class Untranslated(LSTM):
    """A backbone with an operation that ONNX has not."""

    def forward(self, inputs: Any, state: Any = None, resets: Any = None) -> Any:
        features, state = super().forward(inputs, state, resets)
        return torch.special.bessel_j0(features), state


@pytest.mark.slow
def test_a_backbone_that_onnx_cannot_express_is_refused_with_the_formats_that_work() -> None:
    task = RegressionTask(partial(Untranslated, hidden_size=4), output_size=1, input_size=2).eval()
    with pytest.raises(
        ConfigError, match=r"^torch\.onnx cannot translate RegressionTask with Untranslated: "
    ) as raised:
        build_programs(Program(task), ("torch", "onnx"))
    assert str(raised.value).endswith("--format torch and --format safetensors work.")
    assert "\n" not in str(raised.value)


def test_an_encoder_that_does_not_say_what_it_reads_is_refused() -> None:
    task = task_of("LSTM")
    task.encoder = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"^Identity must be a rimlit\.encoders\.Encoder to be exported"):
        Program(task)
