"""Sequences from tables with a row per step: .csv, .csv.gz and .parquet.

A cell is text until the layout says that it is a number, and column names are unique: no type is guessed.
"""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute

from rimlit.data.identity import digest_open
from rimlit.data.reading import not_utf8, one_line, open_file, read_bytes, require_fits, shown
from rimlit.data.sequence_layout import (
    MAX_LABEL,
    MAX_NUMBER,
    Layout,
    SequenceData,
    require_distinct,
    require_tokens,
    to_splits,
)
from rimlit.data.times import NUMBER, read_times, require_increasing
from rimlit.errors import DataError

TABLES = (".csv", ".csv.gz", ".parquet")
MISSING = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>")
"""Words that mean a missing number among numbers, and may be labels among words."""
DELIMITERS = {",": "a comma", ";": "';'", "\t": "tabs", "|": "'|'"}
CELL_BYTES = 8
MOST_NAMED = 20
_BLOCK = 2**26
_INDEX = re.compile(r"__index_level_\d+__")  # what pandas calls an index without a name in .parquet

Column = Any
"""A ``pyarrow.ChunkedArray``."""


class Columns(NamedTuple):
    """Which columns are read, by name."""

    sequence: str | None
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    split: str | None
    time: str | None = None

    @property
    def all(self) -> list[str]:
        """Return each of them once."""
        single = filter(None, [self.sequence, self.split, self.time])
        return list(dict.fromkeys([*single, *self.inputs, *self.targets]))


def read_table(path: Path, layout: Layout) -> SequenceData:
    """Read sequences from a table.

    Raises:
        DataError: The file cannot be read, or does not hold what ``layout`` says.
    """
    if path.suffix == ".parquet":
        with open_file(path) as file:
            digest = digest_open(path, file)
            columns, table = _read_parquet(path, file, layout)
    else:
        content = read_bytes(path)
        digest = hashlib.sha256(content).hexdigest()
        columns, table = _read_csv(path, content, layout)
    if not len(table[columns.all[0]]):
        raise DataError(f"{shown(path)} has no rows; it must have one for each step of each sequence.")
    return _from_table(path, columns, table, layout)._replace(digest=digest)


# Reading


def _read_csv(path: Path, content: bytes, layout: Layout) -> tuple[Columns, dict[str, Column]]:
    from pyarrow import csv as arrow

    header = _header(path, content, layout.delimiter)
    columns = _choose(path, header, layout)
    keys = [str(place) for place in range(len(header))]
    try:
        table = arrow.read_csv(
            pa.BufferReader(content),
            # the header is read as a row: names may be missing, and arrow would rename one that occurs twice
            read_options=arrow.ReadOptions(column_names=keys, use_threads=False, block_size=_BLOCK),
            parse_options=arrow.ParseOptions(delimiter=layout.delimiter, newlines_in_values=True),
            convert_options=arrow.ConvertOptions(
                column_types=dict.fromkeys(keys, pa.string()),
                include_columns=[str(header.index(name)) for name in columns.all],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
                null_values=[""],
            ),
        ).slice(1)
    except pa.ArrowException as error:
        if "UTF8" in str(error):
            try:
                content.decode()
            except UnicodeDecodeError as wrong:
                raise not_utf8(path, content, wrong) from wrong
        # rows are counted from the first below the header
        reason = re.sub(r"Row #(\d+)", lambda found: f"row {int(found[1]) - 1}", one_line(error))
        raise DataError(f"{shown(path)} cannot be read as a table: {reason}.") from error
    if content.count(b'"') % 2 and len(table) and any("\n" in str(column[-1]) for column in table.columns):
        raise DataError(f"{shown(path)}: row {len(table)} opens a quotation mark that is never closed.")
    return columns, dict(zip(columns.all, table.columns, strict=True))


