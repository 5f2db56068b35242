"""Entries for a tracker: written to a file first, then sent by a thread, which never delays training.

The file is the record of all that was logged, a line for each entry, in order. What was sent is known by a
position in it, so that nothing is lost when the tracker is down or the process killed: the rest is sent when the
tracker answers again, or when the run is resumed.
"""

import errno
import json
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rimlit.errors import RimlitError, StorageError
from rimlit.files import open_to_append, read_json, write_json
from rimlit.tracking.entries import WORDS, Entry, parse_entry, size_of

log = logging.getLogger(__name__)

FILE_NAME = "tracking.jsonl"
NOTES_NAME = "tracking.json"
WAITING_LIMIT = 10_000
BATCH_LIMITS = {"metrics": 1000}
"""Values sent at once, 100 of other kinds: MLflow's limits."""


class Refused(Exception):  # noqa: N818, said of an entry
    """The tracker answered that it does not accept this entry."""


class Outbox:
    """A file of entries, and the thread that sends them in order.

    Args:
        folder: Where the file ``tracking.jsonl`` is kept, and ``tracking.json`` with what is noted about it.
        send: Sends entries of one kind; called in the outbox's own thread. To send some twice must do no harm:
            the process may be killed between sending and noting it. :class:`Refused` leaves an entry out; after
            any other error everything waits and is tried again.
        name: The tracker, for messages.
        interval: Seconds from one round of sending to the next, in which entries gather.
        retry: Seconds until the first new try after a failure; each further one takes twice as long, up to a
            minute.

    Attributes:
        sent: How many items this object has sent, by kind.
        left_out: What was left out, by kind and name, with the reason.
        failure: Why the last try failed; None where it did not.
        report: Called with a message for the user and its arguments; by default a warning is logged.

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
        if self.path.exists() and not self.path.is_file():
            raise OSError(errno.EINVAL, "it is not a regular file")
        self._notes_path = folder / NOTES_NAME
        self.notes = read_notes(folder)
        self.sent: Counter[str] = Counter()
        self.left_out: dict[tuple[str, str], str] = {}
        self.failure: str | None = None
        self.report: Callable[..., None] = log.warning
        self._send, self._name, self._interval, self._retry = send, name, interval, retry
        with open_to_append(self.path) as file:
            self._end = file.read().rfind(b"\n") + 1  # a process that was killed may have left an incomplete line
        self._sent: int = max(0, min(self.notes.get("sent", 0), self._end))
        self._waiting: deque[bytes] = deque(maxlen=WAITING_LIMIT)  # lines that could not be written to the disk
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        self._tries = self._failed_try = 0  # the last try that began, and the last that failed
        self._is_closed = False
        self._starts_again = False
        self._cannot_note = False
        self._damaged: set[int] = set()  # positions of lines that were reported
        self._thread: threading.Thread | None = None

    @property
    def unsent(self) -> int:
        """Bytes that are still to be sent."""
        return self._end - self._sent

    def note(self, **notes: Any) -> None:
        """Write notes to ``tracking.json``; while that cannot be written they are kept in memory."""
        with self._changed:
            self.notes.update(notes)
            try:
                write_json(self._notes_path, self.notes)
            except StorageError as error:
                if not self._cannot_note:
                    self.report("%s", error)
                self._cannot_note = True

    def start_again(self) -> None:
        """Send everything again, from the first entry; called by ``send`` in place of sending."""
        self.note(sent=0)
        self._sent, self._starts_again = 0, True

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, sent or not."""
        for entry, _ in self._read(0):
            yield entry

    def append(self, entry: Entry) -> None:
        """Write an entry and wake the sending thread."""
        with self._changed:
            self._waiting.append(json.dumps(entry).encode() + b"\n")
            self._write()
            self.start()
            self._changed.notify_all()

    def _write(self) -> None:
        try:
            with self._open() as file:
                if file.seek(0, os.SEEK_END) < self._end:
                    raise OSError(errno.ENOENT, "it was removed")
                file.truncate(self._end)  # without the incomplete line that was written to a full disk
                file.seek(self._end)
                lines = memoryview(b"".join(self._waiting))
                end = self._end + len(lines)
                while lines:
                    lines = lines[file.write(lines) :]
        except OSError as error:
            if len(self._waiting) == 1:
                self.report("%s cannot be written (%s): what is logged waits in memory.", self.path, error)
            return
        self._waiting.clear()
        self._end = end

    def _open(self) -> BinaryIO:
        return open_to_append(self.path)

    def start(self) -> None:
        """Start the sending thread, if it has not been started."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rimlit-outbox", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop sending; entries that were not sent stay in the file."""
        with self._changed:
            self._is_closed = True
            self._hurry.set()
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until all is sent, ``timeout`` seconds at most; return whether it was.

        Of a tracker that is down, one more try is waited for.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            before = self._tries  # one that is under way may not see what was just repaired
            self._hurry.set()
            while self.unsent and self._failed_try <= before and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            if not self._is_closed:
                self._hurry.clear()
            return not self.unsent

    def _run(self) -> None:
        delay = self._retry
        while not self._is_closed:
            with self._changed:
                self._changed.wait_for(lambda: self.unsent or self._is_closed)
                self._tries += 1
            try:
                while self.unsent and not self._is_closed:
                    self._send_next()
            except Exception as error:  # of a client, a server or a disk: any kind
                with self._changed:
                    is_first, self.failure = self.failure is None, reason_of(error)
                    if is_first and not self._is_closed:
                        self.report(
                            "%s does not take what is logged (%s). The run is not affected: everything is kept in "
                            "%s and sent later, or by 'rimlit sync %s'.",
                            self._name,
                            self.failure,
                            self.path,
                            self.path.parent,
                        )
                    self._failed_try = self._tries
                    self._changed.notify_all()
                self._pause(delay)
                delay = min(2 * delay, 60.0)
            else:
                if self.failure is not None:
                    log.info("%s answers again and has everything.", self._name)
                delay, self.failure = self._retry, None
                self._pause(self._interval)

    def _pause(self, seconds: float) -> None:
        self._hurry.wait(seconds)
        if not self._is_closed:
            self._hurry.clear()

    def _send_next(self) -> None:
        entries: list[Entry] = []
        values, position, end_now = 0, self._sent, self._end
        for entry, end in self._read(position):
            values += size_of(entry)
            limit = BATCH_LIMITS.get(entry["kind"], 100)
            if entries and (entry["kind"] != entries[0]["kind"] or values > limit):
                break
            entries.append(entry)
            position = end
        if entries:
            self._deliver(entries)
        else:
            position = end_now  # damaged lines only
        if self._starts_again:
            self._starts_again = False
            return
        self.note(sent=position)
        with self._changed:
            self._sent = position
            self._changed.notify_all()

    def _deliver(self, entries: list[Entry]) -> None:
        """Send entries; where the tracker refuses some, skip as few as possible."""
        first = entries[0]
        try:
            self._send(entries)
        except Refused as refusal:
            if len(entries) > 1:
                for entry in entries:
                    self._deliver([entry])
            elif size_of(first) > 1:
                for name, value in first["values"].items():
                    self._deliver([{**first, "values": {name: value}}])
            else:
                self._leave_out(first, reason_of(refusal))
        else:
            if not self._starts_again:
                self.sent[first["kind"]] += sum(size_of(entry) for entry in entries)

    def _leave_out(self, entry: Entry, reason: str) -> None:
        what = entry["kind"], next(iter(entry.get("values", [entry.get("path", "")])), "")
        if what not in self.left_out:  # reported once for a metric, not for each step
            self.report("%s can never take the %s %r (%s): left out.", self._name, WORDS[what[0]], what[1], reason)
        self.left_out[what] = reason

    def _read(self, position: int) -> Iterator[tuple[Entry, int]]:
        """Yield entries from a position on, each with the position after it; skip damaged lines."""
        with self.path.open("rb") as file:
            file.seek(position)
            while position < self._end and (line := file.readline()):
                position += len(line)
                try:
                    entry = parse_entry(line)
                except ValueError:  # of a machine that lost its power, or of another program
                    if position not in self._damaged:
                        self._damaged.add(position)
                        self.report("%s: a line before byte %d is damaged and left out.", self.path, position)
                    continue
                yield entry, position


NOTES = {"sent": int, "key": str, "experiment": str, "run": str, "mlflow_run_id": str, "process": str}


def read_notes(folder: Path) -> dict[str, Any]:
    """Return the content of ``tracking.json`` in a run's folder, without entries of a wrong type."""
    notes = read_json(folder / NOTES_NAME)
    return {name: notes[name] for name, kind in NOTES.items() if isinstance(notes.get(name), kind)}


def reason_of(error: BaseException) -> str:
    """Return an error's kind and text on one line: in full, but for SQL and what exceeds 1,000 characters."""
    text = " ".join(str(error).split()).partition(" [SQL:")[0]
    text = text if len(text) <= 1000 else f"{text[:1000]}…"
    if isinstance(error, RimlitError | Refused) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
