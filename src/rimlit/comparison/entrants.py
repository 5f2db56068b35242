"""The configs of a comparison, the models that they lead to, and their runs."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rimlit.cli.failures import cause_of
from rimlit.cli.settings import changed_setting
from rimlit.comparison.gathering import read_settings
from rimlit.comparison.matching import Match
from rimlit.comparison.runs import Run
from rimlit.comparison.tuning import GridSearch, Search, Trial
from rimlit.errors import ConfigError
from rimlit.tasks import Task
from rimlit.tracking.run_folder import RunFolder

log = logging.getLogger(__name__)


class Model(NamedTuple):
    """A config of a comparison, at one value of everything that is tuned."""

    name: str
    config: str
    arguments: list[str]
    settings: dict[str, Any]
    task: Task
    match: Match | None


class Entrant:
    """A config of a comparison: one model, or a search of which the best is compared.

    Args:
        name: Its name in the comparison.
        seeds: Seeds that it is trained with; the first one is also that of the search.
        folder: The comparison's folder.
        build: Returns the model of a trial, or, given None, that of the config as it is.
        search: What is searched, None where nothing is.
    """

    def __init__(
        self,
        name: str,
        seeds: list[int],
        folder: Path,
        build: Callable[[Trial | None], Model],
        search: Search | None = None,
    ) -> None:
        self.name, self.seeds, self.folder, self.search = name, seeds, folder, search
        self._build = functools.cache(lambda label: build(self._trials.get(label)))
        self._trials: dict[str, Trial] = {}
        self._of_run: dict[str, Trial] = {}

    def chosen(self) -> Model | None:
        """Return the model that is compared; None before its values are known, and where no trial has a score."""
        if self.search is None:
            return self._model(None)
        best = self.search.best()
        return None if best is None else self._model(best)

    def example(self) -> Model:
        """Return the model that is compared, or another one of this config where that is not known."""
        return self.chosen() or self._model(self.search.trials[0] if self.search and self.search.trials else None)

    def _model(self, trial: Trial | None) -> Model:
        if trial is None:
            return self._build(None)
        self._trials[trial.label] = trial
        return self._build(trial.label)

    def first_runs(self) -> list[Run]:
        """Return the runs that are known: those of all seeds, or of the trials so far."""
        if self.search is None:
            return [run_of(self._model(None), seed, self.folder) for seed in self.seeds]
        runs = (self._run(trial) for trial in list(self.search.trials))
        return [run for run in runs if run is not None]

    def ask(self) -> Run | None:
        """Return the run of one more trial; None where there is none to choose."""
        while self.search is not None and (trial := self.search.ask()) is not None:
            if (run := self._run(trial)) is not None:
                return run
        return None

    def _run(self, trial: Trial) -> Run | None:
        """Return the run of a trial; None where its values make no model, which is noted."""
        assert self.search is not None
        outcome = self.search.outcome(trial)
        if outcome is not None and outcome.ended == "refused":
            return None
        try:
            model = self._model(trial)
        except Exception as error:
            cause = cause_of(error)
            if cause is None or isinstance(self.search, GridSearch):
                raise
            log.info("%s: %s cannot be built, and counts as worst: %s", self.name, trial.label, cause)
            self.search.refuse(trial, str(cause))
            return None
        run = run_of(model, self.seeds[0], self.folder, is_trial=True)
        if outcome is not None and outcome.ended == "pruned":
            run.status = "pruned"
        self._of_run[run.name] = trial
        return run

    def trial_of(self, run: Run) -> Trial | None:
        """Return the trial that a run is of, None where it is of none."""
        return self._of_run.get(run.name)

    def further_runs(self) -> list[Run]:
        """Return the runs of the other seeds, once the best values are known."""
        model = None if self.search is None else self.chosen()
        return [] if model is None else [run_of(model, seed, self.folder) for seed in self.seeds[1:]]

    @property
    def num_runs(self) -> int:
        """How many runs there will be; fewer where no trial has a score."""
        if self.search is None:
            return len(self.seeds)
        return self.search.budget + (0 if self.has_no_best() else len(self.seeds) - 1)

    def has_no_best(self) -> bool:
        """Return whether all trials have ended, none with a score."""
        return self.search is not None and self.search.is_over() and self.search.best() is None


def run_of(model: Model, seed: int, folder: Path, *, is_trial: bool = False) -> Run:
    """Describe a run; look whether it is done.

    Args:
        model: The model.
        seed: The seed.
        folder: The comparison's folder.
        is_trial: Whether a training that diverged is done: the search needs its end, not its score.

    Raises:
        ConfigError: There is one of this name with other settings.
    """
    name = f"{model.name}-seed{seed}"
    arguments = ["fit", "--config", model.config, *model.arguments, f"--seed_everything={seed}"]
    arguments.append(f"--trainer.default_root_dir={folder / name}")
    run = Run(model.name, seed, arguments, RunFolder(folder / name), folder / "logs" / f"{name}.log")
    trainer = model.settings["trainer"]
    steps = trainer.get("max_steps", -1)
    run.steps = steps if steps > 0 else None
    run.devices, run.nodes = _count(trainer.get("devices", 1)), _count(trainer.get("num_nodes", 1))
    before = read_settings(run.folder.path / "config.yaml")
    if before is not None:
        now = {**model.settings, "seed_everything": seed}
        changed = changed_setting(before, now)
        if changed is not None:
            key, old, value = changed
            raise ConfigError(
                f"{run.folder.path} was started with {key}={old!r}; got {value!r}. Give the same, or another "
                "--name for this comparison."
            )
    if run.folder.is_finished():
        run.status = "finished"
    elif is_trial and run.folder.has_diverged():
        run.status, run.reason = "failed", "it diverged"
    return run


def _count(given: Any) -> int:
    """Return how many devices or machines a setting means: a number, also as text, or a list; 1 of ``auto``."""
    if isinstance(given, list):
        return len(given)
    return max(1, int(given)) if isinstance(given, int) or str(given).isdigit() else 1
