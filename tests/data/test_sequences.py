"""A user's own sequences: every layout, splits, scales, and every bad file with its message."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from rimlit.data import Sequences
from rimlit.errors import ConfigError, DataError
from rimlit.metrics import IGNORED

LENGTHS = np.array([4, 2, 3, 4, 1, 3, 4, 2, 4, 3])
INPUTS = (np.arange(10 * 4 * 2).reshape(10, 4, 2) % 17).astype(np.float32)
LABELS = np.arange(10) % 3


def write(path: Path, **arrays: Any) -> Path:
    """Write arrays as .npz or .pt, or a single one as .npy."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".npy":
        np.save(path, arrays["inputs"])
    else:
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    return path


def table_of(**columns: Any) -> pandas.DataFrame:
    """The same sequences as a table with a row per step."""
    rows = [(f"s{index}", step) for index, length in enumerate(LENGTHS) for step in range(length)]
    table = pandas.DataFrame(
        {
            "sequence": [name for name, _ in rows],
            "a": [INPUTS[int(name[1:]), step, 0] for name, step in rows],
            "b": [INPUTS[int(name[1:]), step, 1] for name, step in rows],
            "target": [LABELS[int(name[1:])] for name, _ in rows],
        }
    )
    for name, values in columns.items():
        table[name] = values
    return table


def write_table(path: Path, table: pandas.DataFrame) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


def make(path: Path, **arguments: Any) -> Sequences:
    defaults = {"val_fraction": 0.2, "test_fraction": 0.2, "batch_size": 3, "seed": 1, "standardize": False}
    return Sequences(str(path), **{**defaults, **arguments})


def everything(data: Sequences) -> list[tuple[Any, Any]]:
    """All samples of all splits as plain lists, sorted."""
    data.setup("fit")
    samples = []
    for split in ("train", "val", "test"):
        dataset = data.datasets(split)[""]  # type: ignore[arg-type]
        samples += [tuple(part.tolist() for part in dataset[index]) for index in range(len(dataset))]
    return sorted(samples)


EXPECTED = sorted((INPUTS[i, : LENGTHS[i]].tolist(), int(LABELS[i])) for i in range(10))


# Layouts


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_padded_arrays_are_read_up_to_their_lengths(tmp_path: Path, suffix: str) -> None:
    inputs = INPUTS.copy()
    for index, length in enumerate(LENGTHS):
        inputs[index, length:] = np.nan  # padding may hold anything
    data = make(write(tmp_path / f"a{suffix}", inputs=inputs, targets=LABELS, lengths=LENGTHS))
    assert (data.input_size, data.output_size, data.vocabulary_size) == (2, 3, None)
    assert everything(data) == EXPECTED


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_table_has_a_row_per_step(tmp_path: Path, suffix: str) -> None:
    data = make(write_table(tmp_path / f"a{suffix}", table_of()))
    assert (data.input_size, data.output_size, data.vocabulary_size) == (2, 3, None)
    assert everything(data) == EXPECTED


def test_rows_of_different_sequences_may_alternate_and_columns_are_named(tmp_path: Path) -> None:
    table = table_of().rename(columns={"sequence": "patient", "target": "outcome"})
    table.insert(0, "note", "text")
    order = np.argsort(table.groupby("patient").cumcount(), kind="stable")  # all first steps, all second ones, …
    path = write_table(tmp_path / "a.csv", table.iloc[order])
    data = make(path, sequence_column="patient", input_columns=["a", "b"], target_columns=["outcome"])
    assert everything(data) == EXPECTED


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_inputs_alone_are_enough_to_predict_the_next_step(tmp_path: Path, suffix: str) -> None:
    data = make(write(tmp_path / f"a{suffix}", inputs=INPUTS), target="next_step")
    assert (data.input_size, data.output_size) == (2, 2)
    assert everything(data) == sorted((row[:-1].tolist(), row[1:].tolist()) for row in INPUTS)


