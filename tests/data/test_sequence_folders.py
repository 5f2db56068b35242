"""A folder with one file for each sequence, and a table of labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rimlit.data import Sequences
from rimlit.errors import DataError

LABELS = "sequence,target,part\n" + "".join(
    f"r{index}{'.csv' if index % 2 else ''},{'01' if index % 3 else '1'},{part}\n"
    for index, part in enumerate(["train"] * 6 + ["val"] * 2 + ["test"] * 2)
)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Ten sequences of two features and 3 to 5 steps."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for index in range(10):
        rows = [f"{step},{index},{step * 2}" for step in range(3 + index % 3)]
        (folder / f"r{index}.csv").write_text("\n".join(["time,a,b", *rows, ""]))
    (folder / "labels.csv").write_text(LABELS)
    return folder


def make(path: Path, **arguments: Any) -> Sequences:
    return Sequences(
        str(path), **{"standardize": False, "batch_size": 2, "seed": 1, "time_column": "time", **arguments}
    )


def test_labels_are_kept_as_written_and_sequences_are_named_by_their_files(recordings: Path) -> None:
    data = make(recordings, split_column="part")
    data.setup("fit")
    assert data.learned["classes"] == ["01", "1"]
    assert [data.sample_name("test", "", place) for place in range(2)] == ["r8", "r9"]
    first = data.datasets("test")[""][0]
    assert first[0].tolist() == [[8.0, step * 2.0] for step in range(5)]
    assert data.class_names(int(first[1])) == "01"
    assert [len(data.datasets(split)[""]) for split in ("train", "val", "test")] == [6, 2, 2]


def test_no_labels_are_needed_to_predict_the_next_step_or_new_files(recordings: Path, tmp_path: Path) -> None:
    labelled = make(recordings, split_column="part", predict_path=str(tmp_path / "new"))
    labelled.setup("fit")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/x.csv").write_text((recordings / "r0.csv").read_text())
    labelled.setup("predict")
    assert labelled.sample_name("predict", "", 0) == "x"
    (recordings / "labels.csv").unlink()
    following = make(recordings, target="next_step", val_fraction=0.2, test_fraction=0.2)
    following.setup("fit")
    assert (following.input_size, len(following.datasets("train")[""])) == (2, 6)


def test_arrays_may_be_one_sequence_each_and_steps_may_have_labels(tmp_path: Path) -> None:
    for index in range(10):
        np.savez(tmp_path / f"r{index}.npz", inputs=np.full((4, 3), index), targets=np.arange(4) % 2)
    data = make(tmp_path, target_per_step=True, time_column=None, val_fraction=0.2, test_fraction=0.2)
    data.setup("fit")
    assert (data.input_size, data.output_size) == (3, 2)
    assert data.datasets("train")[""][0][1].tolist() == [0, 1, 0, 1]


def test_the_digest_is_that_of_the_content(recordings: Path) -> None:
    before = make(recordings).digest
    read = make(recordings)
    read.setup("fit")
    assert read.digest == before == make(recordings).digest
    (recordings / "labels.csv").write_text(LABELS.replace("r0,1", "r0,01"))
    assert make(recordings).digest != before


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "has one file for each sequence and no labels.csv, a table with the columns sequence, target"),
        (LABELS.replace("r5.csv,", "r4,"), "names the sequence r4 more than once"),
        (LABELS + "r10,1,test\n", "names the sequence r10, of which there is no file"),
        (LABELS.replace("r9.csv,1,test\n", ""), "does not name r9, of which there is a file"),
        (LABELS.replace("target", "label"), "labels.csv has no column 'target'"),
    ],
)
def test_a_table_of_labels_that_does_not_fit_is_refused(recordings: Path, labels: str | None, words: str) -> None:
    (recordings / "labels.csv").unlink()
    if labels is not None:
        (recordings / "labels.csv").write_text(labels)
    with pytest.raises(DataError, match=words):
        make(recordings).setup("fit")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("r3.csv", "time,a\n0,1\n", "r3.csv has no column 'b'"),
        ("r3.npy", "", "has r3.csv and r3.npy: two sequences with one name"),
        ("r3.csv", "time,a,b\n1,1,1\n0,1,1\n", "r3.csv: row 2 has 0 in 'time', row 1 of the same sequence 1"),
    ],
)
def test_a_file_that_does_not_fit_is_named(recordings: Path, name: str, text: str, words: str) -> None:
    (recordings / name).write_text(text)
    with pytest.raises(DataError, match=words):
        make(recordings).setup("fit")


def test_a_file_that_holds_several_sequences_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 1)))
    with pytest.raises(DataError, match="holds 2 sequences; with one file for each it holds one"):
        make(tmp_path, target="next_step", time_column=None).setup("fit")
