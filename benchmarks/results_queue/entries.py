"""The entries of the queue and their runs."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rimlit.cli.arguments import words_of
from rimlit.cli.configs import find_config
from rimlit.comparison.runs import Run
from rimlit.comparison.tuning import Grid, GridSearch, read_grid
from rimlit.errors import ConfigError
from rimlit.files import read_json, write_json
from rimlit.tracking.run_folder import RunFolder
from rimlit.yaml_files import load_yaml

RUNS = Path("runs/queue")
KEYS = {"name", "config", "overrides", "seeds", "tune", "results", "needs"}


class RecordedFolder(RunFolder):
    """The folder of a run, or its recorded results where the folder is not here: ``runs/`` is not committed.

    Args:
        path: The folder.
        results: Where the results of the entry's runs are recorded.
    """

    def __init__(self, path: Path, results: Path) -> None:
        super().__init__(path)
        self.json = results / f"{path.name}.json"

    def is_finished(self) -> bool:
        """Return whether the run has ended, here or where it was recorded."""
        return self.json.is_file() or super().is_finished()

    def has_diverged(self) -> bool:
        """Return whether the run diverged, here or where the tuning was recorded."""
        if self.path.is_dir() or self.json.is_file():
            return super().has_diverged()
        label = self.path.name.rpartition("-")[0]
        tried = read_json(self.json.with_name("tuning.json")).get("tried", [])
        return any(trial["label"] == label and trial["ended"] == "diverged" for trial in tried)

    def read_results(self) -> dict[str, Any]:
        """Return what the run found."""
        return super().read_results() or read_json(self.json)


@dataclass(frozen=True)
class Entry:
    """A config that is trained with several seeds, at the best value of a grid where it has one.

    Args:
        name: Its name, also of its folder under ``runs/queue``.
        config: A config's name or path.
        results: Folder of the JSON of its runs.
        overrides: Settings by their dotted names.
        seeds: Seeds; the first one is also that of the tuning.
        grid: What is tuned.
        needs: Files without which it waits.
    """

    name: str
    config: str
    results: Path
    overrides: dict[str, Any]
    seeds: tuple[int, ...]
    grid: Grid | None = None
    needs: Path | None = None
    _runs: dict[str, Run] = field(default_factory=dict, repr=False)

    @property
    def num_runs(self) -> int:
        """How many runs there will be."""
        return len(self.seeds) + (0 if self.grid is None else len(self.grid.values) - 1)

    @property
    def lacks_files(self) -> bool:
        """Whether the files that it needs are missing."""
        return self.needs is not None and not self.needs.exists()

    def first_runs(self) -> list[Run]:
        """Return the runs that do not depend on a choice."""
        if self.grid is None:
            return [self._run(seed) for seed in self.seeds]
        return [self._run(self.seeds[0], value) for value in self.grid.values]

    def further_runs(self) -> list[Run]:
        """Return the runs of the other seeds, once the best value is known."""
        best = None if self.tuning is None else self.tuning.best()
        if best is None or self.grid is None:
            return []
        return [self._run(seed, best.values[self.grid.setting]) for seed in self.seeds[1:]]

    @cached_property
    def tuning(self) -> GridSearch | None:
        """What was found for each value of the grid."""
        if self.grid is None:
            return None
        seed = self.seeds[0]
        return GridSearch(self.grid, seed, lambda label: self._folder(f"{label}-seed{seed}"))

    def is_trial(self, run: Run) -> bool:
        """Return whether a run says what a value is worth."""
        return self.grid is not None and run.seed == self.seeds[0]

    def _folder(self, name: str) -> RecordedFolder:
        return RecordedFolder(RUNS / self.name / name, self.results)

    def _run(self, seed: int, value: Any = None) -> Run:
        label = "" if self.grid is None else f"{self.grid.label(value)}-"
        name = f"{label}seed{seed}"
        if name not in self._runs:
            folder = self._folder(name)
            tuned = {} if self.grid is None else {self.grid.setting: value}
            settings = {"seed_everything": seed, **self.overrides, **tuned}
            settings |= {"trainer.enable_progress_bar": False, "trainer.default_root_dir": str(folder.path)}
            arguments = ["fit", "--config", self.config, *words_of(settings)]
            shown = f"{self.name}-{label}".removesuffix("-")
            self._runs[name] = Run(shown, seed, arguments, folder, log_of(folder.path), steps=self._steps())
        return self._runs[name]

    def _steps(self) -> int | None:
        config = load_yaml(find_config(self.config)) or {}
        steps = self.overrides.get("trainer.max_steps", config.get("trainer", {}).get("max_steps"))
        return steps if isinstance(steps, int) and steps > 0 else None


def json_of(run: Run) -> Path:
    """Return where the results of a run of the queue go."""
    assert isinstance(run.folder, RecordedFolder)
    return run.folder.json


def log_of(folder: Path) -> Path:
    """Return what a run prints into."""
    return folder.with_name("logs") / f"{folder.name}.log"


def read_queue(path: Path) -> list[Entry]:
    """Return the entries of a queue.

    Raises:
        SystemExit: An entry cannot be used.
    """
    found: dict[str, Entry] = {}
    for given in yaml.safe_load(path.read_text())["runs"]:
        name = given.get("name")
        wrong = sorted(given.keys() - KEYS)
        lacking = sorted({"name", "config", "seeds", "results"} - given.keys())
        if wrong or lacking or name in found:
            what = f"has {wrong[0]!r}" if wrong else f"lacks {lacking[0]!r}" if lacking else "occurs twice"
            raise SystemExit(f"{path}: the entry {name!r} {what}; entries have {', '.join(sorted(KEYS))}.")
        try:
            find_config(given["config"])
            grid = read_grid(given["tune"]) if "tune" in given else None
        except ConfigError as error:
            raise SystemExit(f"{path}: {name}: {error}") from error
        needs = Path(given["needs"]) if "needs" in given else None
        found[name] = Entry(
            name,
            given["config"],
            Path(given["results"]),
            given.get("overrides", {}),
            tuple(given["seeds"]),
            grid,
            needs,
        )
    return list(found.values())


@dataclass
class Starts:
    """How a run was started, each time: kept beside its folder.

    Args:
        run: The run.
    """

    run: Run

    @property
    def path(self) -> Path:
        """The file."""
        return self.run.folder.path.with_name(f"{self.run.folder.path.name}.starts.json")

    def read(self) -> dict[str, Any]:
        """Return ``arguments`` and ``commits``, one for each start; empty before the first."""
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    def require_same(self) -> None:
        """Refuse a run that was started with other arguments.

        Raises:
            SystemExit: It was.
        """
        command = " ".join(("rimlit", *self.run.arguments))
        recorded = read_json(json_of(self.run)).get("command", command)
        if self.read().get("arguments", self.run.arguments) != self.run.arguments or recorded != command:
            raise SystemExit(f"{self.run.name} was started with other arguments: give its entry another name.")

    def add(self, commit: str) -> None:
        """Add a start."""
        known = self.read()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"arguments": self.run.arguments, "commits": [*known.get("commits", []), commit]}
        write_json(self.path, content)
