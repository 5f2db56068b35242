"""A researcher's own files, from the table to the prediction, by YAML and the command line alone."""

import gzip
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
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


def write_waves(folder: Path) -> None:
    """Write slow and fast waves of different lengths, a row per step."""
    rows = ["sequence,time,level,target"]
    for number in range(80):
        speed, name = (0.4, "slow") if number % 2 else (1.3, "fast")
        levels = [100 + 5 * math.sin(number + speed * time) for time in range(8 + number % 5)]
        rows += [f"{number},{time},{level:.4f},{name}" for time, level in enumerate(levels)]
    (folder / "waves.csv").write_text("\n".join([*rows, ""]))


@pytest.fixture
def waves(folder: Path) -> Path:
    """A working directory with the waves."""
    write_waves(folder)
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
    assert len({record["sequence"] for record in records}) == len(records) == 8
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
    *targets, last = first["target"]
    assert all(95 <= step[0] <= 105 for step in targets)
    assert last == [None]  # the step after the file's last one
    assert all(90 <= step[0] <= 110 for step in first["predicted"])
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
    assert loaded.backbone.output_size == 272, "the config's backbone stays"


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


# New files without targets


@pytest.fixture(scope="module")
def trained_waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which a model was trained to classify slow and fast waves. Only to be read."""
    folder = tmp_path_factory.mktemp("waves")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_waves(folder)
        succeed("fit", write_config(folder, task="ClassificationTask", target="label", steps=60), *OPTIONS)
    return folder


@pytest.fixture
def checkpoint(trained_waves: Path, folder: Path) -> str:
    """The checkpoint alone: neither its config nor its data are there."""
    run = folder / "runs/sequences/own-seed0"
    shutil.copytree(trained_waves / "runs/sequences/own-seed0/checkpoints", run / "checkpoints")
    return str(run / "checkpoints/best.ckpt")


def predict_new(checkpoint: str, lines: list[str]) -> list[dict[str, Any]]:
    """The predictions for a new file by the checkpoint alone."""
    Path("new.csv").write_text("\n".join([*lines, ""]))
    succeed("predict", "--ckpt_path", checkpoint, "--data.predict_path=new.csv", *OPTIONS)
    return records_of(Path("runs/sequences/own-seed0"))


def wave(name: str, speed: float, *, label: str = "") -> list[str]:
    return [f"{100 + 5 * math.sin(speed * time):.4f},{name}{label}" for time in range(12)]


def test_new_files_without_targets_are_predicted_by_the_checkpoint_alone(checkpoint: str) -> None:
    lines = ["level,sequence", *wave("p7", 0.4), *wave("007", 1.3), *wave("q", 0.4)]
    records = predict_new(checkpoint, lines)
    assert [record["sequence"] for record in records] == ["p7", "007", "q"]
    assert [record["target"] for record in records] == [None] * 3
    assert [record["predicted"] for record in records] == ["slow", "fast", "slow"]
    given = predict_new(checkpoint, ["level,sequence,target", *wave("p7", 0.4, label=",fast")])
    assert [(record["target"], record["predicted"]) for record in given] == [("fast", "slow")]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["height,sequence", "1,a"], "new.csv has no column 'level'; it has height, sequence."),
        (["level,sequence", "high,a"], "new.csv: row 1, column 'level' must be a finite number; got 'high'."),
        (
            ["level,sequence,target", "1,a,quick"],
            "new.csv: sequence a of predict has the label quick; training has",
        ),
        (["level,sequence,sequence", "1,a,a"], "new.csv: the name 'sequence' occurs twice in the header"),
        (["level;sequence", "1;a"], "If the cells are separated by ';', give --data.delimiter ';'."),
        ([], "new.csv cannot be read as a table: it is empty."),
    ],
)
def test_a_new_file_that_does_not_fit_the_checkpoint_is_one_line_with_code_3(
    checkpoint: str, lines: list[str], words: str
) -> None:
    Path("new.csv").write_text("\n".join([*lines, ""]))
    answer = rimlit("predict", "--ckpt_path", checkpoint, "--data.predict_path=new.csv", *OPTIONS)
    assert (answer.code, words in answer.err) == (3, True), answer.err
    assert sum("error" in line for line in answer.err.splitlines()) == 1
    assert not list(Path("runs").rglob("predictions.jsonl"))


def test_prompts_are_the_lines_of_a_file(language: Path) -> None:
    shutil.rmtree("novel")
    Path("prompts.txt").write_text("the age of \n\nit was\n")
    file = language / "checkpoints/best.ckpt"
    answer = succeed("predict", "--ckpt_path", file, "--data.predict_path=prompts.txt", *OPTIONS)
    records = records_of(language)
    assert [(record["sequence"], record["prompt"]) for record in records] == [(1, "the age of "), (3, "it was")]
    for record in records:
        assert len(record["text"]) == 12
        assert f"{record['prompt']}{record['text']}" in answer.out
    Path("prompts.txt").write_text("\n \n")
    answer = rimlit("predict", "--ckpt_path", file, "--data.predict_path=prompts.txt", *OPTIONS)
    assert (answer.code, "prompts.txt has no line with text to continue" in answer.err) == (3, True), answer.err


# Files that are none, through the command line


def hostile(name: str) -> None:
    """Make a file, or what looks like one."""
    if name.startswith("pipe"):
        os.mkfifo(name)
    elif name.startswith("bomb"):
        Path(name).write_bytes(gzip.compress(b"sequence,level,target\n" + bytes(2**24)))
    elif name.startswith("damaged"):
        np.savez_compressed(name, inputs=np.arange(2000.0).reshape(20, 100), targets=np.arange(20) % 2)
        content = bytearray(Path(name).read_bytes())
        content[200:220] = bytes(20)
        Path(name).write_bytes(content)
    elif name.startswith("loop"):
        Path(name).symlink_to(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pipe.csv", "pipe.csv must be a file; it is a pipe."),
        ("bomb.csv.gz", "bomb.csv.gz would take more than 1,000,000 bytes in memory"),
        ("damaged.npz", "damaged.npz is damaged or holds more than plain numbers"),
        ("loop.csv", "loop.csv cannot be read: Too many levels of symbolic links."),
        ("long" * 1250, "… (5000 characters) cannot be read: File name too long."),
        ("/dev/null", "/dev/null must be a file; it is a device."),
    ],
)
def test_a_hostile_file_is_one_line_with_code_3(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setenv("RIMLIT_READ_LIMIT", "1000000")
    hostile(name)
    config = write_config(folder, task="ClassificationTask", target="label", steps=2)
    answer = rimlit("fit", config, f"--data.path={name}", *OPTIONS)
    assert (answer.code, words in answer.err) == (3, True), answer.err[-2000:]
    assert "Traceback" not in answer.err
    assert len(answer.err) < 2000
    assert not (folder / "runs").exists()
