"""Sequences from padded arrays, .npy, .npz and .pt. Nothing that a file says is run; its size is checked first."""

import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from rimlit.data.identity import digest_open
from rimlit.data.reading import one_line, open_file, require_fits, shown
from rimlit.data.sequence_layout import (
    MAX_LABEL,
    MAX_NUMBER,
    Layout,
    SequenceData,
    require_distinct,
    require_tokens,
    to_splits,
)
from rimlit.errors import DataError

ARRAYS = (".npy", ".npz", ".pt")
KEYS = ("inputs", "targets", "lengths", "split")
Arrays: TypeAlias = dict[str, np.ndarray]
REAL_BYTES = 8
"""Bytes of a number while it is checked, independent of its size in the file."""


def read_arrays(path: Path, layout: Layout) -> SequenceData:
    """Read sequences that are padded to one number of steps.

    Raises:
        DataError: The file cannot be read, or does not hold what ``layout`` says.
    """
    with open_file(path) as file:
        digest = digest_open(path, file)
        arrays = _unpacked(path, file, _READERS[path.suffix])
    return _from_arrays(path, arrays, layout)._replace(digest=digest)


def read_frame_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npy file, called ``frames``, or of an .npz file as they are.

    Raises:
        DataError: The file cannot be read, holds Python objects, or does not fit into memory.
    """

    def read(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
        if path.suffix == ".npy":
            return {"frames": _read_array(path, file, file.seek(0, 2), least_bytes=1)}
        return _read_members(path, file, lambda names: None, least_bytes=1)

    with open_file(path) as file:
        return _unpacked(path, file, read)


def _unpacked(path: Path, file: BinaryIO, read: Callable[[Path, BinaryIO], Arrays]) -> Arrays:
    """Return what ``read`` finds; whatever numpy or torch raises becomes one line."""
    try:
        return read(path, file)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # numpy, torch and zlib refuse what is damaged in a dozen ways
        # the rest of numpy's and torch's message recommends options that would run what the file holds
        reason = type(error).__name__ if path.suffix == ".pt" else one_line(error).split(". ")[0]
        raise DataError(
            f"{shown(path)} is damaged or holds more than plain numbers ({reason}): Python objects are not "
            "loaded. Save sequences of different lengths padded, with lengths beside them."
        ) from error


def _read_npy(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    return {"inputs": _read_array(path, file, file.seek(0, 2), least_bytes=REAL_BYTES)}


def _read_npz(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    return _read_members(path, file, lambda names: _require_keys(path, names), least_bytes=REAL_BYTES)


def _read_members(
    path: Path, file: BinaryIO, check: Callable[[list[str]], None], *, least_bytes: int
) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        members = [(member.filename.removesuffix(".npy"), member) for member in archive.infolist()]
        check([name for name, _ in members])
        require_fits(path, sum(member.file_size for _, member in members))
        arrays = {}
        for name, member in members:
            with archive.open(member) as part:
                arrays[name] = _read_array(path, part, member.file_size, least_bytes=least_bytes)
        return arrays


def _read_array(path: Path, file: Any, size: int, *, least_bytes: int) -> np.ndarray:
    """Read an array from a file of ``size`` bytes whose header says what that can be.

    In memory a number takes ``least_bytes`` or more.
    """
    file.seek(0)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the format")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    number = math.prod(shape)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    if min(shape, default=0) < 0 or number * max(1, dtype.itemsize) > size - file.tell():
        raise ValueError(f"shape {shape} of {dtype} is more than the file has")
    require_fits(path, number * max(dtype.itemsize, least_bytes))
    file.seek(0)
    array: np.ndarray = npy.read_array(file, allow_pickle=False)
    return array


def _read_pt(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            require_fits(path, sum(member.file_size for member in archive.infolist()))
            if archive.testzip() is not None:  # torch does not look at the sums
                raise ValueError("its checksums differ")
    file.seek(0)
    content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, Tensor):
        content = {"inputs": content}
    if not isinstance(content, dict):
        raise DataError(
            f"{shown(path)} must hold a tensor or a dict of tensors; it holds a {type(content).__name__}."
        )
    _require_keys(path, list(content))
    return {name: _plain(path, name, value) for name, value in content.items()}


def _plain(path: Path, name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        # a tensor may be a small storage under a large shape
        require_fits(path, value.numel() * max(value.element_size(), REAL_BYTES))
        value = value.detach()
        return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())
    kinds = {type(item) for item in value} if isinstance(value, list | tuple) else {type(value)}
    if kinds not in ({str}, {int}, {bool}, {float}):
        raise DataError(
            f"{shown(path)}: {name} must be a tensor or a list of one kind of plain values; it holds "
            f"{', '.join(sorted(kind.__name__ for kind in kinds)) or 'nothing'}."
        )
    return np.asarray(value)


_READERS = {".npy": _read_npy, ".npz": _read_npz, ".pt": _read_pt}


def _require_keys(path: Path, keys: Sequence[Any]) -> None:
    if set(keys) - set(KEYS) or "inputs" not in keys:
        listed = ", ".join(map(str, keys[:20])) + (", …" if len(keys) > 20 else "")
        raise DataError(
            f"{shown(path)} must hold inputs, and may hold targets, lengths and split; it holds "
            f"{listed or 'nothing'}."
        )
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{shown(path)} holds {twice} twice.")


def _from_arrays(path: Path, arrays: dict[str, np.ndarray], layout: Layout) -> SequenceData:
    inputs = arrays["inputs"]
    shapes = "(sequences, steps)" if layout.tokens else "(sequences, steps) or (sequences, steps, features)"
    if layout.sequence_column is None:  # one sequence, or several of the same features
        shapes = "(steps,)" if layout.tokens else "(steps,), (steps, features) or (sequences, steps, features)"
        if inputs.ndim == 1 or (inputs.ndim == 2 and not layout.tokens):
            inputs = inputs[None]
            arrays = {name: array if name == "lengths" else array[None] for name, array in arrays.items()}
    if inputs.ndim not in ((2,) if layout.tokens else (2, 3)) or 0 in inputs.shape:
        raise DataError(f"{shown(path)}: inputs must be {shapes}, none of them 0; got shape {inputs.shape}.")
    number, steps = inputs.shape[:2]
    lengths = _lengths(path, arrays.get("lengths"), number, steps)
    is_real = np.arange(steps) < lengths[:, None]  # (N, T)
    if layout.tokens:
        require_tokens(inputs, is_real, lambda place: f"{shown(path)}: inputs of {_place(place)}")
        flat = inputs[is_real].astype(np.int64)
    else:
        inputs = inputs if inputs.ndim == 3 else inputs[..., None]
        flat = _numbers(path, "inputs", inputs, is_real)[is_real]
    targets, splits = None, None
    if layout.target != "next_step" and ("targets" in arrays or not layout.is_predicted):
        if "targets" not in arrays:
            raise DataError(
                f"{shown(path)} holds no targets, which target={layout.target!r} needs; add them (.npz or .pt), "
                "or set target to next_step."
            )
        targets = _targets(path, arrays["targets"], is_real, layout)
    if "split" in arrays and not layout.is_predicted:
        splits = arrays["split"]
        if splits.shape != (number,):
            raise DataError(f"{shown(path)}: split must name train, val or test for each of {number} sequences.")
        splits = to_splits(splits, lambda index: f"{shown(path)}: split of sequence {index}")
    return SequenceData(flat, lengths, targets, splits, np.arange(number))


def _place(place: Sequence[int], names: Sequence[str] = ("sequence", "step", "feature")) -> str:
    return ", ".join(f"{name} {index}" for name, index in zip(names, place, strict=False))


def _lengths(path: Path, lengths: np.ndarray | None, number: int, steps: int) -> np.ndarray:
    if lengths is None:
        return np.full(number, steps)
    if lengths.shape != (number,) or lengths.dtype.kind not in "iu":
        raise DataError(
            f"{shown(path)}: lengths must be an integer for each of {number} sequences; got {lengths.dtype} of "
            f"shape {lengths.shape}."
        )
    wrong = np.flatnonzero((lengths < 1) | (lengths > steps))
    if len(wrong):
        raise DataError(
            f"{shown(path)}: the length of sequence {wrong[0]} must be from 1 to {steps}; got {lengths[wrong[0]]}."
        )
    return lengths.astype(np.int64)


def _numbers(
    path: Path,
    key: str,
    values: np.ndarray,
    is_real: np.ndarray | None,
    names: Sequence[str] = ("sequence", "step", "feature"),
) -> np.ndarray:
    """Return numbers as float64; refuse what is not finite where ``is_real``, everywhere if that is None."""
    if values.dtype.kind not in "fiub":
        raise DataError(f"{shown(path)}: {key} must be numbers; got {values.dtype}.")

    def first(wrong: np.ndarray) -> tuple[int, ...] | None:
        places = np.argwhere(wrong if is_real is None else wrong & is_real[..., None])
        return tuple(places[0]) if len(places) else None

    if (place := first(~np.isfinite(values))) is not None:
        raise DataError(
            f"{shown(path)}: {key} of {_place(place, names)} must be a finite number; got {values[place]}. "
            "Steps beyond the length of a sequence are not read."
        )
    numbers = values.astype(np.float64)
    if (place := first(np.abs(numbers) > MAX_NUMBER)) is not None:
        raise DataError(
            f"{shown(path)}: {key} of {_place(place, names)} must be a number from {-MAX_NUMBER:.2g} to "
            f"{MAX_NUMBER:.2g}; got {values[place]}."
        )
    return numbers


def _targets(path: Path, targets: np.ndarray, is_real: np.ndarray, layout: Layout) -> np.ndarray:
    """Return labels (n,) or numbers (n, O), n sequences or unpadded steps."""
    expected = is_real.shape if layout.target_per_step else is_real.shape[:1]
    most = len(expected) + (layout.target == "value")
    if targets.shape[: len(expected)] != expected or targets.ndim > most or 0 in targets.shape:
        last = ", or with a last dimension of several values" if layout.target == "value" else ""
        raise DataError(
            f"{shown(path)}: targets must be {expected} for target={layout.target!r}, "
            f"target_per_step={layout.target_per_step}{last}; got shape {targets.shape}."
        )
    where = is_real if layout.target_per_step else None
    if layout.target == "label":
        if targets.dtype.kind not in "iubU":
            raise DataError(
                f"{shown(path)}: targets must be integers or text for target='label'; got {targets.dtype}. "
                "Numbers to predict are target='value'."
            )
        if targets.dtype.kind == "u" and (targets > MAX_LABEL).any():
            raise DataError(f"{shown(path)}: targets must be integers up to {MAX_LABEL}; got {targets.max()}.")
        labels = targets if where is None else targets[where]
        if targets.dtype.kind != "U":
            return labels
        texts = labels.tolist()
        require_distinct(path, "labels", dict.fromkeys(texts), lambda text: f"target {texts.index(text)}")
        return labels.astype(object)  # text of any length
    names = ("sequence", "step", "value") if layout.target_per_step else ("sequence", "value")
    numbers = _numbers(path, "targets", targets.reshape(*expected, -1), where, names)
    return numbers if where is None else numbers[where]
