"""The command line in this process, and the smallest runs worth looking at."""

import contextlib
import io
import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch

import rimlit.cli.run  # Lightning's log takes hold of stderr while that is still the terminal's
from rimlit.cli import main
from rimlit.training import Checkpointer

NOVEL = """\
it was the best of times, it was the worst of times,
it was the age of wisdom, it was the age of foolishness
"""

SMALL_RIM = (
    "--model.init_args.backbone.init_args.hidden_size=24",
    "--model.init_args.backbone.init_args.num_mechanisms=3",
    "--model.init_args.backbone.init_args.num_active=2",
)
SMALL_COPYING = (
    *SMALL_RIM,
    "--data.train_span=5",
    "--data.test_spans=[5,9]",
    "--data.val_size=8",
    "--data.test_size=8",
    "--data.batch_size=4",
)
SMALL_TEXT = (
    *SMALL_RIM,
    "--data.path=novel",
    "--data.level=character",
    "--data.chunk_length=8",
    "--data.batch_size=4",
    "--data.prompt=it was ",
    "--model.init_args.num_tokens=12",
)
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
UNTRACKED = ("--trainer.logger=false",)

COPYING = ("--config=copying/rim", "--config=trainer/quick", *SMALL_COPYING, *QUIET)
LANGUAGE = ("--config=language/rim", "--config=trainer/quick", *SMALL_TEXT, *QUIET)


class Answer(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str
    warned: list[str]


def rimlit(*arguments: str | Path) -> Answer:
    """Run ``rimlit`` in this process, under the warning filters that Python gives a program."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Answer(code, out.getvalue(), err.getvalue(), [str(warning.message) for warning in warned])


def succeed(*arguments: str | Path) -> Answer:
    """Run ``rimlit`` and see that it ends well."""
    answer = rimlit(*arguments)
    assert answer.code == 0, answer.err
    assert not answer.warned, answer.warned
    return answer


def terminate(step: int, *arguments: str) -> None:
    """Run ``rimlit`` and let it get a SIGTERM after a training step."""

    def stop(callback: Checkpointer, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "on_train_batch_end", stop, raising=False)
        assert rimlit(*arguments).code == 143


def write_novel(folder: Path) -> Path:
    """Write a text as train, valid and test under ``novel``."""
    (folder / "novel").mkdir()
    for name, repeats in (("train", 4), ("valid", 2), ("test", 2)):
        (folder / "novel" / f"{name}.txt").write_text(NOVEL * repeats)
    return folder / "novel"


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def scores_of(folder: Path) -> dict[str, float]:
    """The test scores that a run wrote down."""
    scores: dict[str, float] = read_json(folder / "results.json")["test"]
    return scores


def read_checkpoint(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
