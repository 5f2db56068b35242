"""One run of the screen, and the process that does one after another."""

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing import Queue, parent_process
from typing import Any

import lightning as L
import torch
from benchmarks.record import USAGE
from benchmarks.screen.environments import register
from benchmarks.screen.runs import Run, locked, tasks, variants, write_run
from benchmarks.sharing import let_others_go_first

from rimlit.cli.settings import build_data, with_sizes
from rimlit.comparison import match_parameters
from rimlit.pictures.activity import MechanismActivity
from rimlit.spec import build, find_class
from rimlit.tasks import Task
from rimlit.tracking.recording import git_commit, machine

BACKBONES = "rimlit.backbones"
TOLERANCE = 0.1
"""How many more parameters than the LSTM's a model may have: a RIM's width goes in steps of its mechanisms."""


def work(missing: Callable[[], list[Run]], niceness: int, done: "Queue[str]") -> None:
    """Train until nothing is missing that no other process trains."""
    os.setsid()
    let_others_go_first(os.getpid(), niceness)

    def step() -> bool:
        for run in missing():
            with locked(_name(run), wait=False) as is_ours:
                if not is_ours or run not in missing():
                    continue
                size, result = train(run)
                write_run(run, size, result)
                done.put(f"{run}: validation {result['val']}, {result['seconds']:.0f} s")
                return True
        return False

    while (parent := parent_process()) is None or parent.is_alive():
        if not step():
            return


def _name(run: Run) -> str:
    return f"{run.task}-{run.variant}-{run.rate:g}-{run.seed}"


def train(run: Run, changes: Mapping[str, Any] | None = None) -> tuple[dict[str, int], dict[str, Any]]:
    """Train and test on one thread.

    Args:
        run: Task, variant, learning rate and seed.
        changes: Arguments of the backbone in place of the variant's.

    Returns:
        Width and parameters; and the validation, the scores (None where the training diverged), how a RIM used its
        mechanisms in the validation, seconds, commit and machine.
    """
    _be_quiet()
    register()
    torch.set_num_threads(1)
    task = tasks()[run.task]
    L.seed_everything(run.seed, verbose=False)
    data = build_data({"data": task["data"]})
    size, model = _model(task, run, data, changes or {})
    trainer = _trainer(max_epochs=-1, limit_val_batches=0, num_sanity_val_steps=0, **task["trainer"])
    began = time.process_time()
    trainer.fit(model, data)
    seconds = time.process_time() - began
    tester = _trainer(callbacks=[MechanismActivity(figure=False)])
    val = _merged(tester.validate(model, data, verbose=False))
    usage = {key: tester.callback_metrics.get(f"mechanisms/{key}") for key in USAGE}
    scores = _merged(tester.test(model, data, verbose=False))
    return size, {
        "val": val[task["chosen_by"]],
        "scores": {key: score for key, score in scores.items() if _is_kept(key)},
        **({} if None in usage.values() else {"mechanisms": _merged([usage])}),
        "seconds": round(seconds, 1),
        "commit": git_commit(),
        "machine": machine(),
    }


def _model(task: dict[str, Any], run: Run, data: Any, changes: Mapping[str, Any]) -> tuple[dict[str, int], Task]:
    """Return sizes and the model whose whole task has as many parameters as the task's LSTM."""
    cls = find_class(task["model"]["class_path"], Task)
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": run.rate}}
    given = task["model"]["init_args"]
    optimizer["init_args"] |= given.get("optimizer", {}).get("init_args", {})

    def spec(backbone: dict[str, Any]) -> dict[str, Any]:
        arguments = with_sizes(cls, {**given, "optimizer": optimizer}, data)
        return {"class_path": task["model"]["class_path"], "init_args": {**arguments, "backbone": backbone}}

    lstm = variants()["lstm"]
    aim = build(spec(_backbone(lstm, task["width"])), Task)
    target = sum(weight.numel() for weight in aim.parameters())
    shared = target - sum(weight.numel() for weight in aim.backbone.parameters())
    variant = variants()[run.variant]
    variant = {**variant, "init_args": {**variant["init_args"], **changes}}
    found = match_parameters(spec(_backbone(variant, 60)), target, tolerance=TOLERANCE)
    L.seed_everything(run.seed, verbose=False)
    model = build(spec(_backbone(variant, found.width)), Task)
    return {"width": found.width, "parameters": found.size, "lstm_parameters": target, "shared": shared}, model


def _backbone(variant: dict[str, Any], width: int) -> dict[str, Any]:
    arguments = {"hidden_size": width, **variant["init_args"]}
    if variant["class_path"] == "RIM":
        arguments = {"num_mechanisms": 6, "num_active": 4, **arguments}
    return {"class_path": f"{BACKBONES}.{variant['class_path']}", "init_args": arguments}


def _trainer(**options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def _merged(results: list[Any]) -> dict[str, float | None]:
    """Return the numbers of all groups; None for what is not finite."""
    numbers = {key: float(value) for result in results for key, value in result.items()}
    return {key: round(value, 6) if math.isfinite(value) else None for key, value in numbers.items()}


def _is_kept(key: str) -> bool:
    return not key.endswith(("/loss", "_all", "/mae", "/episode_length", "_at_20"))


def _be_quiet() -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "rimlit"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"
