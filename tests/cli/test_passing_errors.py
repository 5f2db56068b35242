"""Errors of torch, Lightning, jsonargparse and of the user's own code: one line, and the exit code of their kind.

``CASES`` is a table: a new kind is a new row of name, arguments, exit code and words of the message.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

import rimlit as package
from rimlit.cli.failures import translate
from rimlit.errors import RimlitError, install_command
from tests.cli.running import COPYING, QUIET, UNTRACKED, rimlit

FIT = ("fit", *COPYING, *UNTRACKED, "--test_after_fit=false")
OPTIMIZER = "--model.init_args.optimizer"
SCHEDULER = "--model.init_args.scheduler"
METRICS = ["train/loss", "val/loss", "val/cross_entropy"]


def callback(name: str, **arguments: Any) -> str:
    """The option that adds a callback of Lightning."""
    return f"--trainer.callbacks={{class_path: lightning.pytorch.callbacks.{name}, init_args: {arguments}}}"


def config(text: str) -> tuple[str, ...]:
    """The words of a fit whose last config holds ``text``."""
    Path("own.yaml").write_text(text, encoding="utf-8")
    return (*FIT, "--config=own.yaml")


def environment(mode: str, *options: str) -> tuple[str, ...]:
    """The words of a fit in an environment that goes wrong in one way."""
    Path("worlds.py").write_text(WORLD, encoding="utf-8")
    named = ("--trust=worlds", "--data.environment=worlds.World", f"--data.options={{mode: {mode}}}")
    length = ("--data.total_steps=2048", "--test_after_fit=false")
    return ("fit", "--config=cartpole/rim", *named, *length, *QUIET, *UNTRACKED, *options)


def own_code(base: str, body: str, *options: str) -> tuple[str, ...]:
    """The words of a fit with a class of the user's that raises."""
    method = body.removeprefix("def ").partition("(")[0].strip("_")
    name = f"own_{base.rpartition('.')[2].lower()}_{method}"
    imports = "import lightning as L\nfrom rimlit.tasks import CopyingTask\nfrom rimlit.data import Copying\n"
    Path(f"{name}.py").write_text(f"{imports}\nclass Own({base}):\n    {body}\n", encoding="utf-8")
    return (*FIT, f"--trust={name}", *(option.replace("OWN", f"{name}.Own") for option in options))


WORLD = """\
import gymnasium, numpy as np
from gymnasium import spaces

class World(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)

    def __init__(self, mode, render_mode=None):
        self.mode, self.steps = mode, 0
        if mode == "make":
            raise RuntimeError("no world\\ntoday")
        if mode == "sequence":
            self.observation_space = spaces.Sequence(spaces.Box(-1, 1, (3,)))

    def reset(self, *, seed=None, options=None):
        return None if self.mode == "reset" else (np.zeros(3, np.float32), {})

    def step(self, action):
        self.steps += 1
        if self.mode == "step":
            raise KeyError("door")
        reward = np.zeros(3) if self.mode == "reward" else 1.0
        over = {"array": np.zeros(2, bool), "none": None, "text": "no"}.get(self.mode, self.steps % 5 == 0)
        return np.zeros(3, np.float32), reward, over, False, {}
"""

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

