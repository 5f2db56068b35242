"""What every task does: factories, checkpoints of plain data, logs, refusals."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

import rimlit
from rimlit.backbones import LSTM, RIM
from rimlit.checkpoints import read_checkpoint
from rimlit.errors import CheckpointError, ConfigError
from rimlit.heads import AttentionHead
from rimlit.tasks import CopyingTask, LanguageModelingTask, Task
from rimlit.training.schedules import WarmupCosine
from tests.tasks.running import SMALL_LSTM, SMALL_RIM, make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet


class ScaledCopyingTask(CopyingTask):
    """A user's subclass with an argument more."""

    def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = scale

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return self.scale * super().loss(outputs, batch)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[CopyingTask, Path]:
    """A task after two steps, and its checkpoint."""
    task = make_copying_task(optimizer=partial(AdamW, lr=0.01), scheduler=partial(StepLR, step_size=3))
    trainer = make_trainer(tmp_path)
    trainer.fit(task, make_copying())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return task.eval(), tmp_path / "last.ckpt"


TOKENS = torch.tensor([[1, 2, 3, 4, 0, 0, 9, 0, 0, 0, 0], [8, 7, 6, 5, 0, 0, 9, 0, 0, 0, 0]])


def change(path: Path, edit: Any) -> Path:
    """Write a checkpoint beside ``path`` with what ``edit`` does to it."""
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, path.with_name("changed.ckpt"))
    return path.with_name("changed.ckpt")


def is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


# Checkpoints


@pytest.mark.parametrize("cls", [CopyingTask, Task])
def test_a_checkpoint_alone_gives_the_trained_task_back(
    trained: tuple[CopyingTask, Path], cls: type[Task]
) -> None:
    task, path = trained
    loaded = cls.load_from_checkpoint(path)
    assert type(loaded) is CopyingTask
    assert not loaded.training
    assert isinstance(loaded.backbone, RIM)
    assert torch.equal(loaded(TOKENS)[0], task(TOKENS)[0])
    assert loaded.hparams == task.hparams
    assert not torch.equal(make_copying_task().eval()(TOKENS)[0], task(TOKENS)[0])
    assert torch.equal(rimlit.load_checkpoint(path)(TOKENS)[0], task(TOKENS)[0])


def test_a_checkpoint_holds_plain_data_and_what_made_it(trained: tuple[CopyingTask, Path]) -> None:
    _, path = trained
    checkpoint = torch.load(path, weights_only=True)
    assert is_plain(checkpoint["rimlit"])
    assert is_plain(dict(checkpoint["hyper_parameters"]))
    assert checkpoint["rimlit"]["version"] == rimlit.__version__
    assert checkpoint["rimlit"]["task"]["class_path"] == "rimlit.tasks.CopyingTask"
    assert checkpoint["rimlit"]["data"]["class_path"] == "rimlit.data.Copying"
    assert checkpoint["rimlit"]["data"]["init_args"]["seed"] == 1
    assert checkpoint["hyper_parameters"]["backbone"] == SMALL_RIM
    assert checkpoint["hyper_parameters"]["optimizer"] == {
        "class_path": "torch.optim.adamw.AdamW",
        "init_args": {"lr": 0.01},
    }


def test_a_subclass_with_more_arguments_reloads_with_them(tmp_path: Path) -> None:
    task = ScaledCopyingTask(backbone=SMALL_LSTM, vocabulary_size=10, recall_length=4, embedding_size=6, scale=2.5)
    trainer = make_trainer(tmp_path)
    trainer.fit(task, make_copying())
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    loaded = Task.load_from_checkpoint(tmp_path / "own.ckpt")
    assert type(loaded) is ScaledCopyingTask
    assert loaded.scale == 2.5
    assert torch.equal(loaded(TOKENS)[0], task.eval()(TOKENS)[0])


def test_a_subclass_that_takes_args_is_refused_positional_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"ScaledCopyingTask takes \*args, .* pass them by keyword\. Got .*, 10\."
    ):
        ScaledCopyingTask(SMALL_LSTM, 10, recall_length=4)


def test_arguments_given_at_loading_replace_the_checkpoint_s(trained: tuple[CopyingTask, Path]) -> None:
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    loaded = CopyingTask.load_from_checkpoint(trained[1], optimizer=optimizer, scheduler=None)
    assert isinstance(loaded.configure_optimizers(), SGD)


