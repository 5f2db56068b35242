"""The table at the end of a run."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rimlit.cli import report
from rimlit.cli.report import build_table, recorded_results

SCORES = {
    "span_50/cross_entropy": 0.00004,
    "span_200/cross_entropy": 1.23456,
    "span_50/loss": 0.5,
    "span_50/sequence_accuracy": 1.0,
    "span_200/sequence_accuracy": 0.25,
}
FLOORS = {"cross_entropy": 2.0794, "sequence_accuracy": 8.0**-10, "span_200/sequence_accuracy": 0.125}
RECORDED: dict[str, Any] = {
    "lstm": {"parameters": 1234567, "test": {"span_50/cross_entropy": 0.5, "span_200/cross_entropy": 12.3456}}
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
        ["span 50", "cross entropy", "4e-05", "2.0794"],
        ["span 200", "cross entropy", "1.2346", "2.0794"],
        ["span 50", "sequence accuracy", "1.0000", "9e-10"],
        ["span 200", "sequence accuracy", "0.2500", "0.1250"],
    ]


def test_recorded_runs_stand_beside_with_their_parameters_and_a_dash_for_what_they_lack() -> None:
    rows = rows_of(recorded=RECORDED)
    assert [row[-1] for row in rows] == ["lstm, recorded\n(1,234,567 parameters)", "0.5000", "12.35", "–", "–"]


def test_one_unnamed_group_has_lines_too() -> None:
    rows = rows_of(scores={"perplexity": 123.456, "loss": 1.0}, headline=("perplexity",), floors={})
    assert rows[1:] == [["", "perplexity", "123.46", "–"]]


def test_a_score_of_zero_is_no_rounded_one() -> None:
    rows = rows_of(scores={"cross_entropy": 0.0}, headline=("cross_entropy",))
    assert rows[1][2] == "0.0000"


def test_the_printed_table_holds_its_title_and_every_number() -> None:
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(build_table(SCORES, ("cross_entropy",), FLOORS, RECORDED, "rim-seed3"))
    text = capture.get()
    for word in ("rim-seed3", "span 200", "1.2346", "2.0794", "1,234,567"):
        assert word in text


def test_recorded_results_are_read_by_dataset_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "shipped_folder", lambda in_wheel, in_checkout: tmp_path)
    (tmp_path / "copying").mkdir()
    for name, content in RECORDED.items():
        (tmp_path / "copying" / f"{name}.json").write_text(json.dumps(content))
    assert recorded_results("copying") == RECORDED
    assert recorded_results("elsewhere") == {}
