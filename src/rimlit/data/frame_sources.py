"""Frames from files of a user: arrays, GIFs and folders of pictures."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rimlit.data.identity import digest_file, digest_parts
from rimlit.data.reading import kind_of, names_in, read_picture, require_fits, shown
from rimlit.data.sequence_arrays import read_frame_arrays
from rimlit.errors import DataError

ARRAYS = (".npy", ".npz")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
KEYS = ("frames", "inputs")
"""Keys of an .npz under which its frames may lie."""


class FrameFiles(NamedTuple):
    """Sequences of frames, as they were read."""

    frames: list[np.ndarray]  # of each sequence (T, height, width[, channels]): uint8 0 to 255, bool or float32
    names: list[str | int]


def read_frames(path: Path, *, is_time_first: bool) -> FrameFiles:
    """Read sequences of frames.

    Args:
        path: An array file (sequences, T, height, width[, channels]), a GIF, or a folder of GIFs or of folders of
            pictures; a folder of pictures is one sequence.
        is_time_first: Whether an array is (T, sequences, …), as Moving MNIST is.

    Raises:
        DataError: There are none, or a file cannot be read.
    """
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            f"path='{shown(path)}' does not exist; it must be a .npy, .npz or .gif file, a folder of GIFs, or a "
            "folder with a folder of pictures for each sequence."
        )
    if kind == "file" and path.suffix.lower() in ARRAYS:
        return _from_array(path, is_time_first)
    if kind == "file" and path.suffix.lower() == ".gif":
        return FrameFiles([_read_gif(path)], [path.stem])
    if kind == "file":
        raise DataError(f"{shown(path)} must be a .npy, .npz or .gif file, or a folder.")
    sequences = sequences_of(path)
    frames = [_read_gif(files[0]) if is_gif(files[0]) else _read_pictures(files) for files in sequences.values()]
    return FrameFiles(frames, list(sequences))


def is_gif(path: Path) -> bool:
    """Return whether a path is that of a GIF."""
    return path.suffix.lower() == ".gif"


def sequences_of(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each sequence of a folder by its name: a GIF, or pictures in the order of their numbers.

    Raises:
        DataError: There are none.
    """
    found: dict[str, list[Path]] = {}
    own = [folder / name for name in sorted(names_in(folder), key=_natural)]
    if pictures := [file for file in own if file.suffix.lower() in PICTURES]:
        return {folder.name: pictures}
    for place in own:
        if kind_of(place) == "folder":
            names = sorted(names_in(place), key=_natural)
            if files := [place / name for name in names if name.lower().endswith(PICTURES)]:
                found[place.name] = files
        elif is_gif(place):
            found[place.stem] = [place]
    if not found:
        raise DataError(
            f"{shown(folder)} has no GIF and no folder of pictures ({', '.join(PICTURES)}); each is a sequence."
        )
    return found


def digest_frames(path: Path) -> str:
    """Return the digest of a file, or of all files of a folder of sequences, in their order."""
    if kind_of(path) != "folder":
        return digest_file(path)
    sequences = sequences_of(path)
    parts = {f"{name}/{index}": file for name, files in sequences.items() for index, file in enumerate(files)}
    return digest_parts({name: digest_file(file) for name, file in parts.items()})


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which ``frame_10`` comes after ``frame_9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _from_array(path: Path, is_time_first: bool) -> FrameFiles:
    arrays = read_frame_arrays(path)
    keys = [key for key in KEYS if key in arrays]
    if len(keys) != 1:
        raise DataError(
            f"{shown(path)} must hold one array called {' or '.join(KEYS)}; it holds {', '.join(arrays)}."
        )
    array = arrays[keys[0]]
    if array.ndim not in (4, 5) or 0 in array.shape:
        first = "(T, sequences" if is_time_first else "(sequences, T"
        raise DataError(
            f"{shown(path)} must be {first}, height, width) or with channels as a last dimension, none of them 0; "
            f"got shape {array.shape}."
        )
    if is_time_first:
        array = array.swapaxes(0, 1)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"{shown(path)}: frames of {array.dtype} must be numbers from 0 to 1; got {low:g} to {high:g}. "
                "Frames of 0 to 255 are uint8."
            )
        array = array.astype(np.float32)
    elif array.dtype.kind not in "bui" or (array.dtype.kind != "b" and not 0 <= array.min() <= array.max() <= 255):
        raise DataError(
            f"{shown(path)}: frames must be integers from 0 to 255, true and false, or numbers from 0 to 1; got "
            f"{array.dtype}."
        )
    elif array.dtype.kind != "b":
        array = array.astype(np.uint8)
    return FrameFiles(list(array), list(range(len(array))))


def _read_gif(path: Path) -> np.ndarray:
    from PIL import ImageSequence

    def read(picture: Any) -> np.ndarray:
        require_fits(path, picture.width * picture.height * 3 * getattr(picture, "n_frames", 1))
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])

    return read_picture(path, read)


def _read_pictures(files: list[Path]) -> np.ndarray:
    def read(picture: Any) -> np.ndarray:
        require_fits(files[0], picture.width * picture.height * 3 * len(files))
        is_grey = picture.mode in ("1", "L")
        return np.asarray(picture.convert("L" if is_grey else "RGB"))

    frames = [read_picture(file, read) for file in files]
    for file, frame in zip(files, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise DataError(
                f"{shown(file)} is {_size(frame)}, {files[0].name} {_size(frames[0])}; the frames of a sequence "
                "must have one size and kind."
            )
    return np.stack(frames)


def _size(frame: np.ndarray) -> str:
    return f"{frame.shape[1]} × {frame.shape[0]}, {'grey' if frame.ndim == 2 else 'in colour'}"