def test_a_checkpoint_of_another_class_is_refused_with_both_names(trained: tuple[CopyingTask, Path]) -> None:
    with pytest.raises(
        CheckpointError, match=r"last\.ckpt holds a CopyingTask, which is not a LanguageModelingTask\."
    ):
        LanguageModelingTask.load_from_checkpoint(trained[1])


@pytest.mark.parametrize("url", ["https://example.org/model.ckpt", "s3://bucket/model.ckpt"])
def test_a_url_is_refused(url: str) -> None:
    with pytest.raises(CheckpointError, match=f"Checkpoints are local files; got {url}"):
        Task.load_from_checkpoint(url)


def test_a_path_without_a_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No checkpoint at .*best\.ckpt\."):
        read_checkpoint(tmp_path / "best.ckpt")


def test_a_file_that_is_not_a_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.ckpt").write_text("these are notes")
    with pytest.raises(CheckpointError, match=r"notes\.ckpt cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "notes.ckpt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.ones(2)])
def test_a_checkpoint_of_something_else_is_refused_by_name(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other\.ckpt is not a checkpoint that rimlit wrote: "):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_checkpoint_with_objects_in_it_is_refused_and_they_are_not_made(tmp_path: Path) -> None:
    torch.save({"rimlit": {"task": partial(print, "run")}}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt cannot be read"):
        Task.load_from_checkpoint(tmp_path / "evil.ckpt")


def test_a_checkpoint_that_names_an_untrusted_class_is_refused_before_any_import(
    trained: tuple[CopyingTask, Path],
) -> None:
    path = change(trained[1], lambda c: c["rimlit"]["task"].update(class_path="antigravity.Task"))
    with pytest.raises(ConfigError, match=r"class_path='antigravity\.Task' is outside the trusted packages"):
        Task.load_from_checkpoint(path)
    edit = lambda c: c["hyper_parameters"]["backbone"].update(class_path="antigravity.Backbone")  # noqa: E731
    with pytest.raises(ConfigError, match=r"class_path='antigravity\.Backbone' is outside the trusted packages"):
        Task.load_from_checkpoint(change(trained[1], edit))
    assert "antigravity" not in sys.modules


def test_a_checkpoint_whose_class_is_not_a_task_is_refused(trained: tuple[CopyingTask, Path]) -> None:
    path = change(trained[1], lambda c: c["rimlit"]["task"].update(class_path="rimlit.backbones.RIM"))
    with pytest.raises(ConfigError, match=r"rimlit\.backbones\.RIM' must be a subclass of rimlit\.tasks\.Task"):
        Task.load_from_checkpoint(path)


# Factories


@pytest.mark.parametrize(
    "factory",
    [partial(LSTM, hidden_size=12), SMALL_LSTM, {**SMALL_LSTM, "class_path": "rimlit.backbones.lstm.LSTM"}],
)
def test_a_backbone_comes_as_partial_or_as_dict_and_is_kept_as_plain_data(factory: Any) -> None:
    task = make_copying_task(backbone=factory)
    assert isinstance(task.backbone, LSTM)
    assert (task.backbone.input_size, task.backbone.output_size) == (6, 12)
    assert is_plain(dict(task.hparams))
    assert task.hparams["backbone"]["init_args"] == {"hidden_size": 12}


@pytest.mark.parametrize("name", ["backbone", "head", "optimizer", "scheduler"])
@pytest.mark.parametrize("factory", [lambda size: LSTM(size, 12), 7j, print])
def test_a_factory_that_no_checkpoint_could_hold_is_refused_by_name(name: str, factory: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"{name} must be a class, functools\.partial\(Class, key=value, …\) or"
    ):
        make_copying_task(**{name: factory})


def test_an_argument_that_the_backbone_does_not_have_is_refused_with_those_it_has() -> None:
    backbone = {"class_path": "rimlit.backbones.LSTM", "init_args": {"hidden": 12}}
    with pytest.raises(
        ConfigError, match="LSTM has no argument 'hidden'; it has input_size, hidden_size, num_layers"
    ):
        make_copying_task(backbone=backbone)


def test_a_size_that_the_data_module_does_not_declare_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match="CopyingTask needs recall_length, which the data module does not declare"
    ):
        make_copying_task(recall_length=None)


def test_the_default_optimizer_is_the_paper_s() -> None:
    optimizer = make_copying_task().configure_optimizers()
    assert isinstance(optimizer, Adam)
    assert optimizer.defaults["lr"] == 7e-4


@pytest.mark.parametrize(
    "factory", [partial(SGD, lr=0.25), {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25}}]
)
def test_an_optimizer_holds_every_parameter_at_its_rate(factory: Any) -> None:
    task = make_copying_task(optimizer=factory)
    optimizer = task.configure_optimizers()
    assert isinstance(optimizer, SGD)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert len(optimizer.param_groups[0]["params"]) == len(list(task.parameters()))


