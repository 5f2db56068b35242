"""What a run tells its tracker: kept in a file first, sent from there by a thread that training never waits for.

The file is the record of all that was logged, a line for each entry, in order. What was sent is known by a
position in it, so that nothing is lost when the tracker is down or the process killed: the rest is sent when the
tracker answers again, or when the run goes on.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, TypeAlias

log = logging.getLogger(__name__)

Entry: TypeAlias = dict[str, Any]
"""``kind``, and what is to be sent: for metrics, parameters and tags by name under ``values``."""

FILE_NAME = "tracking.jsonl"
WAITING_LIMIT = 10_000
BATCH_LIMITS = {"metrics": 1000}
"""Values sent at once, 100 of other kinds: the most that MLflow takes."""


class Refused(Exception):  # noqa: N818, said of an entry
    """The tracker answers, and will never take this entry."""


class Outbox:
    """A file of entries, and the thread that sends them in order.

    Args:
        folder: Where the file ``tracking.jsonl`` is kept, and ``tracking.json`` with what is noted about it.
        send: Sends entries of one kind; called in the outbox's own thread. To send some twice must do no harm:
            the process may be killed between sending and noting it.
        name: The tracker, for messages.
        interval: Seconds from one round of sending to the next, in which entries gather.
        retry: Seconds until the first new try after a failure; each further one takes twice as long, up to a
            minute.

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        send: Callable[[list[Entry]], None],
        *,
        name: str = "The tracker",
        interval: float = 1.0,
        retry: float = 1.0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE_NAME
        self._notes_path = self.path.with_suffix(".json")
        notes = read_notes(folder)
        if notes is None:
            log.warning("%s is damaged: everything is sent anew, to a run of its own.", self._notes_path)
        self.notes: dict[str, Any] = notes or {}
        self._send, self._name, self._interval, self._retry = send, name, interval, retry
        with self.path.open("a+b") as file:
            file.seek(0)
            self._end = file.read().rfind(b"\n") + 1  # a process that was killed may have left half a line
        self._sent: int = min(self.notes.get("sent", 0), self._end)
        self._waiting: deque[bytes] = deque(maxlen=WAITING_LIMIT)  # what the disk does not take
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        self._is_down = False
        self._starts_again = False
        self._thread: threading.Thread | None = None

    @property
    def unsent(self) -> int:
        """Bytes that are still to be sent."""
        return self._end - self._sent

    def note(self, **notes: Any) -> None:
        """Keep something in ``tracking.json``."""
        with self._changed:
            self.notes.update(notes)
            temporary = self._notes_path.with_name(f".{self._notes_path.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self.notes, indent=2) + "\n")
            os.replace(temporary, self._notes_path)

    def start_again(self) -> None:
        """Send everything once more, from the first entry: for ``send`` to call, in place of sending."""
        self.note(sent=0)
        self._sent, self._starts_again = 0, True

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, sent or not."""
        for entry, _ in self._read(0):
            yield entry

    def append(self, entry: Entry) -> None:
        """Keep an entry and let it be sent."""
        with self._changed:
            self._waiting.append(json.dumps(entry).encode() + b"\n")
            self._write()
            self.start()
            self._changed.notify_all()

    def _write(self) -> None:
        try:
            with self._open() as file:
                file.truncate(self._end)  # without the half line that a full disk has taken
                file.seek(self._end)
                lines = memoryview(b"".join(self._waiting))
                end = self._end + len(lines)
                while lines:
                    lines = lines[file.write(lines) :]
        except OSError as error:
            if len(self._waiting) == 1:
                log.warning("%s cannot be written (%s): what is tracked waits in memory.", self.path, error)
            return
        self._waiting.clear()
        self._end = end

    def _open(self) -> FileIO:
        return self.path.open("r+b", buffering=0)

    def start(self) -> None:
        """Start sending what was not sent, if that has not begun."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rimlit-outbox", daemon=True)
            self._thread.start()

    def flush(self, timeout: float) -> bool:
        """Wait until all is sent, ``timeout`` seconds at most; return whether it was.

        Of a tracker that is down, one more try is waited for.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._is_down = False
            self._hurry.set()
            while self.unsent and not self._is_down and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            self._hurry.clear()
            return not self.unsent

    def _run(self) -> None:
        delay = self._retry
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.unsent)
            try:
                while self.unsent:
                    self._send_next()
            except Exception as error:  # whatever a client, a server or a disk come up with
                if delay == self._retry:
                    log.warning(
                        "%s does not take what is tracked (%s). Nothing else stops: it is kept in %s and sent "
                        "later.",
                        self._name,
                        reason_of(error),
                        self.path,
                    )
                with self._changed:
                    self._is_down = True
                    self._changed.notify_all()
                self._pause(delay)
                delay = min(2 * delay, 60.0)
            else:
                if delay != self._retry:
                    log.info("%s answers again and has got everything.", self._name)
                delay = self._retry
                self._pause(self._interval)

    def _pause(self, seconds: float) -> None:
        self._hurry.wait(seconds)
        self._hurry.clear()

    def _send_next(self) -> None:
        entries: list[Entry] = []
        values, position, end_now = 0, self._sent, self._end
        for entry, end in self._read(position):
            values += len(entry.get("values", ""))
            limit = BATCH_LIMITS.get(entry["kind"], 100)
            if entries and (entry["kind"] != entries[0]["kind"] or values > limit):
                break
            entries.append(entry)
            position = end
        if entries:
            self._deliver(entries)
        else:
            position = end_now  # nothing but lines that are damaged
        if self._starts_again:
            self._starts_again = False
            return
        self.note(sent=position)
        with self._changed:
            self._sent = position
            self._changed.notify_all()

    def _deliver(self, entries: list[Entry]) -> None:
        try:
            self._send(entries)
        except Refused as refusal:
            if len(entries) > 1:
                for entry in entries:
                    self._deliver([entry])
            else:
                log.warning("%s refuses what is tracked (%s): left out.", self._name, reason_of(refusal))

    def _read(self, position: int) -> Iterator[tuple[Entry, int]]:
        """Yield entries from a position on, each with the position behind it, but for lines that are damaged."""
        with self.path.open("rb") as file:
            file.seek(position)
            while position < self._end:
                line = file.readline()
                position += len(line)
                try:
                    entry = json.loads(line)
                except ValueError:  # of a machine that lost its power
                    log.warning("%s: a line before byte %d is damaged and left out.", self.path, position)
                    continue
                yield entry, position


def read_notes(folder: Path) -> dict[str, Any] | None:
    """Return ``tracking.json`` of a run's folder, empty where there is none, None where it is damaged."""
    path = (folder / FILE_NAME).with_suffix(".json")
    try:
        notes = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:  # of a machine that lost its power
        return None
    return notes if isinstance(notes, dict) else None


def reason_of(error: BaseException) -> str:
    """Return an error's kind and the beginning of its text, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
