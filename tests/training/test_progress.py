"""The progress bar."""

import math
from pathlib import Path

from rimlit.training.progress import ProgressBar
from tests.tasks.running import make_copying, make_copying_task, make_trainer


def test_what_is_not_a_number_is_undefined_in_the_bar(tmp_path: Path) -> None:
    bar = ProgressBar()
    trainer = make_trainer(tmp_path, max_steps=1, callbacks=[bar], enable_progress_bar=True)
    task = make_copying_task()
    trainer.fit(task, make_copying())
    trainer.progress_bar_metrics.update({"val/episode_return": math.nan, "train/loss": 0.5})
    shown = bar.get_metrics(trainer, task)
    assert shown["val/episode_return"] == "undefined"
    assert shown["train/loss"] == 0.5
