"""What data are: equal wherever they are, different with any change of their content, kept for large files."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rimlit.data import (
    Adding,
    BlinkingBalls,
    BouncingBalls,
    Copying,
    DataModule,
    Sequences,
    SequentialImages,
    Text,
    identity,
)
from tests.data.test_images import idx_bytes

ROWS = [f"s{number},{number}.{step},{'uv'[number % 2]}" for number in range(12) for step in range(2)]


def write_table(path: Path, rows: list[str] = ROWS) -> None:
    path.write_text("\n".join(["sequence,x,target", *rows, ""]))


def one_table(folder: Path, rows: list[str] = ROWS) -> Sequences:
    write_table(folder / "a.csv", rows)
    return Sequences(str(folder / "a.csv"), batch_size=2)


def three_tables(folder: Path, order: tuple[int, int, int] = (0, 1, 2)) -> Sequences:
    for name, part in zip(("train", "val", "test"), order, strict=True):
        write_table(folder / f"{name}.csv", ROWS[8 * part : 8 * part + 8])
    return Sequences(str(folder), batch_size=2)


def arrays(folder: Path, value: float = 1.0) -> Sequences:
    inputs = np.arange(40.0).reshape(20, 2)
    inputs[3, 1] = value
    np.save(folder / "a.npy", inputs)
    return Sequences(str(folder / "a.npy"), target="next_step", batch_size=2)


def one_text(folder: Path, text: str = "a rose is a rose\n" * 9) -> Text:
    (folder / "a.txt").write_text(text)
    return Text(path=str(folder / "a.txt"), batch_size=2, chunk_length=4)


def three_texts(folder: Path, order: str = "abc") -> Text:
    for name, letter in zip(("train", "valid", "test"), order, strict=True):
        (folder / f"{name}.txt").write_text(letter * 40)
    return Text(path=str(folder), batch_size=2, chunk_length=4)


def images(folder: Path, pixel: int = 0, label: int = 0) -> SequentialImages:
    for prefix, number in (("train", 10), ("t10k", 4)):
        pixels = np.arange(number * 4, dtype=np.uint8).reshape(number, 2, 2)
        labels = np.arange(number, dtype=np.uint8) % 2
        if prefix == "train":
            pixels[3, 1, 1], labels[0] = pixels[3, 1, 1] + pixel, label
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return SequentialImages(path=str(folder), batch_size=2)


SWAPPED = [row.replace("u", "w").replace("v", "u").replace("w", "v") for row in ROWS]
Make = Callable[[Path], DataModule]


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (one_table, lambda folder: one_table(folder, [*ROWS[:-1], ROWS[-1].replace("11.1", "11.2")])),
        (one_table, lambda folder: one_table(folder, SWAPPED)),
        (one_table, lambda folder: one_table(folder, ROWS[::-1])),
        (three_tables, lambda folder: three_tables(folder, (0, 2, 1))),
        (three_tables, lambda folder: three_tables(folder, (1, 0, 2))),
        (arrays, lambda folder: arrays(folder, 1.5)),
        (one_text, lambda folder: one_text(folder, "a rose is a rose\n" * 8 + "a rose is a nose\n")),
        (three_texts, lambda folder: three_texts(folder, "acb")),
        (three_texts, lambda folder: three_texts(folder, "bac")),
        (images, lambda folder: images(folder, pixel=1)),
        (images, lambda folder: images(folder, label=1)),
    ],
)
def test_a_digest_is_that_of_the_content_wherever_it_is(tmp_path: Path, make: Make, change: Make) -> None:
    for name in ("here", "there", "changed"):
        (tmp_path / name).mkdir()
    data = make(tmp_path / "here")
    before = data.digest
    data.setup("fit")
    assert data.digest == before == make(tmp_path / "there").digest
    assert before is not None and len(before) == 64
    assert change(tmp_path / "changed").digest != before


def test_a_digest_says_nothing_of_names_compression_and_settings(tmp_path: Path) -> None:
    expected = one_table(tmp_path).digest
    content = (tmp_path / "a.csv").read_bytes()
    (tmp_path / "b.csv").write_bytes(content)
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(content, mtime=5))
    for name in ("b.csv", "c.csv.gz"):
        settings: dict[str, Any] = {"val_fraction": 0.3, "seed": 7, "standardize": False, "batch_size": 1}
        data = Sequences(str(tmp_path / name), **settings)
        assert data.digest == expected
        data.setup("fit")
        assert data.digest == expected
    text = one_text(tmp_path).digest
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress((tmp_path / "a.txt").read_bytes()))
    assert Text(path=str(tmp_path / "b.txt.gz"), size_limit=50, level="word").digest == text


def test_the_data_of_the_package_are_known_by_their_content_or_their_settings_alone() -> None:
    assert [make().digest for make in (Copying, Adding, BouncingBalls, BlinkingBalls)] == [None] * 4
    digits, library = SequentialImages().digest, Text().digest
    assert (digits, library) == (SequentialImages(seed=5).digest, Text(level="word").digest)
    assert len(digits) == len(library) == 64 and digits != library


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of digests that keeps those of small and fresh files too."""
    monkeypatch.setenv("RIMLIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "LEAST_CACHED", 1)
    monkeypatch.setattr(identity, "SETTLED_SECONDS", -1)
    return tmp_path / "cache/digests"


def test_the_digest_of_a_large_file_is_computed_once_until_it_changes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    first = identity.digest_file(path)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(identity, "blocks_of", lambda *_: pytest.fail("it was read again"))
        assert identity.digest_file(path) == first
        (tmp_path / "link").symlink_to(path)
        assert identity.digest_file(tmp_path / "link") == first
    (tmp_path / "b.bin").write_bytes(b"two")
    (tmp_path / "b.bin").replace(path)
    assert identity.digest_file(path) != first
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "damaged", [b"", b"{", b"[]", b'{"digest": 3}', b"\xff", json.dumps({"stamp": []}).encode()]
)
def test_a_damaged_cache_counts_as_none(cache: Path, tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    expected = identity.digest_file(path)
    (entry,) = cache.iterdir()
    entry.write_bytes(damaged)
    assert identity.digest_file(path) == expected
    assert json.loads(entry.read_text())["digest"] == expected


def test_a_file_that_was_changed_a_moment_ago_and_a_cache_that_cannot_be_written_are_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "LEAST_CACHED", 1)
    monkeypatch.setenv("RIMLIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    expected = identity.digest_file(path)
    assert not (tmp_path / "cache").exists()  # its times could hide another change
    monkeypatch.setattr(identity, "SETTLED_SECONDS", -1)
    monkeypatch.setenv("RIMLIT_CACHE", str(path / "no folder"))
    assert identity.digest_file(path) == expected
