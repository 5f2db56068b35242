"""Predictions as one file of JSON lines, in the order of the data, at any number of processes."""

import heapq
import itertools
import json
import math
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import lightning as L
from torch import distributed

from rimlit.console import say
from rimlit.data import DataModule
from rimlit.data.sampling import rank_and_world_size
from rimlit.errors import ConfigError
from rimlit.files import storage_error, whole_file

BLOCK = 2**24
"""Bytes that a process sends to the first one at a time."""


class PredictionFile(L.Callback):
    """Write what ``predict_step`` returns, a list of plain records, to ``predictions.jsonl`` of the run's folder.

    Each line says which ``sequence`` it is about, by its name or its index in the data, and which ``group`` where
    there are several. The file holds each sequence once, in the order of the data, at any number of
    processes, and it appears when it is complete. What is not a finite number is null. Texts are printed too.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        # lines "group sequence\trecord", whose order as text is that of the data
        self._lines: IO[bytes] | None = None
        self._counts: dict[int, int] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin."""
        if stage != "predict":
            return
        self.path = Path(trainer.default_root_dir) / "predictions.jsonl"
        self._lines = tempfile.SpooledTemporaryFile(BLOCK)  # noqa: SIM115, closed in teardown
        self._counts = {}
        # of fewer sequences than processes some have none, which Lightning would refuse
        pl_module.allow_zero_length_dataloader_with_multiple_devices = True

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch's records."""
        assert self._lines is not None and self.path is not None
        if not isinstance(outputs, list) or not all(isinstance(record, Mapping) for record in outputs):
            raise ConfigError(
                f"predict_step of {type(pl_module).__name__} must return a list of plain records (dicts), one for "
                f"each sequence; it returned a {type(outputs).__name__}."
            )
        data = getattr(trainer, "datamodule", None)
        names = data.group_names("predict") if isinstance(data, DataModule) else []
        group = names[dataloader_idx] if dataloader_idx < len(names) else ""
        rank, world_size = rank_and_world_size()
        try:
            for record in outputs:
                # IndexSampler and Lightning's sampler both give the samples to the processes in turn
                index = rank + world_size * self._counts.get(dataloader_idx, 0)
                self._counts[dataloader_idx] = self._counts.get(dataloader_idx, 0) + 1
                name = data.sample_name("predict", group, index) if isinstance(data, DataModule) else index
                line = {} if name is None else {"sequence": name}
                line |= {"group": group} if group else {}
                line |= data.sample_details("predict", group, index) if isinstance(data, DataModule) else {}
                self._lines.write(f"{dataloader_idx:06d} {index:015d}\t{_to_json({**line, **record})}\n".encode())
                if "text" in record:
                    say(f"{record.get('prompt', '')}{record['text']}")
        except OSError as error:
            raise storage_error(Path(tempfile.gettempdir()), None, error) from error

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Drop the records; an earlier file stays."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the file; here because a process without any sample has no other end of prediction."""
        if stage != "predict" or self._lines is None:
            return
        pl_module.allow_zero_length_dataloader_with_multiple_devices = False
        assert self.path is not None
        with ExitStack() as opened:
            lines = opened.enter_context(self._lines)
            self._lines = None
            lines.seek(0)
            parts = [lines] if trainer.world_size == 1 else _gather(lines, opened)
            if not trainer.is_global_zero:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(self.path) as file:
                    # a sample that was given to two processes is written once
                    for _, same in itertools.groupby(heapq.merge(*parts), key=lambda line: line[:22]):
                        file.write(next(same).partition(b"\t")[2])
            except OSError as error:
                raise storage_error(self.path, None, error) from error
        say(f"Predictions: {self.path}")


def _gather(lines: IO[bytes], opened: ExitStack) -> list[IO[bytes]]:
    """Return the lines of every process, on disk, in the first one; in blocks, so that they need no memory."""
    rank, world_size = rank_and_world_size()
    parts: list[IO[bytes]] = []
    for _ in range(world_size if rank == 0 else 0):
        parts.append(opened.enter_context(tempfile.SpooledTemporaryFile(BLOCK)))  # noqa: SIM115, PERF401
    while True:
        blocks: list[bytes] | None = [b""] * world_size if rank == 0 else None
        distributed.gather_object(lines.read(BLOCK), blocks)
        goes_on = [blocks is not None and any(blocks)]
        distributed.broadcast_object_list(goes_on)
        if not goes_on[0]:
            break
        for part, block in zip(parts, blocks or [], strict=True):
            part.write(block)
    for part in parts:
        part.seek(0)
    return parts


def _to_json(record: dict[str, Any]) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(record), ensure_ascii=False)


def _finite(value: Any) -> Any:
    """Return plain data in which None stands for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