def _header(path: Path, content: bytes, delimiter: str) -> list[str]:
    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
    try:
        cells = next(filter(None, csv.reader(lines, delimiter=delimiter)), [])
    except UnicodeDecodeError as error:
        raise not_utf8(path, content, error) from error
    except csv.Error as error:
        raise DataError(f"{shown(path)} cannot be read as a table: its header: {error}.") from error
    if any("\n" in cell for cell in cells):
        raise DataError(f"{shown(path)}: the header has a line end within a name: a quotation mark is not closed.")
    if not cells:
        raise DataError(f"{shown(path)} cannot be read as a table: it is empty.")
    return [cell.strip() for cell in cells]


def _read_parquet(path: Path, file: Any, layout: Layout) -> tuple[Columns, dict[str, Column]]:
    from pyarrow import parquet

    try:
        source = parquet.ParquetFile(file, page_checksum_verification=True)
        names = [name.strip() for name in source.schema_arrow.names]
        columns = _choose(path, ["" if _INDEX.fullmatch(name) else name for name in names], layout)
        found = source.metadata
        groups = (found.row_group(place).total_byte_size for place in range(found.num_row_groups))
        require_fits(path, max(sum(groups), found.num_rows * len(columns.all) * CELL_BYTES))
        table = source.read(columns=[source.schema_arrow.names[names.index(name)] for name in columns.all])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shown(path)} cannot be read as a table: {one_line(error)}.") from error
    return columns, {
        name.strip(): _decoded(column) for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _decoded(column: Column) -> Column:
    """Return a column without a dictionary, and text of any kind as one kind."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return column.cast(pa.large_string()) if is_text or str(column.type) == "string_view" else column


def _choose(path: Path, names: Sequence[str], layout: Layout) -> Columns:
    """Return what is read of the columns called ``names``, ``""`` for those without a name."""
    for place, name in enumerate(names):
        if name and name in names[:place]:
            raise DataError(
                f"{shown(path)}: the name {name!r} occurs twice in the header, for columns "
                f"{names.index(name) + 1} and {place + 1}; each column needs a name of its own."
            )
    targets = () if layout.target == "next_step" else tuple(name.strip() for name in layout.target_columns)
    split = layout.split_column
    if layout.is_predicted:  # what is there is read
        targets = targets if set(targets) <= set(names) else ()
        split = None
    single = [*filter(None, [layout.sequence_column, layout.time_column])]
    special = [*single, *layout.target_columns, *filter(None, [layout.split_column])]
    inputs = layout.input_columns
    if inputs is None:
        inputs = tuple(name for name in names if name not in special)
        if "" in inputs:
            raise DataError(
                f"{shown(path)}: column {names.index('') + 1} has no name; it may be a row number. Name what is "
                f"read in {layout.options[1]}."
            )
        if layout.known_columns is not None:
            more = [name for name in inputs if name not in layout.known_columns]
            if more and set(single) <= set(names):
                raise DataError(
                    f"{shown(path)} has the column {more[0]!r}, which the training data does not have: its inputs "
                    f"are {_names(layout.known_columns)}. Name what is read in {layout.options[1]}."
                )
            inputs = layout.known_columns
    for name in (*single, *targets, *filter(None, [split]), *inputs):
        if name.strip() not in names:
            raise DataError(
                f"{shown(path)} has no column {name!r}; it has {_names(names)}. "
                f"{', '.join(layout.options[:-1])} and {layout.options[-1]} name "
                f"them.{_other_delimiter(names, layout)}"
            )
    if (layout.input_columns != () and not inputs) or (layout.tokens and len(inputs) > 1):
        wanted = "one column of token ids" if layout.tokens else "a column of inputs"
        raise DataError(f"{shown(path)} must have {wanted}; {layout.options[1]} are {_names(inputs) or 'none'}.")
    return Columns(layout.sequence_column, inputs, targets, split, layout.time_column)


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:MOST_NAMED])) + (", …" if len(names) > MOST_NAMED else "")


def _other_delimiter(names: Sequence[str], layout: Layout) -> str:
    """Return a hint where the header seems to be divided by another character."""
    for mark, word in DELIMITERS.items():
        if mark != layout.delimiter and len(names) <= 1 and mark in "".join(names):
            given = r"\t" if mark == "\t" else mark
            return f" If the cells are separated by {word}, give --data.delimiter '{given}'."
    return ""


# Columns


def _from_table(path: Path, columns: Columns, table: dict[str, Column], layout: Layout) -> SequenceData:
    if columns.sequence is None:
        codes, names = np.zeros(len(table[columns.all[0]]), np.int64), [path.name.split(".")[0]]
    else:
        ids = table[columns.sequence]
        _refuse(path, columns.sequence, ids, _is_missing(ids), "the name of a sequence")
        codes, names = _encode(ids)
    order = np.argsort(codes, kind="stable")  # the rows of a sequence need not be neighbours
    lengths = np.bincount(codes)
    firsts = order[np.concatenate([[0], np.cumsum(lengths)[:-1]])]
    require_distinct(path, "names of sequences", names, lambda name: f"row {firsts[names.index(name)] + 1}")

    if layout.tokens:
        name = columns.inputs[0]
        values = _column(path, name, table[name], layout)
        require_tokens(
            values, np.ones(len(values), bool), lambda at: f"{shown(path)}: row {at[0] + 1}, column {name!r}"
        )
        flat: np.ndarray = values[order].astype(np.int64)
    else:
        wanted = "a finite number"
        if layout.input_columns is None:
            wanted += f" ({layout.options[1]} names those that are read)"
        flat = np.zeros((len(codes), 0))  # a table of labels has none
        if columns.inputs:
            flat = np.stack([_column(path, name, table[name], layout, wanted) for name in columns.inputs], axis=1)
        flat = flat[order]
    times = None
    if columns.time is not None:
        times = read_times(path, columns.time, table[columns.time])[order]
        require_increasing(path, columns.time, times, codes[order], order)

    targets = splits = None
    if columns.targets:
        if layout.target == "label":
            targets = _labels(path, columns.targets[0], table[columns.targets[0]])
        else:
            targets = np.stack([_column(path, name, table[name], layout) for name in columns.targets], axis=1)
        if not layout.target_per_step:
            _require_constant(path, columns.targets, targets, codes, firsts)
        targets = targets[order if layout.target_per_step else firsts]
    if columns.split is not None:
        given = table[columns.split]
        _refuse(path, columns.split, given, _is_missing(given), "train, val or test")
        places, words = _encode(given)
        named = np.array(words, dtype=object)[places]
        _require_constant(path, [columns.split], named, codes, firsts)
        where = f"column {columns.split!r}"
        splits = to_splits(named[firsts], lambda index: f"{shown(path)}: row {firsts[index] + 1}, {where}")
    data = SequenceData(flat, lengths, targets, splits, np.array(names, dtype=object), columns.inputs)
    return data._replace(times=times)


def _is_missing(column: Column) -> np.ndarray:
    """Return for each row whether it has nothing."""
    missing: np.ndarray = compute.is_null(column, nan_is_null=True).to_numpy()
    return missing


def _encode(column: Column) -> tuple[np.ndarray, list[str]]:
    """Return the number of each row's text among the texts, and these in the order in which they appear."""
    if pa.types.is_string(column.type):
        column = column.cast(pa.large_string())
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes: np.ndarray = encoded.indices.to_numpy(zero_copy_only=False)
    return codes, [str(value) for value in encoded.dictionary.to_pylist()]


def _refuse(path: Path, name: str, column: Column, wrong: np.ndarray, wanted: str, hint: str = "") -> None:
    places = np.flatnonzero(wrong)
    if len(places):
        value = column[int(places[0])].as_py()
        given = (
            "nothing"
            if value is None or value != value
            else (repr(value) if isinstance(value, str) else str(value))[:200]
        )
        raise DataError(
            f"{shown(path)}: row {places[0] + 1}, column {name!r} must be {wanted}; got {given}. (Row 1 is the "
            f"first one below the header.){hint}"
        )


def _column(path: Path, name: str, column: Column, layout: Layout, wanted: str = "a finite number") -> np.ndarray:
    """Return a column of finite numbers, in the file's order."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        numbers = _parse(column, layout.decimal)
    elif any(is_kind(kind) for is_kind in _NUMBERS):
        numbers = column.cast(pa.float64(), safe=False)
    else:
        numbers = pa.nulls(
            len(column), pa.float64()
        )  # a time, which would count in fractions of a second, or more
    values: np.ndarray = (
        numbers.to_numpy(zero_copy_only=False) if isinstance(numbers, pa.Array) else numbers.to_numpy()
    )
    wrong = ~np.isfinite(values)
    if layout.may_be_empty is None or name in layout.may_be_empty:
        wrong &= ~_is_missing(column)
    hint = ""
    if (
        wrong.any()
        and layout.decimal == "."
        and re.fullmatch(r"\s*[+-]?\d*,\d+\s*", str(column[int(wrong.argmax())]))
    ):
        hint = " Numbers with a decimal comma need --data.decimal ','."
    _refuse(path, name, column, wrong, wanted, hint)
    limits = f"a number from {-MAX_NUMBER:.2g} to {MAX_NUMBER:.2g}"
    _refuse(path, name, column, np.abs(values) > MAX_NUMBER, limits)
    return values


_NUMBERS: tuple[Callable[[Any], bool], ...] = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_decimal,
)


def _parse(column: Column, decimal: str) -> Column:
    """Return the numbers that texts say, null where one says none; a column of true and false is 1 and 0."""
    texts = compute.utf8_trim_whitespace(column)
    if decimal != ".":
        # with a decimal comma a point is not a part of a number
        texts = compute.if_else(compute.match_substring(texts, "."), "", texts)
        texts = compute.replace_substring(texts, decimal, ".", max_replacements=1)
    is_number = compute.match_substring_regex(texts, NUMBER)
    if not compute.any(is_number).as_py():
        words = compute.utf8_lower(texts)
        is_word = compute.is_in(words, value_set=pa.array(["true", "false"], words.type))
        if compute.all(is_word).as_py():
            return compute.equal(words, "true").cast(pa.float64())
    return compute.if_else(is_number, texts, pa.scalar(None, texts.type)).cast(pa.float64())


def _labels(path: Path, name: str, column: Column) -> np.ndarray:
    """Return labels: text as it is written, or the integers of a parquet file."""
    _refuse(path, name, column, _is_missing(column), "a label")
    if pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
        values: np.ndarray = column.to_numpy()
        _refuse(path, name, column, values > MAX_LABEL, f"a label, an integer up to {MAX_LABEL}, or text")
        return values
    if pa.types.is_floating(column.type):
        values = column.to_numpy()
        _refuse(path, name, column, np.abs(values) > MAX_LABEL, f"a label, an integer up to {MAX_LABEL}, or text")
        _refuse(path, name, column, values % 1 != 0, _NO_FRACTION)
        return values.astype(np.int64)
    codes, texts = _encode(column)
    is_number = np.array([re.match(NUMBER, text.strip()) is not None for text in texts])
    is_missing = np.array([text in MISSING for text in texts])
    if is_number.any() and (is_number | is_missing).all():
        _refuse(path, name, column, is_missing[codes], "a label, a number as the others are")
        has_fraction = np.array([float(text) % 1 != 0 for text in texts])
        _refuse(path, name, column, has_fraction[codes], _NO_FRACTION)
    require_distinct(path, "labels", texts, lambda text: f"row {(codes == texts.index(text)).argmax() + 1}")
    labels: np.ndarray = np.array(texts, dtype=object)[codes]
    return labels


_NO_FRACTION = "an integer or text; numbers to predict are target='value'"


def _require_constant(
    path: Path, columns: Sequence[str], values: np.ndarray, codes: np.ndarray, firsts: np.ndarray
) -> None:
    """Refuse values, one per row, that differ within a sequence."""
    differs = values != values[firsts[codes]]
    rows = np.flatnonzero(differs.reshape(len(values), -1).any(axis=1))
    if len(rows):
        row, first = rows[0], firsts[codes[rows[0]]]
        raise DataError(
            f"{shown(path)}: row {row + 1} has {_listed(values[row])} in {', '.join(columns)}, where row "
            f"{first + 1} of the same sequence has {_listed(values[first])}; they must agree. Targets of "
            "every step are target_per_step=true."
        )


def _listed(value: Any) -> str:
    return ", ".join(map(str, np.atleast_1d(value).tolist()))
