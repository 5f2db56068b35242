"""The README.md of an export: what its files are, what a program reads and returns, and code that runs it."""

from collections.abc import Sequence
from typing import NamedTuple

from rimlit._version import __version__
from rimlit.integrations.programs import CHECKED_STEPS, Port, Program

README = "README.md"
BATCH = 4
"""Sequences of the batch in the example."""

FILES = {
    "safetensors": "`model.safetensors`: the weights; `config.json`: what rebuilds the task from them",
    "torch": "`model.pt2`: a program of `torch.export`; `initial_state.pt`: the state to start from",
    "onnx": "`model.onnx`: a program for ONNX Runtime; `initial_state.npz`: the state to start from",
}


class PageOf(NamedTuple):
    """What a README.md is about."""

    task: str
    backbone: str
    source: str
    """The checkpoint."""
    program: Program | None
    """None where only weights were exported."""
    differences: dict[str, float]
    data: str = ""
    """The class of the data module, where it measured something that a program lacks; else empty."""


def write_page(page: PageOf, formats: Sequence[str]) -> str:
    """Return the text of a README.md.

    Args:
        page: What it is about.
        formats: The formats that were exported.
    """
    parts = [
        f"# {page.task}" + (f" with {page.backbone}" if page.backbone else ""),
        f"Exported by rimlit {__version__} from `{page.source}`.",
        "\n".join(f"- {FILES[each]}" for each in formats),
    ]
    if "safetensors" in formats:
        parts += ["## Load it with rimlit", _block('import rimlit\n\ntask = rimlit.load_checkpoint(".")')]
    if page.program is not None:
        parts += _describe(page.program)
        if page.data:
            parts.append(
                f"It reads and returns numbers as `{page.data}` passes them to the task. `data_state` in "
                "`config.json` holds what was measured on the training data: of each scale the means and then the "
                "deviations (the program reads `(number - mean) / deviation`), the classes in the order of the "
                "outputs, the names of the columns, the vocabulary."
            )
        for each, runs in (("torch", run_torch), ("onnx", run_onnx)):
            if each in formats:
                parts += [f"## Run it with {NEEDS[each]}", _block(runs(page.program))]
        parts.append(
            "Run the code in this folder. A new sequence starts from the initial state. "
            + ("`torch.export.load` reads pickles: load only files that you trust. " if "torch" in formats else "")
            + f"Greatest difference from the task itself{_over(page.program)}: "
            + ", ".join(f"{difference:.1e} ({name})" for name, difference in page.differences.items())
            + "."
        )
    return "\n\n".join(parts) + "\n"


NEEDS = {"torch": "torch alone", "onnx": "ONNX Runtime and NumPy alone"}


def _over(program: Program) -> str:
    return f", step by step over {program.sequence or CHECKED_STEPS} steps"


def _describe(program: Program) -> list[str]:
    """Return a heading, and a table of what a program reads and returns."""
    what = "one step" if program.sequence is None else f"a sequence of {program.sequence} steps"
    rows = [
        f"| {kind} | `{port.name}` | {_dtype(port)} | ({', '.join(['B', *map(str, port.shape)])}) |"
        for kind, ports in (("input", program.inputs()), ("output", program.outputs()))
        for port in ports
    ]
    heads = ["| | name | type | shape |", "| --- | --- | --- | --- |"]
    return ["## The program", f"It runs {what} of B sequences, for any B.", "\n".join([*heads, *rows])]


def run_torch(program: Program) -> str:
    """Return code that runs a ``.pt2`` file over a few steps, or over a sequence."""
    ports = _read(program)
    lines = [f"{port.name} = torch.zeros({_sizes(port)}, dtype={port.dtype})" for port in ports]
    state = f'[part.repeat({BATCH}, *[1] * (part.dim() - 1)) for part in torch.load("initial_state.pt")]'
    call = f"outputs, *state = program({', '.join(port.name for port in ports)}, *state)"
    return "\n".join(
        [
            "import torch\n",
            'program = torch.export.load("model.pt2").module()',
            f"state = {state}",
            *_loop(program, lines, call),
            "print(outputs.shape)",
        ]
    )


def run_onnx(program: Program) -> str:
    """Return code that runs an ``.onnx`` file over a few steps, or over a sequence."""
    ports = _read(program)
    lines = [f"{port.name} = np.zeros(({_sizes(port)},), np.{_dtype(port)})" for port in ports]
    names = ", ".join(port.name for port in ports)
    call = f"outputs, *state = session.run(None, dict(zip(names, [{names}, *state])))"
    return "\n".join(
        [
            "import numpy as np",
            "import onnxruntime\n",
            'session = onnxruntime.InferenceSession("model.onnx")',
            "names = [each.name for each in session.get_inputs()]",
            f'state = [np.repeat(part, {BATCH}, axis=0) for part in np.load("initial_state.npz").values()]',
            *_loop(program, lines, call),
            "print(outputs.shape)",
        ]
    )


def _loop(program: Program, lines: list[str], call: str) -> list[str]:
    """Return the lines that run a program; of one step, in a loop."""
    first = f"{lines[0]}  # your data"
    if program.sequence is not None:
        return [first, *lines[1:], call]
    return ["for step in range(3):", *(f"    {line}" for line in [first, *lines[1:], call])]


def _read(program: Program) -> list[Port]:
    """Return what a program reads beside the state."""
    return program.inputs()[: len(program.read)]


def _sizes(port: Port) -> str:
    return ", ".join(map(str, [BATCH, *port.shape]))


def _dtype(port: Port) -> str:
    return str(port.dtype).removeprefix("torch.")


def _block(code: str) -> str:
    return f"```python\n{code}\n```"
