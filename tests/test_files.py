"""Files of a run: whole, UTF-8, no link followed; small JSON that is damaged counts as absent."""

import json
import logging
import os
from pathlib import Path

import pytest

from rimlit.errors import StorageError
from rimlit.files import (
    cache_folder,
    open_to_append,
    read_json,
    require_folder,
    try_folder,
    whole_file,
    write_file,
    write_json,
)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside the run's folder, which no write may reach."""
    path = tmp_path / "victim"
    path.write_text("mine")
    return path


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path, victim: Path) -> None:
    link = tmp_path / "config.yaml"
    link.symlink_to(victim)
    write_file(link, "new")
    assert victim.read_text() == "mine"
    assert not link.is_symlink() and link.read_text() == "new"


def test_a_link_is_not_appended_to(tmp_path: Path, victim: Path) -> None:
    link = tmp_path / "tracking.jsonl"
    link.symlink_to(victim)
    with open_to_append(link) as file:
        assert file.read() == b""
        file.write(b"line\n")
    assert victim.read_text() == "mine" and link.read_text() == "line\n"


def test_trying_a_folder_follows_no_link_and_leaves_nothing(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".tried").symlink_to(victim)
    try_folder(tmp_path)
    assert victim.read_text() == "mine" and sorted(os.listdir(tmp_path)) == [".tried", "victim"]


def test_two_processes_may_try_a_folder_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the writing of a probe and its removal another process tries the folder, and removes its own."""
    fsync, depth = os.fsync, []

    def try_meanwhile(descriptor: int) -> None:
        fsync(descriptor)
        if not depth:
            depth.append(1)
            try_folder(tmp_path)

    monkeypatch.setattr(os, "fsync", try_meanwhile)
    try_folder(tmp_path)
    assert depth and not os.listdir(tmp_path)


def test_text_is_utf_8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale=True: "ascii")
    write_json(tmp_path / "a.json", {"naïve": "…"})
    assert (tmp_path / "a.json").read_bytes().decode() == '{\n  "naïve": "…"\n}\n'
    assert read_json(tmp_path / "a.json") == {"naïve": "…"}


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(TypeError), whole_file(path) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "content", [b"", b'{"a": 1', b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": "\xc3"}']
)
def test_damaged_json_counts_as_absent_and_is_reported_once(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run_state.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "rimlit"):
        assert read_json(path) == {} == read_json(path)
    assert len(caplog.records) == 1 and str(path) in caplog.text and "counts as absent" in caplog.text


def test_json_is_not_read_through_a_link_nor_from_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "link.json").symlink_to(tmp_path / "secret.json")
    os.mkfifo(tmp_path / "pipe.json")
    assert read_json(tmp_path / "link.json") == {}
    assert read_json(tmp_path / "pipe.json") == {}
    assert read_json(tmp_path / "none.json") == {}


def _dangling(root: Path) -> Path:
    (root / "runs").symlink_to(root / "nowhere")
    return root / "runs/copying/a"


def _loop(root: Path) -> Path:
    (root / "runs").symlink_to(root / "runs")
    return root / "runs/copying/a"


def _too_long(root: Path) -> Path:
    return root / "runs" / ("a" * 300)


def _below_a_file(root: Path) -> Path:
    (root / "runs").write_text("")
    return root / "runs/copying/a"


@pytest.mark.parametrize("make", [_dangling, _loop, _too_long, _below_a_file])
def test_a_folder_that_cannot_be_created_is_named_and_nothing_is_created(tmp_path: Path, make: object) -> None:
    folder = make(tmp_path)  # type: ignore[operator]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match=r"cannot be written \(.+\)"):
        require_folder(folder, 0)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_is_looked_at_without_being_created(tmp_path: Path) -> None:
    require_folder(tmp_path / "runs/copying/a", 1)
    with pytest.raises(StorageError, match="it needs about"):
        require_folder(tmp_path / "runs/copying/a", 2**60)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RIMLIT_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
        ({"RIMLIT_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/rimlit"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/rimlit"),
        ({"HOME": "/h", "RIMLIT_CACHE": "~/mine"}, "/h/mine"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("RIMLIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)