CASES: dict[str, tuple[Any, int, list[str]]] = {
    # callbacks
    "early stopping": (
        (*FIT, callback("EarlyStopping", monitor="val/los")),
        2,
        ["EarlyStopping", "val/los", *METRICS],
    ),
    "checkpoint": ((*FIT, callback("ModelCheckpoint", monitor="val/los")), 2, ["ModelCheckpoint", *METRICS]),
    "early stopping, in training": (
        (*FIT, callback("EarlyStopping", monitor="train/los")),
        2,
        ["EarlyStopping: monitor='train/los' is not a metric of CopyingTask", "train/loss"],
    ),
    "learning-rate finder": (
        (*FIT, callback("LearningRateFinder")),
        2,
        ["LearningRateFinder", "model.optimizer.lr"],
    ),
    "batch-size finder": ((*FIT, callback("BatchSizeFinder")), 2, ["BatchSizeFinder", "data.batch_size"]),
    # processes
    **{
        name: ((*FIT, f"--trainer.strategy={name}"), 2, ["trainer.strategy", method, "Use ddp"])
        for name, method in (("ddp_spawn", "spawn"), ("ddp_notebook", "fork"), ("ddp_fork", "fork"))
    },
    "devices": (
        (*FIT, "--trainer.devices=99", "--data.batch_size=99"),
        2,
        ["trainer.devices must be", "devices=99"],
    ),
    "barebones": ((*FIT, "--trainer.barebones=true"), 2, ["trainer.barebones=True", "trainer.fast_dev_run"]),
    # optimisers and schedules
    "sparse": ((*FIT, f"{OPTIMIZER}=SparseAdam"), 2, ["SparseAdam", "dense gradients"]),
    "step size": ((*FIT, f"{SCHEDULER}=StepLR", f"{SCHEDULER}.step_size=0"), 2, ["StepLR", "step_size=0"]),
    "period": (
        (*FIT, f"{SCHEDULER}=CosineAnnealingLR", f"{SCHEDULER}.T_max=0"),
        2,
        ["CosineAnnealingLR", "T_max=0"],
    ),
    "plateau": (
        (*FIT, f"{SCHEDULER}=ReduceLROnPlateau", f"{SCHEDULER}.monitor=val/loss"),
        2,
        ["'monitor'", "mode"],
    ),
    "plateau, of Lightning": (
        (*FIT, f"{SCHEDULER}=lightning.pytorch.cli.ReduceLROnPlateau", f"{SCHEDULER}.monitor=val/los"),
        2,
        ["ReduceLROnPlateau: monitor='val/los' is not a metric", "val/loss"],
    ),
    # parts of a config that are not mappings
    "trainer": (lambda: config("trainer: 5"), 2, ["trainer must be a mapping", "got 5"]),
    "trainer, option": ((*FIT, "--trainer=5"), 2, ["trainer must be a mapping", "5"]),
    "trainer, none": (lambda: config("trainer: null"), 2, ["trainer must be a mapping", "got None"]),
    "model": (lambda: config("model: 5"), 2, ["model must be the name of a class", "got 5"]),
    "model, class path": (lambda: config("model: {class_path: 5}"), 2, ["model must be", "{'class_path': 5}"]),
    "data": (lambda: config("data: []"), 2, ["data must be the name of a class", "got []"]),
    "arguments": (lambda: config("model: {init_args: 5}"), 2, ["model must be", "{'init_args': 5}"]),
    "a key that is not text": (lambda: config("5: 6"), 2, ["config='own.yaml' must hold keys", "{5: 6}"]),
    # YAML without bounds
    "recursive alias": (
        lambda: config("model: &a {x: *a}"),
        2,
        ["config='own.yaml'", "*a refers to a node that contains it"],
    ),
    "billion laughs": (lambda: config(LAUGHS), 2, ["config='own.yaml'", "more than 20,000 values"]),
    "nesting": (lambda: config("model: " + "{a: " * 100_000), 2, ["config='own.yaml'", "deeper than 50 levels"]),
    "size": (lambda: config("a: 1\n" * 300_000), 2, ["config='own.yaml'", "1,048,576 bytes"]),
    "a checkpoint for a config": (("fit", "runs/best.ckpt"), 2, ["is a checkpoint", "--ckpt_path"]),
    # folders that are not folders
    **{
        scheme: (
            (*FIT, f"--trainer.default_root_dir={scheme}://bucket/x"),
            2,
            ["default_root_dir", "local folder"],
        )
        for scheme in ("s3", "gs", "hdfs")
    },
    "triton": ((*FIT, "--model.backbone.backend=triton"), 2, ["backend='triton'", "CUDA", "cpu"]),
    # memory
    "memory": (
        (*FIT, "--model.embedding_size=9000000000000"),
        1,
        ["Out of memory", "bytes were asked for", "model.embedding_size=9000000000000"],
    ),
    # environments
    "world, made": (
        lambda: environment("make"),
        3,
        ["worlds.World cannot be made: RuntimeError: no world today."],
    ),
    "world, reset": (lambda: environment("reset"), 3, ["environment 0 raised in its reset", "NoneType"]),
    "world, step": (lambda: environment("step"), 3, ["environment 0 raised at step 1: KeyError: 'door'"]),
    "world, reward": (lambda: environment("reward"), 3, ["a reward of array([0., 0., 0.])"]),
    "world, terminated": (
        lambda: environment("array"),
        3,
        ["terminated as array([False, False])", "True or False"],
    ),
    "world, none": (lambda: environment("none"), 3, ["terminated as None at step 1", "True or False"]),
    "world, text": (lambda: environment("text"), 3, ["terminated as 'no' at step 1"]),
    "world, sequence": (lambda: environment("sequence"), 2, ["cannot be flattened", "Sequence", "wrappers"]),
    "wrapper": (
        lambda: environment("fine", "--data.wrappers=[FlattenObservatio]"),
        2,
        ["is not a wrapper of gymnasium", "Did you mean FlattenObservation"],
    ),
    # the user's own code keeps its file and line
    "own loss": (
        lambda: own_code("CopyingTask", "def loss(self, outputs, batch): return {}['x']", "--model=OWN"),
        1,
        ["KeyError: 'x' [own_copyingtask_loss.py, line 6, in loss]", "RIMLIT_DEBUG=1 shows the traceback"],
    ),
    "own step": (
        lambda: own_code("CopyingTask", "def on_train_batch_end(self, *_): return {}['x']", "--model=OWN"),
        1,
        ["KeyError: 'x' [own_copyingtask_on_train_batch_end.py, line 6, in on_train_batch_end]", "traceback.txt"],
    ),
    "own callback": (
        lambda: own_code(
            "L.Callback", "def on_fit_start(self, *_): raise ValueError('mine')", "--trainer.callbacks=OWN"
        ),
        1,
        ["ValueError: mine [own_callback_on_fit_start.py, line 6"],
    ),
    "own use of a backbone": (
        lambda: own_code(
            "CopyingTask", "def training_step(self, batch, _): return self.backbone(batch.inputs)", "--model=OWN"
        ),
        2,
        ["inputs must be non-empty, (B, T, input_size)", "[own_copyingtask_training_step.py, line 6, in"],
    ),
    "own constructor": (
        lambda: own_code("Copying", "def __init__(self, a: int = 1): raise ValueError('mine')", "--data=OWN"),
        2,
        ["mine [own_copying_init.py, line 6, in __init__]"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_error_from_below_is_one_line_with_the_exit_code_of_its_kind(folder: Path, name: str) -> None:
    arguments, code, words = CASES[name]
    answer = rimlit(*(arguments() if callable(arguments) else arguments))
    *before, error = answer.err.splitlines()
    assert answer.code == code, answer.err
    assert all(line.startswith("RIM time loop") for line in before), answer.err
    assert error.startswith("rimlit: error: ") and len(error) < 700 and "Traceback" not in answer.err
    missing = [word for word in words if word not in error]
    assert not missing, f"{missing} not in: {error}"


def test_tasks_of_slurm_that_lightning_does_not_start_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    answer = rimlit(*FIT)
    assert answer.code == 2
    assert "SLURM_NTASKS=4" in answer.err and "--ntasks-per-node=4" in answer.err and answer.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError(), ""),
        (RuntimeError("std::bad_alloc"), ""),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 1 GiB"), "20.00 GiB"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to "
                      "allocate 72000000 bytes. Error code 12"), "72000000 bytes"),
        (RuntimeError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
                      "last):\n  File \"x.py\", line 1, in f\nMemoryError: Unable to allocate 7 GiB"), "7 GiB"),
    ],
)  # fmt: skip
def test_a_lack_of_memory_names_the_largest_sizes(error: Exception, asked: str) -> None:
    settings = {"data": {"init_args": {"batch_size": 4096, "train_span": 7, "seed": 10**9}}, "model": {"size": 30}}
    found = translate(error, settings)
    assert type(found) is RimlitError and found.exit_code == 1
    assert str(found).startswith(f"Out of memory{f', {asked} were asked for' if asked else ''}.")
    assert str(found).endswith("Make a size smaller: data.batch_size=4096, model.size=30, data.train_span=7.")


