"""Files that are damaged, hostile or no files: refused in one line, at once and in little memory."""

import contextlib
import gzip
import io
import os
import socket
import struct
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from rimlit.data import DataModule, Sequences, SequentialImages, Text, reading
from rimlit.errors import ConfigError, DataError
from tests.data.test_images import idx_bytes

INPUTS = np.arange(4000.0).reshape(20, 200)


def refuse(make: Callable[[], DataModule], message: str, *, stage: str = "predict") -> None:
    """See that data are refused in one line."""
    with pytest.raises(DataError, match=message) as caught:
        make().setup(stage)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def sequences(path: Path | str, **arguments: Any) -> Callable[[], DataModule]:
    return lambda: Sequences(str(path), target="next_step", **arguments)


def text(path: Path | str) -> Callable[[], DataModule]:
    return lambda: Text(path=str(path))


def readers_of(path: Path) -> list[Callable[[], DataModule]]:
    """Every data module that takes a path, with this one."""
    new = str(path)
    return [
        sequences(path),
        text(path),
        lambda: SequentialImages(path=str(path)),
        lambda: Sequences("none.csv", target="next_step", predict_path=new),
        lambda: SequentialImages(predict_path=new),
        lambda: Text(predict_path=new),
    ]


# What is no file


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory, because the name of a socket must be short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="pipes, sockets and devices have no paths there")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_a_pipe_a_socket_and_a_device_are_refused_without_waiting(short: Path, kind: str) -> None:
    path = Path("odd.csv")
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            server.bind(str(path))
        else:
            path.symlink_to("/dev/zero")
        for make in readers_of(path):
            refuse(make, rf"odd\.csv must be a file; it is a {kind}")
        path.rename("train.csv")
        refuse(sequences(short), rf"train\.csv must be a file; it is a {kind}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 5000, r"x{50}… \(\d+ characters\) cannot be read: File name too long"),
        ("a/" * 2500 + "b.csv", r"a/a/.*… \(\d+ characters\)"),
        ("nul\0.csv", r"nul\\x00\.csv cannot be read: embedded null byte"),
        ("two\nlines.csv", r"two\\nlines\.csv' does not exist"),
        ("loop.csv", r"loop\.csv cannot be read: (Too many levels|Symlink loop)"),
        ("dangling.csv", r"dangling\.csv is a link to nothing"),
        ("file.csv/below.csv", r"below\.csv' does not exist"),
        ("folder.csv", r"folder\.csv' must hold (one file for each|train, valid and test)"),
    ],
)
def test_a_path_that_leads_to_no_file_is_refused_by_name(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nothing")
    (tmp_path / "file.csv").write_text("x")
    (tmp_path / "folder.csv").mkdir()
    for make in (sequences(f"{tmp_path}/{name}"), text(f"{tmp_path}/{name}")):
        refuse(make, message, stage="fit")


@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a.pt", "a.parquet", "a.txt"])
def test_a_file_that_may_not_be_read_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_bytes(b"content")

    def forbid(path: Any, *arguments: Any) -> Any:  # not by its mode, which does not keep root out
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(reading.os, "open", forbid)
    make = text(tmp_path / name) if name.endswith("txt") else sequences(tmp_path / name)
    refuse(make, rf"{name} cannot be read: Permission denied\.", stage="fit")


def test_a_folder_that_may_not_be_read_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(path: Any, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(reading.os, "listdir", forbid)
        refuse(text(tmp_path), "cannot be read: Permission denied", stage="fit")
    with monkeypatch.context() as patch:
        patch.setattr(reading.os, "stat", forbid)
        with pytest.raises(DataError, match="cannot be read: Permission denied"):
            Sequences(str(tmp_path / "a.csv")).setup("fit")


def test_a_file_that_another_program_writes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("one")

    def read() -> None:
        with reading.open_file(path) as file:
            assert file.read() == b"one"
            path.write_text("another")

    with pytest.raises(DataError, match=r"a\.csv was changed while it was read"):
        read()


# What is damaged


def damaged(content: bytes) -> Iterator[bytes]:
    """A file cut short, and with a few bytes replaced, in places all over it."""
    for place in range(1, len(content) - 1, max(1, len(content) // 12)):
        yield content[:place]
        yield content[:place] + bytes(255 - byte for byte in content[place : place + 8]) + content[place + 8 :]


def compressed_npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, inputs=INPUTS, lengths=np.full(20, 200))
    return file.getvalue()


def torch_file() -> bytes:
    file = io.BytesIO()
    torch.save({"inputs": torch.from_numpy(INPUTS)}, file)
    return file.getvalue()


def parquet_file() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table({"sequence": ["a"] * 50 + ["b"] * 50, "x": np.arange(100.0)}), file)
    return file.getvalue()


CSV = "\n".join(["sequence,x", *(f"a,{number}" for number in range(200)), ""]).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npz", compressed_npz()),
        ("a.pt", torch_file()),
        ("a.parquet", parquet_file()),
        ("a.csv.gz", gzip.compress(CSV, mtime=0)),
        ("a.txt.gz", gzip.compress(CSV, mtime=0)),
    ],
)
def test_a_damaged_file_is_refused_by_name_wherever_the_damage_is(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    make = text(path) if ".txt" in name else sequences(path, batch_size=1)
    refused = 0
    for variant in damaged(content):
        path.write_bytes(variant)
        data = make()
        with contextlib.suppress(DataError):  # bytes that mean nothing may be others
            data.datasets("train")
            continue
        refuse(make, name, stage="fit")
        refused += 1
    assert refused >= 20


# What is larger than it seems

BOMB = 2**26  # zeros in a few kilobytes


def npz_bomb(**header: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("inputs.npy", "w") as part:
        np.lib.format.write_array_header_1_0(part, {"descr": "<f8", "fortran_order": False, **header})
        part.write(bytes(BOMB))
    return file.getvalue()


def npy_bomb(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(80)


def pt_bomb(*, expanded: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"inputs": torch.zeros(1).expand(10**6, 10**6) if expanded else torch.zeros(2, BOMB // 8)}, file)
    if expanded:
        return file.getvalue()
    packed = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as smaller:
        for member in archive.infolist():
            smaller.writestr(member.filename, archive.read(member))
    return packed.getvalue()


IDX_BOMB = b"\0\0\x08\x03" + struct.pack(">3I", BOMB // 4, 2, 2) + bytes(BOMB)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npz", npz_bomb(shape=(2, BOMB // 16))),
        ("a.npz", npz_bomb(shape=(10**9, 10**9))),
        ("a.npy", npy_bomb((10**9, 10**9))),
        ("a.npy", npy_bomb((10**18, 2), "<U0")),
        ("a.npy", npy_bomb((-5, -2))),
        ("a.pt", pt_bomb(expanded=True)),
        ("a.pt", pt_bomb(expanded=False)),
        ("a.csv.gz", gzip.compress(b"sequence,x\n" + bytes(BOMB))),
        ("a.txt.gz", gzip.compress(bytes(BOMB))),
        ("a-images-idx3-ubyte.gz", gzip.compress(IDX_BOMB)),
    ],
)
def test_a_small_file_that_says_it_is_large_is_refused_before_it_takes_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    assert len(content) < BOMB // 100
    monkeypatch.setenv(reading.LIMIT, str(BOMB // 8))
    path = tmp_path / name
    path.write_bytes(content)
    make = text(path) if ".txt" in name else sequences(path)
    if "idx3" in name:
        make = lambda: SequentialImages(predict_path=str(path))  # noqa: E731
    tracemalloc.start()
    try:
        refuse(make, rf"{name} (would take more than|is damaged)")
        assert tracemalloc.get_traced_memory()[1] < BOMB // 2
    finally:
        tracemalloc.stop()


def test_the_limit_is_a_share_of_the_free_memory_and_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(reading.LIMIT, raising=False)
    assert 2**20 < reading.most_bytes() <= reading.MOST_BYTES
    monkeypatch.setenv(reading.LIMIT, "10")
    (tmp_path / "a.txt").write_text("eleven byte")
    with pytest.raises(
        DataError, match=r"more than 10 bytes .* Use less of the data, or set RIMLIT_READ_LIMIT to"
    ):
        reading.read_text(tmp_path / "a.txt")
    monkeypatch.setenv(reading.LIMIT, "11")
    assert reading.read_text(tmp_path / "a.txt") == "eleven byte"
    monkeypatch.setenv(reading.LIMIT, "much")
    with pytest.raises(ConfigError, match="RIMLIT_READ_LIMIT must be a number of bytes; got 'much'"):
        reading.read_text(tmp_path / "a.txt")


# What does not belong there


def test_an_archive_that_holds_an_array_twice_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", INPUTS)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, warnings.catch_warnings(action="ignore"):
        archive.write(tmp_path / "one.npy", "inputs.npy")
        archive.write(tmp_path / "one.npy", "inputs.npy")
    refuse(sequences(tmp_path / "a.npz"), r"a\.npz holds inputs twice")


@pytest.mark.parametrize("odd", [["a", 1], [["a"], ["b"]], {"a": 1}, "text", [None], []])
def test_a_list_of_several_kinds_is_refused(tmp_path: Path, odd: Any) -> None:
    torch.save({"inputs": torch.from_numpy(INPUTS), "split": odd}, tmp_path / "a.pt")
    refuse(sequences(tmp_path / "a.pt"), r"a\.pt: split must be a tensor or a list of one kind|split must name")


def test_keys_of_any_kind_are_listed(tmp_path: Path) -> None:
    torch.save({"inputs": torch.from_numpy(INPUTS), 1: 2, "b": 3}, tmp_path / "a.pt")
    refuse(sequences(tmp_path / "a.pt"), r"a\.pt must hold inputs, .* it holds inputs, 1, b\.")


def test_a_text_begins_after_its_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffabc".encode() * 2)
    assert reading.read_text(tmp_path / "a.txt") == "abc\ufeffabc"
    (tmp_path / "b.txt").write_bytes(b"one\ntwo\nthr\xffe")
    refuse(text(tmp_path / "b.txt"), r"b\.txt is not UTF-8 text: byte 11, in line 3, is 0xff", stage="fit")
    (tmp_path / "c.txt").write_bytes("abc".encode("utf-16"))
    refuse(text(tmp_path / "c.txt"), r"c\.txt is not UTF-8 text: it is UTF-16", stage="fit")


def test_a_folder_with_two_texts_for_a_split_is_refused(tmp_path: Path) -> None:
    for name in ("train.txt", "valid.txt", "dev.txt", "test.txt"):
        (tmp_path / name).write_text("abc\n" * 90)
    refuse(text(tmp_path), r"must hold one text for val; it has valid\.txt, dev\.txt\.", stage="fit")


def test_a_damaged_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    refuse(lambda: SequentialImages(predict_path=str(tmp_path)), r"a\.png cannot be read as a picture")
    (tmp_path / "a.png").unlink()
    refuse(lambda: SequentialImages(predict_path=str(tmp_path)), r"has no picture \(\.png, ")
    (tmp_path / "idx").write_bytes(idx_bytes(np.ones((2, 3, 3), np.uint8))[:-1])
    refuse(lambda: SequentialImages(predict_path=str(tmp_path / "idx")), r"idx says that it holds 2 × 3 × 3 bytes")
