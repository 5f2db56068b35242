"""Disks that are full, read-only or gone, seen by ``rimlit fit`` on a small disk of its own."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from rimlit.checkpoints import read_checkpoint
from rimlit.training import Checkpointer
from tests.cli.running import COPYING, UNTRACKED, Answer, read_json, rimlit

pytestmark = pytest.mark.slow


def mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small disk of a size."""
    path = tmp_path / "disk"
    path.mkdir()

    def make(size: str) -> Path:
        if shutil.which("mount") is None:
            pytest.skip("there is no mount")
        mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", path)
        return path

    yield make
    subprocess.run(["umount", "-l", path], capture_output=True, check=False)


def fit(path: Path, *, at: int = -1, then: Callable[[], Any] = lambda: None, logger: str = UNTRACKED[0]) -> Answer:
    """Train six steps in ``path``, saving after each, and do something after one of them."""

    def act(_: Checkpointer, trainer: L.Trainer, *rest: Any) -> None:
        if trainer.global_step == at:
            then()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "on_train_batch_end", act, raising=False)
        patch.setitem(Checkpointer.__init__.__kwdefaults__, "interval", 0.0)  # type: ignore[arg-type]
        options = ("--test_after_fit=false", "--trainer.max_steps=6", "--trainer.val_check_interval=4", logger)
        return rimlit("fit", *COPYING, *options, f"--trainer.default_root_dir={path}")


def fill(path: Path) -> None:
    with (path / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"0" * 4096)
            except OSError:
                return


def assert_refused(answer: Answer, run: Path, reason: str, step: int) -> None:
    """Exit code 6, one message, the earlier checkpoint whole, nothing half-made."""
    assert answer.code == 6, answer.err
    assert answer.err.count("rimlit: error: ") == 1 and "Traceback" not in answer.err
    for word in (f"{run / 'checkpoints'}", reason, "it needs about ", "bytes are free"):
        assert word in answer.err
    if step:
        assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == step
    assert not [path.name for path in run.rglob("*.tmp")]


def test_a_disk_that_fills_up_ends_the_run_with_its_earlier_checkpoint_whole(
    folder: Path, disk: Callable[[str], Path]
) -> None:
    path = disk("2m")
    answer = fit(path / "run", at=2, then=lambda: fill(path))
    assert_refused(answer, path / "run", "No space left on device", 1)
    # with space again it resumes, and the state says how it ended before
    assert read_json(path / "run/run_state.json")["step"] == 1
    (path / "filler").unlink()
    assert fit(path / "run").code == 0
    assert read_json(path / "run/run_state.json")["status"] == "finished"


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(
    folder: Path, disk: Callable[[str], Path]
) -> None:
    steps: list[int] = []
    path = disk("200k")
    answer = fit(path / "run", at=0, then=lambda: steps.append(1))
    assert_refused(answer, path / "run", "No space left on device", 0)
    assert steps == []


@pytest.mark.parametrize("at", [0, 2])
def test_a_disk_that_is_read_only_ends_the_run(folder: Path, disk: Callable[[str], Path], at: int) -> None:
    path = disk("2m")
    if at == 0:
        mount("-o", "remount,ro", path)
    answer = fit(path / "run", at=at, then=lambda: mount("-o", "remount,ro", path))
    if at == 0:
        assert answer.code == 6
        assert f"{path / 'run'}" in answer.err and "Read-only file system" in answer.err
    else:
        assert_refused(answer, path / "run", "Read-only file system", 1)


def test_a_disk_that_is_gone_ends_the_run(folder: Path, disk: Callable[[str], Path]) -> None:
    path = disk("2m")
    answer = fit(path / "run", at=3, then=lambda: subprocess.run(["umount", "-l", path], check=True))
    assert answer.code == 6
    assert f"{path / 'run/checkpoints'}" in answer.err and "the folder is gone" in answer.err


def test_a_run_folder_that_vanishes_ends_the_run_whatever_is_written_next(folder: Path) -> None:
    path = folder / "own"
    logger = f"--trainer.logger={{class_path: rimlit.tracking.LocalMetrics, init_args: {{folder: {path}}}}}"
    answer = fit(path, at=3, then=lambda: shutil.rmtree(path), logger=logger)
    assert answer.code == 6, answer.err
    assert answer.err.count("rimlit: error: ") == 1 and str(path) in answer.err
