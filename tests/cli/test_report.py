"""The table at the end of a run."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from rich.console import Console

from rimlit import files
from rimlit.cli import report
from rimlit.cli.configs import configs_folder
from rimlit.cli.report import build_table, idle_gpu, is_same_data, recorded_results
from rimlit.cli.settings import build_data
from rimlit.data import Adding, Copying, DataModule, SequentialImages, Text
from rimlit.tracking.recording import data_of
from tests.cli.running import COPYING, QUIET, UNTRACKED, read_json, succeed
from tests.tasks.running import make_trainer

SCORES = {
    "span_50/cross_entropy": 0.00004,
    "span_200/cross_entropy": 1.23456,
    "span_50/loss": 0.5,
    "span_50/sequence_accuracy": 1.0,
    "span_200/sequence_accuracy": 0.25,
}
FLOORS = {"cross_entropy": 2.0794, "sequence_accuracy": 8.0**-10, "span_200/sequence_accuracy": 0.125}
RECORDED: dict[str, Any] = {
    "copying/lstm": {
        "parameters": 1234567,
        "steps": 10000,
        "test": {"span_50/cross_entropy": 0.5, "span_200/cross_entropy": 12.3456},
    }
}


def rows_of(**changes: Any) -> list[list[str]]:
    """The cells of every row that is printed, the header's first."""
    given = {
        "scores": SCORES,
        "headline": ("cross_entropy", "sequence_accuracy"),
        "floors": FLOORS,
        "recorded": {},
        "title": "rim-seed0",
    }
    table = build_table(**{**given, **changes})
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_each_group_has_a_line_for_each_headline_metric_beside_its_floor() -> None:
    assert rows_of() == [
        ["test", "metric", "this run", "floor"],
        ["span 50", "cross entropy", "< 0.0001", "2.0794"],
        ["span 200", "cross entropy", "1.2346", "2.0794"],
        ["span 50", "sequence accuracy", "1.0000", "< 0.0001"],
        ["span 200", "sequence accuracy", "0.2500", "0.1250"],
    ]


def test_recorded_runs_are_shown_with_parameters_and_steps_and_a_dash_for_missing_values() -> None:
    header, *scores = [row[-1] for row in rows_of(recorded=RECORDED)]
    assert header == "lstm"
    assert scores == ["0.5000", "12.35", "–", "–"]


def test_a_table_with_four_recorded_runs_fits_80_columns_and_says_what_they_are() -> None:
    names = ("rim", "rim_paper", "lstm", "gru")
    recorded = {f"copying/{name}": RECORDED["copying/lstm"] for name in names}
    table = build_table(SCORES, ("cross_entropy", "sequence_accuracy"), FLOORS, recorded, "rim-seed0")
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    row = next(line.split() for line in text.splitlines() if line.startswith("span 200"))
    assert row == ["span", "200", "cross", "entropy", "1.2346", "2.0794", *["12.35"] * 4]
    for name in names:
        assert f"copying/{name}: 1,234,567 parameters, 10,000 steps" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (1e-9, "< 0.0001"), (-1e-9, "> -0.0001"), (0.5, "0.5000"), (123.4, "123.40")],
)
def test_a_number_that_is_almost_0_is_no_power_of_ten(value: float, text: str) -> None:
    scores = {"accuracy": value}
    rows = build_table(scores, ("accuracy",), {}, {}, "run").columns[2].cells
    assert list(rows) == [text]


def test_a_column_without_a_number_is_left_out() -> None:
    other = {"other": {"parameters": 3, "test": {"accuracy": 0.5}}}
    assert rows_of(recorded=other, floors={"accuracy": 0.1})[0] == ["test", "metric", "this run"]


def test_the_first_column_is_titled_with_the_stage() -> None:
    assert rows_of(stage="validation")[0][0] == "validation"


def test_one_unnamed_group_has_lines_too() -> None:
    rows = rows_of(scores={"perplexity": 123.456, "loss": 1.0}, headline=("perplexity",), floors={})
    assert rows[1:] == [["", "perplexity", "123.46"]]


def test_a_score_of_zero_is_no_rounded_one() -> None:
    rows = rows_of(scores={"cross_entropy": 0.0}, headline=("cross_entropy",))
    assert rows[1][2] == "0.0000"


def test_a_loss_of_many_digits_is_written_with_its_power_of_ten() -> None:
    rows = rows_of(scores={"cross_entropy": 1.2345e17}, headline=("cross_entropy",))
    assert rows[1][2] == "1.23e+17"


