"""A checkpoint's weights are used without the optimiser and the schedule that trained them."""

import sys
from pathlib import Path

import pytest

import rimlit
from rimlit.checkpoints import write_checkpoint
from rimlit.errors import ConfigError
from rimlit.tasks import CopyingTask
from tests.cli.running import COPYING, QUIET, UNTRACKED, read_checkpoint, succeed
from tests.cli.running import rimlit as command

SHORT = (*QUIET, *UNTRACKED, "--trainer.limit_test_batches=1", "--trainer.limit_predict_batches=1")


@pytest.fixture
def checkpoint(copying: Path) -> Path:
    """A checkpoint whose optimiser and schedule are classes of a package that is neither trusted nor installed."""
    path = copying / "checkpoints/best.ckpt"
    content = read_checkpoint(path)
    for arguments in (content["rimlit"]["task"]["init_args"], content["hyper_parameters"]):
        arguments["optimizer"] = {"class_path": "elsewhere.Lion", "init_args": {"lr": 0.1}}
        arguments["scheduler"] = {"class_path": "elsewhere.schedules.Cosine", "init_args": {"length": 5}}
    write_checkpoint(content, path)
    return path


def test_from_python_the_task_loads_and_only_a_training_asks_for_its_optimizer(checkpoint: Path) -> None:
    for task in (rimlit.load_checkpoint(checkpoint), CopyingTask.load_from_checkpoint(checkpoint)):
        assert "weight" in " ".join(task.state_dict())
        with pytest.raises(ConfigError, match=r"class_path='elsewhere.Lion' is outside the trusted packages"):
            task.configure_optimizers()
    assert "elsewhere" not in sys.modules


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_commands_that_read_the_weights_need_no_optimizer(checkpoint: Path, name: str) -> None:
    succeed(name, "--ckpt_path", checkpoint, *SHORT, "--trainer.limit_val_batches=1")


def test_export_keeps_the_names_of_both_and_what_it_wrote_loads(checkpoint: Path, folder: Path) -> None:
    succeed("export", checkpoint, "--to", "exported")
    task = rimlit.load_checkpoint(folder / "exported")
    assert task.spec["init_args"]["optimizer"]["class_path"] == "elsewhere.Lion"


def test_a_new_run_takes_the_weights_and_resuming_is_refused(checkpoint: Path) -> None:
    brief = (*COPYING, *UNTRACKED, "--test_after_fit=false", "--trainer.max_steps=1", "--name=other")
    answer = command("fit", *brief, "--ckpt_path", checkpoint)
    assert answer.code == 2 and "elsewhere.Lion" in answer.err, answer.err
    succeed("fit", *brief, "--init_from", checkpoint)
