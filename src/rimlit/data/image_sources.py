"""Where images and their labels come from: idx files, Hugging Face datasets, or scikit-learn's bundled digits."""

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rimlit.data.hub import load_hub_dataset
from rimlit.data.reading import kind_of, names_in, read_bytes, read_picture, require_fits, shown
from rimlit.errors import DataError

FILE_NAMES = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 0x08
DIGITS_TEST_SIZE = 360
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


class LabelledImages(NamedTuple):
    """Grey images and what they show."""

    images: np.ndarray  # (N, height, width) of numbers from 0 to 255
    labels: np.ndarray  # (N,) integers from 0


def read_idx_folder(path: Path) -> dict[str, LabelledImages]:
    """Read MNIST's four files, or those of a dataset in its format, from a folder, each as it is or as ``.gz``.

    Returns:
        Images by split, ``train`` and ``test``.

    Raises:
        DataError: The folder or a file is missing, a file is not an idx file of bytes, or the two of a split have
            different numbers.
    """
    if kind_of(path) != "folder":
        raise DataError(
            f"path='{shown(path)}' must be a folder with {', '.join(_names())}, each as it is or as .gz."
        )
    splits = {}
    for split, prefix in FILE_NAMES.items():
        images = read_idx(_find(path, f"{prefix}-images-idx3-ubyte"), 3)
        labels_file = _find(path, f"{prefix}-labels-idx1-ubyte")
        labels = read_idx(labels_file, 1)
        if len(images) != len(labels):
            raise DataError(
                f"{shown(labels_file)} has {len(labels)} labels for {len(images)} images; they must be as many."
            )
        splits[split] = LabelledImages(images, labels)
    return splits


def _names() -> list[str]:
    return [f"{p}-{kind}-ubyte" for p in FILE_NAMES.values() for kind in ("images-idx3", "labels-idx1")]


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if kind_of(path) == "file":
            return path
    raise DataError(f"{shown(folder)} has no {name} and no {name}.gz; it must hold {', '.join(_names())}.")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an idx file of unsigned bytes.

    The format: two zero bytes, the type of an element, the number of dimensions, the sizes as big-endian 32-bit
    numbers, the elements.

    Raises:
        DataError: The file cannot be read, is of another type or number of dimensions, or is shorter or longer
            than its sizes say.
    """
    data = read_bytes(path)
    header = 4 + 4 * dimensions
    if len(data) < header or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTE or data[3] != dimensions:
        raise DataError(
            f"{shown(path)} must be an idx file of unsigned bytes with {dimensions} dimension(s), which begins "
            f"with 00 00 08 {dimensions:02x}; it begins with {data[:4].hex(' ') or 'nothing'}."
        )
    sizes = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != math.prod(sizes) or 0 in sizes:
        shape = " × ".join(map(str, sizes))
        raise DataError(
            f"{shown(path)} says that it holds {shape} bytes, at least one in each dimension; "
            f"it holds {len(data) - header}."
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(sizes)


def read_pictures(path: Path) -> tuple[list[np.ndarray], list[str | int]]:
    """Read images without labels: an idx file of images, a picture, or a folder of pictures in the order of names.

    Returns:
        Grey images (height, width) from 0 to 255, of any sizes, and what each is called: its file's name, or its
        index in the idx file.

    Raises:
        DataError: There are none, or one cannot be read.
    """
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            f"predict_path='{shown(path)}' does not exist; it must be an idx file, a picture or a folder."
        )
    if kind == "file":
        if path.suffix.lower() in PICTURES:
            return [_read_picture(path)], [path.name]
        images = read_idx(path, 3)
        return list(images), list(range(len(images)))
    names = [name for name in names_in(path) if name.lower().endswith(PICTURES)]
    if not names:
        raise DataError(f"{shown(path)} has no picture ({', '.join(PICTURES)}).")
    return [_read_picture(path / name) for name in names], [*names]


def _read_picture(path: Path) -> np.ndarray:
    def read(picture: Any) -> np.ndarray:
        require_fits(path, picture.width * picture.height * 4)
        return np.asarray(picture.convert("L"))

    return read_picture(path, read)


def read_image_dataset(dataset: str, name: str | None) -> dict[str, LabelledImages]:
    """Read the columns ``image`` and ``label`` of a Hugging Face dataset, by id or from a local folder of images.

    Raises:
        DataError: The package ``datasets`` is missing, or the dataset cannot be read, lacks a column or a split,
            or has images of several sizes.
    """
    splits = load_hub_dataset(dataset, name)
    if not set(FILE_NAMES) <= set(splits):
        raise DataError(f"dataset={dataset!r} must have train and test; it has {', '.join(splits)}.")
    read = {}
    for split in FILE_NAMES:
        rows = splits[split]
        if not {"image", "label"} <= set(rows.column_names):
            raise DataError(
                f"dataset={dataset!r} must have the columns image and label; "
                f"it has {', '.join(rows.column_names)}."
            )
        pictures = list(rows["image"])
        for index, picture in enumerate(pictures):
            if not hasattr(picture, "convert"):
                raise DataError(
                    f"dataset={dataset!r}: the column image must hold images; number {index} of {split} is a "
                    f"{type(picture).__name__}."
                )
        images = [np.asarray(picture.convert("L")) for picture in pictures]
        for index, image in enumerate(images):
            if image.shape != images[0].shape:
                raise DataError(
                    f"dataset={dataset!r}: image {index} of {split} is {image.shape[0]} × {image.shape[1]}, the "
                    f"first one {images[0].shape[0]} × {images[0].shape[1]}; all must have one size."
                )
        labels = np.asarray(rows["label"])
        if labels.dtype.kind not in "iu" or labels.min() < 0:
            given = labels.min() if labels.dtype.kind in "iu" else labels.dtype
            raise DataError(f"dataset={dataset!r}: labels must be integers from 0; {split} has {given}.")
        read[split] = LabelledImages(np.stack(images), labels)
    return read


def read_digits() -> dict[str, LabelledImages]:
    """Read the 1,797 digits of 8 × 8 pixels that come with scikit-learn; the last 360 are the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # they run from 0 to 16
    cut = len(images) - DIGITS_TEST_SIZE
    return {
        "train": LabelledImages(images[:cut], digits.target[:cut]),
        "test": LabelledImages(images[cut:], digits.target[cut:]),
    }