def test_a_sequence_of_one_step_has_no_next_step_and_is_left_out(tmp_path: Path) -> None:
    data = make(write_table(tmp_path / "a.csv", table_of()), target="next_step", input_columns=["a", "b"])
    assert len(everything(data)) == 9
    batch = next(iter(data.train_dataloader()))
    assert batch.targets.shape == batch.inputs.shape
    for row, target, length in zip(batch.inputs, batch.targets, batch.lengths.tolist(), strict=True):
        assert torch.equal(target[: length - 1], row[1:length])
        assert not target[length:].any()


def test_a_column_of_targets_is_no_input_where_the_next_step_is_predicted(tmp_path: Path) -> None:
    labelled = table_of(target=["ok", "broken"] * 15)
    assert make(write_table(tmp_path / "a.csv", labelled), target="next_step").input_size == 2


def test_an_array_without_a_last_dimension_has_one_feature(tmp_path: Path) -> None:
    data = make(write(tmp_path / "a.npy", inputs=INPUTS[..., 0]), target="next_step")
    assert data.input_size == 1
    assert next(iter(data.train_dataloader())).inputs.shape == (3, 3, 1)


@pytest.mark.parametrize("is_table", [False, True])
def test_tokens_are_integers_and_the_next_one_can_be_predicted(tmp_path: Path, is_table: bool) -> None:
    if is_table:
        path = write_table(tmp_path / "a.csv", table_of()[["sequence", "a", "target"]])
    else:
        tokens = INPUTS[..., 0].astype(np.int16)
        path = write(tmp_path / "a.npz", inputs=tokens, targets=LABELS, lengths=LENGTHS)
    data = make(path, tokens=True)
    assert (data.input_size, data.vocabulary_size, data.output_size) == (None, 17, 3)
    first_feature = [([int(step[0]) for step in inputs], label) for inputs, label in EXPECTED]
    assert everything(data) == sorted(first_feature)
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.dtype == torch.long and batch.inputs.shape[:1] == (3,)
    following = make(path, tokens=True, target="next_step", input_columns=["a"])
    assert (following.vocabulary_size, following.output_size) == (17, 17)
    batch = next(iter(following.train_dataloader()))
    assert ((batch.targets == IGNORED) == ~batch.mask).all()
    assert torch.equal(batch.inputs[0, 1 : batch.lengths[0]], batch.targets[0, : batch.lengths[0] - 1])


@pytest.mark.parametrize("is_table", [False, True])
def test_values_of_a_sequence_and_of_every_step_are_numbers(tmp_path: Path, is_table: bool) -> None:
    if is_table:
        steps = write_table(tmp_path / "steps.csv", table_of(target=np.arange(30) / 2, more=1.5))
        whole = write_table(tmp_path / "whole.csv", table_of(target=0.5, more=1.5))
    else:
        values = np.stack([np.arange(40).reshape(10, 4) / 2, np.full((10, 4), 1.5)], axis=2)
        steps = write(tmp_path / "steps.npz", inputs=INPUTS, targets=values, lengths=LENGTHS)
        whole = write(tmp_path / "whole.npz", inputs=INPUTS, targets=values[:, 0], lengths=LENGTHS)
    columns = {"target": "value", "target_columns": ["target", "more"]}
    data = make(whole, **columns)
    assert data.output_size == 2
    assert next(iter(data.train_dataloader())).targets.shape == (3, 2)
    data = make(steps, target_per_step=True, **columns)
    batch = next(iter(data.train_dataloader()))
    assert batch.targets.shape == (*batch.inputs.shape[:2], 2)
    assert (batch.targets[..., 1] == 1.5).equal(batch.mask)


