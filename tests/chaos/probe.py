"""What a run that is to be killed tells: its losses, and what it is doing right now."""

import io
import mmap
import os
import time
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L
import torch

from rimlit import checkpoints
from rimlit.training import Checkpointer, checkpointing


class Phase(IntEnum):
    """What a run does."""

    START = 0
    STEP = 1
    VALIDATION = 2
    SAVE = 3
    END = 4


NOW = mmap.mmap(-1, 1)
"""The phase of the run, in memory that it shares with the process that started it."""


def enter(phase: Phase) -> Phase:
    """Note what begins; return what went on before."""
    before = Phase(NOW[0])
    NOW[0] = phase
    return before


class Probe(L.Callback):
    """Append each loss to ``losses.txt``, in one write, and note what the run does."""

    def on_train_batch_start(self, *_: Any) -> None:
        enter(Phase.STEP)

    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, *_: Any) -> None:
        batch = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        path = Path(trainer.default_root_dir).parents[2] / "losses.txt"
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{batch} {outputs['loss'].item().hex()}\n".encode())
        os.close(file)

    def on_validation_start(self, *_: Any) -> None:
        enter(Phase.VALIDATION)

    def on_validation_end(self, *_: Any) -> None:
        enter(Phase.STEP)

    def on_train_end(self, *_: Any) -> None:
        enter(Phase.END)


def save_often_and_slowly(*, whole: bool) -> None:
    """Save after every step, and take as long over it as over a step, so that kills fall inside.

    Args:
        whole: Whether files are written as rimlit writes them; otherwise under their final name, as a comparison.
    """
    defaults = Checkpointer.__init__.__kwdefaults__
    assert defaults is not None
    defaults["interval"] = 0.0
    save, replace, write = torch.save, os.replace, checkpointing.write_checkpoint

    def save_in_pieces(content: Any, file: BinaryIO) -> None:
        memory = io.BytesIO()
        save(content, memory)
        data = memory.getvalue()
        size = len(data) // 4 + 1
        for start in range(0, len(data), size):
            file.write(data[start : start + size])
            file.flush()
            time.sleep(0.002)

    def replace_slowly(source: Any, target: Any) -> None:
        time.sleep(0.002)
        replace(source, target)
        time.sleep(0.002)

    def write_whole(checkpoint: Any, path: Any) -> None:
        before = enter(Phase.SAVE)
        if whole:
            write(checkpoint, path)
        else:
            with open(path, "wb") as file:
                save_in_pieces(checkpoint, file)
        enter(before)

    checkpoints.torch.save = save_in_pieces  # type: ignore[assignment]
    checkpoints.os.replace = replace_slowly
    checkpointing.write_checkpoint = write_whole
