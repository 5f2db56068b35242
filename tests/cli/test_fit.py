"""``rimlit.fit``: the run of ``rimlit fit``, from Python."""

import logging
import os
import random
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD
from torch.utils.data import TensorDataset

import rimlit
from rimlit import spec
from rimlit.backbones import LSTM
from rimlit.checkpoints import read_checkpoint
from rimlit.data import DataModule
from rimlit.errors import CheckpointError, ConfigError, DataError
from rimlit.tasks import CopyingTask
from tests.cli.running import COPYING, UNTRACKED, read_json, succeed
from tests.tasks.running import Named, quiet

pytestmark = quiet

TRAINER: dict[str, Any] = {
    "max_steps": 2,
    "val_check_interval": 2,
    "check_val_every_n_epoch": None,
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
COPY: dict[str, Any] = {
    "model": {"class_path": "rimlit.tasks.CopyingTask", "init_args": {"backbone": partial(LSTM, hidden_size=8)}},
    "data": {
        "class_path": "rimlit.data.Copying",
        "init_args": {"train_span": 3, "test_spans": [3, 4], "batch_size": 4, "val_size": 4, "test_size": 4},
    },
}

NO_FILE = {"class_path": "rimlit.data.Text", "init_args": {"path": "no.csv"}}


class Bits(DataModule):
    """Parities."""

    name = "bits"
    input_size = 1

    def __init__(self, *, batch_size: int = 64) -> None:  # takes no seed
        super().__init__(batch_size=batch_size)

    def datasets(self, split: str) -> dict[str, Any]:
        bits = torch.arange(160).view(16, 10, 1) % 2
        return {"": TensorDataset(bits.float(), bits.cumsum(dim=1) % 2)}


class Parity(Named):
    """A task that names no factory but the backbone."""


def process() -> dict[str, Any]:
    """What a run must leave as it is."""
    random_state = np.random.get_state()
    return {
        "argv": list(sys.argv),
        "path": list(sys.path),
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "signals": [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "random": (torch.get_rng_state().tolist(), random_state[1].tolist(), random.getstate()),  # type: ignore[union-attr]
        "trusted": set(spec._trusted_here),
        "loggers": [
            (
                logging.getLogger(name).level,
                list(logging.getLogger(name).handlers),
                logging.getLogger(name).filters,
            )
            for name in ("rimlit", "lightning.pytorch")
        ],
    }


def test_a_config_by_name_is_the_run_of_the_command(folder: Path) -> None:
    succeed("fit", *COPYING, *UNTRACKED, "--name=typed")
    result = rimlit.fit("copying/rim", overrides=[*COPYING[1:], *UNTRACKED], name="called")
    assert result.folder == Path("runs/copying/called")
    typed = read_checkpoint(folder / "runs/copying/typed/checkpoints/best.ckpt")
    called = result.task.state_dict()
    assert all(torch.equal(called[name], value) for name, value in typed["state_dict"].items())
    assert type(result.task) is CopyingTask and not result.task.training
    assert result.scores == read_json(result.folder / "results.json")["test"] == result.results["test"]
    assert repr(result).startswith("FitResult(runs/copying/called: span_5/cross_entropy=")


def test_a_mapping_is_a_config_and_settings_go_before_it(folder: Path) -> None:
    result = rimlit.fit(COPY, seed=3, overrides={"model.optimizer": "SGD", "model.optimizer.lr": 0.0}, **TRAINER)
    assert result.folder == Path("runs/copying/run-seed3")
    assert (result.results["seed"], result.results["steps"]) == (3, 2)
    checkpoint = read_checkpoint(result.folder / "checkpoints/last.ckpt")
    assert checkpoint["rimlit"]["task"]["init_args"]["optimizer"]["init_args"]["lr"] == 0
    assert result.results["command"].startswith("rimlit.fit --trainer.max_steps=2")


def test_a_task_and_its_data_are_trained_themselves_and_resumed(folder: Path) -> None:
    task = Parity(partial(LSTM, hidden_size=4), 1, optimizer=partial(SGD, lr=0.5))  # type: ignore[call-arg]
    before = {name: value.clone() for name, value in task.state_dict().items()}
    data = Bits(batch_size=4)
    first = rimlit.fit(task, data, name="mine", **TRAINER)
    assert first.folder == Path("runs/bits/mine")
    assert any(not torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert isinstance(first.task, Parity) and first.task is not task
    done = rimlit.fit(task, data, name="mine", **TRAINER)
    assert (done.results, done.scores) == (first.results, first.scores)
    longer = rimlit.fit(task, data, name="mine", **{**TRAINER, "max_steps": 4})
    assert longer.results["steps"] == 4
    with pytest.raises(ConfigError, match=r"started with data\.init_args\.batch_size=4; got 8"):
        rimlit.fit(task, Bits(batch_size=8), name="mine", **TRAINER)
    tuned = rimlit.fit(task, data, name="tuned", init_from=longer.folder, test=False, **TRAINER)
    assert tuned.results["init_from"]["tensors"] == len(before)
    assert tuned.scores == {}


def test_the_process_is_left_as_it_was_after_success_and_after_failure(folder: Path) -> None:
    before = process()
    rimlit.fit(COPY, **TRAINER)
    assert process() == before
    with pytest.raises(ConfigError):
        rimlit.fit(COPY, name="failed", gradient_clip_val=-1, **TRAINER)
    with pytest.raises(ConfigError):
        rimlit.fit(COPY, name="refused", overrides={"data.train_span": 0}, **TRAINER)
    assert process() == before
    assert not (folder / "runs/copying/failed").exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"config": "copying/rimm"}, ConfigError, "config='copying/rimm' is neither a file nor the name of a"),
        ({"max_step": 3}, ConfigError, "'trainer.max_step' is not a setting. Did you mean trainer.max_steps"),
        ({"overrides": {"name": "x"}}, ConfigError, "name is an argument of rimlit.fit, and not among overrides"),
        ({"callbacks": [object()]}, ConfigError, "trainer.callbacks[0] must be a class, functools.partial("),
        ({"data": Bits()}, ConfigError, "data must be a DataModule, beside a task; got config={"),
        ({"resume": "nowhere.ckpt"}, CheckpointError, "No checkpoint at nowhere.ckpt."),
        ({"config": {"model": COPY["model"], "data": NO_FILE}}, DataError, "path='no.csv' does not exist"),
    ],
)
def test_a_mistake_is_an_exception_of_its_kind(
    folder: Path, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    config = arguments.pop("config", COPY)
    with pytest.raises(kind) as caught:
        rimlit.fit(config, **{**TRAINER, **arguments})
    assert message in str(caught.value)
    assert not (folder / "runs").exists()


def test_a_task_alone_is_refused_and_the_message_is_short() -> None:
    task = Parity(partial(LSTM, hidden_size=4), 1)
    with pytest.raises(ConfigError, match="beside a task; got config='Parity', data=None"):
        rimlit.fit(task)