def test_labels_of_every_step_are_ignored_in_the_padding(tmp_path: Path) -> None:
    data = make(
        write_table(tmp_path / "a.csv", table_of(target=[f"c{i % 4}" for i in range(30)])), target_per_step=True
    )
    assert data.output_size == 4
    batch = next(iter(data.train_dataloader()))
    assert ((batch.targets == IGNORED) == ~batch.mask).all()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog", "ant"], ["ant", "cat", "dog"]),
        (["7", "-2", "300"], ["-2", "7", "300"]),
        (["1.0", "2.0", "3.0"], ["1.0", "2.0", "3.0"]),
        (["1", "01", "001"], ["001", "01", "1"]),
        (["007", "7", "x"], ["007", "7", "x"]),
        (["True", "true", "1"], ["1", "True", "true"]),
        (["1e3", "1000", "0x10"], ["0x10", "1000", "1e3"]),
        (["2026-01-01", "2026-1-1", "1/1/26"], ["1/1/26", "2026-01-01", "2026-1-1"]),
    ],
)
def test_labels_of_a_table_are_text_as_it_is_written(
    tmp_path: Path, names: list[str], expected: list[str]
) -> None:
    table = table_of()
    table["target"] = [names[label] for label in table["target"]]
    data = make(write_table(tmp_path / "a.csv", table))
    assert {data.class_names(label) for _, label in everything(data)} == set(names)
    assert [data.class_names(number) for number in range(3)] == expected
    assert data.state_dict()["classes"] == expected


def test_labels_of_arrays_and_parquet_are_integers_or_text_as_they_are_kept(tmp_path: Path) -> None:
    parquet = make(write_table(tmp_path / "a.parquet", table_of()))
    assert parquet.state_dict()["classes"] == [0, 1, 2]
    numbers = make(write(tmp_path / "n.npz", inputs=INPUTS, targets=LABELS * 300 - 2))
    assert numbers.state_dict()["classes"] == [-2, 298, 598]
    for name, names in (("a.npz", ["01", "1"]), ("b.npz", ["x", "yy"])):
        arrays = make(write(tmp_path / name, inputs=INPUTS, targets=np.array(names * 5)))
        everything(arrays)
        assert [arrays.class_names(number) for number in range(2)] == names


def test_integer_classes_of_an_earlier_checkpoint_are_those_of_a_table(tmp_path: Path) -> None:
    data = make(write_table(tmp_path / "a.csv", table_of()))
    data.load_state_dict({"inputs": [[0.0, 0.0], [1.0, 1.0]], "classes": [0, 1, 2]})
    assert everything(data) == EXPECTED
    assert data.class_names([2, 0]) == [2, 0]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_words_that_often_mean_nothing_may_be_labels_and_names(tmp_path: Path, suffix: str) -> None:
    table = table_of()
    table["target"] = [["NA", "None", "yes"][label] for label in table["target"]]
    table["sequence"] = table["sequence"].replace("s3", "null")
    data = make(write_table(tmp_path / f"a{suffix}", table))
    assert {data.class_names(label) for _, label in everything(data)} == {"NA", "None", "yes"}
    assert len(everything(data)) == 10


# Splits


def test_a_folder_holds_a_file_for_each_split(tmp_path: Path) -> None:
    for name, number in (("train.npz", 6), ("valid.pt", 3), ("test.csv", 10)):
        if name.endswith("csv"):
            write_table(tmp_path / name, table_of())
        else:
            write(tmp_path / name, inputs=INPUTS[:number], targets=LABELS[:number])
    data = make(tmp_path)
    data.setup("fit")
    assert [len(data.datasets(split)[""]) for split in ("train", "val", "test")] == [6, 3, 10]


