"""Export a run: weights as safetensors, a program of torch or ONNX, and a page that says how to run them."""

import hashlib
import importlib.util
import io
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rimlit.checks import require_positive
from rimlit.errors import ConfigError, MissingExtraError, StorageError, install_command
from rimlit.files import write_file
from rimlit.integrations.cards import class_name
from rimlit.integrations.programs import (
    TOLERANCE,
    Program,
    greatest_difference,
    onnx_file,
    onnx_runner,
    torch_file,
    torch_runner,
    trace,
)
from rimlit.integrations.readme import README, PageOf, write_page
from rimlit.tasks.exporting import CONFIG, WEIGHTS, config_file, describe_checkpoint, read_task, weights_file
from rimlit.tasks.loading import load_checkpoint
from rimlit.types import flat_state

FILES = {
    "safetensors": (WEIGHTS,),
    "torch": ("model.pt2", "initial_state.pt"),
    "onnx": ("model.onnx", "initial_state.npz"),
}
"""Formats, and the files that each writes beside ``config.json`` and ``README.md``."""

FORMATS = tuple(FILES)
ONNX_MODULES = ("onnx", "onnxscript", "onnxruntime")


class ExportReport(NamedTuple):
    """What an export wrote."""

    checkpoint: Path
    """The file whose weights were exported."""
    files: list[Path]
    differences: dict[str, float]
    """For each program's format the greatest difference from ``backbone.step``; see :func:`export_task`."""


def export_task(
    source: str | Path,
    folder: str | Path,
    *,
    formats: Sequence[str] = ("safetensors",),
    sequence: int | None = None,
) -> ExportReport:
    """Write the task of a checkpoint in one or several formats, with a README.md that says how to run it.

    ``safetensors`` writes the weights, and ``config.json`` what :func:`rimlit.load_checkpoint` rebuilds the task
    from. ``torch`` writes a program of ``torch.export``, which needs torch alone, and ``onnx`` one for ONNX
    Runtime. A program runs one step, ``(inputs, *state) → (outputs, *next state)``, for batches of any size, from
    what the data holds (tokens, frames, numbers) to what the task returns. It is compared with ``backbone.step``
    over 20 steps, or over the sequence, before anything is written: differences above 1e-5 are refused.

    Args:
        source: A checkpoint, or a run's folder, of which the best one is taken, or the last where nothing was
            validated.
        folder: Where to write: a new or empty folder, or one that holds these files of an earlier export.
        formats: One or several of ``safetensors``, ``torch`` and ``onnx``.
        sequence: Steps of a program that runs a whole sequence of this length, at least 1; None: one step.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged or holds no task.
        ConfigError: A format is unknown, the folder holds other files, torch or ONNX cannot express the task, or
            a program differs from it.
        MissingExtraError: ``onnx`` needs packages that are not installed.
        StorageError: The folder cannot be written.
    """
    formats = list(dict.fromkeys(formats))
    _check_formats(formats, sequence)
    names = [*(name for each in formats for name in FILES[each]), CONFIG, README]
    _require_room(Path(folder), names)
    path, checkpoint = read_task(source)
    config = describe_checkpoint(checkpoint)
    files: dict[str, bytes] = {}
    differences: dict[str, float] = {}
    if "safetensors" in formats:
        files[WEIGHTS] = weights_file(checkpoint["state_dict"])
        config["sha256"] = hashlib.sha256(files[WEIGHTS]).hexdigest()
    program = None
    if set(formats) - {"safetensors"}:
        program = Program(load_checkpoint(path), sequence)
        found, differences = build_programs(program, formats)
        files |= found
        config["program"] = _describe(program, differences)
    task = config["task"]
    page = PageOf(
        class_name(task),
        class_name(task["init_args"].get("backbone")),
        str(path),
        program,
        differences,
        class_name(config["data"]) if config.get("data_state") else "",
    )
    files |= {CONFIG: config_file(config, path), README: write_page(page, formats).encode()}
    written = [Path(folder) / name for name in names]
    for file in written:
        write_file(file, files[file.name])
    return ExportReport(path, written, differences)


