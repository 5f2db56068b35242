"""FSDP, which Lightning refuses on a CPU."""

from pathlib import Path

import pytest

from tests.cli.running import COPYING, UNTRACKED, read_checkpoint, read_json, succeed


@pytest.mark.gpu
def test_fsdp_trains_a_rim_and_goes_on(folder: Path) -> None:
    sharded = ("--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.strategy=fsdp")
    for steps in (4, 6):
        succeed("fit", *COPYING, *UNTRACKED, *sharded, f"--trainer.max_steps={steps}")
        run = folder / "runs/copying/rim-seed0"
        assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == steps
        assert read_json(run / "results.json")["steps"] == steps
