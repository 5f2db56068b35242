"""Train what the queue lacks: `rimlit fit`, one thread per core, at low priority; what was stopped is resumed.

Each finished run's JSON is written at once. Several commands beside each other share the work; SIGINT and SIGTERM
save what runs. Runs and logs are in runs/queue, the queue itself in benchmarks/queue.yaml.
"""

import argparse
import os
from pathlib import Path

from benchmarks.results_queue.entries import Entry, json_of, read_queue
from benchmarks.results_queue.working import Queue, clean_commit
from rich.console import Console

from rimlit.comparison.runners import LocalProcesses
from rimlit.comparison.running import run_all
from rimlit.comparison.runs import cores
from rimlit.errors import StoppedError

UNCLEAN = "The working tree has changes, and a result names its commit. Commit them; the same command resumes."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=cores(), help="processes at a time; by default one per core")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="entries of the queue")
    parser.add_argument(
        "--nice", type=int, choices=range(20), default=19, metavar="N", help="how far others go first, 0 to 19"
    )
    parser.add_argument("--list", action="store_true", help="train nothing; print the state of each run")
    parser.add_argument("--queue", type=Path, default=Path("benchmarks/queue.yaml"), help="another queue")
    given = parser.parse_args()
    entries = read_queue(given.queue)
    unknown = sorted(set(given.only or ()) - {entry.name for entry in entries})
    if unknown or given.jobs < 1:
        named = ", ".join(entry.name for entry in entries)
        raise SystemExit(f"--only names no entry: {unknown[0]!r}; there are {named}." if unknown else "--jobs < 1")
    chosen = [entry for entry in entries if given.only is None or entry.name in given.only]
    console = Console()
    queue = Queue(chosen, console, given.nice)
    queue.update()
    if given.list:
        print("\n".join(line for entry in chosen for line in lines_of(entry, queue)))
        return
    if clean_commit() is None:
        raise SystemExit(UNCLEAN)
    for entry in chosen:
        if entry.lacks_files:
            console.print(f"{entry.name} waits for its files: {entry.needs}", highlight=False)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        run_all(queue, LocalProcesses(given.jobs), console=console)
    except StoppedError as error:
        console.print(str(error), highlight=False)
        raise SystemExit(error.exit_code) from None
    if queue.has_changes:
        raise SystemExit(UNCLEAN)
    lost = [run for run in queue.runs if run.status == "failed" and not run.folder.has_diverged()]
    if lost:
        raise SystemExit("\n".join(f"{run.name} failed ({run.reason}; {run.log})" for run in lost))


def lines_of(entry: Entry, queue: Queue) -> list[str]:
    """Return a line for each run of an entry: its state, and its JSON where it is finished."""
    lines = []
    known = [*entry.first_runs(), *entry.further_runs()]
    for run in known:
        state = "running" if queue.is_locked(run) else run.status
        if state == "waiting" and entry.lacks_files:
            state = f"waits for {entry.needs}"
        elif state == "waiting" and run.folder.read_state().get("status") == "failed":
            state = "failed, waiting"
        elif state == "waiting" and run.step:
            state = f"stopped at step {run.step}"
        json_file = str(json_of(run)) if run.status == "finished" else ""
        lines.append(f"{run.name:<48}  {run.reason or state:<20}  {json_file}".rstrip())
    left = entry.num_runs - len(known)
    if left and entry.grid is not None:
        lines.append(f"{f'{entry.name}, {left} more at the best {entry.grid.name}':<48}  waiting")
    return lines


if __name__ == "__main__":
    main()
