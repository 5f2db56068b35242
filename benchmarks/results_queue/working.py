"""Runs of the queue that no other command has, and what is recorded when one ends."""

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path

from benchmarks.record import record
from benchmarks.results_queue.entries import Entry, Starts, json_of
from benchmarks.sharing import let_others_go_first, locked
from rich.console import Console

from rimlit.comparison.runs import Run, Work


class Queue(Work):
    """The runs of some entries, shared with other commands by lock files.

    Args:
        entries: The entries, in order of worth.
        console: Where what is recorded is said.
        niceness: How far others on the machine go first, 0 to 19.
    """

    def __init__(self, entries: list[Entry], console: Console, niceness: int = 19) -> None:
        super().__init__([])
        self.entries = entries
        self.has_changes = False
        self._niceness = niceness
        self._console = console
        self._locks: dict[str, ExitStack] = {}
        self._entry_of: dict[str, Entry] = {}

    @property
    def total(self) -> int:
        """How many runs there will be."""
        return sum(entry.num_runs for entry in self.entries)

    def update(self) -> None:
        """Add the runs that have become known, and look which have ended."""
        for entry in self.entries:
            for run in [*entry.first_runs(), *entry.further_runs()]:
                if run.name not in self._entry_of:
                    Starts(run).require_same()
                    self._entry_of[run.name] = entry
                    self.runs.append(run)
                if run.status == "waiting" and json_of(run).is_file():
                    run.status = "finished"
                elif run.status == "waiting" and entry.is_trial(run) and run.folder.has_diverged():
                    run.status, run.reason = "failed", "it diverged"

    def take(self) -> Run | None:
        """Return the first run that waits and belongs to no other command."""
        self.update()
        for run in self.runs:
            entry = self._entry_of[run.name]
            if run.status != "waiting" or entry.lacks_files or not self._lock(run):
                continue
            if run.folder.is_finished():  # another command was killed before it recorded the run
                run.status = "finished"
                self.note_end(run)
                return self.take()  # its score may make others known
            commit = clean_commit()
            if commit is None:
                self.has_changes = True
                self._free(run)
                return None
            Starts(run).add(commit)
            return run
        return None

    def note_start(self, run: Run) -> None:
        """Let others on the machine go first."""
        if isinstance(run.process, subprocess.Popen) and self._niceness:
            let_others_go_first(run.process.pid, self._niceness)

    def note_end(self, run: Run) -> None:
        """Record a run that is finished."""
        entry = self._entry_of[run.name]
        if run.status == "finished":
            try:
                self._record(run, entry)
            except SystemExit as refused:
                run.status, run.reason = "failed", str(refused)
        if entry.tuning is not None and entry.tuning.is_over():
            entry.results.mkdir(parents=True, exist_ok=True)
            (entry.results / "tuning.json").write_text(json.dumps(entry.tuning.report(), indent=2) + "\n")
        self._free(run)

    def _record(self, run: Run, entry: Entry) -> None:
        commits = Starts(run).read().get("commits", [])
        has_curve = entry.config.startswith("paper/copying")
        path = record(run.folder.path, is_of_paper_size=has_curve, path=json_of(run), commits=commits)
        if commits and {clean_commit(), *commits} != {commits[0]}:
            self._console.print(
                f"{run.name}: the checkout has changed since it was started; {path} names commit {commits[0]}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def is_locked(self, run: Run) -> bool:
        """Return whether a command is at work on a run."""
        if not lock_of(run).is_file():
            return False
        with locked(lock_of(run), wait=False) as is_ours:
            return not is_ours

    def _lock(self, run: Run) -> bool:
        stack = ExitStack()
        if stack.enter_context(locked(lock_of(run), wait=False)):
            self._locks[run.name] = stack
            return True
        stack.close()
        return False

    def _free(self, run: Run) -> None:
        self._locks.pop(run.name).close()


def lock_of(run: Run) -> Path:
    """Return the file that the command which trains a run has locked."""
    return run.folder.path.with_name(f"{run.folder.path.name}.lock")


def clean_commit() -> str | None:
    """Return the commit of the working directory; None where files other than results have been changed."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()

    places = (".", ":(exclude)benchmarks/results")
    if git("status", "--porcelain", "--untracked-files=no", "--", *places):
        return None
    return git("rev-parse", "HEAD")
