"""Which files hold a user's sequences: one, or a folder with one for each split, or for each sequence."""

from pathlib import Path

from rimlit.data.identity import digest_file
from rimlit.data.reading import kind_of, shown
from rimlit.data.sequence_arrays import ARRAYS, read_arrays
from rimlit.data.sequence_folders import digest_of_files, files_of, read_folder
from rimlit.data.sequence_layout import FILE_NAMES, Layout, SequenceData
from rimlit.data.sequence_tables import TABLES, read_table
from rimlit.errors import DataError

SUFFIXES = (*ARRAYS, *TABLES)


def find_files(path: Path) -> dict[str, Path]:
    """Return a file under ``""``, or the files of a folder for train, val and test.

    A folder without any of these has one file for each sequence, and is under ``""`` itself.

    Raises:
        DataError: There are none, or the folder cannot be read.
    """
    kind = kind_of(path)
    if kind == "file":
        return {"": path}
    if kind is None:
        raise DataError(
            f"path='{shown(path)}' does not exist; it must be a {_listed()} file or a folder of such files."
        )
    files = {}
    splits = {name for names in FILE_NAMES.values() for name in names}
    if (sequences := files_of(path, SUFFIXES).keys()) and not sequences & splits:
        return {"": path}
    for split, names in FILE_NAMES.items():
        candidates = [path / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        found = [file for file in candidates if kind_of(file) == "file"]
        if len(found) != 1:
            there = ", ".join(file.name for file in found) or "none"
            raise DataError(
                f"path='{shown(path)}' must hold one file for each of train, val and test ({_listed()}), or one "
                f"for each sequence; for {split} it has {there}."
            )
        files[split] = found[0]
    return files


def _listed() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def read_sequences(path: Path, layout: Layout) -> dict[str, SequenceData]:
    """Read a file, or a folder with a file for each of train, val and test.

    The inputs of validation and test are the columns that training has, in any order in these files.

    Returns:
        Sequences by split, or one set under ``""`` that is still to be split.

    Raises:
        DataError: A file is missing, cannot be read, or does not hold what ``layout`` says.
    """
    read: dict[str, SequenceData] = {}
    for split, file in find_files(path).items():
        read[split] = read_file(file, layout)
        if layout.known_columns is None:
            layout = layout._replace(known_columns=read[split].columns)
    return read


def read_file(path: Path, layout: Layout) -> SequenceData:
    """Read the sequences of one file, or of a folder with one for each; see :func:`read_sequences`."""
    if kind_of(path) == "folder":
        return read_folder(path, layout, SUFFIXES, read_file)
    try:
        if path.name.endswith(TABLES):
            return read_table(path, layout)
        if path.name.endswith(ARRAYS):
            return read_arrays(path, layout)
    except MemoryError as error:
        raise DataError(f"{shown(path)} does not fit into memory.") from error
    raise DataError(f"{shown(path)} must be a {_listed()} file.")


def digest_files(path: Path) -> str:
    """Return the digest of a file, or of a folder with one file for each sequence."""
    return digest_of_files(files_of(path, SUFFIXES).values()) if kind_of(path) == "folder" else digest_file(path)
