"""Sequences of one's own from files: padded arrays, or tables with a row per step. docs/your_own_data.md."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rimlit.errors import DataError

if TYPE_CHECKING:
    import pandas

Target = Literal["label", "value", "next_step"]

ARRAYS = (".npy", ".npz", ".pt")
TABLES = (".csv", ".csv.gz", ".parquet")
SUFFIXES = (*ARRAYS, *TABLES)
KEYS = ("inputs", "targets", "lengths", "split")
MAX_TOKEN = 10_000_000
"""The greatest token id: every one has a row in the embedding and an output."""
MAX_NUMBER = float(np.finfo(np.float32).max)
"""The greatest size of a number: models compute in 32 bits."""
MAX_LABEL = 2**63 - 1
MISSING = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>")
"""Words that mean a missing number among numbers, and may be labels among words."""
FILE_NAMES = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}


class Layout(NamedTuple):
    """What a file is to hold, and where."""

    target: Target
    target_per_step: bool
    tokens: bool
    sequence_column: str
    input_columns: Sequence[str] | None
    target_columns: Sequence[str]
    split_column: str | None


class SequenceData(NamedTuple):
    """Sequences end to end, without padding."""

    inputs: np.ndarray  # (steps, D) finite numbers, or (steps,) token ids
    lengths: np.ndarray  # (N,), each at least 1
    targets: np.ndarray | None  # (N or steps,) labels, (N or steps, O) finite numbers, or None: the next step
    splits: np.ndarray | None  # (N,) of train, val, test; None where they are not given


def read_sequences(path: Path, layout: Layout) -> dict[str, SequenceData]:
    """Read a file, or a folder with a file for each of train, val and test.

    Returns:
        Sequences by split, or one set under ``""`` that is still to be split.

    Raises:
        DataError: A file is missing, cannot be read, or does not hold what ``layout`` says.
    """
    if path.is_file():
        return {"": read_file(path, layout)}
    if not path.is_dir():
        raise DataError(
            f"path={str(path)!r} does not exist; it must be a {_listed()} file or a folder of such files."
        )
    files = {
        split: [found for name in names for suffix in SUFFIXES if (found := path / f"{name}{suffix}").is_file()]
        for split, names in FILE_NAMES.items()
    }
    for split, candidates in files.items():
        if len(candidates) != 1:
            there = ", ".join(file.name for file in candidates) or "none"
            raise DataError(
                f"path={str(path)!r} must hold one file for each of train, val and test ({_listed()}); "
                f"for {split} it has {there}."
            )
    return {split: read_file(found[0], layout) for split, found in files.items()}


def _listed() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def read_file(path: Path, layout: Layout) -> SequenceData:
    """Read the sequences of one file; see :func:`read_sequences`."""
    if path.name.endswith(TABLES):
        return _from_table(path, _read_table(path, layout), layout)
    if path.name.endswith(ARRAYS):
        return _from_arrays(path, _read_arrays(path), layout)
    raise DataError(f"{path} must be a {_listed()} file.")


# Arrays


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".pt":
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            content = np.load(path, allow_pickle=False)
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    except Exception as error:  # numpy and torch refuse pickles in half a dozen ways
        raise DataError(
            f"{path} is damaged or holds more than plain numbers ({type(error).__name__}): Python objects are not "
            "loaded. Save sequences of different lengths padded, with lengths beside them."
        ) from error
    if isinstance(content, np.ndarray | Tensor):
        content = {"inputs": content}
    if not hasattr(content, "keys"):
        raise DataError(f"{path} must hold a tensor or a dict of tensors; it holds a {type(content).__name__}.")
    unknown = sorted(set(content.keys()) - set(KEYS))
    if unknown or "inputs" not in content:
        raise DataError(
            f"{path} must hold inputs, and may hold targets, lengths and split; it holds "
            f"{', '.join(map(str, content.keys())) or 'nothing'}."
        )
    try:
        return {name: _plain(content[name]) for name in list(content)}  # numpy reads at the access
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is damaged or holds more than plain numbers ({error}): Python objects are not loaded. Save "
            "sequences of different lengths padded, with lengths beside them."
        ) from error


def _plain(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy()
    return np.asarray(value)


def _from_arrays(path: Path, arrays: dict[str, np.ndarray], layout: Layout) -> SequenceData:
    inputs = arrays["inputs"]
    shapes = "(sequences, steps)" if layout.tokens else "(sequences, steps) or (sequences, steps, features)"
    if inputs.ndim not in ((2,) if layout.tokens else (2, 3)) or 0 in inputs.shape:
        raise DataError(f"{path}: inputs must be {shapes}, none of them 0; got shape {inputs.shape}.")
    number, steps = inputs.shape[:2]
    lengths = _lengths(path, arrays.get("lengths"), number, steps)
    is_real = np.arange(steps) < lengths[:, None]  # (N, T)
    if layout.tokens:
        _require_tokens(inputs, is_real, lambda place: f"{path}: inputs of {_place(place)}")
        flat = inputs[is_real].astype(np.int64)
    else:
        inputs = inputs if inputs.ndim == 3 else inputs[..., None]
        flat = _numbers(path, "inputs", inputs, is_real)[is_real]
    targets = None
    if layout.target != "next_step":
        if "targets" not in arrays:
            raise DataError(
                f"{path} holds no targets, which target={layout.target!r} needs; add them (.npz or .pt), or set "
                "target to next_step."
            )
        targets = _targets(path, arrays["targets"], is_real, layout)
    splits = arrays.get("split")
    if splits is not None:
        if splits.shape != (number,):
            raise DataError(f"{path}: split must name train, val or test for each of {number} sequences.")
        splits = _splits(splits, lambda index: f"{path}: split of sequence {index}")
    return SequenceData(flat, lengths, targets, splits)


def _place(place: Sequence[int], names: Sequence[str] = ("sequence", "step", "feature")) -> str:
    return ", ".join(f"{name} {index}" for name, index in zip(names, place, strict=False))


def _lengths(path: Path, lengths: np.ndarray | None, number: int, steps: int) -> np.ndarray:
    if lengths is None:
        return np.full(number, steps)
    if lengths.shape != (number,) or lengths.dtype.kind not in "iu":
        raise DataError(
            f"{path}: lengths must be an integer for each of {number} sequences; got {lengths.dtype} of shape "
            f"{lengths.shape}."
        )
    wrong = np.flatnonzero((lengths < 1) | (lengths > steps))
    if len(wrong):
        raise DataError(
            f"{path}: the length of sequence {wrong[0]} must be from 1 to {steps}; got {lengths[wrong[0]]}."
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
        raise DataError(f"{path}: {key} must be numbers; got {values.dtype}.")
    wrong = ~np.isfinite(values)
    if is_real is not None:
        wrong &= is_real[..., None]
    if wrong.any():
        place = np.argwhere(wrong)[0]
        raise DataError(
            f"{path}: {key} of {_place(place, names)} must be a finite number; got {values[tuple(place)]}. What "
            "lies beyond a sequence's length is not read."
        )
    numbers = values.astype(np.float64)
    wrong = np.abs(numbers) > MAX_NUMBER
    if is_real is not None:
        wrong &= is_real[..., None]
    if wrong.any():
        place = np.argwhere(wrong)[0]
        raise DataError(
            f"{path}: {key} of {_place(place, names)} must be a number from {-MAX_NUMBER:.2g} to "
            f"{MAX_NUMBER:.2g}; got {values[tuple(place)]}."
        )
    return numbers


def _targets(path: Path, targets: np.ndarray, is_real: np.ndarray, layout: Layout) -> np.ndarray:
    """Return labels (n,) or numbers (n, O), n sequences or unpadded steps."""
    expected = is_real.shape if layout.target_per_step else is_real.shape[:1]
    most = len(expected) + (layout.target == "value")
    if targets.shape[: len(expected)] != expected or targets.ndim > most or 0 in targets.shape:
        last = ", or with a last dimension of several values" if layout.target == "value" else ""
        raise DataError(
            f"{path}: targets must be {expected} for target={layout.target!r}, "
            f"target_per_step={layout.target_per_step}{last}; got shape {targets.shape}."
        )
    where = is_real if layout.target_per_step else None
    if layout.target == "label":
        if targets.dtype.kind not in "iubU":
            raise DataError(
                f"{path}: targets must be integers or text for target='label'; got {targets.dtype}. Numbers to "
                "predict are target='value'."
            )
        if targets.dtype.kind == "u" and (targets > MAX_LABEL).any():
            raise DataError(f"{path}: targets must be integers up to {MAX_LABEL}; got {targets.max()}.")
        return targets if where is None else targets[where]
    names = ("sequence", "step", "value") if layout.target_per_step else ("sequence", "value")
    numbers = _numbers(path, "targets", targets.reshape(*expected, -1), where, names)
    return numbers if where is None else numbers[where]


# Tables


def _read_table(path: Path, layout: Layout) -> "pandas.DataFrame":
    import pandas  # takes half a second

    try:
        if path.suffix == ".parquet":
            table = pandas.read_parquet(path)
        else:
            table = pandas.read_csv(
                path,
                low_memory=False,
                dtype={layout.sequence_column: str},  # names stay text: as numbers 01 and 1 would be one sequence
                keep_default_na=False,  # NA and None may be labels or names
                na_values=[""],
            )
    except Exception as error:  # the readers raise their own kinds
        raise DataError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from error
    if path.suffix != ".parquet" and not isinstance(table.index, pandas.RangeIndex):
        # pandas then takes the first column for an index, and every name stands over its neighbour's values
        raise DataError(f"{path} has more cells in its rows than names in its header; each column needs one.")
    if not len(table):
        raise DataError(f"{path} has no rows; it must have one for each step of each sequence.")
    return table


def _from_table(path: Path, table: "pandas.DataFrame", layout: Layout) -> SequenceData:
    import pandas

    target_columns = [] if layout.target == "next_step" else list(layout.target_columns)
    special = [layout.sequence_column, *target_columns, *filter(None, [layout.split_column])]
    inputs = layout.input_columns
    if inputs is None:
        inputs = [str(name) for name in table.columns if name not in {*special, *layout.target_columns}]
        if unnamed := [name for name in inputs if name.startswith("Unnamed: ")]:  # as pandas calls them
            number = list(table.columns).index(unnamed[0]) + 1
            raise DataError(
                f"{path}: column {number} has no name; it may be a row number. Name what is read in input_columns."
            )
    for column in (*special, *inputs):
        if column not in table.columns:
            raise DataError(
                f"{path} has no column {column!r}; it has {', '.join(map(str, table.columns))}. sequence_column, "
                "input_columns, target_columns and split_column name them."
            )
    if not inputs or (layout.tokens and len(inputs) > 1):
        wanted = "one column of token ids" if layout.tokens else "a column of inputs"
        raise DataError(f"{path} must have {wanted}; input_columns are {', '.join(inputs) or 'none'}.")

    ids = table[layout.sequence_column]
    _refuse(path, layout.sequence_column, ids, ids.isna(), "the name of a sequence")
    codes, _ = pandas.factorize(ids)  # numbered as they appear
    order = np.argsort(codes, kind="stable")  # the rows of a sequence need not be neighbours
    lengths = np.bincount(codes)
    firsts = order[np.concatenate([[0], np.cumsum(lengths)[:-1]])]

    if layout.tokens:
        values = _column(path, table, inputs[0])
        _require_tokens(
            values, np.ones(len(values), bool), lambda place: f"{path}: row {place[0] + 1}, column {inputs[0]!r}"
        )
        flat = values[order].astype(np.int64)
    else:
        wanted = "a finite number"
        if layout.input_columns is None:
            wanted += " (input_columns names those that are read)"
        flat = np.stack([_column(path, table, name, wanted) for name in inputs], axis=1)[order]

    targets = None
    if target_columns:
        if layout.target == "label":
            targets = _labels(path, table, target_columns[0])
        else:
            targets = np.stack([_column(path, table, name) for name in target_columns], axis=1)
        if not layout.target_per_step:
            _require_constant(path, target_columns, targets, codes, firsts)
        targets = targets[order if layout.target_per_step else firsts]
    splits = None
    if layout.split_column is not None:
        given = table[layout.split_column]
        _refuse(path, layout.split_column, given, given.isna(), "train, val or test")
        named = given.astype(str).to_numpy(dtype=object)
        _require_constant(path, [layout.split_column], named, codes, firsts)
        column = f"column {layout.split_column!r}"
        splits = _splits(named[firsts], lambda index: f"{path}: row {firsts[index] + 1}, {column}")
    return SequenceData(flat, lengths, targets, splits)


def _refuse(path: Path, column: str, values: "pandas.Series[Any]", wrong: Any, wanted: str) -> None:
    places = np.flatnonzero(np.asarray(wrong))
    if len(places):
        given = "nothing" if values.isna().iloc[places[0]] else repr(values.iloc[places[0]])
        raise DataError(
            f"{path}: row {places[0] + 1}, column {column!r} must be {wanted}; got {given}. (Row 1 is the first "
            "one below the header.)"
        )


def _column(path: Path, table: "pandas.DataFrame", name: str, wanted: str = "a finite number") -> np.ndarray:
    """Return a column of finite numbers, in the file's order."""
    import pandas

    is_time = table[name].dtype.kind in "mM"  # which pandas would count in fractions of a second
    _refuse(path, name, table[name], np.full(len(table), is_time), wanted)
    numbers: np.ndarray = pandas.to_numeric(table[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    _refuse(path, name, table[name], ~np.isfinite(numbers), wanted)
    limits = f"a number from {-MAX_NUMBER:.2g} to {MAX_NUMBER:.2g}"
    _refuse(path, name, table[name], np.abs(numbers) > MAX_NUMBER, limits)
    return numbers


def _labels(path: Path, table: "pandas.DataFrame", name: str) -> np.ndarray:
    import pandas

    values = table[name]
    _refuse(path, name, values, values.isna(), "a label")
    if values.dtype.kind in "fu":
        _refuse(path, name, values, values > MAX_LABEL, f"a label, an integer up to {MAX_LABEL}, or text")
    elif values.dtype.kind not in "ib":
        is_word = pandas.to_numeric(values, errors="coerce").isna()
        if values[is_word].isin(MISSING).all() and not is_word.all():
            _refuse(path, name, values, is_word, "a label, a number as the others are")
    if values.dtype.kind == "f":
        _refuse(path, name, values, values % 1 != 0, "an integer or text; numbers to predict are target='value'")
        values = values.astype(np.int64)
    labels: np.ndarray = values.to_numpy() if values.dtype.kind in "iub" else values.astype(str).to_numpy(str)
    return labels


def _require_constant(
    path: Path, columns: Sequence[str], values: np.ndarray, codes: np.ndarray, firsts: np.ndarray
) -> None:
    """Refuse values, one per row, that differ within a sequence."""
    differs = values != values[firsts[codes]]
    rows = np.flatnonzero(differs.reshape(len(values), -1).any(axis=1))
    if len(rows):
        row, first = rows[0], firsts[codes[rows[0]]]
        raise DataError(
            f"{path}: row {row + 1} has {_shown(values[row])} in {', '.join(columns)}, where row {first + 1} of "
            f"the same sequence has {_shown(values[first])}; they must agree. Targets of every step are "
            "target_per_step=true."
        )


def _shown(value: Any) -> str:
    return ", ".join(map(str, np.atleast_1d(value).tolist()))


# Both


def _require_tokens(values: np.ndarray, is_real: np.ndarray, describe: Any) -> None:
    """Refuse what is no token id: an integer from 0 to ``MAX_TOKEN``."""
    wanted = f"must be a token id, an integer from 0 to {MAX_TOKEN:,}"
    if values.dtype.kind not in "fiu":
        raise DataError(f"{describe((0, 0))} {wanted}; got {values.dtype}.")
    wrong = np.argwhere(~((values >= 0) & (values <= MAX_TOKEN) & (values % 1 == 0)) & is_real)
    if len(wrong):
        raise DataError(f"{describe(wrong[0])} {wanted}; got {values[tuple(wrong[0])]}.")


def _splits(values: np.ndarray, describe: Any) -> np.ndarray:
    ours = {name: split for split, names in FILE_NAMES.items() for name in names}
    for index, value in enumerate(values.tolist()):
        if value not in ours:
            raise DataError(f"{describe(index)} must be train, val or test; got {value!r}.")
    return np.array([ours[value] for value in values.tolist()])