def build_programs(program: Program, formats: Sequence[str]) -> tuple[dict[str, bytes], dict[str, float]]:
    """Return the files of a program in each of ``formats``, and how far each differs from the task.

    Raises:
        ConfigError: torch or ONNX cannot express the task, or a program differs from it.
    """
    traced = trace(program)
    files: dict[str, bytes] = {}
    differences: dict[str, float] = {}
    state = flat_state(program.like)
    if "torch" in formats:
        content = torch_file(traced)
        differences["torch"] = greatest_difference(program, torch_runner(content))
        files |= {"model.pt2": content, "initial_state.pt": _saved(state)}
    if "onnx" in formats:
        content = onnx_file(traced, program)
        differences["onnx"] = greatest_difference(program, onnx_runner(content))
        files |= {"model.onnx": content, "initial_state.npz": _packed(program, state)}
    for name, difference in differences.items():
        if difference > TOLERANCE:
            raise ConfigError(
                f"--format {name}: the program differs from {type(program.task.backbone).__name__}.step by "
                f"{difference:.1e}, more than {TOLERANCE:.0e}. --format safetensors works."
            )
    return files, differences


def _check_formats(formats: Sequence[str], sequence: int | None) -> None:
    """Raise an error unless the formats are known, agree with ``sequence`` and have what they need installed."""
    if not formats:
        raise ConfigError(f"format must be one or several of {', '.join(FORMATS)}; got none.")
    for each in formats:
        if each not in FORMATS:
            near = get_close_matches(each, (*FORMATS, "pt2"), n=1, cutoff=0.5)
            hint = f" Did you mean {'torch' if near[0] == 'pt2' else near[0]}?" if near else ""
            raise ConfigError(f"format must be one or several of {', '.join(FORMATS)}; got {each!r}.{hint}")
    if sequence is not None:
        require_positive(sequence=sequence)
        if set(formats) == {"safetensors"}:
            raise ConfigError(f"sequence={sequence} belongs to --format torch or onnx; got --format safetensors.")
    if "onnx" in formats:
        missing = next((name for name in ONNX_MODULES if importlib.util.find_spec(name) is None), None)
        if missing is not None:
            raise MissingExtraError(
                f"--format onnx needs {missing}, which the extra 'onnx' installs: {install_command('onnx')}."
            )


def _require_room(folder: Path, names: Sequence[str]) -> None:
    """Raise a ConfigError where a folder holds other files than those that will be replaced."""
    try:
        others = sorted(path.name for path in folder.iterdir() if path.name not in names)
        text = (folder / README).read_text(encoding="utf-8") if (folder / README).is_file() else ""
    except (FileNotFoundError, NotADirectoryError):
        return  # it is new, or the first file says that it cannot be written
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{folder} cannot be read ({error}).") from error
    if text and not (folder / CONFIG).is_file():
        others.append(README)
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise ConfigError(
            f"{folder} must be new, empty or an earlier export in the same formats; it holds {shown}."
        )


def _describe(program: Program, differences: dict[str, float]) -> dict[str, Any]:
    """Return what ``config.json`` says of the programs."""
    ports = {"inputs": program.inputs(), "outputs": program.outputs()}
    return {
        "steps": program.sequence or 1,
        **{
            key: [
                {
                    "name": port.name,
                    "shape": ["batch", *port.shape],
                    "dtype": str(port.dtype).removeprefix("torch."),
                }
                for port in each
            ]
            for key, each in ports.items()
        },
        "greatest_difference": differences,
    }


def _saved(state: list[Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save([part.detach().clone() for part in state], buffer)
    return buffer.getvalue()


def _packed(program: Program, state: list[Tensor]) -> bytes:
    buffer = io.BytesIO()
    names = [port.name for port in program.inputs()][-len(state) :]
    arrays: Any = {name: part.detach().numpy() for name, part in zip(names, state, strict=True)}
    np.savez(buffer, **arrays)
    return buffer.getvalue()
