"""Two processes on the CPU: they end, leave one run, and score what one process scores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import (
    COPYING,
    LANGUAGE,
    QUIET,
    UNTRACKED,
    read_checkpoint,
    read_json,
    scores_of,
    succeed,
    write_novel,
)

pytestmark = pytest.mark.slow

TWO = ("--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp")


def in_two_processes(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``rimlit`` as a program: Lightning starts the second process by its command line."""
    done = subprocess.run(
        [sys.executable, "-m", "rimlit", *map(str, arguments), *TWO],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


# 7 samples do not divide by two, nor do the characters of the test text by eight rows
@pytest.mark.parametrize(
    ("arguments", "dataset", "alike"),
    [
        ((*COPYING, "--data.test_size=7", "--data.val_size=7"), "copying", ()),
        # each row of text starts from the initial state: one process has as many rows as two had
        ((*LANGUAGE, "--data.chunk_length=16"), "language", ("--data.eval_batch_size=8",)),
    ],
)
def test_two_processes_leave_one_run_whose_scores_one_process_confirms(
    folder: Path, arguments: tuple[str, ...], dataset: str, alike: tuple[str, ...]
) -> None:
    write_novel(folder)
    whole = ("--trainer.limit_val_batches=1.0", "--trainer.limit_test_batches=1.0")
    done = in_two_processes(folder, "fit", *arguments, *whole)
    assert [path.name for path in (folder / "runs" / dataset).iterdir()] == ["rim-seed0"]
    run = folder / "runs" / dataset / "rim-seed0"
    assert done.stdout.count("Everything about this run") == 1
    assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 4
    assert read_json(run / "results.json")["steps"] == 4
    assert (run / "figures/activity.png").is_file()

    wanted = scores_of(run)
    succeed("test", "--ckpt_path", run / "checkpoints/best.ckpt", *QUIET, *UNTRACKED, *alike)
    found = scores_of(run)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        if not name.endswith("loss"):  # a mean of batches, which two processes cut differently
            assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


def test_another_run_of_two_processes_sets_the_first_aside_whole(folder: Path) -> None:
    options = (*COPYING, *UNTRACKED, "--test_after_fit=false", "--trainer.max_steps=2")
    in_two_processes(folder, "fit", *options)
    in_two_processes(folder, "fit", *options, "--resume=never")
    runs = folder / "runs/copying"
    assert sorted(path.name for path in runs.iterdir()) == ["rim-seed0", "rim-seed0.1"]
    for run in runs.iterdir():
        assert (run / "checkpoints/last.ckpt").is_file()
        assert (run / "config.yaml").is_file()


def test_two_processes_predict_every_sample_once(copying: Path) -> None:
    file = copying / "checkpoints/best.ckpt"
    in_two_processes(copying.parents[2], "predict", "--ckpt_path", file, *QUIET, *UNTRACKED, "--data.test_size=7")
    names = ("predictions.jsonl", "predictions-1.jsonl")
    lines = [(copying / name).read_text().splitlines() for name in names]
    assert [len(part) for part in lines] == [8, 6]
    assert len({line for part in lines for line in part}) == 14
