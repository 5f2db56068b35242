"""Lightning's private names: each is still there, and no other file touches one."""

import ast
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.fabric.utilities import logger
from lightning.pytorch.core import optimizer
from lightning.pytorch.strategies import DDPStrategy, launchers
from lightning.pytorch.strategies.launchers import multiprocessing
from lightning.pytorch.trainer.connectors.logger_connector import result

import rimlit
from rimlit.training import _lightning
from tests.tasks.running import make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet

ROOT = Path(rimlit.__file__).parent
HOMES = {Path(_lightning.__file__): "lightning", ROOT / "cli/_jsonargparse.py": "jsonargparse"}


def a_trainer() -> L.Trainer:
    return L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, max_steps=1)


def a_result() -> Any:
    return _lightning.make_result(
        a_trainer(), {"fx": "training_step", "name": "loss"}, max, is_added_up=True, rank_zero_only=False
    )


NAMES: dict[str, Any] = {
    "_accelerator_connector": a_trainer,
    "_signal_connector": a_trainer,
    "_logger_connector": a_trainer,
    "_original_handlers": lambda: a_trainer()._signal_connector,
    "_get_current_signal_handlers": lambda: a_trainer()._signal_connector,
    "_convert_params": lambda: logger,
    "_flatten_dict": lambda: logger,
    "_restarting": lambda: a_trainer().fit_loop,
    "_batches_that_stepped": lambda: a_trainer().fit_loop.epoch_loop,
    "_results": lambda: a_trainer().fit_loop.epoch_loop,
    "_callback_metrics": lambda: a_trainer()._logger_connector,
    "_first_loop_iter": lambda: a_trainer()._logger_connector,
    "_init_optimizers_and_lr_schedulers": lambda: optimizer,
    "_ChildProcessObserver": lambda: subprocess_script,
    "_child_processes": lambda: subprocess_script._ChildProcessObserver(main_pid=1, child_processes=[]),
    "_SubprocessScriptLauncher": lambda: launchers,
    "_MultiProcessingLauncher": lambda: multiprocessing,
    "_start_method": lambda: multiprocessing._MultiProcessingLauncher(DDPStrategy(), start_method="spawn"),
    "_Metadata": lambda: result,
    "_ResultMetric": lambda: result,
    "_Sync": lambda: result,
    "_update_count": a_result,
    "_forward_cache": a_result,
}


@pytest.mark.parametrize("name", NAMES)
def test_lightning_still_has(name: str) -> None:
    assert hasattr(NAMES[name](), name)


def private_names(tree: ast.AST) -> set[str]:
    """Private attributes, imports and keywords in a file, without Python's own and those of ``self``."""
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "super()")
    }
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_every_private_name_in_use_is_among_those_that_are_asked_for() -> None:
    used = private_names(ast.parse(Path(_lightning.__file__).read_text(encoding="utf-8")))
    assert used | {_lightning.CACHE} == NAMES.keys()


def test_no_other_file_touches_a_private_name() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
    foreign = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in HOMES.values()
        if HOMES.get(path) != (node.module or "").split(".")[0]
        if any(part.startswith("_") for part in [*node.module.split("."), *(alias.name for alias in node.names)])
    ]
    assert foreign == []
    touched = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, tree in trees.items()
        if path not in HOMES
        for name in private_names(tree) & NAMES.keys()
    }
    assert {text for text in touched if not text.endswith("epoch_sums.py: _update_count")} == set()


def test_the_observer_that_would_kill_this_process_is_disarmed() -> None:
    observer = subprocess_script._ChildProcessObserver(main_pid=1, child_processes=[object()], sleep_period=60)
    observer.daemon = True
    observer._run = lambda: threading.Event().wait(1)
    observer.start()
    _lightning.spare_this_process()
    assert observer._child_processes == []


def test_a_trainer_says_whether_it_would_shard_the_data(tmp_path: Path) -> None:
    for sharded in (True, False):
        assert (
            _lightning.uses_distributed_sampler(make_trainer(tmp_path, use_distributed_sampler=sharded)) is sharded
        )


def test_the_count_of_steps_is_that_of_the_training(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=3)
    trainer.fit(make_copying_task(), make_copying())
    assert _lightning.batches_that_stepped(trainer) == 3
    _lightning.resume_counting(trainer, 7)
    assert _lightning.batches_that_stepped(trainer) == 7
    assert {"train/loss"} <= {str(key).rpartition(".")[2] for key in _lightning.logged_results(trainer)}
