"""Predictions as a file of JSON lines."""

import json
from pathlib import Path
from typing import Any

import lightning as L


class PredictionFile(L.Callback):
    """Write what ``predict_step`` returns, one JSON record per line, to ``predictions.jsonl`` of the run's folder.

    Under several processes each rank but the first adds its number to the name. Texts are printed too.
    """

    def __init__(self) -> None:
        self.path: Path | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start an empty file."""
        rank = f"-{trainer.global_rank}" if trainer.global_rank else ""
        self.path = Path(trainer.default_root_dir) / f"predictions{rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append a batch's records."""
        assert self.path is not None
        with self.path.open("a") as file:
            for record in outputs:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                if "text" in record:
                    print(f"{record['prompt']}{record['text']}")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where the file is."""
        if trainer.is_global_zero:
            print(f"Predictions: {self.path}")
