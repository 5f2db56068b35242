"""Small data where configs look for large ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

TEXT = "the quick brown fox jumps over\nROMEO:\nThe history of a lazy dog\n"
WORDS = {"train": 30, "valid": 12, "test": 12}


def write_text(path: Path) -> None:
    """A folder with a text as train, valid and test."""
    path.mkdir(parents=True)
    for split, repeats in WORDS.items():
        (path / f"{split}.txt").write_text(TEXT * repeats)


def write_images(path: Path) -> None:
    """A folder with MNIST's four files, in ten classes."""
    path.mkdir(parents=True)
    for prefix, number in (("train", 40), ("t10k", 10)):
        images = torch.arange(number * 36) * 91 % 256
        for kind, array in (("images-idx3", images.view(-1, 6, 6)), ("labels-idx1", torch.arange(number) % 10)):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            header = bytes([0, 0, 8, array.dim()])
            (path / f"{prefix}-{kind}-ubyte").write_bytes(header + sizes + bytes(array.flatten().tolist()))


def write_sequences(path: Path) -> None:
    """A table of 20 sequences of 3 to 5 steps and 4 features, in 5 classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{index},{','.join(str((index * 7 + step * 3 + feature) % 11) for feature in range(4))},{index % 5}"
        for index in range(20)
        for step in range(3 + index % 3)
    ]
    path.write_text("\n".join(["sequence,a,b,c,d,target", *rows, ""]))


def write_series(path: Path) -> None:
    """A table of one value over 120 steps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["level", *(str(step * 7 % 12 + step / 10) for step in range(120)), ""]))


def write_frames(path: Path) -> None:
    """Ten films of 20 frames of 16 × 16 pixels, with shades."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, (np.arange(10 * 20 * 16 * 16).reshape(10, 20, 16, 16) * 37 % 256).astype(np.uint8))


STAND_INS: dict[str, Callable[[Path], None]] = {
    "Frames": write_frames,
    "Sequences": write_sequences,
    "SequentialImages": write_images,
    "Series": write_series,
    "Text": write_text,
}
"""How to write data for a data module, by its name, to the path that a config names."""