def test_a_column_or_a_key_names_the_split(tmp_path: Path) -> None:
    names = np.array(["train", "val", "test", "train", "train", "train", "validation", "train", "test", "train"])
    table = write_table(tmp_path / "a.csv", table_of(part=np.repeat(names, LENGTHS)))
    arrays = write(tmp_path / "a.npz", inputs=INPUTS, targets=LABELS, lengths=LENGTHS, split=names)
    torch.save(
        {"inputs": torch.from_numpy(INPUTS), "targets": torch.from_numpy(LABELS), "split": list(names.tolist())},
        tmp_path / "a.pt",
    )
    for data in (make(table, split_column="part"), make(arrays), make(tmp_path / "a.pt")):
        data.setup("fit")
        assert [len(data.datasets(split)[""]) for split in ("train", "val", "test")] == [6, 2, 2]
        assert data.datasets("test")[""][0][0][:3].tolist() == INPUTS[2, :3].tolist()


def test_a_split_is_drawn_by_the_seed_and_every_sequence_is_in_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", inputs=INPUTS, targets=LABELS, lengths=LENGTHS)
    tests = []
    for seed in (1, 1, 2, 3):
        data = make(path, seed=seed)
        assert everything(data) == EXPECTED
        assert [len(data.datasets(split)[""]) for split in ("train", "val", "test")] == [6, 2, 2]
        tests.append([inputs.tolist() for inputs, _ in (data.datasets("test")[""][i] for i in range(2))])
    assert tests[0] == tests[1]
    assert tests[0] != tests[2] or tests[0] != tests[3]


# Scales, floors, checkpoints


