"""Tables and figures from known results."""

import csv
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rimlit.comparison import Comparison
from rimlit.comparison.results import Score, number, published_figures, written
from rimlit.errors import DataError, StorageError

SIZES = {"parameters": 1200, "active_parameters": 800, "flops_per_step": 2400, "state_size": 24}


def model(*scores: dict[str, float], **facts: Any) -> dict[str, Any]:
    runs = [
        {"seed": seed, "test": test, "val": {"accuracy": [[10, 0.1 + seed / 10], [20, 0.3 + seed / 10]]}}
        for seed, test in enumerate(scores)
    ]
    return {**SIZES, **facts, "runs": runs}


def results(**entries: Any) -> dict[str, Any]:
    defaults = {
        "dataset": "mine",
        "metrics": ["cross_entropy", "accuracy"],
        "higher_is_better": {"cross_entropy": False, "accuracy": True},
        "floors": {"accuracy": 0.25, "span_9/cross_entropy": 2.0},
        "models": {
            "rim": model(
                {"span_5/cross_entropy": 1.0, "span_9/cross_entropy": 3.0, "span_5/accuracy": 0.9, "extra": 1.0},
                {"span_5/cross_entropy": 2.0, "span_9/cross_entropy": 5.0, "span_5/accuracy": 0.7, "extra": 1.0},
            ),
            "lstm": model(
                {"span_5/cross_entropy": 2.0, "span_9/cross_entropy": 2.5, "span_5/accuracy": 0.9},
                {"span_5/cross_entropy": 2.5, "span_9/cross_entropy": 2.5, "span_5/accuracy": 0.9},
                flops_per_step=None,
            ),
        },
    }
    return {**defaults, **entries}


def data_of(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"rimlit.{kind}", "init_args": arguments, "digest": None}


def cells(comparison: Comparison, row: str) -> dict[str, str]:
    lines = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in comparison.markdown().splitlines()
    ]
    line = next(line for line in lines if line[0] == row)
    return dict(zip(lines[0], line, strict=True))


def test_a_row_holds_sizes_means_and_deviations_over_seeds() -> None:
    comparison = Comparison(results())
    assert cells(comparison, "rim") == {
        "model": "rim",
        "seeds": "2",
        "parameters": "1,200",
        "active in a step": "800",
        "FLOPs a step": "2,400",
        "state": "24",
        "cross entropy, span 5": "**1.500 ± 0.707**",
        "cross entropy, span 9": "4.000 ± 1.414",
        "accuracy, span 5": "0.800 ± 0.141",
    }
    assert cells(comparison, "lstm")["FLOPs a step"] == "–"
    assert comparison.rows[0]["span_5/cross_entropy"] == 1.5
    assert comparison.rows[0]["span_5/cross_entropy_std"] == pytest.approx(0.5**0.5)


def test_the_best_is_the_lowest_where_lower_is_better_and_else_the_highest() -> None:
    comparison = Comparison(results())
    assert comparison.best("span_5/cross_entropy") == {"rim"}
    assert comparison.best("span_9/cross_entropy") == {"lstm"}
    assert comparison.best("span_5/accuracy") == {"lstm"}
    turned = Comparison(results(higher_is_better={"cross_entropy": True, "accuracy": False}))
    assert turned.best("span_5/cross_entropy") == {"lstm"}
    assert turned.best("span_5/accuracy") == {"rim"}


def test_nothing_is_best_where_all_are_alike_or_one_stands_alone_or_no_direction_is_known() -> None:
    same = {"span_5/accuracy": 0.5}
    assert Comparison(results(models={"rim": model(same), "lstm": model(same)})).best("span_5/accuracy") == set()
    assert Comparison(results(models={"rim": model(same)})).best("span_5/accuracy") == set()
    assert Comparison(results(higher_is_better={"accuracy": None})).best("span_5/accuracy") == set()


@pytest.mark.parametrize("names", ["abc", "bca", "cab"])
def test_a_score_that_is_not_a_number_is_never_best(names: str) -> None:
    values = {"a": float("nan"), "b": 0.7, "c": 0.5}
    models = {name: model({"accuracy": values[name]}) for name in names}
    assert Comparison(results(models=models)).best("accuracy") == {"b"}


