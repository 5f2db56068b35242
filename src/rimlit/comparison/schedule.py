"""The order in which the runs of a comparison start."""

from itertools import zip_longest

from rimlit.comparison.entrants import Entrant
from rimlit.comparison.runs import Run, Work


class Schedule(Work):
    """The runs of a comparison: those that do not depend on a choice, seed by seed, then those that do.

    Searches take turns: the model with the fewest trials so far gets the next one.

    Args:
        entrants: The configs, whose searches no other process works on.
    """

    def __init__(self, entrants: list[Entrant]) -> None:
        for entrant in entrants:
            if entrant.search is not None:
                entrant.search.open()
        by_entrant = [entrant.first_runs() for entrant in entrants]
        super().__init__([run for runs in zip_longest(*by_entrant) for run in runs if run is not None])
        self.entrants = entrants
        self._is_waiting = [entrant for entrant in entrants if entrant.search is not None]
        self._add()

    @property
    def total(self) -> int:
        """How many runs there will be, as far as is known."""
        return sum(entrant.num_runs for entrant in self.entrants)

    def take(self) -> Run | None:
        """Return the run that starts next."""
        self._add()
        run = super().take()
        return self._ask() if run is None else run

    def _ask(self) -> Run | None:
        """Return the run of a new trial, of the search that has the fewest."""
        searching = [entrant for entrant in self._is_waiting if entrant.search is not None]
        for entrant in sorted(searching, key=lambda each: len(each.search.trials) if each.search else 0):
            if (run := entrant.ask()) is not None:
                self.runs.append(run)
                if run.status == "waiting":
                    return run
                return self.take()  # it had been trained before
        return None

    def is_trial(self, run: Run) -> bool:
        """Return whether a run is one of a search."""
        return any(entrant.trial_of(run) is not None for entrant in self.entrants)

    def is_lost(self, run: Run) -> bool:
        """Return whether a run has failed, and not as a trial that diverged."""
        return run.status == "failed" and not (self.is_trial(run) and run.folder.has_diverged())

    def is_hopeless(self, run: Run) -> bool:
        """Return whether a run is a trial that its search prunes."""
        return any(
            entrant.search.is_hopeless(trial)
            for entrant in self.entrants
            if entrant.search is not None and (trial := entrant.trial_of(run)) is not None
        )

    def note_end(self, run: Run) -> None:
        """Report to a search how its trial ended."""
        for entrant in self.entrants:
            if entrant.search is not None and (trial := entrant.trial_of(run)) is not None:
                entrant.search.note_end(trial)

    def _add(self) -> None:
        for entrant in list(self._is_waiting):
            if entrant.chosen() is not None:
                self._is_waiting.remove(entrant)
                self.runs += entrant.further_runs()