def test_an_unexpected_error_keeps_its_traceback_where_there_is_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ZeroDivisionError("by\nzero")
    assert str(translate(error)).endswith("ZeroDivisionError: by zero (RIMLIT_DEBUG=1 shows the traceback)")
    assert not list(folder.iterdir())
    assert "(the traceback is in " in str(translate(error, {}, folder))
    assert "ZeroDivisionError: by\nzero" in (folder / "traceback.txt").read_text()
    monkeypatch.setenv("RIMLIT_DEBUG", "1")
    assert str(translate(error)) == "ZeroDivisionError: by zero"


def test_an_error_that_no_command_expects_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[str]) -> None:
        raise LookupError("gone")

    monkeypatch.setattr("rimlit.cli._dispatch", fail)
    answer = rimlit("configs")
    assert answer.code == 1
    assert answer.err.startswith("rimlit: error: LookupError: gone [") and "RIMLIT_DEBUG=1" in answer.err
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "base: &base {max_steps: 2}\n",
        "\ufeffname: é\n",
    ],
)
def test_a_text_that_any_editor_writes_is_read(folder: Path, text: str) -> None:
    from rimlit.yaml_files import load_yaml

    (folder / "own.yaml").write_text(text, encoding="utf-8")
    assert load_yaml(folder / "own.yaml") in ({"base": {"max_steps": 2}}, {"name": "é"})


