"""Where text comes from: local files, Hugging Face datasets, or the standard library's own sources."""

import sysconfig
from collections.abc import Mapping
from pathlib import Path

from rimlit.data.hub import load_hub_dataset
from rimlit.data.reading import kind_of, names_in, read_text, shown
from rimlit.errors import DataError

FILE_NAMES = {
    "train": ("train",),
    "val": ("valid", "val", "validation", "dev"),
    "test": ("test",),
}
SUFFIXES = (".txt", ".txt.gz")
STANDARD_LIBRARY_LIMIT = 2_000_000


def read_path(path: Path) -> Mapping[str, str]:
    """Read a text file, or a folder with one text or with train, valid and test.

    Returns:
        Texts by split, or one text under ``""`` that is still to be split.

    Raises:
        DataError: The path does not exist, holds no such files, or a file is not UTF-8 text.
    """
    kind = kind_of(path)
    if kind == "file":
        return {"": read_text(path)}
    if kind is None:
        raise DataError(f"path='{shown(path)}' does not exist; it must be a .txt or .txt.gz file or a folder.")
    files = {}
    for split, names in FILE_NAMES.items():
        candidates = [path / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        files[split] = [file for file in candidates if kind_of(file) == "file"]
        if len(files[split]) > 1:
            raise DataError(
                f"path='{shown(path)}' must hold one text for {split}; it has "
                f"{', '.join(file.name for file in files[split])}."
            )
    if all(files.values()):
        return {split: read_text(found[0]) for split, found in files.items()}
    single = [name for name in names_in(path) if name.endswith(SUFFIXES)]
    if len(single) == 1:
        return {"": read_text(path / single[0])}
    listed = ", ".join(single[:20]) + (", …" if len(single) > 20 else "")
    raise DataError(
        f"path='{shown(path)}' must hold train, valid and test, or one text, as .txt or .txt.gz; found: "
        f"{listed or 'none'}."
    )


def read_dataset(dataset: str, name: str | None) -> Mapping[str, str]:
    """Read the ``text`` column of a Hugging Face dataset, by id or from a local folder of text files.

    Raises:
        DataError: The package ``datasets`` is missing, or the dataset cannot be read or has no such column.
    """
    splits = load_hub_dataset(dataset, name)
    texts = {}
    for split, rows in splits.items():
        if "text" not in rows.column_names:
            raise DataError(f"dataset={dataset!r} has no column 'text'; it has {', '.join(rows.column_names)}.")
        ours = next((own for own, names in FILE_NAMES.items() if split in names), None)
        if ours is not None:
            texts[ours] = "".join(line if line.endswith("\n") else f"{line}\n" for line in rows["text"])
    if set(texts) == {"train"}:
        return {"": texts["train"]}
    if set(texts) != set(FILE_NAMES):
        raise DataError(f"dataset={dataset!r} must have train, validation and test; it has {', '.join(splits)}.")
    return texts


def read_standard_library(limit: int = STANDARD_LIBRARY_LIMIT) -> Mapping[str, str]:
    """Read the Python sources of the running interpreter's standard library, in the order of their paths.

    Its tests and installed packages are left out, and so is what lies beyond ``limit`` characters. The text
    differs between versions of Python: a demonstration that needs no download, never a published figure.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    text, size = [], 0
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        if skipped.isdisjoint(path.relative_to(root).parts[:-1]):
            source = path.read_text(encoding="utf-8", errors="replace")
            text.append(source)
            size += len(source)
            if size >= limit:
                break
    if not text:
        raise DataError(f"The standard library at {root} has no Python sources; pass path=… or dataset=….")
    return {"": "".join(text)[:limit]}
