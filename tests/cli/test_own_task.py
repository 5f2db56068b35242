"""A task of the user on the command line: factories its author did not name, and sizes from the data module."""

from pathlib import Path

import pytest

from tests.cli.running import QUIET, UNTRACKED, read_checkpoint, rimlit, succeed

MODULE = """
from __future__ import annotations

import torch
from rimlit import DataModule, Task
from rimlit.backbones import BackboneFactory
from rimlit.encoders import Identity
from torch.utils.data import TensorDataset


class Bits(DataModule):
    name = "bits"
    input_size = 1
    depth = 3

    @property
    def horizon(self):
        return 2 * self.depth

    def datasets(self, split):
        bits = torch.arange(160).view(16, 10, 1) % 2
        return {"": TensorDataset(bits.float(), bits.cumsum(dim=1) % 2)}


class Silent(Bits):
    input_size = None


class Named(Task):
    def __init__(self, backbone: BackboneFactory, input_size: int):
        super().__init__(Identity(input_size), backbone, output_size=1)

    def loss(self, outputs, batch):
        return (outputs - batch.targets).square().mean()

    def metrics(self):
        return {}


class Unannotated(Named):
    def __init__(self, backbone, input_size, optimizer=None):
        Task.__init__(self, Identity(input_size), backbone, 1, optimizer=optimizer)


class Keywords(Named):
    def __init__(self, *args, depth: int, **kwargs):
        super().__init__(*args, **kwargs)
        assert depth == 3


class Far(Keywords):
    def __init__(self, *, horizon: int = 1, **kwargs):
        super().__init__(**kwargs)
        assert horizon == 6


class Farther(Far):
    def __init__(self, backbone, **kwargs):
        super().__init__(backbone=backbone, **kwargs)
"""
OPTIONS = (
    "--trust=mine",
    "--model.backbone=LSTM",
    "--model.backbone.hidden_size=8",
    "--data=mine.Bits",
    "--data.batch_size=4",
    "--config=trainer/quick",
    "--trainer.max_steps=1",
    "--test_after_fit=false",
    *QUIET,
    *UNTRACKED,
)
FACTORIES = (
    "--model.optimizer=SGD",
    "--model.optimizer.lr=0.25",
    "--model.scheduler=StepLR",
    "--model.scheduler.step_size=1",
    "--model.head=AttentionHead",
    "--model.head.num_heads=2",
    "--model.encoder=Identity",
)


@pytest.fixture
def mine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize("name", ["Named", "Unannotated", "Keywords", "Far", "Farther"])
def test_every_factory_and_size_reaches_a_task_whose_author_did_not_name_them(mine: Path, name: str) -> None:
    succeed("fit", f"--model=mine.{name}", *OPTIONS, *FACTORIES, f"--name={name}")
    checkpoint = read_checkpoint(mine / f"runs/bits/{name}/checkpoints/last.ckpt")
    arguments = checkpoint["rimlit"]["task"]["init_args"]
    assert arguments["input_size"] == 1
    assert arguments["head"]["class_path"] == "rimlit.heads.AttentionHead"
    assert arguments["encoder"]["class_path"] == "rimlit.encoders.Identity"
    assert arguments["scheduler"]["init_args"]["step_size"] == 1
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.25
    sizes = {"input_size": 1}
    sizes |= {} if name in ("Named", "Unannotated") else {"depth": 3}
    sizes |= {"horizon": 6} if name.startswith("Far") else {}
    assert checkpoint["rimlit"]["sizes"] == sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.input_size=4"],
            "model.input_size comes from the data module, which says 1; remove",
        ),
        (["--data=mine.Silent"], "Named needs input_size, which the data module does not declare."),
        (["--model.optimizer=SGDD"], "'SGDD' is not a known class."),
        (["--model.encoder=Embedding"], "output_size must be given"),
    ],
)
def test_a_wrong_argument_of_such_a_task_is_one_line(mine: Path, options: list[str], message: str) -> None:
    answer = rimlit("fit", "--model=mine.Named", *OPTIONS, *options)
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.count("\n") <= 2, answer.err  # "Seed set to 0" before it
    assert not (mine / "runs").exists()
