"""Run what is waiting, until all has ended or a signal comes, with a progress bar over all."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rimlit.comparison.runners import Runner
from rimlit.comparison.runs import Run, Status, Work, last_words
from rimlit.errors import StoppedError
from rimlit.training.signals import SignalFlag

POLL_SECONDS = 0.5
MOST_BARS = 20
NAMED_EXIT_CODES = {129: "hung up", 130: "interrupted", 143: "terminated"}


def run_all(work: Work, runner: Runner, *, console: Console, parent: str | None = None) -> None:
    """Run what is waiting; a run that fails does not stop the others.

    Args:
        work: The runs.
        runner: What trains them.
        console: Where the progress is shown.
        parent: MLflow run that they are shown under.

    Raises:
        StoppedError: A signal of ``EXIT_CODES`` came; the runner has stopped its runs, or says where they are.
    """
    signals = SignalFlag()
    signals.listen()
    try:
        with _progress(work, console) as show:
            while True:
                if signals.received:
                    raise signals.error(signals.received)
                for run in work.runs:
                    if run.status == "running":
                        _look_at(run, work)
                start_waiting(work, runner, parent)
                show()
                if not any(run.status == "running" for run in work.runs):
                    break
                time.sleep(POLL_SECONDS)
    except BaseException as error:
        for run in work.runs:
            if run.status == "running" and run.process is None:  # it was being started
                run.status = "waiting"
            elif run.status == "running":
                _look_at(run, work)
        running = [run for run in work.runs if run.status == "running"]
        said = runner.stop(running, signals.received) if running else ""
        if isinstance(error, StoppedError) and said:
            raise StoppedError(said, error.exit_code) from None
        raise
    finally:
        signals.listen_no_more()


def start_waiting(work: Work, runner: Runner, parent: str | None) -> list[Run]:
    """Start as many runs as there are places for; return them."""
    started: list[Run] = []
    while runner.places is None or sum(run.status == "running" for run in work.runs) < runner.places:
        if (run := work.take()) is None:
            break
        run.status = "running"
        started.append(run)
    if started:
        runner.start(started, parent)
        for run in started:
            work.note_start(run)
    return started


def _look_at(run: Run, work: Work) -> None:
    assert run.process is not None
    code = run.process.poll()
    if code is None:
        if not run.is_pruned and work.is_hopeless(run):
            run.is_pruned = True
            run.process.terminate()
        return
    if run.is_pruned:
        run.status = "pruned"
    elif code == 0:
        run.status = "finished"
    else:
        run.status = "failed"
        run.reason = f"{NAMED_EXIT_CODES.get(code, f'exit code {code}')}: {last_words(run.log)}"
    run.process = None  # 200 runs must not hold 200 of them
    work.note_end(run)


@contextmanager
def _progress(work: Work, console: Console) -> Iterator[Callable[[], None]]:
    """Show a bar over all runs and one for each active run; without a terminal, a line for each that ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    over = ("finished", "failed", "pruned")
    reported = {run.name for run in work.runs if run.status in ("finished", "pruned")}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("runs", total=work.total)

        def show() -> None:
            counts = {status: sum(run.status == status for run in work.runs) for status in get_args(Status)}
            ended, total = sum(counts[status] for status in over), work.total
            also = "".join(f", {counts[status]} {status}" for status in ("failed", "pruned") if counts[status])
            waiting = total - ended - counts["running"]
            description = f"runs: {counts['finished']} finished{also}, {waiting} waiting"
            progress.update(bar, completed=ended, total=total, description=description)
            for run in work.runs:
                if run.status == "running" and console.is_terminal:
                    if run.name not in bars and len(bars) < MOST_BARS:
                        bars[run.name] = progress.add_task(run.name, total=run.steps)
                    if run.name in bars:
                        progress.update(bars[run.name], completed=run.step)
                elif run.status in over:
                    if run.name in bars:
                        progress.remove_task(bars.pop(run.name))
                    if run.name not in reported:
                        reported.add(run.name)
                        reason = f" ({run.reason})" if run.reason else ""
                        progress.console.print(
                            f"{run.name}: {run.status}{reason}, {ended} of {total} runs",
                            highlight=False,
                            markup=False,
                        )

        yield show
        show()
