"""``rimlit sync``: send to MLflow what it did not take while runs were trained."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rimlit.console import say
from rimlit.errors import ConfigError, TrackingError
from rimlit.tracking.entries import WORDS
from rimlit.tracking.mlflow_tracker import Delivery, MLflowTracker
from rimlit.tracking.outbox import FILE_NAME, read_notes, reason_of
from rimlit.tracking.process_names import is_gone, is_of_this_machine

PATIENCE = 600.0
"""Seconds for each run."""


def sync(folders: list[str]) -> None:
    """Send what is left in the runs in or below ``folders``, by default ``runs``, to the user's MLflow.

    A folder may be another person's: it names neither the server nor files outside of itself.

    Raises:
        ConfigError: A folder is not there.
        TrackingError: MLflow did not take all of it.
    """
    waiting, left_out = [], []
    for folder in map(Path, folders or ["runs"]):
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; rimlit sync takes folders of runs, by default runs.")
        for path in sorted(folder.rglob(FILE_NAME)):
            run = path.parent
            if path.is_symlink() or not path.is_file():
                say(f"{run}: not sent: {FILE_NAME} is a link or no regular file")
                waiting.append(str(run))
                continue
            notes = read_notes(run)
            if not {"experiment", "key"} <= set(notes):
                say(f"{run}: not sent: tracking.json is damaged or missing; the next fit sends everything")
                waiting.append(str(run))
                continue
            if path.stat().st_size <= notes.get("sent", 0):
                continue
            process = notes.get("process")
            # of another machine nothing is known: a user who names the run itself knows that it has ended
            if process and not is_gone(process) and (is_of_this_machine(process) or folder != run):
                say(f"{run}: its process on {process.split('/')[0]} may still run and sends it itself")
                continue
            tracker = MLflowTracker(notes["experiment"], notes.get("run"), folder=run)
            try:
                delivery = tracker.send_rest(PATIENCE)
            except OSError as error:
                delivery = Delivery(Counter(), {}, reason_of(error))
            finally:
                tracker.close()
            for line in _lines(delivery, tracker.tracking_uri):
                say(f"{run}: {line}")
            if delivery.failure is not None:
                waiting.append(str(run))
            elif delivery.left_out:
                left_out.append(str(run))
    if waiting:
        raise TrackingError(f"MLflow did not take all of {', '.join(waiting)}; the rest is kept there.")
    if left_out:
        raise TrackingError(f"MLflow can never take some of {', '.join(left_out)}: it was left out.")


def _lines(delivery: Delivery, uri: str) -> Iterator[str]:
    """Yield what was sent, what was left out and why, and why the rest waits."""
    counts = [
        f"{count:,} {WORDS[kind]}{'' if count == 1 else 's'}"
        for kind, count in delivery.sent.items()
        if kind in ("metrics", "params", "tags", "file")
    ]
    if counts or delivery.failure is None:
        yield f"sent to {uri}: {', '.join(counts) or 'nothing but the status'}"
    for (kind, name), reason in delivery.left_out.items():
        yield f"left out, MLflow can never take the {WORDS[kind]} {name!r}: {reason}"
    if delivery.failure is not None:
        yield f"{'the rest was ' if counts else ''}not sent: {delivery.failure}"