def test_numbers_are_standardised_by_the_training_data_alone(tmp_path: Path) -> None:
    values = np.arange(10.0) * 100
    path = write(tmp_path / "a.npz", inputs=INPUTS + 1e6, targets=values, lengths=LENGTHS)
    data = make(path, target="value", standardize=True)
    data.setup("fit")
    train = data.datasets("train")[""]
    steps = torch.cat(list(train.inputs))
    torch.testing.assert_close(steps.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(steps.std(dim=0, correction=0), torch.ones(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.targets[:, 0].std(correction=0), torch.ones(()), atol=1e-5, rtol=0)
    assert torch.cat(list(data.datasets("test")[""].inputs)).mean(dim=0).abs().min() > 1e-3
    own = torch.cat([data.own_units(data.datasets(split)[""].targets) for split in ("train", "val", "test")])
    assert sorted(round(value) for value in own.flatten().tolist()) == values.tolist()


def test_a_feature_that_never_changes_stays_finite(tmp_path: Path) -> None:
    data = make(write(tmp_path / "a.npz", inputs=INPUTS * [1, 0] + 5, targets=LABELS), standardize=True)
    assert not torch.cat(list(data.datasets("train")[""].inputs))[:, 1].any()


def test_small_numbers_are_standardised_like_any(tmp_path: Path) -> None:
    data = make(write(tmp_path / "a.npz", inputs=INPUTS * 1e-20, targets=LABELS), standardize=True)
    steps = torch.cat(list(data.datasets("train")[""].inputs))
    torch.testing.assert_close(steps.std(dim=0, correction=0), torch.ones(2))


def test_classes_and_scales_come_back_from_a_checkpoint_as_plain_data(tmp_path: Path) -> None:
    first = make(write_table(tmp_path / "a.csv", table_of()), standardize=True)
    state = first.state_dict()
    assert state["classes"] == ["0", "1", "2"]
    assert state["columns"] == ["a", "b"]
    table = table_of(a=7.0)
    second = make(write_table(tmp_path / "b.csv", table[table["target"] > 0]), standardize=True)
    second.load_state_dict(state)
    assert second.output_size == 3
    row = second.datasets("train")[""][0][0][0]
    expected = (7 - state["inputs"][0][0]) / state["inputs"][1][0]
    assert row[0].item() == pytest.approx(expected, rel=1e-5)
    other = make(write(tmp_path / "c.npz", inputs=INPUTS[..., :1], targets=LABELS), standardize=True)
    other.load_state_dict(state)
    with pytest.raises(DataError, match=r"c\.npz: train has 1 inputs per step or sequence; the model expects 2\."):
        other.setup("test")


def test_floors_are_those_of_frequencies_means_and_the_last_step(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", inputs=INPUTS, targets=LABELS)
    data = make(path)
    train, test = (data.datasets(split)[""].targets.tolist() for split in ("train", "test"))
    counts = [train.count(label) + 1 for label in range(3)]  # one more of each: none is impossible
    nats = [-np.log(counts[label] / (len(train) + 3)) for label in test]
    most = counts.index(max(counts))
    expected = {"cross_entropy": np.mean(nats), "accuracy": test.count(most) / len(test)}
    assert data.floors() == pytest.approx(expected)
    steps = make(path, target="next_step")
    test = steps.datasets("test")[""]
    errors = torch.cat([target - inputs for inputs, target in (test[i] for i in range(len(test)))])
    assert steps.floors()["mse"] == pytest.approx(errors.square().mean().item())
    values = make(write(tmp_path / "v.npz", inputs=INPUTS, targets=np.arange(10.0)), target="value")
    mean = values.datasets("train")[""].targets.mean()
    expected = (values.datasets("test")[""].targets - mean).abs().mean().item()
    assert values.floors()["mae"] == pytest.approx(expected)
    tokens = INPUTS[..., 0].astype(int)
    of_tokens = make(
        write(tmp_path / "t.npz", inputs=tokens, targets=np.arange(10.0)), target="value", tokens=True
    )
    assert of_tokens.floors() == values.floors()


# Bad files


def arrays(**changes: Any) -> dict[str, Any]:
    return {"inputs": INPUTS.copy(), "targets": LABELS, "lengths": LENGTHS, **changes}


def with_value(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.astype(np.float64)
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {"inputs": with_value(INPUTS, (3, 2, 1), np.nan)},
            {},
            "inputs of sequence 3, step 2, feature 1 must be a finite number; got nan",
        ),
        (
            {"inputs": with_value(INPUTS, (0, 0, 0), np.inf)},
            {},
            "inputs of sequence 0, step 0, feature 0 must be .*; got inf",
        ),
        (
            {"inputs": INPUTS[0, 0]},
            {},
            r"inputs must be \(sequences, steps\) or \(sequences, steps, features\).*got shape \(2,\)",
        ),
        ({"inputs": INPUTS[:0]}, {}, r"none of them 0; got shape \(0, 4, 2\)"),
        ({"inputs": INPUTS.astype(str)}, {}, "inputs must be numbers; got <U"),
        (
            {"lengths": LENGTHS[:9]},
            {},
            r"lengths must be an integer for each of 10 sequences; got int64 of shape \(9,\)",
        ),
        ({"lengths": LENGTHS + 0.5}, {}, "lengths must be an integer for each of 10 sequences; got float64"),
        ({"lengths": LENGTHS * 2}, {}, "the length of sequence 0 must be from 1 to 4; got 8"),
        ({"lengths": LENGTHS - 1}, {}, "the length of sequence 4 must be from 1 to 4; got 0"),
        (
            {"targets": LABELS[:4]},
            {},
            r"targets must be \(10,\) for target='label', target_per_step=False; got shape \(4,\)",
        ),
        ({"targets": LABELS[:, None]}, {}, r"targets must be \(10,\) for target='label'.*got shape \(10, 1\)"),
        (
            {"targets": LABELS},
            {"target_per_step": True},
            r"targets must be \(10, 4\) for target='label', target_per_step=True",
        ),
        (
            {"targets": LABELS / 2},
            {},
            "targets must be integers or text for target='label'; got float64.*target='value'",
        ),
        (
            {"targets": with_value(LABELS, (7,), np.nan)},
            {"target": "value"},
            "targets of sequence 7, value 0 must be a finite number; got nan",
        ),
        ({"split": np.array(["train"] * 9)}, {}, "split must name train, val or test for each of 10 sequences"),
        (
            {"split": np.array(["train"] * 9 + ["tset"])},
            {},
            "split of sequence 9 must be train, val or test; got 'tset'",
        ),
        (
            {"split": np.array(["train"] * 9 + ["test"])},
            {},
            "names no sequence of the split val; it needs train, val and test",
        ),
        (
            {"inputs": INPUTS[..., 0] + 0.5},
            {"tokens": True},
            "inputs of sequence 0, step 0 must be a token id, an integer from 0 to 10,000,000; got 0.5",
        ),
        (
            {"inputs": INPUTS[..., 0] - 1},
            {"tokens": True},
            "inputs of sequence 0, step 0 must be a token id, an integer from 0 to 10,000,000; got -1",
        ),
        (
            {"inputs": with_value(INPUTS[..., 0], (2, 1), 5e9)},
            {"tokens": True},
            "inputs of sequence 2, step 1 must be a token id, an integer from 0 to 10,000,000; got 5000000000",
        ),
        (
            {"targets": with_value(np.stack([LABELS] * 3, axis=1), (7, 2), np.nan)},
            {"target": "value"},
            "targets of sequence 7, value 2 must be a finite number; got nan",
        ),
        (
            {"inputs": with_value(INPUTS, (3, 2, 1), 1e300)},
            {},
            r"inputs of sequence 3, step 2, feature 1 must be a number from -3\.4e\+38 to 3\.4e\+38; got 1e\+300",
        ),
        (
            {"targets": LABELS.astype(np.uint64) + np.uint64(2**63)},
            {},
            "targets must be integers up to 9223372036854775807; got 9223372036854775810",
        ),
        ({}, {"tokens": True}, r"inputs must be \(sequences, steps\), none of them 0; got shape \(10, 4, 2\)"),
    ],
)
def test_a_bad_array_is_refused_with_its_place_and_what_is_expected(
    tmp_path: Path, changes: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "bad.npz", **arrays(**changes))
    with pytest.raises(DataError, match=rf"bad\.npz.*{message}"):
        make(path, **arguments).setup("fit")


def test_files_with_other_keys_or_without_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold inputs, and may hold targets, .* it holds X, targets\."):
        make(write(tmp_path / "a.npz", X=INPUTS, targets=LABELS)).setup("fit")
    with pytest.raises(DataError, match=r"a\.npy holds no targets, which target='label' needs; add them"):
        make(write(tmp_path / "a.npy", inputs=INPUTS)).setup("fit")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match=r"list\.pt must hold a tensor or a dict of tensors; it holds a list\."):
        make(tmp_path / "list.pt").setup("fit")


