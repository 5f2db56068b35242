"""A number that is not finite in one of two processes ends both, before the update."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import COPYING, UNTRACKED, read_checkpoint

SPOILER = """\
import lightning as L
import torch


class Spoiler(L.Callback):
    def on_before_backward(self, trainer, task, loss):
        if trainer.global_step == 2 and trainer.global_rank == 1:
            loss.data.fill_(torch.inf)
"""


@pytest.mark.slow
def test_both_processes_stop_before_the_update_and_name_the_one(folder: Path) -> None:
    (folder / "spoiler.py").write_text(SPOILER)
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.callbacks+=spoiler.Spoiler")
    command = ["fit", *COPYING, *UNTRACKED, *two, "--trust=spoiler", "--test_after_fit=false"]
    done = subprocess.run(
        [sys.executable, "-m", "rimlit", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 5, done.stderr
    # the loss of the first is finite: the sum says which process it was
    assert "The loss is not finite at step 2 (epoch 0, batch 2, process 1)" in done.stderr
    (path,) = folder.rglob("last.ckpt")
    assert read_checkpoint(path)["global_step"] == 2