def test_a_scheduler_advances_with_every_step(tmp_path: Path) -> None:
    task = make_copying_task(optimizer=partial(SGD, lr=0.8), scheduler=partial(StepLR, step_size=2, gamma=0.5))
    trainer = make_trainer(tmp_path, max_steps=5)
    trainer.fit(task, make_copying())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "total_steps"),
    [({"max_steps": 6}, 6), ({"max_steps": -1, "max_epochs": 3}, 12), ({"max_steps": 4, "max_epochs": 3}, 4)],
)
def test_a_schedule_gets_the_run_s_own_length(tmp_path: Path, options: dict[str, int], total_steps: int) -> None:
    task = make_copying_task(scheduler=partial(WarmupCosine, warmup_steps=2))
    trainer = make_trainer(tmp_path, limit_val_batches=0, **options)
    trainer.fit(task, make_copying())
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == total_steps
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_a_length_that_was_given_is_kept(tmp_path: Path) -> None:
    task = make_copying_task(scheduler=partial(WarmupCosine, total_steps=50))
    trainer = make_trainer(tmp_path)
    trainer.fit(task, make_copying())
    assert trainer.lr_scheduler_configs[0].scheduler.total_steps == 50


def test_a_schedule_in_a_run_without_end_is_refused_with_the_remedy(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=-1)
    with pytest.raises(ValueError, match=r"got total_steps=None\. Set trainer\.max_steps or trainer\.max_epochs"):
        trainer.fit(make_copying_task(scheduler=WarmupCosine), make_copying())


def test_a_plateau_is_judged_by_validation_once_an_epoch(tmp_path: Path) -> None:
    task = make_copying_task(
        optimizer=partial(SGD, lr=0.0), scheduler=partial(ReduceLROnPlateau, patience=0, factor=0.5)
    )
    trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=3)
    trainer.fit(task, make_copying())
    config = trainer.lr_scheduler_configs[0]
    assert (config.interval, config.monitor) == ("epoch", "val/cross_entropy")
    assert config.scheduler.num_bad_epochs == 0
    assert config.scheduler.last_epoch == 3


def test_a_plateau_waits_for_the_validation_of_several_epochs(tmp_path: Path) -> None:
    task = make_copying_task(scheduler=partial(ReduceLROnPlateau, patience=0))
    trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=5, check_val_every_n_epoch=2)
    trainer.fit(task, make_copying())
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_a_plateau_in_the_wrong_direction_is_refused(tmp_path: Path) -> None:
    task = make_copying_task(scheduler=partial(ReduceLROnPlateau, mode="max"))
    says = "mode must be 'min', as val/cross_entropy is better there; got mode='max'"
    with pytest.raises(ConfigError, match=says):
        make_trainer(tmp_path).fit(task, make_copying())


def test_a_plateau_over_an_endless_stream_is_judged_after_each_validation(tmp_path: Path) -> None:
    task = make_copying_task(
        optimizer=partial(SGD, lr=0.0), scheduler=partial(ReduceLROnPlateau, patience=0, factor=0.5)
    )
    trainer = make_trainer(tmp_path, max_steps=7, val_check_interval=3, check_val_every_n_epoch=None)
    trainer.fit(task, make_copying(train_size=None))
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2


@pytest.mark.parametrize("backbone", [SMALL_RIM, SMALL_LSTM], ids=["RIM", "LSTM"])
@pytest.mark.parametrize(
    "head",
    [
        partial(AttentionHead, num_heads=2, query="features"),
        {"class_path": "rimlit.heads.SumHead", "init_args": {"hidden_size": 5}},
    ],
)
def test_a_head_is_chosen_like_a_backbone_and_comes_back_from_a_checkpoint(
    tmp_path: Path, head: Any, backbone: Any
) -> None:
    task = make_copying_task(backbone=backbone, head=head)
    assert task.head.num_mechanisms == (3 if backbone is SMALL_RIM else 1)
    trainer = make_trainer(tmp_path)
    trainer.fit(task, make_copying())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Task.load_from_checkpoint(tmp_path / "last.ckpt")
    assert type(loaded.head) is type(task.head)
    assert torch.equal(loaded(TOKENS)[0], task.eval()(TOKENS)[0])