def test_python_objects_are_refused_and_not_made(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    ragged = np.array([Evil(), Evil()], dtype=object)
    np.save(tmp_path / "a.npy", ragged, allow_pickle=True)
    np.savez(tmp_path / "a.npz", inputs=ragged)
    torch.save({"inputs": Evil()}, tmp_path / "a.pt")
    for name in ("a.npy", "a.npz", "a.pt"):
        with pytest.raises(
            DataError, match=rf"{name} is damaged or holds more than plain numbers .* lengths beside"
        ):
            make(tmp_path / name, target="next_step").setup("fit")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".csv.gz", ".parquet"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(b"\x89PNG these are not sequences")
    with pytest.raises(DataError, match=rf"bad{suffix} (cannot be read|is damaged)"):
        make(path).setup("fit")


def bad_table(column: str, row: int, value: Any) -> pandas.DataFrame:
    table = table_of()
    table[column] = table[column].astype(object)
    table.loc[row - 1, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        (
            bad_table("a", 5, "warm"),
            {},
            "row 5, column 'a' must be a finite number .input_columns names those that are read.; got 'warm'",
        ),
        (bad_table("b", 30, None), {}, "row 30, column 'b' must be a finite number .*; got nothing"),
        (bad_table("a", 1, np.inf), {}, "row 1, column 'a' must be a finite number .*; got"),
        (
            bad_table("sequence", 7, None),
            {},
            "row 7, column 'sequence' must be the name of a sequence; got nothing",
        ),
        (bad_table("target", 9, None), {}, "row 9, column 'target' must be a label; got nothing"),
        (
            bad_table("target", 2, 5),
            {},
            "row 2 has 5 in target, where row 1 of the same sequence has 0; they must agree",
        ),
        (
            table_of(target=np.repeat(np.arange(10) / 4, LENGTHS)),
            {},
            "row 5, column 'target' must be an integer or text",
        ),
        (
            table_of().drop(columns="target"),
            {},
            "has no column 'target'; it has sequence, a, b. sequence_column, ",
        ),
        (table_of(), {"input_columns": ["a", "c"]}, "has no column 'c'; it has sequence, a, b, target"),
        (table_of(), {"split_column": "part"}, "has no column 'part'"),
        (
            table_of(part="tain"),
            {"split_column": "part"},
            "row 1, column 'part' must be train, val or test; got 'tain'",
        ),
        (
            table_of(part=["train", None] * 15),
            {"split_column": "part"},
            "row 2, column 'part' must be train, val or test; got nothing",
        ),
        (
            table_of(part=["train", "val"] * 15),
            {"split_column": "part"},
            "row 2 has val in part, where row 1 of the same",
        ),
        (
            bad_table("b", 4, 1e300),
            {},
            r"row 4, column 'b' must be a number from -3\.4e\+38 to 3\.4e\+38; got .*1e\+300",
        ),
        (bad_table("b", 4, "NA"), {}, "row 4, column 'b' must be a finite number .*; got 'NA'"),
        (bad_table("target", 4, "NA"), {}, "row 4, column 'target' must be a label, a number as .*; got 'NA'"),
        (table_of()[["sequence", "target"]], {}, "must have a column of inputs; input_columns are none"),
        (table_of(), {"tokens": True}, "must have one column of token ids; input_columns are a, b"),
        (table_of().iloc[:0], {}, "has no rows; it must have one for each step of each sequence"),
        (
            bad_table("a", 3, 2.5),
            {"tokens": True, "input_columns": ["a"]},
            "row 3, column 'a' must be a token id, .* got 2.5",
        ),
    ],
)
def test_a_bad_table_is_refused_with_its_row_and_what_is_expected(
    tmp_path: Path, table: pandas.DataFrame, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"bad\.csv:? .*{message}"):
        make(write_table(tmp_path / "bad.csv", table), **arguments).setup("fit")


