"""What a comparison found: means and standard deviations over seeds, as rows, as a table, as figures."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import yaml
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rimlit.comparison.figures import draw_metric
from rimlit.comparison.scores import Score, floor_of, mean_and_deviation, number, title, written
from rimlit.comparison.statistics import Interval, interquartile_mean
from rimlit.comparison.tuning import short_names, short_value, tuning_notes
from rimlit.errors import DataError
from rimlit.files import encode_png, read_json, refuse_link, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Cell(NamedTuple):
    """Content of a table's cell."""

    text: str
    is_best: bool = False


SIZES = {
    "parameters": "parameters",
    "active_parameters": "active in a step",
    "flops_per_step": "FLOPs a step",
    "state_size": "state",
}

REQUIRED = ("dataset", "metrics", "higher_is_better", "floors", "models")
"""What a comparison's ``results.json`` must hold."""


@dataclass
class Comparison:
    """Several models, each trained with several seeds.

    Args:
        results: What ``results.json`` holds: ``dataset``, ``command``, ``commit``, ``machine``, ``seeds``,
            ``match``, ``data`` (class, arguments and digest), ``differing`` (what is not alike in how the models
            were trained), ``metrics`` (those that are shown), ``higher_is_better`` by metric,
            ``floors``, ``models``, ``failed``, and of a comparison on a cluster ``pending`` and ``missing``.
        folder: Where it is kept.

    Example:
        >>> model = {"parameters": 10, "active_parameters": 10, "flops_per_step": 20, "state_size": 4}
        >>> runs = [{"seed": seed, "test": {"loss": loss}} for seed, loss in enumerate([0.25, 0.75])]
        >>> comparison = Comparison(
        ...     {
        ...         "dataset": "mine",
        ...         "metrics": ["loss"],
        ...         "higher_is_better": {"loss": False},
        ...         "floors": {"loss": 1.0},
        ...         "models": {"lstm": {**model, "runs": runs}},
        ...     }
        ... )
        >>> print(comparison.markdown().splitlines()[2])
        | lstm | 2 | 10 | 10 | 20 | 4 | 0.500 ± 0.354 |
        >>> comparison.rows[0]["loss"], comparison.rows[0]["parameters"]
        (0.5, 10)
    """

    results: dict[str, Any] = field(repr=False)
    folder: Path | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load a comparison from its folder.

        Raises:
            DataError: There is none, or it is damaged.
        """
        path = Path(folder) / "results.json"
        results = read_json(path)
        if not results:
            raise DataError(f"There is no comparison in {str(folder)!r}: {path} is missing or damaged.")
        lacking = [name for name in REQUIRED if name not in results]
        if lacking:
            raise DataError(f"{path} holds no comparison: it lacks {', '.join(lacking)}.")
        return cls(results, Path(folder))

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """Models by name."""
        models: dict[str, dict[str, Any]] = self.results["models"]
        return models

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Runs that failed: name, reason and log."""
        failed: list[dict[str, Any]] = self.results.get("failed", [])
        return failed

    @property
    def pending(self) -> list[str]:
        """Runs that are jobs of a cluster and have not ended: name and job."""
        pending: list[str] = self.results.get("pending", [])
        return pending

    @property
    def missing(self) -> list[str]:
        """Runs of a comparison on a cluster that have not been submitted."""
        missing: list[str] = self.results.get("missing", [])
        return missing

    @property
    def score_names(self) -> list[str]:
        """Test scores that are shown, ``group/metric``: metric by metric, groups in their order."""
        tests = [run["test"] for model in self.models.values() for run in model["runs"]]
        found = dict.fromkeys(name for test in tests for name in test)
        return [name for metric in self.results["metrics"] for name in found if name.rpartition("/")[2] == metric]

    def score(self, model: str, name: str) -> Score | None:
        """Return a model's test score over its seeds; None where there is no run."""
        return mean_and_deviation(self.values(model, name))

    def values(self, model: str, name: str) -> list[float]:
        """Return a model's test score of each run."""
        return [run["test"][name] for run in self.models[model]["runs"] if name in run["test"]]

    def interquartile_mean(self, model: str, name: str) -> Interval | None:
        """Return the interquartile mean of a test score over seeds with its 95 % interval; None without runs."""
        values = self.values(model, name)
        return interquartile_mean([values]) if values else None

    def curves(self, metric: str) -> dict[str, list[list[list[float]]]]:
        """Return by model the validation scores over training, ``[step, value]``, of each run that kept them."""
        return {
            model: [run["val"][metric] for run in facts["runs"] if metric in run.get("val", {})]
            for model, facts in self.models.items()
        }

    def best(self, name: str, *, digits: int = 3) -> set[str]:
        """Return the models of the best mean in ``name``, as written with ``digits``; none where all are alike."""
        scores = {
            model: score
            for model in self.models
            if (score := self.score(model, name)) is not None and not math.isnan(score.mean)
        }
        sign = {True: 1, False: -1}.get(self.results["higher_is_better"].get(name.rpartition("/")[2]))
        if sign is None or len(scores) < 2:
            return set()
        best = number(max(sign * score.mean for score in scores.values()) * sign, digits)
        found = {model for model, score in scores.items() if number(score.mean, digits) == best}
        return set() if len(found) == len(scores) else found

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per model, for ``pandas.DataFrame(comparison.rows)``.

        Sizes; of each score the mean, ``…_std``, and ``…_iqm``, the interquartile mean, with ``…_iqm_low`` and
        ``…_iqm_high``, its 95 % interval over seeds.
        """
        rows = []
        for model, facts in self.models.items():
            row = {"model": model, **self._tuned_value(model), "seeds": len(facts["runs"])}
            row |= {name: facts.get(name) for name in SIZES}
            for name in self.score_names:
                score = self.score(model, name)
                row[name] = None if score is None else score.mean
                row[f"{name}_std"] = None if score is None else score.deviation
                middle = self.interquartile_mean(model, name)
                for end, part in zip(("", "_low", "_high"), middle or (None, None, None), strict=True):
                    row[f"{name}_iqm{end}"] = part
            rows.append(row)
        return rows

    def header(self) -> list[str]:
        """Return the table's columns."""
        tuned = [title(name) for name in self._tuned_names()]
        return ["model", *tuned, "seeds", *SIZES.values(), *(title(name) for name in self.score_names)]

    def _tuned_names(self) -> list[str]:
        """Return the last part of each setting that was tuned for a model."""
        names = (name for model in self.models for name in self._best_values(model))
        return list(dict.fromkeys(names))

    def _best_values(self, model: str) -> dict[str, Any]:
        """Return a model's best value of each setting that was tuned for it, by the setting's short name."""
        report = self.models[model].get("tuning", {"space": {}, "best": None})
        best = report["best"] or {}
        return {name: best.get(setting) for setting, name in short_names(list(report["space"])).items()}

    def _tuned_value(self, model: str) -> dict[str, Any]:
        """Return a model's best value of each setting that was tuned, None where it was not for this model."""
        return dict.fromkeys(self._tuned_names()) | self._best_values(model)

    def body(self) -> list[list[Cell]]:
        """Return the table's rows: models, then the floor, then what others published."""
        names = self.score_names
        best = {name: self.best(name) for name in names}
        lines = []
        for model, facts in self.models.items():
            sizes = ["–" if facts.get(size) is None else f"{facts[size]:,}" for size in SIZES]
            scores = [self.score(model, name) for name in names]
            cells = [Cell(written(score), model in best[name]) for name, score in zip(names, scores, strict=True)]
            tuned = ["–" if value is None else short_value(value) for value in self._tuned_value(model).values()]
            lines.append(
                [Cell(model), *map(Cell, tuned), Cell(str(len(facts["runs"]))), *map(Cell, sizes), *cells]
            )
        empty = [Cell("")] * (1 + len(SIZES) + len(self._tuned_names()))
        floors = [floor_of(self.results["floors"], name) for name in names]
        if any(floor is not None for floor in floors):
            cells = [Cell("–" if floor is None else number(floor)) for floor in floors]
            lines.append([Cell("floor: the format known, nothing else"), *empty, *cells])
        for row in self.published()["rows"]:
            cells = [Cell(number(row["scores"][name]) if name in row["scores"] else "–") for name in names]
            lines.append([Cell(f"published: {row['model']}"), *empty, *cells])
        return lines

    def published(self) -> dict[str, Any]:
        """Return what others published on data of these settings and on these scores: ``source`` and ``rows``."""
        data = self.results.get("data") or {}
        names = set(self.score_names)
        for known in published_figures().values():
            if is_published_data(known, data):
                rows = [row for row in known["rows"] if names & row["scores"].keys()]
                return {"source": known["source"], "rows": rows}
        return {"source": "", "rows": []}

    def notes(self) -> list[str]:
        """Return what a reader of the table must know."""
        notes = ["Mean ± standard deviation (n − 1) over seeds; the best mean of each column is bold."]
        notes.append(
            "Checkpoints were chosen on validation data drawn as in training. FLOPs are those of the matrix "
            "products of backbone and head in one step of one sequence, forward; state is what is carried from "
            "step to step."
        )
        match = self.results.get("match")
        if match:
            notes.append(f"Widths: the smallest with no fewer {match['words']} than {match['to']}.")
        for model, facts in self.models.items():
            notes += tuning_notes(model, facts["tuning"]) if "tuning" in facts else []
        for name, values in self.results.get("differing", {}).items():
            given = ", ".join(f"{value} ({model})" for model, value in values.items())
            notes.append(f"Not trained alike: {name} is {given}.")
        published = self.published()
        if published["rows"]:
            notes.append(f"Published: {published['source']}.")
        lost = [title(metric) for metric in self.results["metrics"] if not any(self.curves(metric).values())]
        if lost and any(facts["runs"] for facts in self.models.values()):
            notes.append(
                f"No run kept validation scores of {', '.join(lost)} over training, which figures leave out; with "
                "trainer.logger=false none are kept."
            )
        notes += [
            f"{model}, seed {run['seed']}: {warning}"
            for model, facts in self.models.items()
            for run in facts["runs"]
            for warning in run.get("warnings", [])
        ]
        notes += [f"Failed: {run['name']} ({run['reason']})." for run in self.failed]
        return notes

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.header(), ["---"] * len(self.header())]
        lines += [[f"**{cell.text}**" if cell.is_best else cell.text for cell in line] for line in self.body()]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def _repr_markdown_(self) -> str:
        """Show the table in a notebook."""
        return self.markdown() + "\n" + "\n".join(f"- {note}" for note in self.notes())

    def csv(self) -> str:
        """Return the rows as comma-separated values."""
        out, rows = io.StringIO(), self.rows
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def rich(self) -> Group:
        """Return the table for the terminal, in parts that fit: sizes, then metric by metric."""
        header, body = self.header(), self.body()
        sizes = 2 + len(SIZES) + len(self._tuned_names())
        parts = [_rich(header[:sizes], [line[:sizes] for line in body[: len(self.models)]])]
        for metric in self.results["metrics"]:
            columns = [
                sizes + index for index, name in enumerate(self.score_names) if name.rpartition("/")[2] == metric
            ]
            lines = [[line[0], *(line[column] for column in columns)] for line in body]
            shown = [line for line in lines if any(cell.text != "–" for cell in line[1:])]
            parts.append(_rich(["model", *(header[column] for column in columns)], shown))
        return Group(*parts)

    def figures(self) -> dict[str, "Figure"]:
        """Return a figure for each metric: over training steps, and over test groups that are numbers."""
        return {
            metric: draw_metric(
                metric, self.curves(metric), self._group_scores(metric), floor_of(self.results["floors"], metric)
            )
            for metric in self.results["metrics"]
        }

    def _group_scores(self, metric: str) -> dict[str, dict[str, list[float]]]:
        """Return a metric's test scores of all seeds, by model and group."""
        names = [name for name in self.score_names if name.rpartition("/")[2] == metric]
        return {
            model: {name.rpartition("/")[0]: self.values(model, name) for name in names} for model in self.models
        }

    def save(self, folder: Path) -> None:
        """Write ``results.json``, ``table.md``, ``table.csv`` and ``figures/``.

        Raises:
            StorageError: The folder cannot be written. Each file in it is whole, the old one or the new one.
        """
        self.folder = folder
        refuse_link(folder / "figures")
        write_file(folder / "results.json", json.dumps(self.results, indent=2) + "\n")
        write_file(folder / "table.md", self._repr_markdown_() + "\n")
        write_file(folder / "table.csv", self.csv())
        for metric, figure in self.figures().items():
            write_file(folder / "figures" / f"{metric}.png", encode_png(figure))


def _rich(header: list[str], lines: list[list[Cell]]) -> Table:
    table = Table()
    for index, column in enumerate(header):
        table.add_column(column, justify="right" if index else "left")
    for line in lines:
        table.add_row(*(Text(cell.text, style="bold" if cell.is_best else "") for cell in line))
    return table


def is_published_data(known: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Return whether data are those of published figures: class, content, and the settings that these name."""
    settings = data.get("init_args", {})
    if data.get("class_path") != known["class_path"] or known.get("digest") not in (None, data.get("digest")):
        return False
    return all(settings.get(name) == value for name, value in known["data"].items())


def published_figures() -> dict[str, Any]:
    """Return all published figures by dataset."""
    figures: dict[str, Any] = yaml.safe_load(
        Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    )
    return figures