def test_the_printed_table_holds_its_title_and_every_number() -> None:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(build_table(SCORES, ("cross_entropy",), FLOORS, RECORDED, "rim-seed3"))
    text = capture.get()
    for word in ("rim-seed3", "span 200", "1.2346", "2.0794", "1,234,567"):
        assert word in text


RECORDED_COPYING = {"train_span": 50, "min_train_span": 1, "test_spans": [50, 100, 200, 400]}


@pytest.mark.parametrize("changes", [{}, {"seed": 3}, {"batch_size": 16, "num_workers": 2}])
def test_recorded_results_are_shown_where_the_data_are_the_same(changes: dict[str, Any]) -> None:
    found = recorded_results(Copying(**{**RECORDED_COPYING, **changes}))
    assert {"copying/lstm", "copying/rim", "copying/rim_paper"} <= set(found)
    assert found["copying/rim"]["steps"] == 3000


def test_the_recorded_results_are_read_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    files._reported.clear()
    assert recorded_results(Copying(**RECORDED_COPYING))
    assert not caplog.records


@pytest.mark.parametrize(
    "data",
    [
        Copying(**{**RECORDED_COPYING, "recall_length": 4}),
        Copying(**{**RECORDED_COPYING, "train_span": 20}),
        Copying(**{**RECORDED_COPYING, "test_spans": [50]}),
        Adding(train_length=20),
        SequentialImages(image_size=8, test_sizes=[8, 9, 11]),
    ],
    ids=["recall_length", "train_span", "test_spans", "train_length", "test_sizes"],
)
def test_recorded_results_are_not_shown_beside_other_data(data: DataModule) -> None:
    assert recorded_results(data) == {}


def test_another_environment_has_no_recorded_results() -> None:
    pytest.importorskip("gymnasium")
    settings = yaml.safe_load((configs_folder() / "cartpole/rim.yaml").read_text())
    assert list(recorded_results(build_data(settings))) == ["cartpole/lstm", "cartpole/rim"]
    for change in ({"environment": "Acrobot-v1", "observed": None}, {"observed": None}, {"total_steps": 300000}):
        other = {**settings["data"], "init_args": {**settings["data"]["init_args"], **change}}
        assert recorded_results(build_data({"data": other})) == {}, change


def test_no_file_of_the_package_is_reported_as_damaged(caplog: pytest.LogCaptureFixture) -> None:
    files._reported.clear()
    recorded_results(Copying())
    assert caplog.messages == []


class Mine(Copying):
    """Data of the user, in a config that may have our name."""


def test_a_class_of_the_user_has_no_recorded_results() -> None:
    assert recorded_results(Mine(**RECORDED_COPYING)) == {}


def test_files_are_the_same_by_their_digest_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    data, moved = Text(path="here"), Text(path="there")
    assert not is_same_data(data_of(data), moved)  # nothing is known of what they hold
    monkeypatch.setattr(Text, "digest", "abc", raising=False)
    recorded = data_of(data)
    assert recorded["digest"] == "abc"
    assert is_same_data(recorded, moved)
    monkeypatch.setattr(Text, "digest", "def", raising=False)
    assert not is_same_data(recorded, moved)
    assert not is_same_data({**recorded, "digest": None}, moved)


def test_an_argument_that_is_newer_than_the_record_counts_as_its_default() -> None:
    recorded = data_of(Copying(**RECORDED_COPYING))
    del recorded["init_args"]["num_symbols"]
    assert is_same_data(recorded, Copying(**RECORDED_COPYING))
    assert not is_same_data(recorded, Copying(**RECORDED_COPYING, num_symbols=4))
    assert not is_same_data(None, Copying(**RECORDED_COPYING))


@pytest.mark.parametrize("content", ["", '{"test": {', "[]", '{"test": 3}', '{"parameters": 3}'])
def test_a_damaged_record_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(report, "shipped_folder", lambda in_wheel, in_checkout: tmp_path)
    (tmp_path / "copying").mkdir()
    data = Copying(**RECORDED_COPYING)
    whole = {"test": {"span_50/cross_entropy": 0.5}, "data": data_of(data)}
    (tmp_path / "copying/whole.json").write_text(json.dumps(whole))
    (tmp_path / "copying/damaged.json").write_text(content)
    found = recorded_results(data)
    assert found == {"copying/whole": whole}
    assert rows_of(recorded=found)[0][-1] == "whole"


