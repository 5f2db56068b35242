"""Identity of data by content: a SHA-256, independent of names and places."""

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rimlit.data.reading import blocks_of, open_file, require_fits
from rimlit.errors import StorageError
from rimlit.files import cache_folder, read_json, write_json

LEAST_CACHED = 2**23
"""Bytes from which on a file's digest is kept: a smaller one is read as fast as the cache."""
SETTLED_SECONDS = 2.0
"""A file that was changed more recently may change again without a change of its times."""


def digest_parts(parts: Mapping[str, str]) -> str:
    """Return one digest of the digests of several parts, keyed by role, such as ``train`` and ``test``.

    Example:
        >>> digest_parts({"train": "a", "test": "b"}) == digest_parts({"test": "b", "train": "a"})
        True
        >>> digest_parts({"train": "a", "test": "b"}) == digest_parts({"train": "b", "test": "a"})
        False
    """
    return hashlib.sha256("".join(f"{role}:{parts[role]}\n" for role in sorted(parts)).encode()).hexdigest()


def digest_arrays(*arrays: np.ndarray) -> str:
    """Return a digest of arrays of numbers: their shapes and values."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def digest_text(text: str) -> str:
    """Return a digest of a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def digest_file(path: Path) -> str:
    """Return the digest of a file's content; see :func:`digest_open`.

    Raises:
        DataError: It cannot be read.
    """
    with open_file(path) as file:
        return digest_open(path, file)


def digest_open(path: Path, file: BinaryIO) -> str:
    """Return the digest of an open file's content, decompressed where its name ends in ``.gz``.

    That of a large file is kept in the user's cache for as long as the file's size, inode and times stay the same.
    The file is at its start afterwards.
    """
    found = os.fstat(file.fileno())
    times = found.st_mtime_ns, found.st_ctime_ns
    stamp = [found.st_size, found.st_dev, found.st_ino, *times]
    entry = _entry(path) if found.st_size >= LEAST_CACHED else None
    if entry is not None:
        kept = read_json(entry)
        known = kept.get("digest")
        if kept.get("stamp") == stamp and isinstance(known, str) and len(known) == 64:
            return known
    digest = hashlib.sha256()
    file.seek(0)
    size = 0
    for block in blocks_of(path, file):
        size += len(block)
        require_fits(path, size)
        digest.update(block)
    file.seek(0)
    if entry is not None and time.time_ns() - max(times) > SETTLED_SECONDS * 1e9:
        with contextlib.suppress(StorageError):
            write_json(entry, {"stamp": stamp, "digest": digest.hexdigest()})
    return digest.hexdigest()


def _entry(path: Path) -> Path | None:
    """Return the file of the cache for a path; None where there is no cache."""
    try:
        key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
        return cache_folder() / "digests" / f"{key}.json"
    except (OSError, RuntimeError):  # no home folder
        return None
