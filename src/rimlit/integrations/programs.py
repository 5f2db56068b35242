"""A task as a function of tensors alone, for programs that run without this package.

A program runs one step, ``(inputs, *state) → (outputs, *next state)``, or a whole sequence of a fixed length, for
batches of any size. Encoder and head are part of it: it reads what the task reads and returns what the task
returns.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rimlit.backbones import Backbone
from rimlit.encoders import Encoder
from rimlit.errors import ConfigError
from rimlit.tasks import Task
from rimlit.types import Looped, State, flat_state, map_state, replace_state, state_names

CHECKED_STEPS = 20
"""Steps over which a program of one step is compared with the backbone's."""

TOLERANCE = 1e-5
"""Greatest difference from the task that a program may have, a share of values above 1."""

TRACED_BATCH, CHECKED_BATCHES = 3, (1, 5)
"""Batch sizes with which a program is traced and checked: any other is run by the same graph."""

Run = Callable[[list[Tensor]], list[Tensor]]
"""Inputs and state to outputs and next state."""


class Port(NamedTuple):
    """One tensor that a program reads or returns."""

    name: str
    shape: list[int]
    """Without the batch, which comes first."""
    dtype: torch.dtype


class Program(nn.Module):
    """One step, or a sequence, of a task as a function of tensors alone.

    Args:
        task: A task in evaluation mode.
        sequence: Steps of a sequence; None: one step, whose inputs and outputs have no dimension of time.

    Raises:
        ConfigError: The encoder does not say what it reads.
    """

    def __init__(self, task: Task, sequence: int | None = None) -> None:
        super().__init__()
        self.task = task
        self.sequence = sequence
        example = self.example_inputs(1, 1)
        self.kind = type(example) if hasattr(example, "_fields") else None
        self.parts = {"inputs": example} if self.kind is None else example._asdict()
        self.read = [name for name in self.parts if name not in getattr(task.encoder, "unread", ())]
        self.like = map_state(Tensor.detach, task.backbone.initial_state(1))

    def example_inputs(self, batch_size: int, num_steps: int) -> Any:
        """Return random inputs of the task (B, T, …), always the same."""
        encoder = self.task.encoder
        if not isinstance(encoder, Encoder):
            raise ConfigError(
                f"{type(encoder).__name__} must be a rimlit.encoders.Encoder to be exported: its example_inputs "
                "says what it reads. --format safetensors works."
            )
        example = encoder.example_inputs(batch_size, num_steps, torch.Generator().manual_seed(0))
        dtype = next(self.task.parameters()).dtype
        return map_state(lambda part: part.to(dtype) if part.is_floating_point() else part, example)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Map inputs and state to outputs and the next state."""
        given, state = tensors[: len(self.read)], self.nest(tensors[len(self.read) :])
        if self.sequence is None:
            given = tuple(part.unsqueeze(1) for part in given)
        outputs, state = self.task(self.join(given), state)
        return outputs if self.sequence else outputs.squeeze(1), *flat_state(state)

    def split(self, inputs: Any) -> list[Tensor]:
        """Return the tensors of ``inputs`` that the program reads."""
        return [inputs] if self.kind is None else [getattr(inputs, name) for name in self.read]

    def join(self, tensors: Sequence[Tensor]) -> Any:
        """Return inputs of the task from the tensors that it reads; the others are zero."""
        if self.kind is None:
            return tensors[0]
        found, shape = dict(zip(self.read, tensors, strict=True)), tensors[0].shape[:2]
        for name, part in self.parts.items():
            if name not in found:
                found[name] = torch.zeros(*shape, *part.shape[2:], dtype=part.dtype)
        return self.kind(**found)

    def nest(self, tensors: Sequence[Tensor]) -> State:
        """Return a state of the backbone from its tensors."""
        left = iter(tensors)
        return map_state(lambda _: next(left), self.like)

    def inputs(self) -> list[Port]:
        """Return what the program reads."""
        steps = [] if self.sequence is None else [self.sequence]
        parts = [Port(name, [*steps, *self.parts[name].shape[2:]], self.parts[name].dtype) for name in self.read]
        return parts + self._state_ports("")

    def outputs(self) -> list[Port]:
        """Return what the program returns."""
        with torch.no_grad():
            example = self.task(self.example_inputs(1, 1))[0]
        steps = [] if self.sequence is None else [self.sequence]
        return [Port("outputs", [*steps, *example.shape[2:]], example.dtype), *self._state_ports("next_")]

    def _state_ports(self, prefix: str) -> list[Port]:
        names = state_names(self.like)
        parts = zip(names, flat_state(self.like), strict=True)
        return [Port(f"{prefix}{name}", list(part.shape[1:]), part.dtype) for name, part in parts]


class StepByStep(Backbone):
    """A backbone that runs a sequence by the ``step`` of another: what a program is compared with."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.inner = backbone
        self.input_size, self.output_size = backbone.input_size, backbone.output_size
        self.hidden_size = backbone.hidden_size

    def initial_state(self, batch_size: int) -> State:
        """Return the other backbone's."""
        return self.inner.initial_state(batch_size)

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run step by step; see :meth:`Backbone.forward`."""
        state, initial = self.starting_state(inputs, state)
        features = []
        for step in range(inputs.shape[1]):
            if resets is not None:
                state = replace_state(state, initial, resets[:, step])
            feature, state = self.inner.step(inputs[:, step], state)
            features.append(feature.clone())  # it may share memory with the state
        return torch.stack(features, dim=1), state


def trace(program: Program) -> torch.export.ExportedProgram:
    """Follow a program with ``torch.export``, for batches of any size.

    Raises:
        ConfigError: torch cannot follow the task; the message has the reason and the format that works.
    """
    steps = program.sequence or 1
    inputs = program.split(program.example_inputs(TRACED_BATCH, steps))
    given = inputs if program.sequence else [part[:, 0] for part in inputs]
    state = flat_state(map_state(Tensor.detach, program.task.backbone.initial_state(TRACED_BATCH)))
    arguments = (*given, *(part.clone() for part in state))
    batch = torch.export.Dim("batch", min=1, max=2**20)
    shapes: Any = {"tensors": tuple({0: batch} for _ in arguments)}
    try:
        with _quiet(), _eager(program.task.backbone), torch.no_grad():
            return torch.export.export(program, arguments, dynamic_shapes=shapes)
    except Exception as error:
        raise ConfigError(
            f"torch.export cannot follow {_named(program.task)}: {_first_line(error)} --format safetensors works."
        ) from error


def torch_file(traced: torch.export.ExportedProgram) -> bytes:
    """Return the content of a ``.pt2`` file."""
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(traced, buffer)
    return buffer.getvalue()


def onnx_file(traced: torch.export.ExportedProgram, program: Program) -> bytes:
    """Return the content of an ``.onnx`` file.

    Raises:
        ConfigError: The ONNX exporter cannot translate the task; the message has the reason and what works.
    """
    try:
        with _quiet(), torch.no_grad():
            found = torch.onnx.export(
                traced,
                input_names=[port.name for port in program.inputs()],
                output_names=[port.name for port in program.outputs()],
                verbose=False,
            )
        assert found is not None
        content: bytes = found.model_proto.SerializeToString()
    except Exception as error:
        raise ConfigError(
            f"torch.onnx cannot translate {_named(program.task)}: {_first_line(error)} "
            "--format torch and --format safetensors work."
        ) from error
    return content


def torch_runner(content: bytes) -> Run:
    """Return what runs the content of a ``.pt2`` file."""
    with _quiet():
        module = torch.export.load(io.BytesIO(content)).module()

    @torch.no_grad()
    def run(tensors: list[Tensor]) -> list[Tensor]:
        return list(module(*tensors))

    return run


def onnx_runner(content: bytes) -> Run:
    """Return what runs the content of an ``.onnx`` file in ONNX Runtime.

    Raises:
        ConfigError: ONNX Runtime cannot run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise ConfigError(
            f"ONNX Runtime cannot run the program: {_first_line(error)} "
            "--format torch and --format safetensors work."
        ) from error
    names = [each.name for each in session.get_inputs()]

    def run(tensors: list[Tensor]) -> list[Tensor]:
        given = {name: part.contiguous().numpy() for name, part in zip(names, tensors, strict=True)}
        return [torch.from_numpy(part) for part in session.run(None, given)]

    return run