def test_every_record_holds_its_data_and_its_budget() -> None:
    root = report.shipped_folder("results", "benchmarks/results")
    records = {path: read_json(path) for path in root.glob("*/**/*.json") if path.parent.name != "comparison"}
    tested = {path: record for path, record in records.items() if "test" in record}
    assert len(tested) >= 40
    for path, record in tested.items():
        assert record["data"]["class_path"].startswith("rimlit."), path
        assert record["data"].keys() == {"class_path", "init_args", "digest"}, path
        assert record["steps"] > 0, path


@pytest.mark.parametrize("dataset", ["adding", "bouncing_balls", "copying", "sequential_mnist"])
def test_a_shipped_config_finds_its_own_records(dataset: str) -> None:
    settings = yaml.safe_load((configs_folder() / dataset / "rim.yaml").read_text())
    assert {f"{dataset}/lstm", f"{dataset}/rim"} <= set(recorded_results(build_data(settings)))


@pytest.mark.parametrize("dataset", ["mnist", "tinyshakespeare", "wikitext-2"])
def test_a_shipped_config_finds_its_own_records_by_the_content_of_its_files(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = yaml.safe_load((configs_folder() / dataset / "rim.yaml").read_text())
    data = build_data(settings)
    digest = read_json(report.shipped_folder("results", "benchmarks/results") / dataset / "rim.json")["data"][
        "digest"
    ]
    monkeypatch.setattr(type(data), "digest", digest, raising=False)
    assert f"{dataset}/rim" in recorded_results(data)
    monkeypatch.setattr(type(data), "digest", "other", raising=False)
    assert recorded_results(data) == {}


def test_a_run_in_a_folder_of_any_name_ends_in_a_table_without_records_of_other_data(folder: Path) -> None:
    answer = succeed("fit", *COPYING, *UNTRACKED, "--trainer.default_root_dir=out")
    assert "recorded" not in answer.out and "cross entropy" in answer.out
    results = read_json(folder / "out/results.json")
    assert results["data"]["class_path"] == "rimlit.data.Copying"
    assert results["data"]["init_args"]["train_span"] == 5
    assert results["data"]["digest"] is None
    assert results["warnings"] == []


def test_a_loss_that_exploded_without_becoming_infinite_is_named_at_the_end_of_the_run(folder: Path) -> None:
    answer = succeed("fit", *COPYING, *UNTRACKED, "--model.optimizer.lr=1e9", "--trainer.max_steps=6")
    assert answer.out.count("Warning: ") == 1
    assert "Warning: Training made the loss worse" in answer.out
    (warning,) = read_json(folder / "runs/copying/rim-seed0/results.json")["warnings"]
    assert warning in answer.out
    untested = succeed(
        "fit", *COPYING, *UNTRACKED, "--model.optimizer.lr=1e9", "--test_after_fit=false", "--name=untested"
    )
    assert "Warning: Training made the loss worse" in untested.out


def test_the_table_of_parts_counts_no_flops_that_it_cannot_know(folder: Path) -> None:
    answer = succeed("fit", *COPYING, *UNTRACKED, "--trainer.enable_model_summary=true")
    assert "backbone" in answer.out and "trainable" in answer.out
    assert "FLOPs" not in answer.out.partition("trainable")[0]


def test_a_validation_is_titled_validation_and_shows_no_column_that_is_empty(copying: Path) -> None:
    answer = succeed("validate", f"--ckpt_path={copying}/checkpoints/best.ckpt", *UNTRACKED, *QUIET)
    (header,) = [line for line in answer.out.splitlines() if "metric" in line]
    assert "validation" in header and "test" not in header and "floor" not in header


def test_a_run_on_the_cpu_names_the_gpu_that_it_leaves_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert idle_gpu(trainer) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a large GPU")
    assert "torch finds a large GPU. --trainer.accelerator auto uses it" in (idle_gpu(trainer) or "")
    monkeypatch.setattr(trainer.strategy, "_accelerator", CUDAAccelerator())
    assert idle_gpu(trainer) is None


def test_apple_s_gpus_are_used_only_where_they_are_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    succeed("fit", *COPYING, *UNTRACKED, "--test_after_fit=false", "--trainer.max_steps=1")
    assert read_json(folder / "runs/copying/rim-seed0/results.json")["steps"] == 1
    saved = yaml.safe_load((folder / "runs/copying/rim-seed0/config.yaml").read_text())
    assert (saved["trainer"]["accelerator"], saved["trainer"]["devices"]) == ("auto", 1)
