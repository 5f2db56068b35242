"""``rimlit sync``: send to MLflow what it did not take while runs were trained."""

from pathlib import Path

from rimlit.errors import ConfigError, TrackingError
from rimlit.training.outbox import FILE_NAME, read_notes
from rimlit.training.tracking import MLflowTracker, is_gone, is_of_this_machine

PATIENCE = 600.0
"""Seconds for each run."""


def sync(folders: list[str]) -> None:
    """Send what is left in the runs in or below ``folders``, by default ``runs``.

    Raises:
        ConfigError: A folder is not there.
        TrackingError: MLflow did not take all of it.
    """
    left = []
    for folder in map(Path, folders or ["runs"]):
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; rimlit sync takes folders of runs, by default runs.")
        for path in sorted(folder.rglob(FILE_NAME)):
            run = path.parent
            notes = read_notes(run)
            if not notes:
                print(f"{run}: tracking.json is damaged or missing; the next fit of this run sends all anew")
                left.append(str(run))
                continue
            if path.stat().st_size <= notes.get("sent", 0):
                continue
            process = notes.get("process")
            # of another machine nothing is known: who names the run itself knows
            if process and not is_gone(process) and (is_of_this_machine(process) or folder != run):
                print(f"{run}: its process on {process.split('/')[0]} may still run and sends it itself")
                continue
            tracker = MLflowTracker(notes["experiment"], notes["run"], folder=run)
            if tracker.send_rest(PATIENCE):
                print(f"{run}: sent to {tracker.tracking_uri}")
            else:
                left.append(str(run))
    if left:
        raise TrackingError(f"MLflow did not take all of {', '.join(left)}; it is kept there.")
