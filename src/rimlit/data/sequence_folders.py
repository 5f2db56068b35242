"""Sequences from a folder with one file for each, and a table of their labels. docs/your_own_data.md."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from rimlit.data.identity import digest_file, digest_parts
from rimlit.data.reading import kind_of, names_in, shown
from rimlit.data.sequence_layout import Layout, SequenceData
from rimlit.errors import DataError

LABELS = "labels"
"""Name of the table of labels, before its ending."""

Reader = Callable[[Path, Layout], SequenceData]


def files_of(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of a folder that end in one of ``endings``, by their name without it, in order.

    Raises:
        DataError: Two have one name, or the folder cannot be read.
    """
    found: dict[str, Path] = {}
    for name in names_in(folder):
        ending = max((each for each in endings if name.endswith(each)), key=len, default=None)
        if ending is None or name.startswith(".") or kind_of(folder / name) != "file":
            continue
        stem = name.removesuffix(ending)
        if stem in found:
            raise DataError(
                f"{shown(folder)} has {found[stem].name} and {name}: two sequences with one name. Rename one."
            )
        found[stem] = folder / name
    return found


def digest_of_files(files: Iterable[Path]) -> str:
    """Return a digest of the content of files and of their names, which labels refer to."""
    return digest_parts({file.name: digest_file(file) for file in files})


def read_folder(folder: Path, layout: Layout, endings: tuple[str, ...], read: Reader) -> SequenceData:
    """Read a folder with one file for each sequence.

    Labels and values of whole sequences, and their splits, are in ``labels.csv`` (or another kind of table), whose
    ``sequence_column`` holds the names of the files, with or without their ending.

    Args:
        folder: The folder.
        layout: What the files are to hold.
        endings: Endings of the files that are read.
        read: Reads one file.

    Raises:
        DataError: A file cannot be read, the table of labels is missing or does not fit the files, or two files
            have another number of features.
    """
    files = files_of(folder, endings)
    table = files.pop(LABELS, None)
    if not files:
        raise DataError(f"{shown(folder)} has no sequence: {', '.join(endings)}.")
    needs_table = layout.target != "next_step" and not layout.target_per_step
    if table is None and not layout.is_predicted and (needs_table or layout.split_column is not None):
        raise DataError(
            f"{shown(folder)} has one file for each sequence and no {LABELS}.csv, a table with the columns "
            f"{', '.join(_columns_of(layout))} that names each file once."
        )
    alone = layout._replace(sequence_column=None, split_column=None)
    if needs_table:
        alone = alone._replace(target="next_step", target_per_step=False)
    parts: list[SequenceData] = []
    for file in files.values():
        part = read(file, alone)
        if len(part.lengths) != 1:
            raise DataError(
                f"{shown(file)} holds {len(part.lengths)} sequences; with one file for each it holds one, "
                "(steps, features)."
            )
        if alone.known_columns is None:
            alone = alone._replace(known_columns=part.columns)
        if parts and part.inputs.shape[1:] != parts[0].inputs.shape[1:]:
            raise DataError(
                f"{shown(file)} has {part.inputs.shape[1]} feature(s), {next(iter(files.values())).name} "
                f"{parts[0].inputs.shape[1]}; all must have as many."
            )
        parts.append(part)
    names, used = list(files), [*files.values(), *([] if table is None else [table])]
    targets = splits = None
    if layout.target_per_step and all(part.targets is not None for part in parts):
        targets = np.concatenate([part.targets for part in parts if part.targets is not None])
    if table is not None and (needs_table or layout.split_column is not None):
        targets_of, splits = _read_labels(table, layout, names, endings, read)
        targets = targets_of if needs_table else targets
    return SequenceData(
        inputs=np.concatenate([part.inputs for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        targets=targets,
        splits=splits,
        names=np.array(names, dtype=object),
        columns=parts[0].columns,
        digest=digest_of_files(used),
        times=None if parts[0].times is None else np.concatenate([part.times for part in parts]),
    )


def _columns_of(layout: Layout) -> list[str]:
    targets = layout.target_columns if layout.target != "next_step" and not layout.target_per_step else ()
    return [layout.sequence_column or "sequence", *targets, *filter(None, [layout.split_column])]


def _read_labels(
    table: Path, layout: Layout, names: list[str], endings: tuple[str, ...], read: Reader
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return targets and splits (N,) in the order of ``names``."""
    only = layout._replace(
        input_columns=(), tokens=False, time_column=None, target_per_step=False, known_columns=None
    )
    if layout.target_per_step:  # the steps have their targets in the files
        only = only._replace(target="next_step")
    labels = read(table, only)
    given = [_stem(str(name), endings) for name in labels.names]
    for name, length in zip(given, labels.lengths.tolist(), strict=True):
        if length > 1 or given.count(name) > 1:
            raise DataError(f"{shown(table)} names the sequence {shown(name)} more than once.")
        if name not in names:
            raise DataError(f"{shown(table)} names the sequence {shown(name)}, of which there is no file.")
    for name in names:
        if name not in given:
            raise DataError(f"{shown(table)} does not name {shown(name)}, of which there is a file.")
    order = [given.index(name) for name in names]
    return (
        None if labels.targets is None else labels.targets[order],
        None if labels.splits is None else labels.splits[order],
    )


def _stem(name: str, endings: tuple[str, ...]) -> str:
    ending = max((each for each in endings if name.endswith(each)), key=len, default="")
    return name.removesuffix(ending)
