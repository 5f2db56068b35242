"""``rimlit fit`` from Python: the same run, with exceptions instead of exit codes, and a result."""

import contextlib
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.seed import isolate_rng

from rimlit import spec
from rimlit.checkpoints import kept_checkpoint
from rimlit.cli.arguments import words_of
from rimlit.cli.quiet import ADVERTISERS
from rimlit.cli.run import Command, run
from rimlit.cli.starting import AlreadyDone
from rimlit.data import DataModule
from rimlit.errors import ConfigError
from rimlit.spec import flat_settings, to_plain, trust
from rimlit.tasks import Task, load_checkpoint
from rimlit.training.signals import EXIT_CODES

OWN = ("name", "seed_everything", "resume", "init_from", "allow_changes", "test_after_fit")


@dataclass(frozen=True, repr=False)
class FitResult:
    """Result of :func:`fit`."""

    task: Task
    """The task with the best weights (the last where nothing was validated), in evaluation mode."""
    scores: dict[str, float]
    """Test scores by ``group/metric``, or ``metric`` where there is one group; empty without a test."""
    folder: Path
    """The run's folder."""
    results: dict[str, Any]
    """What ``results.json`` holds: scores, sizes, seconds, command, commit, versions."""

    def __repr__(self) -> str:
        """Return the folder and the scores that the table shows."""
        shown = {name: value for name, value in self.scores.items() if name.split("/")[-1] in self.task.headline}
        scores = ", ".join(f"{name}={value:.4g}" for name, value in shown.items())
        return f"FitResult({self.folder}: {scores or 'no test'})"


def fit(
    config: str | Path | Mapping[str, Any] | Task,
    data: DataModule | None = None,
    *,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    name: str | None = None,
    seed: int | None = None,
    resume: str | Path = "auto",
    init_from: str | Path | None = None,
    allow_changes: bool = False,
    test: bool = True,
    **trainer: Any,
) -> FitResult:
    """Train, then test the best checkpoint, as ``rimlit fit`` does: same folder, same tracking, resumed likewise.

    Called again, it resumes the run, or returns its result where it is done. The process is left as it was:
    command line, environment, signal handlers, warning filters, random numbers.

    Args:
        config: Name of a shipped config, path of a file, mapping with the keys of a config, or a task. A task is
            trained itself, and needs ``data``; your own classes must be importable (``__main__`` is).
        data: Data module for a task; not with a config.
        overrides: Settings that go before the config's: ``{"model.optimizer.lr": 1e-3}``, or words as on the
            command line.
        name: Name of the run; by default the config's and the seed.
        seed: Seed of everything, at least 0; by default the config's, or 0.
        resume: ``"auto"``, ``"never"``, or the path of a checkpoint or run to resume.
        init_from: Checkpoint, run or exported folder whose weights a new run starts from.
        allow_changes: Whether a run whose task, data, seed or batches have changed is resumed.
        test: Whether to test the best checkpoint at the end.
        **trainer: Settings of the trainer, plain values: ``max_steps=500``, ``accelerator="cpu"``.

    Returns:
        The trained task, its scores, the folder and what is recorded there.

    Raises:
        ConfigError: A setting is wrong, or the run was started with other ones.
        DataError: The data cannot be read.
        CheckpointError: A checkpoint cannot be used.
        NonFiniteError: The loss, a gradient or a weight is NaN or infinite.
        StorageError: The folder cannot be written.
        StoppedError: A signal came; the run has been saved.

    Example:
        >>> import rimlit
        >>> rimlit.fit("copying/rim", max_step=500)  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ...
        ConfigError: 'trainer.max_step' is not a setting. Did you mean trainer.max_steps?
    """
    if not isinstance(config, str | Path | Mapping | Task):
        raise ConfigError(
            f"config must be a config's name or path, a mapping of settings, or a task; got config={config!r}."
        )
    overrides = overrides or ()
    if isinstance(config, Task) != isinstance(data, DataModule) or not (
        data is None or isinstance(data, DataModule)
    ):
        shown = type(config).__name__ if isinstance(config, Task) else config
        raise ConfigError(f"data must be a DataModule, beside a task; got config={shown!r}, data={data!r}.")
    objects = (config, data) if isinstance(config, Task) and isinstance(data, DataModule) else None
    words = [
        *words_of({f"trainer.{key}": value for key, value in trainer.items()}),
        *(words_of(overrides) if isinstance(overrides, Mapping) else overrides),
    ]
    given = {"name": name, "seed_everything": seed, "resume": str(resume), "allow_changes": allow_changes}
    given |= {"init_from": None if init_from is None else str(init_from), "test_after_fit": test}
    for word in words:
        if (key := word.partition("=")[0].removeprefix("--")) in OWN:
            raise ConfigError(f"{key} is an argument of rimlit.fit, and not among overrides; got {word!r}.")
    words += words_of({key: value for key, value in given.items() if value is not None})
    with _process_left_as_it_was(), tempfile.TemporaryDirectory() as folder:
        path, command = config, None
        if not isinstance(config, str | Path):
            content = config if isinstance(config, Mapping) else _described(config, data)
            path = Path(folder, "run.yaml")  # the name of a run without a config of its own
            path.write_text(yaml.safe_dump(to_plain(content, "config")), encoding="utf-8")
            command = shlex.join(["rimlit.fit", *words])
        return _result(run(["fit", f"--config={path}", *words], objects, command))


def _described(task: Task, data: DataModule | None) -> dict[str, Any]:
    """Return the config of a task and a data module; their classes are here already, and trusted."""
    assert data is not None
    specs = {"model": task.spec, "data": data.spec}
    for key, value in flat_settings(specs).items():
        if key.endswith("class_path"):
            trust(value.split(".")[0])
    return specs


def _result(ran: Command | AlreadyDone) -> FitResult:
    if isinstance(ran, Command) and ran.is_trial:
        # it saves nothing; what lies in the folder is an earlier run's
        return FitResult(ran.model.eval(), {}, ran.folder.path, {})
    results = ran.folder.read_results()
    path = kept_checkpoint(ran.folder.path)
    if path is None:
        assert not isinstance(ran, AlreadyDone)
        task: Task = ran.model.eval()  # trainer.enable_checkpointing is off
    else:
        task = load_checkpoint(path)
    return FitResult(task, results.get("test", {}), ran.folder.path, results)


@contextlib.contextmanager
def _process_left_as_it_was() -> Iterator[None]:
    """Restore the state of the process that a command changes."""
    argv, path, environment, trusted = list(sys.argv), list(sys.path), dict(os.environ), set(spec._trusted_here)
    loggers = [logging.getLogger(name) for name in ("rimlit", *ADVERTISERS)]
    kept = [(each, each.level, list(each.handlers), list(each.filters)) for each in loggers]
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {signum: signal.getsignal(signum) for signum in EXIT_CODES} if in_main else {}
    failure: BaseException | None = None
    try:
        with warnings.catch_warnings(), isolate_rng():
            try:
                yield
            except BaseException as error:  # isolate_rng restores nothing where one passes through it
                failure = error
        if failure is not None:
            raise failure
    finally:
        sys.argv[:], sys.path[:] = argv, path
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        spec._trusted_here.clear()
        spec._trusted_here.update(trusted)
        for each, level, own_handlers, filters in kept:
            each.setLevel(level)
            each.handlers[:], each.filters[:] = own_handlers, filters
        for signum, handler in handlers.items():
            if handler is not None:  # one that was not set from Python
                signal.signal(signum, handler)
