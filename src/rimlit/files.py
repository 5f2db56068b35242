"""Files of a run: written whole, in UTF-8, and never through a link.

All code that writes into a run's folder uses this module. A file is replaced by one that is on the disk whole; a
link in its place is replaced too, and its target is left alone.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rimlit.errors import StorageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

MOST_JSON = 64 * 2**20
"""Bytes of a small JSON file; a larger one counts as damaged."""

_reported: set[Path] = set()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside ``path`` that takes its place once it is on the disk whole, and is removed otherwise.

    Raises:
        OSError: The file cannot be written.
    """
    # in the same folder: os.replace is atomic within one file system only
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(_open_own(temporary, os.O_RDWR | os.O_EXCL), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a whole file, text as UTF-8 with the line ends it has; its folder is created.

    Raises:
        StorageError: The file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        raise storage_error(path, len(data), error) from error


def refuse_link(folder: Path) -> None:
    """Raise a StorageError where a folder that is to be written into is a link."""
    if folder.is_symlink():
        raise StorageError(f"{folder} is a link: nothing is written through it.")


def write_json(path: Path, content: Any) -> None:
    """Write a small JSON file; see :func:`write_file`."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a small JSON file, empty where there is none.

    A file that is damaged, unreadable, a link, or no object counts as absent; that is logged once for each path.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | _NO_LINK | _NO_WAIT), "rb") as file:
            data = file.read(MOST_JSON + 1)
        content = json.loads(data) if len(data) <= MOST_JSON else None
        if isinstance(content, dict):
            return content
        reason = "it holds no JSON object"
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not valid JSON"
    if path not in _reported:
        _reported.add(path)
        log.warning("%s is damaged and counts as absent: %s.", path, reason)
    return {}


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, read in blocks.

    Raises:
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_to_append(path: Path) -> BinaryIO:
    """Open a file for reading and for writing at any place, created where it is missing.

    A link in its place is removed first. The caller positions the file and writes whole lines.

    Raises:
        OSError: The file cannot be opened.
    """
    if path.is_symlink():
        log.warning("%s was a link; it is now a file of its own.", path)
        path.unlink()
    return os.fdopen(_open_own(path, os.O_RDWR), "r+b", buffering=0)


_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe that no process writes to would block the read


def _open_own(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | _NO_LINK | getattr(os, "O_BINARY", 0), 0o666)


def encode_png(figure: "Figure") -> bytes:
    """Return a figure of matplotlib as a PNG file."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def cache_folder() -> Path:
    """Return the user's folder for what can be made again: ``RIMLIT_CACHE``, or ``rimlit`` in ``XDG_CACHE_HOME``.

    Raises:
        RuntimeError: The user has no home folder.
    """
    root = os.environ.get("RIMLIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rimlit"
    return Path(root).expanduser()


def try_folder(folder: Path) -> None:
    """Create ``folder``; raise a StorageError if a file could not be written to it now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _try(folder, 0)
    except OSError as error:
        raise storage_error(folder, None, error) from error


def require_folder(folder: Path, needed: int) -> None:
    """Raise a StorageError if ``folder`` could not be created or hold ``needed`` bytes more. Creates nothing."""
    nearest = folder
    try:
        nearest = _nearest(folder)
        _try(nearest, needed)
    except OSError as error:
        raise storage_error(folder, needed, error, disk=nearest) from error


NETWORK_DISKS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "orangefs"),
    *("pvfs2", "wekafs", "panfs", "9p", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.s3fs"),
}
"""File systems that other machines share, whose locks may not hold."""


def network_disk(path: Path) -> str | None:
    """Return the kind of the network file system that a path is on, such as ``nfs4``; None on a local disk."""
    import psutil

    real = path.resolve()
    found, depth = "", -1
    for disk in psutil.disk_partitions(all=True):
        place = Path(disk.mountpoint)
        if len(place.parts) > depth and (place == real or place in real.parents):
            found, depth = disk.fstype, len(place.parts)
    return found if found in NETWORK_DISKS else None


def _nearest(folder: Path) -> Path:
    """Return ``folder``, or the nearest one above it that exists."""
    try:
        os.stat(folder)  # raises where a name is too long, a link leads to itself, or access is denied
        return folder
    except FileNotFoundError:
        if folder.is_symlink():
            raise OSError(errno.ENOENT, f"{folder} is a link to nothing") from None
        nearest = _nearest(folder.parent)
        # the system looks at a name only where the folder above it exists
        if hasattr(os, "pathconf") and len(os.fsencode(folder.name)) > os.pathconf(nearest, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG)) from None
        return nearest


def _try(folder: Path, needed: int) -> None:
    # a name of its own: another process may try the same folder at the same time
    path = folder / f".tried.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with os.fdopen(_open_own(path, os.O_WRONLY | os.O_EXCL), "wb") as file:
            file.write(b"1")
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)
    require_space(folder, needed)


def require_space(folder: Path, needed: int) -> None:
    """Raise an OSError where a folder's disk has less than ``needed`` bytes free."""
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def storage_error(path: Path, needed: int | None, error: Exception, *, disk: Path | None = None) -> StorageError:
    """Return the error for a file that cannot be written: where, how much it needs, how much is free.

    Args:
        path: The file or folder.
        needed: Bytes; None where they are not known.
        error: What the system said.
        disk: A folder on the same disk that exists; by default ``path``, or the folder that it is in.
    """
    try:
        disk = disk or (path if path.is_dir() else path.parent)
        free = f"{shutil.disk_usage(disk).free:,} bytes are free"
    except OSError:
        free = "the folder is gone"
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    needs = "" if not needed else f"it needs about {needed:,} bytes, "
    return StorageError(f"{path} cannot be written ({reason}): {needs}{free}.")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
