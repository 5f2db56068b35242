"""Where a run lives, and which checkpoint a command starts from."""

import atexit
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from rimlit.checkpoints import KEPT, read_checkpoint
from rimlit.cli.arguments import named_configs, read_yaml, value_of
from rimlit.data import DataModule
from rimlit.errors import CheckpointError, ConfigError
from rimlit.spec import find_class
from rimlit.tasks import Task
from rimlit.tasks.saved import build_saved
from rimlit.tracking.run_folder import RunFolder
from rimlit.training.checkpointing import newest_checkpoint

log = logging.getLogger(__name__)


def choose_folder(subcommand: str, config: Namespace) -> RunFolder:
    """Return the folder of a run: the given one, that of the checkpoint or saved config, or one by its name."""
    if (given := config.trainer.default_root_dir) is not None:
        root = Path(given)
        if not root.absolute().name:
            raise ConfigError(f"trainer.default_root_dir must be a folder below the root; got {str(given)!r}.")
        return RunFolder(root if root.name else root.absolute())
    given = config.get("ckpt_path")
    if subcommand != "fit" and config.name is None:
        if given and Path(given).is_file():
            folder = Path(given).resolve().parent
            if folder.name == "checkpoints":
                return RunFolder(folder.parent)
        for saved in (Path(str(path)) for path in config.config or []):  # a run's own config names the run
            if saved.name == "config.yaml" and (saved.parent / "checkpoints").is_dir():
                return RunFolder(saved.parent)
    dataset, name = find_class(config.data.class_path, DataModule).name or "data", "run"
    paths = [Path(str(given)).resolve() for given in config.config or []]
    naming = [path for path in paths if path.parent.name != "trainer"]  # configs/trainer names no run
    if naming:
        path = naming[0]
        parts = path.with_suffix("").parts
        name = path.stem
        if "configs" in parts:
            inside = parts[len(parts) - parts[::-1].index("configs") :]
            if len(inside) > 1:
                dataset, name = inside[-2], "-".join([*inside[:-2], inside[-1]])
    return RunFolder(Path("runs") / dataset / (config.name or f"{name}-seed{config.seed_everything}"))


def dataset_of(folder: Path, class_path: str) -> str:
    """Return the dataset of a run: the folder under ``runs``, or else the name of the data module's class.

    MLflow's experiments are named so.

    Args:
        folder: The run's folder, ``runs/<dataset>/<name>`` or another.
        class_path: Class of the data module.
    """
    parts = folder.parts
    inside = parts[len(parts) - parts[::-1].index("runs") :] if "runs" in parts else ()
    return inside[0] if len(inside) > 1 else find_class(class_path, DataModule).name or "data"


def find_start(folder: RunFolder, config: Namespace) -> str | None:
    """Return the checkpoint that fit resumes from, None for a new run.

    Raises:
        CheckpointError: The one that was named is not there, or is damaged.
    """
    named = config.resume if config.ckpt_path is None else config.ckpt_path
    is_file = named not in ("auto", "never") and not Path(named).is_dir()
    if is_file or config.ckpt_path is not None:
        return checkpoint_path(folder, named)
    if named == "never" or config.trainer.fast_dev_run:
        return None
    place = folder.checkpoints if named == "auto" else Path(named)
    if (place / "checkpoints").is_dir():
        place = place / "checkpoints"
    # all processes look before the first checkpoint of a new run can be there
    newest = newest_checkpoint(place)
    for damaged in newest.passed_over:
        log.warning("Passed over: %s", damaged)
    if newest.path is None and named != "auto":
        raise CheckpointError(f"resume={named!r}: there is no intact checkpoint in {place}.")
    return None if newest.path is None else str(newest.path)


def checkpoint_path(folder: RunFolder, given: Any) -> str:
    """Return the file that ``ckpt_path`` names: ``best``, the default, or ``last`` of the run, or a path.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    if given is None or given in KEPT:
        path = folder.checkpoints / f"{given or 'best'}.ckpt"
        if not path.is_file():
            if given != "last" and (last := path.with_name("last.ckpt")).is_file():
                raise CheckpointError(
                    f"ckpt_path={given!r}: there is no {path}, as this run was not validated. Use "
                    f"--ckpt_path last, which is {last}."
                )
            raise CheckpointError(
                f"ckpt_path={given!r}: there is no {path}. Train first, or name a file with --ckpt_path."
            )
        return str(path)
    path = Path(given)
    if path.name == "best.ckpt" and not path.exists() and (last := path.with_name("last.ckpt")).is_file():
        raise CheckpointError(f"ckpt_path={given!r} does not exist, as this run was not validated. Use {last}.")
    read_checkpoint(given)
    return str(given)


def checkpoint_of(arguments: list[str]) -> dict[str, Any] | None:
    """Return the contents of the checkpoint that a command other than fit names as a file."""
    path = value_of(arguments, "--ckpt_path")
    if arguments[0] == "fit" or path is None or path in KEPT:
        return None
    return read_checkpoint(path)


def with_config_of(checkpoint: dict[str, Any], arguments: list[str]) -> list[str]:
    """Put the checkpoint's task and data before the user's options, unless these name a config or a model."""
    if value_of(arguments, "--model") or any("model" in read_yaml(path) for path in named_configs(arguments)):
        return arguments
    saved, given = checkpoint["rimlit"], str(value_of(arguments, "--ckpt_path"))
    if "task" not in saved:
        raise CheckpointError(f"{given} holds weights of a module that is not a task of rimlit.")
    build_saved(
        saved["task"], given, Task
    )  # a mistake that the parser finds later would be reported as the user's
    if saved.get("data") is None:
        raise CheckpointError(f"{given} was written without a data module: give --config or --model and --data.")
    # optimiser and scheduler are for training: a command that only reads the weights needs neither's class
    init_args = {k: v for k, v in saved["task"]["init_args"].items() if k not in ("optimizer", "scheduler")}
    config = {"model": {**saved["task"], "init_args": init_args}, "data": saved["data"]}
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # named like the checkpoint, as a run is named after its config
    path = Path(folder, Path(value_of(arguments, "--ckpt_path") or "checkpoint").stem).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [arguments[0], "--config", str(path), *arguments[1:]]
