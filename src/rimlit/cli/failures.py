"""Turn any error of a run into one of rimlit's: a message of one line, and the exit code of its kind.

Imports neither torch nor Lightning: their errors are recognised by class name and text.
"""

import contextlib
import errno
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rimlit.causes import PACKAGE, causes, is_out_of_memory, place_in_user_code, text_of
from rimlit.errors import CheckpointError, ConfigError, RimlitError, StorageError
from rimlit.files import storage_error, write_file
from rimlit.spec import flat_settings

KNOWN: tuple[tuple[str, type[RimlitError], str], ...] = (
    (
        r"Early stopping conditioned on metric `(.+?)` which is not available.*following: (.+)",
        ConfigError,
        r"EarlyStopping: monitor='\1' is not a metric of this run; there are \2",
    ),
    (
        r"ModelCheckpoint\(monitor='(.+?)'\).*returned metrics: \[(.*?)\]",
        ConfigError,
        r"ModelCheckpoint: monitor='\1' is not a metric of this run; there are \2",
    ),
    (
        r"ReduceLROnPlateau conditioned on metric (\S+) which is not available. Available metrics are: \[(.*?)\]",
        ConfigError,
        r"ReduceLROnPlateau: monitor='\1' is not a metric of this run; there are \2",
    ),
    (
        r"You set `--ntasks=(\d+)` in your SLURM bash script",
        ConfigError,
        r"SLURM_NTASKS=\1 is set: Lightning starts processes under SLURM by SLURM_NTASKS_PER_NODE only. Submit "
        r"with --ntasks-per-node=\1, or, for a single process, unset SLURM_NTASKS",
    ),
    (r"SparseAdam does not support dense gradients", ConfigError, "SparseAdam needs sparse gradients; use Adam"),
    (r"^MisconfigurationException: (.+)", ConfigError, r"trainer: \1"),
)
"""Pattern of an error's class and text, the error it becomes, and its message without the full stop."""


@contextlib.contextmanager
def one_message(
    settings: Callable[[], Mapping[str, Any]] = dict,
    folder: Callable[[], Path | None] = lambda: None,
    passed: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Turn every error that leaves the block into one of rimlit's.

    Args:
        settings: Returns the resolved settings, whose sizes a lack of memory names.
        folder: Returns the run's folder, where the traceback of an unexpected error is kept if the folder exists.
        passed: Errors that are left as they are.

    Raises:
        RimlitError: See :func:`translate`.
    """
    try:
        yield
    except passed:
        raise
    except Exception as error:
        found = translate(error, settings(), folder())
        if found is error:
            raise
        raise found from error


def translate(
    error: Exception, settings: Mapping[str, Any] | None = None, folder: Path | None = None
) -> RimlitError:
    """Return the error of rimlit for any error; see :func:`one_message` for the arguments."""
    if isinstance(error, OSError) and isinstance(error.__context__, StorageError):
        return error.__context__  # it ended the run, whose end met the same disk
    chain = causes(error)
    if isinstance(error, RimlitError):
        place = place_in_user_code(error) if type(error) is ConfigError else ""
        return ConfigError(f"{str(error).rstrip('.')}{place}.") if place else error
    for link in chain:
        if is_out_of_memory(link):
            return RimlitError(_out_of_memory(link, settings or {}))
    found = next((link for link in chain if isinstance(link, RimlitError)), None)
    if found is not None:
        return found
    restored = _restored_file(error)
    if restored is not None and "loading state_dict" not in str(error) and not isinstance(error, OSError):
        return CheckpointError(
            f"{restored} cannot be restored: {text_of(error)[:300]}{place_in_user_code(error)}."
        )
    for pattern, kind, message in KNOWN:
        match = re.search(pattern, text_of(error))
        if match:
            return kind(f"{match.expand(message).rstrip('.')}.")
    if "loading state_dict" in str(error):
        path = (settings or {}).get("loaded_from")
        first = " ".join(str(error).splitlines()[1].split()).rstrip(".")
        hint = ""
        if (settings or {}).get("subcommand") == "fit":
            hint = f" --init_from {path} starts a new run from those of its weights that fit."
        return CheckpointError(f"{path} is of another model than this one: {first}.{hint}")
    if "loaded state dict contains" in str(error) or "loaded state dict has" in str(error):
        path = (settings or {}).get("loaded_from")
        return CheckpointError(f"{path} holds the state of another optimizer than this one: {error}.")
    if isinstance(error, OSError):
        storage = _storage_error(error, folder)
        if storage is not None:
            return storage
    place = place_in_user_code(error)
    if isinstance(error, ValueError) and not place and _is_ours(error):
        return ConfigError(str(error))  # a ValueError of rimlit names a setting and its range
    if os.environ.get("RIMLIT_DEBUG"):
        hint = ""
    elif folder is not None and folder.is_dir() and _is_kept(error, folder):
        hint = f" (the traceback is in {folder / 'traceback.txt'})"
    else:
        hint = " (RIMLIT_DEBUG=1 shows the traceback)"
    return RimlitError(f"{text_of(error)[:500]}{place}{hint}")


def cause_of(error: BaseException) -> RimlitError | None:
    """Return what a constructor complained about, found in the chain of causes of ``error``.

    Returns:
        One of rimlit's errors, or a ConfigError with the text of a ValueError or TypeError raised while objects
        were built, with the place if it is in the user's code; None where the error is of another kind.
    """
    chain = causes(error)
    for link in chain:
        if isinstance(link, RimlitError):
            return link
    if any(is_out_of_memory(link) for link in chain):
        return None
    innermost = next((link for link in reversed(chain) if isinstance(link, (ValueError, TypeError))), None)
    if innermost is None or any(re.search(pattern, text_of(error)) for pattern, _, _ in KNOWN):
        return None
    return ConfigError(f"{' '.join(str(innermost).split())}{place_in_user_code(innermost)}")


def _is_ours(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(PACKAGE + os.sep)


def _restored_file(error: BaseException) -> str | None:
    """Return the checkpoint that Lightning was restoring when the error was raised, None where it was not."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename.endswith("checkpoint_connector.py"):
            return str(frame.f_locals["self"].trainer.ckpt_path)
    return None


def _out_of_memory(error: BaseException, settings: Mapping[str, Any]) -> str:
    """Say how much was asked for, and which sizes of the settings are the largest."""
    asked = re.search(r"(?:tried to allocate|Tried to allocate|allocate) ([\d.,]+ ?\w+)", str(error))
    sizes = {
        key.replace(".init_args", ""): value
        for part in ("data", "model")
        for key, value in flat_settings(settings.get(part), part).items()
        if type(value) is int
        and re.search(r"(size|length|span|environments|mechanisms|heads|layers|slots)$", key)
        and value > 1
    }
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
    named = ", ".join(f"{key}={value}" for key, value in largest)
    return (
        f"Out of memory{f', {asked[1]} were asked for' if asked else ''}."
        f"{f' Make a size smaller: {named}.' if named else ''}"
    )


def _storage_error(error: OSError, folder: Path | None) -> StorageError | None:
    """Return the error for a file of the run, or a full or read-only disk; None for other files."""
    root = (folder or Path()).resolve()
    path = Path(str(error.filename or root)).resolve()
    is_ours = folder is not None and error.filename is not None and root in (path, *path.parents)
    if not is_ours and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    return storage_error(path, None, error)


def _is_kept(error: BaseException, folder: Path) -> bool:
    """Write the traceback into the run's folder; return whether that worked."""
    try:
        write_file(folder / "traceback.txt", "".join(traceback.format_exception(error)))
    except StorageError:
        return False
    return True
