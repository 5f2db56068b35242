"""A search by Optuna: its trials are in a storage, so that a search that is killed loses and repeats none."""

import contextlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rimlit.comparison.gathering import read_curve
from rimlit.comparison.space import Dimension, Space
from rimlit.comparison.tuning import Outcome, Search, Trial
from rimlit.errors import ConfigError, StorageError, install_command
from rimlit.files import network_disk
from rimlit.tracking.run_folder import RunFolder

STARTUP_TRIALS = 5
"""Trials that end before any is pruned."""


def import_optuna() -> Any:
    """Return the module, quietened.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"Searching a space needs Optuna: {install_command('tune')}.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True)
class StudyPlace:
    """Where a search is kept.

    Args:
        storage: ``sqlite:///FILE`` or another URL of a database, or a file that is a journal.
        name: The study's name in it.
    """

    storage: str
    name: str

    def open(self) -> Any:
        """Open the storage.

        Raises:
            ConfigError: It is a SQLite file on a network disk, or the database's driver is not installed.
            StorageError: It cannot be opened.
        """
        optuna = import_optuna()
        if "://" in self.storage:
            self.require_locks()
            try:
                return optuna.storages.RDBStorage(self.storage)
            except ImportError as error:
                raise ConfigError(f"storage={self.storage!r} needs another package: {error}") from error
            except Exception as error:  # of the database's driver, whichever it is
                reason = " ".join(str(error).split())[:300]
                raise StorageError(f"storage={self.storage!r} cannot be opened: {reason}") from error
        path = Path(self.storage)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _repair(path)
            return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        except OSError as error:
            raise StorageError(f"storage={self.storage!r} cannot be opened: {error.strerror}.") from error
        except ValueError as error:
            raise StorageError(f"storage={self.storage!r} is damaged, or no journal of Optuna: {error}") from error

    def require_locks(self) -> None:
        """Refuse a SQLite file on a network disk, where its locks do not hold.

        Raises:
            ConfigError: It is one.
        """
        if not self.storage.startswith("sqlite:///"):
            return
        path = Path(self.storage.removeprefix("sqlite:///"))
        if (kind := network_disk(path)) is not None:
            raise ConfigError(
                f"storage={self.storage!r} is SQLite on a network disk ({kind}), whose locks do not hold: leave "
                "it out (a journal file in the search's folder), name a journal file such as tune.journal, or a "
                "server such as postgresql://."
            )


def _repair(path: Path) -> None:
    """Remove what a process that was killed has left: half a line at the end of a journal, and a lock on it.

    The caller is the only one at work on the journal: it holds the lock of the search's folder.
    """
    if not path.exists():
        return
    lock = path.with_name(f"{path.name}.lock")
    if os.path.lexists(lock):
        logging.getLogger(__name__).info("%s was left by a process that was killed, and is removed.", lock)
        lock.unlink()
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with contextlib.suppress(ValueError):
                json.loads(content[whole:])
                file.write(b"\n")  # only its end is missing
                return
            file.truncate(whole)


class OptunaSearch(Search):
    """Trials chosen by the tree-structured Parzen estimator (Bergstra et al. 2011), pruned at the median.

    The choice of trial n depends on ``seed``, n and what was found before, and not on when the search was started:
    with one run at a time a search that was killed and resumed is the same search.

    Args:
        space: What is searched.
        num_trials: How many trials there will be, at least 1.
        seed: Seed of the trials' runs, and of the choice.
        folder_of: Returns the folder of a trial's run, given the trial's label.
        place: Where the search is kept.
        monitor: The metric that is best in validation, such as ``val/loss``.
        higher_is_better: Whether it is best where it is highest.
        steps: Optimiser steps of a run, None where it ends otherwise.
        prune: Whether a trial is stopped once its best validation is worse than the median of the others at the
            same step, from a quarter of its steps on and after five trials.

    Raises:
        ConfigError: Optuna is not installed, or the storage is SQLite on a network disk.
    """

    def __init__(
        self,
        space: Space,
        num_trials: int,
        seed: int,
        folder_of: Callable[[str], RunFolder],
        place: StudyPlace,
        *,
        monitor: str,
        higher_is_better: bool,
        steps: int | None = None,
        prune: bool = True,
    ) -> None:
        super().__init__(seed, folder_of)
        self._optuna = import_optuna()
        self.space, self._num_trials, self._monitor = space, num_trials, monitor
        self._is_higher, self._prune = higher_is_better, prune
        self._sizes: dict[str, int] = {}
        self._ended: dict[str, Outcome] = {}
        self._distributions = {each.setting: self._distribution(each) for each in space.dimensions}
        self._place, self._steps = place, steps
        place.require_locks()

    def open(self) -> None:
        """Open the storage and restore the trials in it; no other process may use the search.

        Raises:
            ConfigError: The study in it has another space.
            StorageError: It cannot be opened.
        """
        optuna, place = self._optuna, self._place
        self._storage = place.open()
        try:
            self._study = optuna.create_study(
                storage=self._storage,
                pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=(self._steps or 0) // 4),
                study_name=place.name,
                direction="maximize" if self._is_higher else "minimize",
                load_if_exists=True,
            )
        except (ValueError, KeyError) as error:
            raise StorageError(
                f"storage={place.storage!r} is damaged, or no storage of Optuna: {error}"
            ) from error
        self._study_id = self._storage.get_study_id_from_name(place.name)
        now = json.loads(json.dumps(self.space.report()))
        before = self._study.user_attrs.get("space")
        if before is None:
            self._study.set_user_attr("space", now)
        elif before != now:
            raise ConfigError(
                f"The study {place.name!r} in {place.storage} has another space, {before}; got {now}. Give the "
                "same, or another --name."
            )
        for number in range(min(self._num_trials, len(self._study.get_trials(deepcopy=False)))):
            self._take(number)

    def _distribution(self, dimension: Dimension) -> Any:
        distributions = self._optuna.distributions
        if dimension.is_choice:
            return distributions.CategoricalDistribution([dimension.label(value) for value in dimension.values])
        whole = dimension.kind in ("int", "log_int")
        kind = distributions.IntDistribution if whole else distributions.FloatDistribution
        return kind(*dimension.values, log=dimension.is_log)

    @property
    def budget(self) -> int:
        """How many trials there will be."""
        return self._num_trials

    @property
    def settings(self) -> tuple[str, ...]:
        """The full names of the settings."""
        return self.space.settings

    def describe(self) -> dict[str, Any]:
        """Return the space."""
        return self.space.report()

    def ask(self) -> Trial | None:
        """Choose one more trial; None where all have been chosen."""
        if len(self.trials) >= self._num_trials:
            return None
        self._study.sampler = self._sampler(len(self.trials))
        asked = self._study.ask()
        self._suggest(asked)
        return self._take(asked.number)

    def _sampler(self, number: int) -> Any:
        return self._optuna.samplers.TPESampler(seed=(self.seed * 1_000_003 + number) % 2**32)

    def _suggest(self, asked: Any) -> None:
        for setting, given in self._distributions.items():
            if hasattr(given, "choices"):
                asked.suggest_categorical(setting, given.choices)
            else:
                suggest = asked.suggest_int if isinstance(given.low, int) else asked.suggest_float
                suggest(setting, given.low, given.high, log=given.log)

    def _take(self, number: int) -> Trial:
        """Add a trial of the study; its values are completed where a process was killed while choosing them."""
        frozen = self._frozen(number)
        if len(frozen.params) < len(self._distributions):
            self._study.sampler = self._sampler(number)
            self._suggest(self._optuna.trial.Trial(self._study, self._identity(number)))
            frozen = self._frozen(number)
        values = {
            each.setting: each.value_of(frozen.params[each.setting])
            if each.is_choice
            else frozen.params[each.setting]
            for each in self.space.dimensions
        }
        trial = Trial(f"trial-{number:03d}", values)
        self.trials.append(trial)
        return trial

    def _identity(self, number: int) -> Any:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _frozen(self, number: int) -> Any:
        return self._storage.get_trial(self._identity(number))

    def _number(self, trial: Trial) -> int:
        return next(index for index, each in enumerate(self.trials) if each.label == trial.label)

    def outcome(self, trial: Trial) -> Outcome | None:
        """Return how a trial ended, None before its end; a run that ended unseen is noted."""
        if trial.label not in self._ended:
            number = self._number(trial)
            self.note_end(trial)
            frozen = self._frozen(number)
            if not frozen.state.is_finished():
                return None
            ended = frozen.user_attrs.get("ended", "pruned")
            score = frozen.value if ended == "finished" else None
            self._ended[trial.label] = Outcome(ended, score, self._monitor, self._is_higher)
        return self._ended[trial.label]

    def is_hopeless(self, trial: Trial) -> bool:
        """Report new validations of a trial that runs; return whether it is pruned now."""
        number = self._number(trial)
        if not self._report(trial, number) or not self._prune:
            return False
        if not self._study.pruner.prune(self._study, self._frozen(number)):
            return False
        self._tell(number, "pruned")
        return True

    def _report(self, trial: Trial, number: int) -> bool:
        """Report the validations in ``metrics.csv`` that are new; return whether there were any."""
        path = self.folder_of(trial.label).path / "metrics.csv"
        size = path.stat().st_size if path.is_file() else 0
        frozen = self._frozen(number)
        if size == self._sizes.get(trial.label, 0) or frozen.state.is_finished():
            return False
        self._sizes[trial.label] = size
        new = [(at, x) for at, x in read_curve(path, self._monitor) if at not in frozen.intermediate_values]
        for step, value in new:
            self._storage.set_trial_intermediate_value(self._identity(number), step, value)
        return bool(new)

    def refuse(self, trial: Trial, reason: str) -> None:
        """Take note of a trial whose values make no model: it counts as worse than any other."""
        self._tell(self._number(trial), "refused", reason=reason)

    def note_end(self, trial: Trial) -> None:
        """Take note of a trial whose run has ended: its score, or that it diverged; of one that failed nothing."""
        number = self._number(trial)
        found = super().outcome(trial)
        if found is None or self._frozen(number).state.is_finished():
            return
        self._report(trial, number)
        self._tell(number, found.ended, score=found.score)

    def _tell(self, number: int, ended: str, *, score: float | None = None, reason: str = "") -> None:
        self._storage.set_trial_user_attr(self._identity(number), "ended", ended)
        if reason:
            self._storage.set_trial_user_attr(self._identity(number), "reason", reason)
        if score is not None:
            self._study.tell(number, score)
        else:
            self._study.tell(number, state=self._optuna.trial.TrialState.PRUNED)