def test_a_ragged_or_empty_csv_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sequence,a,target\nx,1,0\nx,2,0,9\n")
    with pytest.raises(DataError, match=r"a\.csv cannot be read as a table: .*row 2: Expected 3 columns, got 4"):
        make(tmp_path / "a.csv").setup("fit")
    (tmp_path / "b.csv").write_text("")
    with pytest.raises(DataError, match=r"b\.csv cannot be read as a table: it is empty"):
        make(tmp_path / "b.csv").setup("fit")


def test_rows_with_more_cells_than_the_header_are_refused_and_not_read_shifted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sequence,a,target\nx,1,0,\ny,2,1,\nz,3,0,\n")
    with pytest.raises(DataError, match=r"a\.csv cannot be read as a table: .*row 1: Expected 3 columns, got 4"):
        make(tmp_path / "a.csv").setup("fit")


def test_a_column_without_a_name_is_not_taken_for_an_input(tmp_path: Path) -> None:
    table_of().to_csv(tmp_path / "a.csv")  # pandas' default writes row numbers too
    with pytest.raises(DataError, match=r"a\.csv: column 1 has no name; .* Name what is read in input_columns\."):
        make(tmp_path / "a.csv").setup("fit")
    assert everything(make(tmp_path / "a.csv", input_columns=["a", "b"])) == EXPECTED