def test_merge_keys_of_yaml_work_and_a_second_one_is_refused(folder: Path) -> None:
    (folder / "own.yaml").write_text("trainer:\n  <<: {max_steps: 2, log_every_n_steps: 7}\n  max_steps: 3\n")
    printed = rimlit(*FIT, "--config=own.yaml", "--print_config").out
    assert "max_steps: 3" in printed and "log_every_n_steps: 7" in printed
    (folder / "own.yaml").write_text("trainer: {<<: {max_steps: 2}, <<: {max_epochs: 2}}\n")
    answer = rimlit(*FIT, "--config=own.yaml")
    assert answer.code == 2 and "the key '<<' occurs twice" in answer.err


def test_configs_may_be_given_first_without_their_option_and_options_before_them(folder: Path) -> None:
    options = [word for word in COPYING if not word.startswith("--config")]
    expected = rimlit(*FIT, "--print_config").out
    assert expected.startswith("# ") or "class_path: rimlit.tasks.CopyingTask" in expected
    first = rimlit("fit", "copying/rim", "trainer/quick", *options, *FIT[-2:], "--print_config")
    assert (first.code, first.out) == (0, expected), first.err
    before = rimlit(
        "fit", *options, "--config", "copying/rim", "--config=trainer/quick", *FIT[-2:], "--print_config"
    )
    assert before.code == 0, before.err
    assert "hidden_size: 24" in before.out and "batch_size: 4" in before.out


@pytest.mark.parametrize("name", ["RichProgressBar", "TQDMProgressBar"])
def test_a_progress_bar_of_lightning_replaces_rimlit_s(folder: Path, name: str) -> None:
    answer = rimlit(*FIT, callback(name), "--trainer.enable_progress_bar=true")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("arguments", [(callback("Timer"),), (f"{SCHEDULER}=ReduceLROnPlateau",)])
def test_a_class_of_lightning_or_torch_works_by_its_name(folder: Path, arguments: tuple[str, ...]) -> None:
    answer = rimlit(*FIT, *arguments)
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("extra", ["data", "completion", "tensorboard", "rl", "atari", "gpu"])
def test_the_command_that_installs_an_extra_names_no_package_that_a_stranger_could_claim(extra: str) -> None:
    command, in_checkout = install_command(extra).split(" (in a checkout: ")
    assert in_checkout == f"pip install '.[{extra}]')"
    assert command.startswith("pip install '") and "rimlit" not in command and ";" not in command


def test_no_message_tells_to_install_this_package_from_an_index() -> None:
    for path in Path(package.__file__).parent.rglob("*.py"):
        assert "install 'rimlit" not in path.read_text(encoding="utf-8"), path
