"""``metrics.csv``: all metrics of a run, beside its checkpoints."""

import contextlib
import csv
import io
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

from rimlit.errors import StorageError
from rimlit.files import open_to_append, storage_error, write_file
from rimlit.tracking.logged import Logged, numbers

log = logging.getLogger(__name__)


class MetricsTable(NamedTuple):
    """The content of a ``metrics.csv``."""

    columns: list[str]
    rows: list[dict[str, str]]  # the text of each cell, by column; "" where nothing was logged
    is_cut: bool = False  # the last row is incomplete: its process was killed
    is_damaged: bool = False  # rows or a header cannot be read: they are skipped


def read_metrics(path: Path, *, last_bytes: int | None = None) -> MetricsTable:
    """Read a ``metrics.csv``, without damaged rows.

    Args:
        path: The file; one that is missing counts as empty.
        last_bytes: Read only the rows in this many bytes at the end; None reads all.

    Returns:
        Columns and rows. In each row ``step`` is a whole number, and every other cell a number or empty.

    Raises:
        OSError: The file cannot be read.
    """
    if not path.is_file():
        return MetricsTable([], [])
    with path.open("rb") as file:
        header = file.readline()
        while header.count(b'"') % 2 and (line := file.readline()):  # a name may contain a line break
            header += line
        start = path.stat().st_size - (last_bytes or 0)
        if last_bytes is not None and start > file.tell():
            file.seek(start)
            file.readline()  # the rest of a row
        body = file.read()
    if not header.endswith(b"\n"):
        return MetricsTable([], [], is_damaged=bool(header))
    end = body.rfind(b"\n") + 1
    try:
        (columns,) = csv.reader([_decode(header)], strict=True)
        if "step" not in columns or len(set(columns)) < len(columns):
            raise ValueError("these are not columns")
    except (csv.Error, ValueError):
        return MetricsTable([], [], is_damaged=True)
    lines = body[:end].splitlines()
    rows = [row for line in lines if (row := _row(columns, _decode(line))) is not None]
    return MetricsTable(columns, rows, is_cut=end < len(body), is_damaged=len(rows) < len(lines))


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _row(columns: list[str], line: str) -> dict[str, str] | None:
    """Return the cells of a row by column, None where it is damaged."""
    cells = line.split(",")  # numbers only: nothing is quoted
    if len(cells) != len(columns):
        return None
    row = dict(zip(columns, cells, strict=True))
    try:
        int(row["step"])
        for cell in cells:
            float(cell or 0)
    except ValueError:
        return None
    return row


class LocalMetrics(Logger):
    """All metrics in ``metrics.csv`` of a folder, a row for each call.

    A run that is resumed adds what the file does not hold yet. A damaged file is archived under another name, and
    the rows that can be read are kept.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] | None = None
        self._logged = Logged()

    @property
    def name(self) -> str:
        """Nothing: the folder is the run's."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the folder is the run's."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: they are in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row.

        Raises:
            StorageError: The file cannot be written.
        """
        try:
            if self._columns is None:
                self._columns = self._open()
            step = step or 0
            row: dict[str, Any] = dict(self._logged.new(numbers(metrics), step))
            if row:
                self._add({**row, "step": step})
        except StorageError:
            raise
        except OSError as error:
            raise storage_error(self.path, 0, error) from error

    def _open(self) -> list[str]:
        """Load what an earlier part of the run has written, without damaged rows; return the columns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        open_to_append(self.path).close()  # replaces a link by a file
        table = read_metrics(self.path)
        if table.is_damaged:
            archive = _unused(self.path.with_name("metrics.damaged.csv"))
            os.replace(self.path, archive)
            log.warning(
                "%s is damaged: it is now %s, and its %d rows that can be read are kept.",
                self.path,
                archive.name,
                len(table.rows),
            )
        if table.is_damaged or table.is_cut:
            self._write(table.columns, table.rows)
        for row in table.rows:
            values = {name: float(text) for name, text in row.items() if text and name != "step"}
            self._logged.note(values, int(row["step"]))
        return table.columns

    def _add(self, row: Mapping[str, Any]) -> None:
        known = self._columns or []
        if set(row) - set(known):
            self._columns = sorted({*known, *row})
            self._write(self._columns, read_metrics(self.path).rows)
        with open_to_append(self.path) as file:
            end = file.seek(0, os.SEEK_END)
            # the file may have been removed meanwhile
            data = memoryview(_encode(self._columns or [], [row], with_header=end == 0))
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)  # without the incomplete row that was written to a full disk
                raise

    def _write(self, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
        write_file(self.path, _encode(columns, rows, with_header=True) if columns else b"")


def _encode(columns: list[str], rows: Iterable[Mapping[str, Any]], *, with_header: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if with_header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _unused(path: Path) -> Path:
    """Return ``path``, with a number where it exists."""
    number, unused = 1, path
    while os.path.lexists(unused):
        number += 1
        unused = path.with_name(f"{path.stem}.{number}{path.suffix}")
    return unused