def test_a_head_that_is_none_is_refused_with_what_it_must_be() -> None:
    with pytest.raises(ConfigError, match=r"rimlit\.backbones\.RIM' must be a subclass of rimlit\.heads\.Head"):
        make_copying_task(head={"class_path": "rimlit.backbones.RIM"})


# Logs


class Memory(DummyLogger):
    """A logger that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        for name, value in metrics.items():
            self.seen.setdefault(name, []).append(float(value))


def test_log_names_are_stage_group_and_quantity(tmp_path: Path) -> None:
    memory = Memory()
    trainer = make_trainer(tmp_path, logger=memory, log_every_n_steps=1, max_epochs=1, max_steps=-1)
    task, data = make_copying_task(), make_copying()
    trainer.fit(task, data)
    quantities = {"loss", "cross_entropy", "cross_entropy_all", "symbol_accuracy", "sequence_accuracy"}
    assert {name for name in memory.seen if name.startswith("val/")} == {f"val/{name}" for name in quantities}
    assert len(memory.seen["train/loss"]) == 4
    assert len(memory.seen["val/loss"]) == 1
    assert memory.seen["floor/cross_entropy"] == [pytest.approx(data.floors()["cross_entropy"])]  # once
    trainer.test(task, data, verbose=False)
    assert {name for name in memory.seen if name.startswith("test/")} == {
        f"test/span_{span}/{name}" for span in (3, 6) for name in quantities
    }


def test_metrics_of_a_test_are_those_of_all_samples_at_once(tmp_path: Path) -> None:
    task, data = make_copying_task().eval(), make_copying(batch_size=3)
    scores = {}
    for result in make_trainer(tmp_path).test(task, data, verbose=False):
        scores.update(result)
    for span in (3, 6):
        dataset = data.datasets("test")[f"span_{span}"]
        batch = data.collate([dataset[index] for index in range(8)])
        outputs, _ = task(batch.inputs)
        assert scores[f"test/span_{span}/loss"] == pytest.approx(task.loss(outputs, batch).item(), rel=1e-5)
        for name, metric in task.metrics().items():
            metric.update(outputs, batch.targets)
            assert scores[f"test/span_{span}/{name}"] == pytest.approx(metric.compute().item(), rel=1e-5), name


def test_loaders_without_a_data_module_are_numbered_groups(tmp_path: Path) -> None:
    task, data = make_copying_task(), make_copying()
    loaders = data.test_dataloader()
    single = make_trainer(tmp_path).test(task, loaders[0], verbose=False)
    assert "test/cross_entropy" in single[0]
    names = {name for result in make_trainer(tmp_path).test(task, loaders, verbose=False) for name in result}
    assert {"test/group_0/cross_entropy", "test/group_1/cross_entropy"} <= names
    assert isinstance(loaders[0], DataLoader)


# Inference


def test_weights_are_used_without_trust_in_the_optimizer_that_trained_them(
    trained: tuple[CopyingTask, Path],
) -> None:
    def edit(checkpoint: Any) -> None:
        for place in (checkpoint["rimlit"]["task"]["init_args"], checkpoint["hyper_parameters"]):
            place["optimizer"] = {"class_path": "antigravity.Lion", "init_args": {"lr": 0.1}}
            place["scheduler"] = {"class_path": "antigravity.Warmup", "init_args": {}}

    task, path = trained
    loaded = rimlit.load_checkpoint(change(path, edit))
    assert torch.equal(loaded(TOKENS)[0], task(TOKENS)[0])
    with pytest.raises(ConfigError, match=r"class_path='antigravity\.Lion' is outside the trusted packages"):
        loaded.configure_optimizers()
    assert "antigravity" not in sys.modules


def test_a_class_inside_an_argument_called_optimizer_elsewhere_is_still_checked(
    trained: tuple[CopyingTask, Path],
) -> None:
    def edit(checkpoint: Any) -> None:
        checkpoint["rimlit"]["task"]["init_args"]["backbone"]["init_args"]["optimizer"] = {
            "class_path": "antigravity.Lion",
            "init_args": {},
        }

    with pytest.raises(ConfigError, match=r"class_path='antigravity\.Lion' is outside the trusted packages"):
        rimlit.load_checkpoint(change(trained[1], edit))