def test_models_that_are_equal_in_the_table_are_all_bold() -> None:
    models = {name: model({"accuracy": value}) for name, value in (("a", 0.70001), ("b", 0.7), ("c", 0.5))}
    assert Comparison(results(models=models)).best("accuracy") == {"a", "b"}


def test_with_fewer_digits_more_share_the_bold() -> None:
    models = {name: model({"accuracy": value}) for name, value in (("a", 0.704), ("b", 0.7), ("c", 0.5))}
    comparison = Comparison(results(models=models))
    assert comparison.best("accuracy") == {"a"}
    assert comparison.best("accuracy", digits=2) == {"a", "b"}
    score = comparison.score("a", "accuracy")
    assert (written(score), written(score, digits=2)) == ("0.704", "0.70")
    assert written(Score(0.704, 0.058), digits=2) == "0.70 ± 0.06"


def test_a_single_seed_has_no_deviation_and_a_model_without_runs_no_scores() -> None:
    comparison = Comparison(results(models={"rim": model({"accuracy": 0.5}), "lstm": model()}))
    assert cells(comparison, "rim")["accuracy"] == "0.500"
    assert cells(comparison, "lstm")["accuracy"] == "–"
    assert cells(comparison, "lstm")["seeds"] == "0"


def test_the_floor_is_a_group_s_own_or_that_of_all() -> None:
    row = cells(Comparison(results()), "floor: the format known, nothing else")
    assert row["accuracy, span 5"] == "0.250"
    assert row["cross entropy, span 5"] == "–"
    assert row["cross entropy, span 9"] == "2.000"


def test_published_figures_are_shown_with_the_same_scores_on_the_same_data() -> None:
    models = {"rim": model({"span_50/cross_entropy": 0.1, "span_200/cross_entropy": 0.2})}
    paper = {"train_span": 50, "recall_length": 10, "num_symbols": 8}
    alike = Comparison(results(data=data_of("data.Copying", **paper), models=models))
    assert cells(alike, "published: LSTM 600")["cross entropy, span 200"] == "3.560"
    assert any("arXiv:1909.10893" in note for note in alike.notes())
    for other in ({"train_span": 20}, {"recall_length": 5}):
        data = data_of("data.Copying", **{**paper, **other})
        assert "published" not in Comparison(results(dataset="copying", data=data, models=models)).markdown()
    own = Comparison(results(dataset="copying", data=data_of("mine.Copying", **paper), models=models))
    assert "published" not in own.markdown()
    assert "published" not in Comparison(results(dataset="copying", models=models)).markdown()
    assert "published" not in Comparison(results(data=data_of("data.Copying", **paper))).markdown()


def test_the_paper_s_adding_is_shown_with_50_steps_only() -> None:
    models = {"rim": model({"length_200/mse": 0.01})}
    shown = {"metrics": ["mse"], "higher_is_better": {"mse": False}, "models": models}
    alike = Comparison(results(**shown, data=data_of("data.Adding", train_length=50)))
    assert cells(alike, "published: every RIM")["mse, length 200"] == "0.000"
    unlike = Comparison(results(**shown, data=data_of("data.Adding", train_length=20)))
    assert "published" not in unlike.markdown()


def test_figures_of_mnist_are_shown_with_mnist_only_whatever_the_folder_is_called() -> None:
    models = {"rim": model({"size_16/accuracy": 0.5})}
    data = data_of("data.SequentialImages", image_size=14, path="data/mnist")
    for digest, is_mnist in ((published_figures()["mnist"]["digest"], True), ("other", False), (None, False)):
        comparison = Comparison(results(data={**data, "digest": digest}, models=models))
        assert ("published: LSTM 600" in comparison.markdown()) == is_mnist


def test_published_figures_have_a_source_and_scores_in_range() -> None:
    greatest = {"accuracy": 1, "episode_return": 21}  # 21: of Pong
    for dataset in published_figures().values():
        assert "arXiv" in dataset["source"]
        for row in dataset["rows"]:
            for name, value in row["scores"].items():
                assert 0 <= value <= greatest.get(name.rpartition("/")[2], 10), row


def test_failed_runs_and_the_match_are_told_below_the_table() -> None:
    comparison = Comparison(
        results(
            match={"measure": "params", "words": "parameters", "to": "copying/rim"},
            failed=[{"name": "lstm-seed1", "reason": "exit code 5: not finite", "log": "a.log"}],
        )
    )
    text = comparison._repr_markdown_()
    assert "no fewer parameters than copying/rim" in text
    assert "Failed: lstm-seed1 (exit code 5: not finite)." in text