def test_names_of_sequences_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    names = [f"{'0' * (index % 2)}{index // 2}" for index in range(10)]  # 0, 00, 1, 01, …
    path = write_table(tmp_path / "a.csv", table_of(sequence=np.repeat(names, LENGTHS)))
    assert everything(make(path)) == EXPECTED


@pytest.mark.parametrize(
    ("column", "row", "given"),
    [
        (pandas.array([1, None] * 15, dtype="Int64"), 2, "nothing"),
        ([[1, 2]] * 30, 1, r"\[1, 2\]"),
        (pandas.date_range("2026-01-01", periods=30), 1, "2026-01-01 00:00:00"),
    ],
)
def test_what_a_parquet_file_can_hold_beside_numbers_is_refused(
    tmp_path: Path, column: Any, row: int, given: str
) -> None:
    path = write_table(tmp_path / "a.parquet", table_of(a=column))
    with pytest.raises(DataError, match=rf"row {row}, column 'a' must be a finite number .*; got {given}\."):
        make(path).setup("fit")


@pytest.mark.parametrize("content", [{"inputs": torch.eye(4).to_sparse()}, {1: torch.eye(4)}])
def test_other_tensors_and_keys_are_refused_by_name(tmp_path: Path, content: dict[Any, Any]) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt (is damaged or holds more than plain|must hold inputs)"):
        make(tmp_path / "a.pt", target="next_step").setup("fit")


def test_paths_that_lead_nowhere_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere' does not exist; it must be a \.npy, .* or \.parquet file or a fold"
    ):
        make(tmp_path / "nowhere").setup("fit")
    (tmp_path / "notes.txt").write_text("1")
    with pytest.raises(DataError, match=r"notes\.txt must be a \.npy, "):
        make(tmp_path / "notes.txt").setup("fit")
    write(tmp_path / "train.npz", **arrays())
    with pytest.raises(DataError, match=r"one file for each of train, val and test .*; for val it has none\."):
        make(tmp_path).setup("fit")
    write(tmp_path / "val.npz", **arrays())
    write(tmp_path / "valid.npz", **arrays())
    with pytest.raises(DataError, match=r"for val it has val\.npz, valid\.npz\."):
        make(tmp_path).setup("fit")


def test_splits_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        write(tmp_path / f"{name}.npz", **arrays())
    write(tmp_path / "test.npz", **arrays(targets=LABELS + 1))
    with pytest.raises(DataError, match=r"sequence 2 of test has the label 3; training has 0, 1, 2\."):
        make(tmp_path).setup("fit")
    write(tmp_path / "test.npz", **arrays(inputs=INPUTS[..., :1]))
    with pytest.raises(
        DataError, match=r"test has 1 feature\(s\) and 1 value\(s\), train 2 and 1; they must be as many"
    ):
        make(tmp_path).setup("fit")
    for name in ("train", "val", "test"):
        write(tmp_path / f"{name}.npz", inputs=INPUTS[:, : 1 if name == "val" else 4])
    with pytest.raises(DataError, match=r"no sequence of val has a next step; all have one step\."):
        make(tmp_path, target="next_step").setup("fit")


def test_too_few_sequences_to_divide_are_refused_with_the_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", inputs=INPUTS[:2], targets=LABELS[:2])
    with pytest.raises(
        DataError, match=r"leaves no sequence for val: it has 2, with val_fraction=0\.2, test_fraction"
    ):
        make(path).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "labels"}, "target must be one of label, value, next_step; got target='labels'"),
        (
            {"target": "next_step", "target_per_step": True},
            "one of every step already; remove target_per_step=True",
        ),
        ({"target_columns": ["a", "b"]}, r"one column for target='label' .*target_columns=\['a', 'b'\]"),
        ({"target": "value", "target_columns": []}, r"got target='value', target_columns=\[\]"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "must be above 0 and sum to less than 1"),
        ({"batch_size": 0}, "batch_size must be at least 1; got batch_size=0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sequences("a.csv", **arguments)
