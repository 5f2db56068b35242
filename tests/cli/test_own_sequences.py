"""A researcher's own files, from the table to the prediction, by YAML and the command line alone."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rimlit.tasks import RegressionTask, Task
from tests.cli.running import QUIET, UNTRACKED, read_json, rimlit, scores_of, succeed

CONFIG = """\
model:
  class_path: rimlit.tasks.{task}
  init_args:
    backbone:
      class_path: rimlit.backbones.RIM
      init_args: {{hidden_size: 24, num_mechanisms: 3, num_active: 2}}
    optimizer: {{class_path: torch.optim.Adam, init_args: {{lr: 0.01}}}}
data:
  class_path: rimlit.data.Sequences
  init_args: {{path: waves.csv, target: {target}, input_columns: [level], batch_size: 16}}
trainer: {{accelerator: cpu, max_steps: {steps}, val_check_interval: 20, check_val_every_n_epoch: null}}
"""
OPTIONS = (*QUIET, *UNTRACKED)


@pytest.fixture
def waves(folder: Path) -> Path:
    """Slow and fast waves of different lengths, a row per step."""
    rows = ["sequence,time,level,target"]
    for number in range(80):
        speed, name = (0.4, "slow") if number % 2 else (1.3, "fast")
        levels = [100 + 5 * math.sin(number + speed * time) for time in range(8 + number % 5)]
        rows += [f"{number},{time},{level:.4f},{name}" for time, level in enumerate(levels)]
    (folder / "waves.csv").write_text("\n".join([*rows, ""]))
    return folder


def write_config(folder: Path, **values: Any) -> str:
    (folder / "own.yaml").write_text(CONFIG.format(**values))
    return "--config=own.yaml"


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_a_csv_of_sequences_is_learned_by_yaml_alone_and_predicted_in_its_own_labels(waves: Path) -> None:
    config = write_config(waves, task="ClassificationTask", target="label", steps=60)
    succeed("fit", config, *OPTIONS)
    run = waves / "runs/sequences/own-seed0"
    assert scores_of(run)["accuracy"] > 0.8
    assert read_json(run / "results.json")["floor"]["accuracy"] < 0.8
    succeed("predict", config, "--ckpt_path=best", *OPTIONS)
    records = records_of(run)
    assert len(records) == 8
    assert {record[key] for record in records for key in ("target", "predicted")} == {"fast", "slow"}


def test_the_next_step_is_predicted_in_the_file_s_own_units(waves: Path) -> None:
    config = write_config(waves, task="RegressionTask", target="next_step", steps=40)
    succeed("fit", config, *OPTIONS)
    run = waves / "runs/sequences/own-seed0"
    scores, floor = scores_of(run), read_json(run / "results.json")["floor"]
    assert scores["mse"] < floor["mse"]  # that of repeating the last step
    succeed("predict", config, "--ckpt_path=best", *OPTIONS)
    first = records_of(run)[0]
    assert len(first["target"]) == len(first["predicted"])
    assert all(95 <= step[0] <= 105 for step in first["target"])
    assert isinstance(Task.load_from_checkpoint(run / "checkpoints/best.ckpt"), RegressionTask)


def test_the_shipped_config_takes_another_file_and_another_target(waves: Path) -> None:
    text = (waves / "waves.csv").read_text()
    (waves / "speeds.csv").write_text(text.replace("slow", "0.5").replace("fast", "2.5"))
    small = ("--config=trainer/quick", "--trainer.max_steps=1", "--test_after_fit=false", *OPTIONS)
    succeed("fit", "--config=sequences/rim", "--data.path=waves.csv", *small)
    answer = rimlit(
        "fit",
        "--config=sequences/rim",
        "--model=RegressionTask",
        "--data.path=speeds.csv",
        "--data.target=value",
        "--name=speeds",
        *small,
    )
    assert answer.code == 0, answer.err
    loaded = Task.load_from_checkpoint(waves / "runs/sequences/speeds/checkpoints/last.ckpt")
    assert isinstance(loaded, RegressionTask)
    assert loaded.backbone.output_size == 192, "the config's backbone stays"


@pytest.mark.parametrize(
    ("task", "target", "code", "words"),
    [
        ("RegressionTask", "label", 2, "RegressionTask needs numbers to predict; the data has classes"),
        (
            "ClassificationTask",
            "next_step",
            2,
            "ClassificationTask needs classes; the data has numbers",
        ),
        ("RegressionTask", "value", 3, "waves.csv: row 1, column 'target' must be a finite number; got 'fast'"),
    ],
)
def test_a_task_that_does_not_fit_the_target_is_one_message(
    waves: Path, task: str, target: str, code: int, words: str
) -> None:
    answer = rimlit("fit", write_config(waves, task=task, target=target, steps=2), *OPTIONS)
    assert (answer.code, words in answer.err) == (code, True), answer.err
    assert "Traceback" not in answer.err
