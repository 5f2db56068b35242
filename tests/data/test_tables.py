"""Tables are read as they are written: nothing is renamed, guessed or shifted, and what is odd is named."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from rimlit.data import Sequences
from rimlit.data.sequence_layout import SequenceData
from rimlit.data.sequence_sources import read_sequences
from rimlit.errors import ConfigError, DataError

ROWS = [(f"s{number}", f"{number}.{step}", f"{step}", "ok") for number in range(3) for step in range(2)]


def write_csv(path: Path, header: str, rows: Any = ROWS, *, delimiter: str = ",") -> Path:
    """A table of three sequences of two steps: sequence, x, y, target."""
    text = "\n".join([header.replace(",", delimiter), *(delimiter.join(row) for row in rows), ""])
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path, **arguments: Any) -> SequenceData:
    """The sequences of one file."""
    (data,) = read_sequences(path, Sequences(str(path), **arguments).layout).values()
    return data


@pytest.mark.parametrize(
    ("header", "places"),
    [
        ("sequence,x,target,target", "'target' occurs twice in the header, for columns 3 and 4"),
        ("sequence,x,x,target", "'x' occurs twice in the header, for columns 2 and 3"),
        ("sequence,x, x,target", "'x' occurs twice in the header, for columns 2 and 3"),
        ("sequence,sequence,x,target", "'sequence' occurs twice in the header, for columns 1 and 2"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_name_that_occurs_twice_is_refused_with_both_places(
    tmp_path: Path, suffix: str, header: str, places: str
) -> None:
    path = tmp_path / f"a{suffix}"
    write_csv(path, header)
    if suffix == ".csv.gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif suffix == ".parquet":
        parquet.write_table(
            pa.table([list(column) for column in zip(*ROWS, strict=True)], header.split(",")), path
        )
    with pytest.raises(DataError, match=rf"a\{suffix}: the name {places}; each column needs a name of its own"):
        read(path, target_columns=["target"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_columns": ["x", "target"]}, "input_columns names 'target', which target_columns names already"),
        ({"input_columns": ["sequence"]}, "input_columns names 'sequence', which sequence_column names already"),
        (
            {"input_columns": ["p"], "split_column": "p"},
            "input_columns names 'p', which split_column names already",
        ),
        ({"split_column": "target"}, "target_columns names 'target', which split_column names already"),
        ({"sequence_column": "target"}, "target_columns names 'target', which sequence_column names already"),
        ({"input_columns": ["x", "y", "x"]}, "input_columns names 'x', which input_columns names already"),
        (
            {"target": "value", "target_columns": ["y", "y"]},
            "target_columns names 'y', which target_columns names already; a column has one use",
        ),
        ({"delimiter": ";;"}, "delimiter must be one character such as .*; got delimiter=';;'"),
        ({"delimiter": "1"}, "delimiter must be one character such as .*; got delimiter='1'"),
        ({"decimal": ","}, "decimal must be a point or a comma, and another than delimiter; got decimal=','"),
        ({"decimal": "x"}, "decimal must be a point or a comma, and another than delimiter; got decimal='x'"),
    ],
)
def test_a_column_has_one_role(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sequences("a.csv", **arguments)
    Sequences("a.csv", target="next_step", input_columns=["target"])  # no target is read


def test_validation_and_test_have_their_columns_in_any_order(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", "sequence,x,y,target")
    swapped = [(name, y, x, label) for name, x, y, label in ROWS]
    write_csv(tmp_path / "val.csv", "sequence,y,x,target", swapped)
    write_csv(tmp_path / "test.csv", "target,y,x,sequence", [(row[3], *row[1:3], row[0]) for row in swapped])
    parts = read_sequences(tmp_path, Sequences(str(tmp_path)).layout)
    for part in parts.values():
        assert part.inputs.tolist() == parts["train"].inputs.tolist()
        assert part.columns == ("x", "y")
    write_csv(tmp_path / "test.csv", "sequence,y,z,target")
    with pytest.raises(DataError, match=r"test\.csv has the column 'z', which the training data does not have"):
        read_sequences(tmp_path, Sequences(str(tmp_path)).layout)


@pytest.mark.parametrize("names", [(" s0", "s0"), ("s0", "s0\t"), ("s 0", "s  0")])
def test_names_and_labels_that_differ_by_white_space_alone_are_named(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    rows = [(name, "1", "2", "ok") for name in names]
    with pytest.raises(DataError, match=r"names of sequences '.*' \(row 1\) and '.*' \(row 2\) differ only by"):
        read(write_csv(tmp_path / "a.csv", "sequence,x,y,target", rows))
    rows = [(f"s{number}", "1", "2", label) for number, label in enumerate(names)]
    with pytest.raises(DataError, match=r"labels '.*' \(row 1\) and '.*' \(row 2\) differ only by white space"):
        read(write_csv(tmp_path / "a.csv", "sequence,x,y,target", rows))


@pytest.mark.parametrize(("delimiter", "option"), [(";", "';'"), ("\t", r"'\\t'"), ("|", r"'\|'")])
def test_another_delimiter_is_named_with_the_option_that_helps(
    tmp_path: Path, delimiter: str, option: str
) -> None:
    path = write_csv(tmp_path / "a.csv", "sequence,x,y,target", delimiter=delimiter)
    with pytest.raises(DataError, match=rf"has no column 'sequence'; .* give --data\.delimiter {option}\."):
        read(path)
    given = r"\t" if delimiter == "\t" else delimiter
    assert read(path, delimiter=given).inputs.shape == (6, 2)


def test_decimal_commas_are_named_with_the_option_that_helps(tmp_path: Path) -> None:
    rows = [(name, x.replace(".", ","), y, label) for name, x, y, label in ROWS]
    path = write_csv(tmp_path / "a.csv", "sequence,x,y,target", rows, delimiter=";")
    with pytest.raises(DataError, match=r"row 1, column 'x' .*; got '0,0'.* need --data\.decimal ','\."):
        read(path, delimiter=";")
    data = read(path, delimiter=";", decimal=",")
    assert data.inputs[:, 0].tolist() == [0.0, 0.1, 1.0, 1.1, 2.0, 2.1]
    with pytest.raises(DataError, match=r"row 1, column 'x' must be a finite number .*; got '0\.0'"):
        read(write_csv(tmp_path / "b.csv", "sequence,x,y,target", delimiter=";"), delimiter=";", decimal=",")


@pytest.mark.parametrize(
    "cell",
    [
        *(
            "1,000",
            "1_000",
            "0x10",
            "nan",
            "NaN",
            "inf",
            "-Infinity",
            "1 000",
            "2026-01-01",
            "True",
            "None",
            "1.2.3",
        ),
        "٣",
    ],
)
def test_what_is_no_plain_number_is_no_number(tmp_path: Path, cell: str) -> None:
    rows = [("a", "1", "1", "ok"), ("a", f'"{cell}"', "1", "ok")]
    with pytest.raises(DataError, match="row 2, column 'x' must be a finite number"):
        read(write_csv(tmp_path / "a.csv", "sequence,x,y,target", rows))


def test_numbers_are_read_however_they_are_written(tmp_path: Path) -> None:
    cells = ["1", "+1", " 1 ", '"1"', "1.", "01", "10e-1", ".1E1"]
    rows = [("a", cell, "1", "ok") for cell in cells]
    data = read(write_csv(tmp_path / "a.csv", "sequence,x,y,target", rows))
    assert data.inputs[:, 0].tolist() == [1.0] * len(cells)


def test_a_column_of_true_and_false_is_one_and_zero(tmp_path: Path) -> None:
    rows = [("a", cell, "1", "ok") for cell in ("True", "false", "TRUE")]
    data = read(write_csv(tmp_path / "a.csv", "sequence,x,y,target", rows))
    assert data.inputs[:, 0].tolist() == [1.0, 0.0, 1.0]


def test_a_byte_order_mark_does_not_belong_to_the_first_name(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", "sequence,x,y,target")
    plain = read(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(path).inputs.tolist() == plain.inputs.tolist()
    assert read(path).names.tolist() == ["s0", "s1", "s2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sequence,x,target\ns,1,é\n".encode("latin-1"), "is not UTF-8 text: byte 22, in line 2, is 0xe9"),
        ("sequence,x,target\ns,1,a\n".encode("utf-16"), "is not UTF-8 text: it is UTF-16. Save it as UTF-8"),
        (b'sequence,x,target\ns,1,"a\ns,2,a\n', "row 1 opens a quotation mark that is never closed"),
        (b"sequence,x,target\ns,1\n", "row 1: Expected 3 columns, got 2"),
        (b"sequence,,target\ns,1,a\n", "column 2 has no name"),
        (b'sequence,"x,target\ns,1,a\n', "the header has a line end within a name"),
        (
            b"sequence," + b"x" * 3000 + b",y\n",
            r"has no column 'target'; it has sequence, x+… \(3000 characters\), y",
        ),
        (b"\n\n", "cannot be read as a table: it is empty"),
    ],
)
def test_a_table_that_is_damaged_is_refused_in_one_line_with_the_place(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / "a.csv")
    assert "\n" not in str(caught.value)


def test_an_index_without_a_name_is_no_input(tmp_path: Path) -> None:
    columns = {"sequence": ["a", "a"], "x": [1.0, 2.0], "target": ["u", "u"], "__index_level_0__": [5, 6]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 4 has no name; it may be a row number"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", input_columns=["x"]).inputs.tolist() == [[1.0], [2.0]]


def test_categories_of_a_parquet_file_are_the_text_they_stand_for(tmp_path: Path) -> None:
    columns = {
        "sequence": pa.array(["a", "b"]).dictionary_encode(),
        "x": pa.array(np.array([1, 2], np.int8)),
        "target": pa.array(["01", "1"]).dictionary_encode(),
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    data = read(tmp_path / "a.parquet")
    assert data.targets is not None
    assert (data.names.tolist(), data.targets.tolist()) == (["a", "b"], ["01", "1"])


# Doubtful data


def split_rows(*parts: str) -> list[tuple[str, ...]]:
    """Three sequences of two steps for each part, with its numbers and labels."""
    numbers = {"train": 0, "val": 10, "test": 20}
    return [
        (f"{part}{index}", f"{numbers[part] + index}.{step}", "uv"[index % 2], part)
        for part in parts
        for index in range(3)
        for step in range(2)
    ]


def make(path: Path, **arguments: Any) -> Sequences:
    return Sequences(str(path), split_column="part", batch_size=2, seed=0, **arguments)


HEADER = "sequence,x,target,part"


def test_one_class_or_a_test_that_was_trained_on_is_a_warning_and_an_error_where_it_is_strict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = split_rows("train", "val", "test")
    sound = write_csv(tmp_path / "sound.csv", HEADER, rows)
    make(sound, strict=True).setup("fit")
    assert not caplog.records
    one = write_csv(tmp_path / "one.csv", HEADER, [(*row[:2], "u", row[3]) for row in rows])
    copied = [(f"again{row[0]}", *row[1:3], "test") for row in rows if row[3] == "train"]
    leaked = write_csv(tmp_path / "leaked.csv", HEADER, split_rows("train", "val") + copied)
    for path, words in (
        (one, r"one\.csv: all of training has the label 'u'"),
        (leaked, r"leaked\.csv: every sequence of test is also in train"),
    ):
        caplog.clear()
        data = make(path)
        data.setup("fit")
        data.setup("fit")
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "\n" not in record.getMessage()
        with pytest.raises(DataError, match=words):
            make(path, strict=True).setup("fit")


def test_sequences_without_a_next_step_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*split_rows("train", "val", "test"), ("short", "9.5", "u", "val"), ("brief", "9.6", "u", "val")]
    data = make(write_csv(tmp_path / "a.csv", HEADER, rows), target="next_step")
    data.setup("fit")
    words = "2 sequence(s) (short, brief) of one step have no next one and are left out of val"
    assert [words in record.getMessage() for record in caplog.records] == [True]
    assert len(data.datasets("val")[""]) == 3
    assert data.sample_name("val", "", 2) == "val2"
