"""A user's subclass accepts every factory and every size, whatever its author's ``__init__`` names."""

import copy
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import TensorDataset

import rimlit
from rimlit.backbones import LSTM, BackboneFactory
from rimlit.cli.settings import with_sizes
from rimlit.data import DataModule
from rimlit.encoders import Embedding, Encoder, Identity
from rimlit.errors import ConfigError
from rimlit.heads import AttentionHead, LinearHead
from rimlit.tasks import CopyingTask, Task
from rimlit.tasks.signatures import declared_sizes
from tests.tasks.running import Named, make_trainer, quiet

pytestmark = quiet


class Numbers(DataModule):
    """Vectors of two numbers; the target is their sum so far."""

    input_size = 2
    depth = 5
    shape = (3, 4)
    layer = nn.Linear(2, 2)  # no plain value

    def datasets(self, split: str) -> dict[str, Any]:
        inputs = torch.arange(64.0).view(8, 4, 2) / 64
        return {"": TensorDataset(inputs, inputs.sum(dim=-1, keepdim=True).cumsum(dim=1))}


class Unannotated(Named):
    """Names an optimiser and says nothing of its type."""

    def __init__(self, backbone, input_size, optimizer=None, *, depth=1):  # type: ignore[no-untyped-def]
        Task.__init__(self, Identity(input_size), backbone, 1, optimizer=optimizer)
        self.depth = depth


class Keywords(Named):
    """Passes all keywords on."""

    def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class OfItsOwn(Task):
    """Passes keywords on to the base, beside an encoder and an optimiser of its own."""

    loss = Named.loss
    metrics = Named.metrics

    def __init__(self, backbone: BackboneFactory, input_size: int, **kwargs: Any) -> None:
        super().__init__(Identity(input_size), backbone, 1, optimizer=partial(SGD, lr=0.125), **kwargs)


class Deeper(Keywords):
    """Passes keywords on to a class that does, and needs a size besides."""

    def __init__(self, depth: int, **kwargs: Any) -> None:
        super().__init__(scale=2.0, **kwargs)
        self.depth = depth


class Widened(Encoder):
    def __init__(self, input_size: int, width: int = 3) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, width
        self.linear = nn.Linear(input_size, width)

    def forward(self, inputs: Tensor) -> Tensor:
        made: Tensor = self.linear(inputs)
        return made


CLASSES = [Named, Unannotated, Keywords, OfItsOwn, Deeper]
LSTM_12 = partial(LSTM, hidden_size=12)


def make(cls: type[Task], **arguments: Any) -> Task:
    return cls(**{"backbone": LSTM_12, **with_sizes(cls, {}, Numbers()), **arguments})


@pytest.mark.parametrize("cls", CLASSES)
def test_every_subclass_accepts_all_factories_and_its_checkpoint_brings_them_back(
    cls: type[Task], tmp_path: Path
) -> None:
    task = make(
        cls,
        encoder=partial(Widened, width=4),
        head=partial(AttentionHead, num_heads=2),
        optimizer=partial(AdamW, lr=0.25),
        scheduler=partial(StepLR, step_size=1, gamma=0.5),
    )
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(task, Numbers(batch_size=4))
    assert isinstance(trainer.optimizers[0], AdamW)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.125
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    loaded = rimlit.load_checkpoint(tmp_path / "own.ckpt")
    assert type(loaded) is cls
    assert isinstance(loaded.encoder, Widened) and loaded.encoder.output_size == 4
    assert isinstance(loaded.head, AttentionHead) and loaded.head.num_heads == 2
    inputs = torch.ones(2, 3, 2)
    assert torch.equal(loaded(inputs)[0], task.eval()(inputs)[0])
    assert copy.deepcopy(task).spec == task.spec


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_not_given_stays_as_the_author_has_it(cls: type[Task]) -> None:
    task = make(cls, optimizer=None, head=None, encoder=None, scheduler=None)
    assert type(task.encoder) is Identity and type(task.head) is LinearHead
    optimizer = task.configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == (0.125 if cls is OfItsOwn else 7e-4)


@pytest.mark.parametrize("cls", [*CLASSES, CopyingTask])
def test_the_published_signature_names_the_factories_and_leaves_sizes_to_the_data(cls: type[Task]) -> None:
    parameters = inspect.signature(cls).parameters
    for name in ("encoder", "head", "optimizer", "scheduler"):
        assert parameters[name].default is None
        assert type(None) in parameters[name].annotation.__args__, name
    for name in {"input_size", "depth", "vocabulary_size"} & set(parameters):
        assert parameters[name].default in (None, 1)


def test_sizes_come_from_whatever_the_data_module_declares_through_keywords_too() -> None:
    assert with_sizes(Deeper, {}, Numbers()) == {"depth": 5, "input_size": 2}
    assert with_sizes(Unannotated, {"input_size": 2}, Numbers()) == {"depth": 5, "input_size": 2}
    assert with_sizes(OfItsOwn, {}, Numbers()) == {"input_size": 2}
    names = ["shape", "layer", "batch_size", "seed", "name", "optimizer", "no_such_thing"]
    assert declared_sizes(Numbers(), names) == {"shape": [3, 4]}  # plain, and not what every data module has
    with pytest.raises(ConfigError, match=r"model\.depth comes from the data module, .* 5; remove depth=7"):
        with_sizes(Deeper, {"depth": 7}, Numbers())


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (Named, {"input_size": None}, "Named needs input_size, which the data module does not declare."),
        (Deeper, {"depth": None}, "Deeper needs depth, which the data module does not declare."),
        (Named, {"backbone": None}, "Named needs backbone: a class, functools.partial(Class, key=value, …) or a "),
        (Named, {"optimizer": {"lr": 1}}, "optimizer must have the keys class_path and init_args; got ['lr']."),
        (Named, {"optimizer": "Adam"}, "optimizer must be a class, functools.partial(Class, key=value, …) or "),
        (
            Keywords,
            {"head": LSTM_12},
            "class_path='rimlit.backbones.LSTM' must be a subclass of rimlit.heads.Head.",
        ),
        (Keywords, {"encoder": Embedding}, "Embedding: missing a required argument: 'output_size'; it has "),
        (Named, {"encoder": partial(Widened, w=1)}, "Widened has no argument 'w'; it has input_size, width."),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_it(cls: type[Task], arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(cls, **arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_encoder_cannot_replace_one_whose_input_is_unknown() -> None:
    class Opaque(Named):
        def __init__(self, backbone: BackboneFactory, input_size: int) -> None:
            encoder = nn.Identity()
            encoder.output_size = input_size  # type: ignore[assignment]
            Task.__init__(self, encoder, backbone, 1)

    with pytest.raises(ConfigError, match=r"encoder='rimlit\.encoders\.Identity': its own Identity has no"):
        make(Opaque, encoder=Identity)


def test_an_author_may_keep_hyperparameters_as_lightning_has_it() -> None:
    class Keeps(Named):
        def __init__(self, backbone: BackboneFactory, input_size: int) -> None:
            super().__init__(backbone, input_size)
            self.save_hyperparameters()
            self.save_hyperparameters({"note": 1})

    task = make(Keeps)
    assert task.hparams["note"] == 1
    assert task.hparams["backbone"]["init_args"] == {"hidden_size": 12}