def greatest_difference(program: Program, run: Run) -> float:
    """Return how far a program is from the task, whose backbone runs by its ``step``.

    A program of one step is run over 20 steps, from the initial state on. The difference of two values above 1 is
    a share of them; infinity where integers, shapes or types differ. Fields of the state that the backbone names
    in ``unordered_state`` are left out.

    Args:
        program: What the task is as a program.
        run: Runs the file that was made of it.
    """
    worst = 0.0
    for batch_size in CHECKED_BATCHES:
        steps = program.sequence or CHECKED_STEPS
        inputs = program.example_inputs(batch_size, steps)
        state = flat_state(map_state(Tensor.detach, program.task.backbone.initial_state(batch_size)))
        expected, last = _expected(program.task, inputs)
        if program.sequence:
            outputs, *state = run([*program.split(inputs), *state])
        else:
            found = []
            for step in range(steps):
                now, *state = run([*(part[:, step] for part in program.split(inputs)), *state])
                found.append(now)
            outputs = torch.stack(found, dim=1)
        names = ["outputs", *state_names(program.like)]
        for name, one, other in zip(names, [outputs, *state], [expected, *last], strict=True):
            if name not in program.task.backbone.unordered_state:
                worst = max(worst, _difference(one, other))
    return worst


@torch.no_grad()
def _expected(task: Task, inputs: Any) -> tuple[Tensor, list[Tensor]]:
    """Return outputs (B, T, …) and the last state of a task whose backbone runs by its ``step``."""
    backbone = task.backbone
    task.backbone = StepByStep(backbone)
    try:
        outputs, state = task(inputs)
    finally:
        task.backbone = backbone
    return outputs, flat_state(state)


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    found, expected = found.double(), expected.double()
    difference = ((found - expected).abs() / expected.abs().clamp(min=1)).max().item()
    return difference if difference == difference else float("inf")


@contextlib.contextmanager
def _eager(backbone: Backbone) -> Iterator[None]:
    """Have a backbone take the time loop that a tracer can follow."""
    if not isinstance(backbone, Looped):
        yield
        return
    before, backbone.backend = backbone.backend, "eager"
    try:
        yield
    finally:
        backbone.backend = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say of themselves."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        log.setLevel(before)


def _named(task: Task) -> str:
    return f"{type(task).__name__} with {type(task.backbone).__name__}"


def _first_line(error: Exception) -> str:
    """Return an error's first line as a sentence."""
    causes: BaseException = error
    while causes.__cause__ is not None:
        causes = causes.__cause__
    lines = [line.strip() for line in str(causes).splitlines() if line.strip()]
    return f"{type(causes).__name__}: {lines[0][:200].rstrip('.')}." if lines else f"{type(causes).__name__}."
