"""Another number of mechanisms at test time, from the command line."""

from pathlib import Path

import pytest

from tests.cli.running import QUIET, UNTRACKED, read_json, rimlit, succeed

SMALL = (
    "--data.frame_size=16",
    "--data.batch_size=2",
    "--data.val_size=2",
    "--data.test_size=2",
    "--data.test_balls=[2]",
    "--model.backbone.hidden_size=32",
    "--model.encoder.channels=[4, 4]",
)


@pytest.mark.slow
def test_states_are_added_at_test_time(folder: Path) -> None:
    command = ("fit", "--config=bouncing_balls/schemata", "--config=trainer/quick", "--trainer.max_steps=2")
    succeed(*command, *SMALL, *QUIET, *UNTRACKED, "--name=four")
    checkpoint = folder / "runs/bouncing_balls/four/checkpoints/best.ckpt"
    test = ("test", f"--ckpt_path={checkpoint}", *QUIET, *UNTRACKED)
    succeed(*test, "--model.backbone.num_mechanisms=8", "--name=eight")
    found = read_json(folder / "runs/bouncing_balls/eight/mechanisms.json")
    usage = [name for name in found if "/usage_" in name and not name.endswith("entropy")]
    assert len(usage) == 8
    assert (folder / "runs/bouncing_balls/eight/figures/schemata.png").is_file()
    refused = rimlit(*test, "--model.backbone.num_mechanisms=8", "--model.backbone.num_active=9", "--name=nine")
    assert refused.code == 2
    assert "num_active must be between 1 and num_mechanisms; got num_active=9, num_mechanisms=8." in refused.err


@pytest.mark.slow
def test_a_model_that_cannot_have_more_is_refused_in_one_line(folder: Path) -> None:
    small = (*SMALL[:5], "--model.backbone.hidden_size=24")
    command = ("fit", "--config=bouncing_balls/rim", "--config=trainer/quick", "--trainer.max_steps=2")
    succeed(*command, *small, *QUIET, *UNTRACKED, "--name=six")
    checkpoint = folder / "runs/bouncing_balls/six/checkpoints/best.ckpt"
    test = ("test", f"--ckpt_path={checkpoint}", *QUIET, *UNTRACKED, "--name=eight")
    refused = rimlit(*test, "--model.backbone.num_mechanisms=8")
    assert refused.code == 2
    assert "with_mechanisms needs weights that all mechanisms share" in refused.err
