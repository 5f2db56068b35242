"""Train what the screen lacks, one run per process at low priority, and print its table.

A run that is cut off begins again; finished ones are in benchmarks/results/screen, a file per variant. Several
commands may run beside each other: each run belongs to one of them.
"""

import argparse
import multiprocessing
import queue
import signal
import sys
from functools import partial

from benchmarks.screen.pools import pools, wanted_by
from benchmarks.screen.runs import tasks, variants, wanted
from benchmarks.screen.table import as_text
from benchmarks.screen.training import work
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(variants()), default=list(variants()), metavar="VARIANT")
    parser.add_argument("--pools", nargs="+", choices=list(pools()), metavar="POOL", help="instead: tune these")
    parser.add_argument("--tasks", nargs="+", choices=list(tasks()), default=list(tasks()))
    parser.add_argument("--seeds", type=int, choices=(1, 2, 3), default=3, help="of each model at its best rate")
    parser.add_argument(
        "--with-usage", action="store_true", help="repeat runs that did not note it at the best rate"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--nice", type=int, default=19, help="how far others go first, 0 to 19")
    parser.add_argument("--show", action="store_true", help="train nothing; print the table")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the workers end with this process
    if not given.show:
        run_all(given)
    print(
        as_text(given.only, given.tasks)
        if not given.pools
        else "The table is in docs/research/screen.md: make docs."
    )


def run_all(given: argparse.Namespace) -> None:
    """Run the workers, with a bar over the runs that are missing."""
    context = multiprocessing.get_context("spawn")
    done: multiprocessing.Queue[str] = context.Queue()
    if given.pools:
        missing = partial(wanted_by, given.pools, given.tasks)
    else:
        missing = partial(wanted, given.only, given.tasks, given.seeds, with_usage=given.with_usage)
    arguments = (missing, given.nice, done)
    workers = [context.Process(target=work, args=arguments, daemon=True) for _ in range(given.jobs)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console()
    for worker in workers:
        worker.start()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("runs", total=len(missing()))
        while any(worker.is_alive() for worker in workers) or not done.empty():
            try:
                progress.console.print(done.get(timeout=1), highlight=False)
            except queue.Empty:
                continue
            progress.advance(bar)
            progress.update(bar, total=progress.tasks[bar].completed + len(missing()))
    if any(worker.exitcode for worker in workers):
        raise SystemExit("A run failed; see above.")


if __name__ == "__main__":
    main()