def test_a_saved_comparison_loads_as_it_was(tmp_path: Path) -> None:
    comparison = Comparison(results())
    comparison.save(tmp_path / "compare")
    again = Comparison.load(tmp_path / "compare")
    assert again.results == json.loads(json.dumps(comparison.results))
    assert again.markdown() == comparison.markdown()
    assert (tmp_path / "compare/table.md").read_text().startswith(comparison.markdown())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "compare/table.csv").read_text())))
    assert [row["model"] for row in rows] == ["rim", "lstm"]
    assert float(rows[1]["span_9/cross_entropy"]) == 2.5
    assert {path.name for path in (tmp_path / "compare/figures").iterdir()} == {
        "accuracy.png",
        "cross_entropy.png",
    }
    with pytest.raises(DataError, match="There is no comparison in"):
        Comparison.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "missing or damaged"),
        ('{"models": {', "missing or damaged"),
        ('{"models": {}}', "lacks dataset, metrics"),
    ],
)
def test_a_damaged_comparison_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=words):
        Comparison.load(tmp_path)


def test_what_was_not_alike_and_what_is_doubtful_is_told_below_the_table() -> None:
    given = results(differing={"optimizer": {"rim": "Adam(lr=0.003)", "lstm": "the task's default"}})
    given["models"]["rim"]["runs"][1]["warnings"] = ["Training made the loss worse."]
    text = Comparison(given)._repr_markdown_()
    assert "Not trained alike: optimizer is Adam(lr=0.003) (rim), the task's default (lstm)." in text
    assert "rim, seed 1: Training made the loss worse." in text


def test_a_comparison_that_cannot_be_written_says_so_and_leaves_the_earlier_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Comparison(results()).save(tmp_path)
    before = (tmp_path / "results.json").read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
        Comparison(results(dataset="other")).save(tmp_path)
    assert (tmp_path / "results.json").read_text() == before


def test_a_figure_shows_curves_with_bands_and_groups_at_their_numbers() -> None:
    figure = Comparison(results()).figures()["accuracy"]
    validation, test = figure.axes
    assert [line.get_ydata().tolist() for line in validation.lines[:1]] == [pytest.approx([0.15, 0.35])]
    assert validation.lines[0].get_xdata().tolist() == [10, 20]
    assert len(validation.collections) == 2  # a band for each model
    assert test.get_xlabel() == "span"
    assert test.get_xticks().tolist() == [5.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rim", "lstm"]


def test_a_curve_holds_only_the_steps_of_all_seeds() -> None:
    given = results()
    given["models"]["rim"]["runs"][1]["val"]["accuracy"].append([30, 0.9])
    validation = Comparison(given).figures()["accuracy"].axes[0]
    assert validation.lines[0].get_xdata().tolist() == [10, 20]


def test_a_figure_without_validation_is_said() -> None:
    comparison = Comparison(results())  # no run has a curve of cross_entropy
    assert [len(figure.axes) for figure in comparison.figures().values()] == [1, 2]
    note = "No run kept validation scores of cross entropy over training, which figures leave out"
    assert [found for found in comparison.notes() if found.startswith("No run kept")] == [
        f"{note}; with trainer.logger=false none are kept."
    ]
    given = results()
    for facts in given["models"].values():
        for run in facts["runs"]:
            del run["val"]
    assert any("scores of cross entropy, accuracy over" in found for found in Comparison(given).notes())
    for metrics in (["accuracy"], []):
        assert not any("No run kept" in found for found in Comparison(results(metrics=metrics)).notes())
    assert not any("No run kept" in found for found in Comparison(results(models={"rim": model()})).notes())


def test_groups_without_numbers_stand_side_by_side() -> None:
    models = {"rim": model({"plain/accuracy": 0.5, "curtain/accuracy": 0.4})}
    axis = Comparison(results(models=models)).figures()["accuracy"].axes[1]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["plain", "curtain"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (0.12345, "0.123"), (12.345, "12.35"), (1234.5, "1,234")]
)
def test_numbers_are_written_to_be_read(value: float, text: str) -> None:
    assert number(value) == text
