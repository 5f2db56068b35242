"""The files of a run, how it is resumed, and what a checkpoint alone can do."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient

from rimlit.heads import AttentionHead
from rimlit.tasks import CopyingTask, LanguageModelingTask, Task
from rimlit.tracking.process_names import process_name
from rimlit.training import Checkpointer, FiniteGuard
from tests.cli.running import (
    COPYING,
    LANGUAGE,
    QUIET,
    UNTRACKED,
    read_checkpoint,
    read_json,
    rimlit,
    scores_of,
    succeed,
    write_novel,
)
from tests.conftest import rows_of

FIGURES = ["figures/activity.png", "figures/mechanisms.png"]
FIGURELESS = "--trainer.callbacks+={class_path: rimlit.pictures.MechanismActivity, init_args: {figure: false}}"


def plain_types(value: Any) -> set[type]:
    """Every type that a checkpoint holds."""
    found: set[type] = {type(value)}
    if isinstance(value, dict):
        for key, item in value.items():
            found |= plain_types(key) | plain_types(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            found |= plain_types(item)
    return found


# What fit leaves


@pytest.mark.parametrize(
    ("fixture", "dataset"), [("trained_copying", "copying"), ("trained_language", "language")]
)
def test_fit_leaves_a_folder_that_says_all_about_the_run(
    request: pytest.FixtureRequest, fixture: str, dataset: str
) -> None:
    run = request.getfixturevalue(fixture) / "runs" / dataset / "rim-seed0"
    for name in (
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "metrics.csv",
        "results.json",
        "run_state.json",
        "tracking.json",
        "tracking.jsonl",
        "figures/activity.png",
    ):
        assert (run / name).is_file(), name
    assert (run / "figures/activity.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 4

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["init_args"]["hidden_size"] == 24
    assert config["seed_everything"] == 0

    results = read_json(run / "results.json")
    assert results["command"].startswith("rimlit fit --config=")
    assert (results["seed"], results["steps"]) == (0, 4)
    assert results["parameters"] > results["active_parameters"] > 0
    assert {"commit", "machine", "versions", "train_seconds", "floor", "test"} <= set(results)

    columns = set(rows_of(run / "metrics.csv")[0])
    wanted = {"train/loss", "val/cross_entropy", "floor/cross_entropy", "mechanisms/usage_0", "mechanisms/dead"}
    assert wanted <= columns
    assert read_json(run / "tracking.json")["mlflow_run_id"]


def test_a_head_is_named_in_a_config_like_a_backbone(folder: Path) -> None:
    (folder / "head.yaml").write_text(
        "model: {init_args: {head: {class_path: rimlit.heads.AttentionHead, init_args: {num_heads: 2}}}}\n"
    )
    succeed("fit", *COPYING, "--config=head.yaml", *UNTRACKED, "--trainer.max_steps=1", "--test_after_fit=false")
    task = Task.load_from_checkpoint(folder / "runs/copying/rim-seed0/checkpoints/last.ckpt")
    assert isinstance(task.head, AttentionHead)
    assert (task.head.num_heads, task.head.num_mechanisms, task.head.input_size) == (2, 3, 24)


def test_the_test_after_fit_scores_every_span_and_prints_it_beside_the_floor(trained_copying: Path) -> None:
    scores = scores_of(trained_copying / "runs/copying/rim-seed0")
    quantities = ("loss", "cross_entropy", "cross_entropy_all", "symbol_accuracy", "sequence_accuracy")
    assert set(scores) == {f"span_{span}/{name}" for span in (5, 9) for name in quantities}
    floors = read_json(trained_copying / "runs/copying/rim-seed0/results.json")["floor"]
    assert floors["cross_entropy"] == pytest.approx(2.0794, abs=1e-4)


def test_a_language_model_is_scored_in_perplexity_and_bits(trained_language: Path) -> None:
    scores = scores_of(trained_language / "runs/language/rim-seed0")
    nats = torch.tensor(scores["cross_entropy"])
    assert scores["perplexity"] == pytest.approx(nats.exp().item(), rel=1e-5)
    assert scores["bits_per_character"] == pytest.approx((nats / torch.tensor(2.0).log()).item(), rel=1e-5)


def test_the_resolved_config_and_the_numbers_are_in_the_mlflow_run(
    trained_copying: Path, store: str, tmp_path: Path
) -> None:
    folder = trained_copying / "runs/copying/rim-seed0"
    client = MlflowClient(store)
    run = client.get_run(read_json(folder / "tracking.json")["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "rim-seed0"
    assert client.get_experiment(run.info.experiment_id).name == "copying"
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "figures"} <= names
    kept = Path(client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path)))
    assert kept.read_text() == (folder / "config.yaml").read_text()
    assert [file.path for file in client.list_artifacts(run.info.run_id, "figures")] == FIGURES
    assert run.data.params["backbone.hidden_size"] == "24"
    assert run.data.params["seed"] == "0"
    assert int(run.data.params["parameters"]) == read_json(folder / "results.json")["parameters"]
    assert run.data.tags["git_commit"]
    assert "rimlit fit" in run.data.tags["mlflow.note.content"]
    headline = {name: value for name, value in scores_of(folder).items() if name.endswith(CopyingTask.headline)}
    assert headline
    for name, value in headline.items():
        assert run.data.metrics[f"test/{name}"] == pytest.approx(value)


def test_a_name_and_a_seed_choose_the_folder(folder: Path) -> None:
    options = (*COPYING, *UNTRACKED, FIGURELESS, "--test_after_fit=false", "--trainer.max_steps=1")
    succeed("fit", *options, "--seed_everything=3")
    succeed("fit", *options, "--name=mine")
    assert sorted(path.name for path in (folder / "runs/copying").iterdir()) == ["mine", "rim-seed3"]
    assert read_json(folder / "runs/copying/rim-seed3/results.json")["seed"] == 3


def test_a_new_start_sets_the_earlier_run_aside_and_loses_nothing(copying: Path) -> None:
    before = {path.relative_to(copying): path.read_bytes() for path in copying.rglob("*") if path.is_file()}
    options = (
        *COPYING,
        *UNTRACKED,
        FIGURELESS,
        "--test_after_fit=false",
        "--trainer.max_steps=1",
        "--resume=never",
    )
    succeed("fit", *options)
    aside = copying.with_name("rim-seed0.1")
    assert {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()} == before
    assert read_checkpoint(copying / "checkpoints/last.ckpt")["global_step"] == 1
    succeed("fit", *options)
    assert sorted(path.name for path in copying.parent.iterdir()) == ["rim-seed0", "rim-seed0.1", "rim-seed0.2"]
    assert read_checkpoint(aside / "checkpoints/last.ckpt")["global_step"] == 4


def test_a_trial_run_leaves_nothing(folder: Path) -> None:
    succeed("fit", *COPYING, "--trainer.fast_dev_run=true")
    assert list(folder.iterdir()) == []


# A checkpoint alone


def test_a_checkpoint_holds_plain_types_and_tensors_only(trained_copying: Path, trained_language: Path) -> None:
    for run in (trained_copying / "runs/copying", trained_language / "runs/language"):
        for path in sorted((run / "rim-seed0/checkpoints").iterdir()):
            found = {kind.__name__ for kind in plain_types(read_checkpoint(path))}
            allowed = {"dict", "OrderedDict", "list", "tuple", "str", "int", "float", "bool", "NoneType", "Tensor"}
            assert found <= allowed


@pytest.mark.parametrize(("fixture", "task"), [("copying", CopyingTask), ("language", LanguageModelingTask)])
def test_a_task_loads_from_its_checkpoint_alone_with_the_same_outputs(
    request: pytest.FixtureRequest, fixture: str, task: type[Task]
) -> None:
    path = request.getfixturevalue(fixture) / "checkpoints/best.ckpt"
    loaded = [cls.load_from_checkpoint(path) for cls in (task, Task)]
    weights = read_checkpoint(path)["state_dict"]
    tokens = torch.arange(10)[None]
    outputs = [model(tokens)[0] for model in loaded]
    assert torch.equal(*outputs) and outputs[0].shape[:2] == (1, 10)
    assert all(type(model) is task and not model.training for model in loaded)
    assert {name: value.tolist() for name, value in loaded[1].state_dict().items()} == {
        name: value.tolist() for name, value in weights.items()
    }


@pytest.mark.parametrize(("fixture", "options"), [("copying", []), ("language", [])])
def test_the_file_alone_tests_as_the_run_did(
    request: pytest.FixtureRequest,
    fixture: str,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run: Path = request.getfixturevalue(fixture)
    limit = "--trainer.limit_test_batches=2"  # as trainer/quick had it
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    if fixture == "language":
        options = [f"--data.path={tmp_path / 'novel'}"]
    wanted = scores_of(run)
    (run / "results.json").unlink()
    answer = succeed("test", "--ckpt_path", run / "checkpoints/best.ckpt", *UNTRACKED, *QUIET, limit, *options)
    assert scores_of(run) == pytest.approx(wanted, rel=1e-6)
    assert "floor" in answer.out
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("key", ["best", "last"])
def test_best_and_last_are_looked_up_in_the_runs_folder(copying: Path, key: str) -> None:
    wanted = scores_of(copying)
    (copying / "results.json").unlink()
    other = {"best": "last", "last": "best"}[key]
    (copying / f"checkpoints/{other}.ckpt").unlink()
    succeed("test", *COPYING, *UNTRACKED, f"--ckpt_path={key}")
    found = scores_of(copying)
    assert set(found) == set(wanted)
    if key == "best":
        assert found == pytest.approx(wanted, rel=1e-6)


def test_the_command_line_goes_before_what_the_checkpoint_says(copying: Path) -> None:
    file = copying / "checkpoints/best.ckpt"
    succeed("test", "--ckpt_path", file, *UNTRACKED, *QUIET, "--data.test_spans=[3]", "--data.test_size=6")
    assert {name.split("/")[0] for name in scores_of(copying)} == {"span_3"}


def test_validation_of_a_checkpoint_prints_its_scores(copying: Path) -> None:
    answer = succeed("validate", "--ckpt_path", copying / "checkpoints/best.ckpt", *UNTRACKED, *QUIET)
    best = read_checkpoint(copying / "checkpoints/best.ckpt")
    assert f"{best['callbacks']['Checkpointer']['best_score']:.4f}" in answer.out


# Resuming


def test_fit_resumes_from_the_last_step_in_the_same_folder_and_mlflow_run(folder: Path, store: str) -> None:
    succeed("fit", *COPYING)  # a run of its own: the MLflow run changes
    copying = folder / "runs/copying/rim-seed0"
    rows = rows_of(copying / "metrics.csv")
    state = read_json(copying / "run_state.json")
    answer = rimlit("fit", *COPYING, "--ckpt_path=last", "--trainer.max_steps=6", FIGURELESS)
    assert answer.code == 0, answer.err
    assert answer.warned == []
    assert [path.name for path in copying.parent.iterdir()] == ["rim-seed0"]
    assert read_checkpoint(copying / "checkpoints/last.ckpt")["global_step"] == 6
    assert read_json(copying / "results.json")["steps"] == 6
    later = rows_of(copying / "metrics.csv")
    assert [row["step"] for row in later[: len(rows)]] == [row["step"] for row in rows]
    steps = [int(row["step"]) for row in later if row["train/loss"]]
    assert steps == list(range(6))
    assert read_json(copying / "run_state.json") | {"written": None} == {**state, "step": 6, "written": None}
    run_id = read_json(copying / "tracking.json")["mlflow_run_id"]
    history = MlflowClient(store).get_metric_history(run_id, "train/loss")
    assert sorted(metric.step for metric in history) == steps


def test_the_same_command_starts_goes_on_and_says_that_it_is_done(folder: Path) -> None:
    command = ("fit", *COPYING, *UNTRACKED, FIGURELESS, "--test_after_fit=false", "--trainer.max_steps=3")
    run = folder / "runs/copying/rim-seed0"

    def stop(callback: Checkpointer, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "on_train_epoch_start", stop, raising=False)
        stopped = rimlit(*command)
    assert stopped.code == 143
    assert "Stopped by SIGTERM after step 0" in stopped.err
    state = read_json(run / "run_state.json")
    assert (state["status"], state["step"], state["checkpoint"]) == ("stopped", 0, "checkpoints/last.ckpt")
    succeed(*command)
    state = read_json(run / "run_state.json")
    assert (state["status"], state["step"], state["reason"]) == ("finished", 3, None)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "is done, 3 steps" in succeed(*command).out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    succeed(*command, "--trainer.max_steps=5")
    assert read_json(run / "run_state.json")["step"] == 5


def test_resuming_with_other_settings_is_refused_by_name_unless_allowed(
    copying: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.read_bytes() for path in copying.rglob("*") if path.is_file()}
    longer = ("fit", *COPYING, *UNTRACKED, FIGURELESS, "--test_after_fit=false", "--trainer.max_steps=6")
    for option, key in (
        ("--data.batch_size=3", "data.init_args.batch_size=4"),
        ("--seed_everything=1", "seed_everything=0"),
        ("--model.init_args.embedding_size=8", "model.init_args.embedding_size=64"),
    ):
        answer = rimlit(*longer, option, "--name=rim-seed0")
        assert answer.code == 2
        assert f"runs/copying/rim-seed0 was started with {key}; got " in answer.err
        assert "--allow_changes true" in answer.err
        assert {path: path.read_bytes() for path in copying.rglob("*") if path.is_file()} == before
    with caplog.at_level(logging.INFO, logger="rimlit"):
        succeed(*longer, "--data.batch_size=3", "--allow_changes=true")
    assert "data.init_args.batch_size was 4 and is 3 from here on." in caplog.text
    assert read_json(copying / "run_state.json")["step"] == 6


def test_a_language_model_resumes_with_another_number_of_rows_from_the_initial_state(
    language: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (carried,) = read_checkpoint(language / "checkpoints/last.ckpt")["rimlit"]["carried"]
    assert len(carried[0]) == 4
    longer = ("fit", *LANGUAGE, *UNTRACKED, FIGURELESS, "--test_after_fit=false", "--trainer.max_steps=6")
    with caplog.at_level(logging.INFO, logger="rimlit"):
        succeed(*longer, "--data.batch_size=3", "--allow_changes=true")
    assert "The state of 4 rows of text is not restored: a batch has 3 from here on." in caplog.text
    (carried,) = read_checkpoint(language / "checkpoints/last.ckpt")["rimlit"]["carried"]
    assert len(carried[0]) == 3


def test_another_learning_rate_is_used_and_said(copying: Path, caplog: pytest.LogCaptureFixture) -> None:
    rate = "--model.init_args.optimizer.init_args.lr=0.001"
    longer = ("fit", *COPYING, *UNTRACKED, FIGURELESS, "--test_after_fit=false", "--trainer.max_steps=6", rate)
    with caplog.at_level(logging.INFO, logger="rimlit"):
        succeed(*longer)
    assert "model.init_args.optimizer.init_args.lr was 0.005 and is 0.001 from here on." in caplog.text
    (group,) = read_checkpoint(copying / "checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"]
    assert group["initial_lr"] == 0.001


def test_fit_resumes_from_a_named_file_or_run_in_its_own_folder(copying: Path) -> None:
    longer = ("fit", *COPYING, *UNTRACKED, FIGURELESS, "--test_after_fit=false", "--trainer.max_steps=6")
    for number, named in enumerate((copying / "checkpoints/best.ckpt", copying)):
        succeed(*longer, f"--resume={named}", f"--name=other-{number}")
        state = read_json(copying.with_name(f"other-{number}") / "run_state.json")
        assert (state["status"], state["step"]) == ("finished", 6)
    assert read_json(copying / "run_state.json")["step"] == 4
    # what lies in its own folder is not mixed with a run that comes from elsewhere
    succeed(*longer, f"--resume={copying}", "--name=other-0")
    assert copying.with_name("other-0.1").is_dir()
    # its own file: the same run
    succeed(*longer, f"--resume={copying / 'checkpoints/last.ckpt'}")
    assert read_json(copying / "run_state.json")["step"] == 6
    assert not copying.with_name("rim-seed0.1").exists()


def test_fit_takes_the_newest_whole_checkpoint_and_names_what_it_passed_over(
    copying: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytearray((copying / "checkpoints/last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (copying / "checkpoints/last.ckpt").write_bytes(content)
    longer = ("fit", *COPYING, *UNTRACKED, FIGURELESS, "--test_after_fit=false", "--trainer.max_steps=6")
    named = rimlit(*longer, "--resume", copying / "checkpoints/last.ckpt")
    assert named.code == 4 and "last.ckpt is damaged" in named.err
    with caplog.at_level(logging.INFO, logger="rimlit"):
        succeed(*longer)
    assert "Passed over: runs/copying/rim-seed0/checkpoints/last.ckpt is damaged" in caplog.text
    assert "Resuming runs/copying/rim-seed0 from best.ckpt" in caplog.text
    assert read_json(copying / "run_state.json")["step"] == 6


def test_a_run_that_a_callback_ended_is_done_too(folder: Path) -> None:
    early = "{class_path: EarlyStopping, init_args: {monitor: val/loss, patience: 1, min_delta: 9.0}}"
    options = ("--test_after_fit=false", f"--trainer.callbacks+={early}", "--trainer.max_steps=40")
    command = ("fit", *COPYING, *UNTRACKED, FIGURELESS, *options)
    succeed(*command)
    assert "is done, 4 steps" in succeed(*command).out
    succeed(*command, "--trainer.max_steps=41")
    assert read_json(folder / "runs/copying/rim-seed0/run_state.json")["step"] > 4


@pytest.mark.slow
def test_a_run_of_so_many_epochs_is_done_after_them(folder: Path) -> None:
    epochs = ("--trainer.max_steps=-1", "--trainer.max_epochs=2", "--data.train_size=8")
    interval = ("--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1")
    command = ("fit", *COPYING, *UNTRACKED, FIGURELESS, "--test_after_fit=false", *epochs, *interval)
    succeed(*command)
    assert "is done, 4 steps" in succeed(*command).out
    succeed(*command, "--trainer.max_epochs=3")
    assert read_json(folder / "runs/copying/rim-seed0/run_state.json")["step"] == 6


def test_a_run_that_was_killed_is_named_so_at_the_next_start(
    copying: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = read_json(copying / "run_state.json")
    (copying / "run_state.json").write_text(json.dumps({**state, "status": "running", "process": 12345}))
    (copying / ".run_state.json.12345.tmp").write_text("{")  # killed while it wrote
    longer = ("fit", *COPYING, *UNTRACKED, FIGURELESS, "--test_after_fit=false", "--trainer.max_steps=6")
    succeed(*longer)
    assert "An earlier process of this run was killed after step 4" in caplog.text
    state = read_json(copying / "run_state.json")
    assert [(killed["process"], killed["step"]) for killed in state["killed"]] == [(12345, 4)]
    assert state["status"] == "finished"
    assert not list(copying.glob(".*.tmp"))
    # killed at its very end: there is nothing left to train
    (copying / "run_state.json").write_text(json.dumps({**state, "status": "running"}))
    (copying / ".run_state.json.12345.tmp").write_text("{")
    succeed(*longer)
    state = read_json(copying / "run_state.json")
    assert (state["status"], len(state["killed"])) == ("finished", 2)
    assert not list(copying.glob(".*.tmp"))


def test_how_many_updates_may_be_left_out_is_a_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guards: list[int] = []
    monkeypatch.setattr(FiniteGuard, "on_train_start", lambda guard, *_: guards.append(guard.skip))
    skip = "--trainer.callbacks+={class_path: rimlit.training.FiniteGuard, init_args: {skip: 3}}"
    succeed("fit", *COPYING, *UNTRACKED, skip, "--test_after_fit=false", "--trainer.max_steps=1")
    assert guards == [3], "one guard, as asked for"


# Predictions


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predicting_copying_writes_what_was_shown_and_what_was_emitted(copying: Path) -> None:
    succeed("predict", "--ckpt_path", copying / "checkpoints/best.ckpt", *UNTRACKED, *QUIET)
    records = lines_of(copying / "predictions.jsonl")
    assert [record["span"] for record in records] == [5] * 8 + [9] * 8
    for record in records:
        assert len(record["symbols"]) == len(record["emitted"]) == 10
        assert all(1 <= symbol <= 8 for symbol in record["symbols"])


def test_a_language_model_continues_a_prompt_without_its_text_and_repeats_itself(language: Path) -> None:
    for path in (language.parents[2] / "novel").iterdir():
        path.unlink()

    def predict(*options: str) -> str:
        file = language / "checkpoints/best.ckpt"
        answer = succeed("predict", "--ckpt_path", file, *UNTRACKED, *QUIET, "--data.prompt=the age of ", *options)
        (record,) = lines_of(language / "predictions.jsonl")
        assert record["prompt"] == "the age of "
        assert f"the age of {record['text']}" in answer.out
        text: str = record["text"]
        return text

    first = predict()
    assert len(first) == 12
    assert predict() == first
    other = predict("--model.sample_seed=1", "--model.num_tokens=9")
    assert len(other) == 9 and not first.startswith(other)


# The Trainer's own settings


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "dataset"), [(COPYING, "copying"), (LANGUAGE, "language")])
@pytest.mark.parametrize(
    "options",
    [["--trainer.precision=bf16-mixed"], ["--trainer.accumulate_grad_batches=2", "--trainer.max_steps=2"]],
)
def test_mixed_precision_and_accumulation_work_with_every_task(
    folder: Path, arguments: tuple[str, ...], dataset: str, options: list[str]
) -> None:
    write_novel(folder)
    succeed("fit", *arguments, *UNTRACKED, *options)
    results = read_json(folder / "runs" / dataset / "rim-seed0/results.json")
    assert results["steps"] == (2 if len(options) > 1 else 4)
    assert all(torch.tensor(value).isfinite() for value in results["test"].values())


def test_a_later_config_goes_before_an_earlier_one_and_an_option_before_both(folder: Path) -> None:
    (folder / "first.yaml").write_text("trainer: {max_steps: 3, log_every_n_steps: 7}\n")
    (folder / "second.yaml").write_text("trainer: {max_steps: 2}\ndata: {init_args: {batch_size: 3}}\n")
    files = ("--config", "copying/rim", "-c", "first.yaml", "--config=second.yaml")
    config = yaml.safe_load(succeed("fit", *files, "--data.val_size=5", "--print_config").out)
    assert config["trainer"]["max_steps"] == 2
    assert config["trainer"]["log_every_n_steps"] == 7
    assert config["data"]["init_args"]["batch_size"] == 3
    assert config["data"]["init_args"]["val_size"] == 5
    assert config["model"]["init_args"]["embedding_size"] == 64


def test_classes_go_by_their_short_names_and_settings_without_init_args(folder: Path) -> None:
    options = ("--model.backbone=LSTM", "--model.backbone.hidden_size=8", "--model.optimizer=SGD")
    rate = "--model.optimizer.init_args.lr=0.1"
    config = yaml.safe_load(succeed("fit", "--config=copying/lstm", *options, rate, "--print_config").out)
    backbone = config["model"]["init_args"]["backbone"]
    assert backbone["class_path"].startswith("rimlit.") and backbone["class_path"].endswith(".LSTM")
    assert backbone["init_args"]["hidden_size"] == 8
    assert config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.SGD"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (
            ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=logs"],
            "logs/copying/rim-seed0/events.out.tfevents.*",
        ),
        (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"], "logs/copying/rim-seed0/metrics.csv"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_another_logger_takes_the_place_of_mlflow(folder: Path, options: list[str], pattern: str) -> None:
    if "TensorBoard" in options[0]:
        pytest.importorskip("tensorboard")
    succeed("fit", *COPYING, "--test_after_fit=false", *options)
    assert len(list(folder.glob(pattern))) == 1
    assert not list(folder.rglob("tracking.json*"))
    assert "train/loss" in (folder / "runs/copying/rim-seed0/metrics.csv").read_text()


# A user's own classes

OWN_MODULE = """\
from rimlit import LSTM
from rimlit.data import Copying
from rimlit.tasks import CopyingTask


class OwnBackbone(LSTM):
    pass


class OwnTask(CopyingTask):
    pass


class OwnData(Copying):
    name = "own"
"""
OWN_CONFIG = """\
model:
  class_path: {module}.OwnTask
  init_args:
    embedding_size: 8
    backbone: {{class_path: {module}.OwnBackbone, init_args: {{hidden_size: 8}}}}
data: {{class_path: {module}.OwnData, init_args: {{train_span: 3, test_spans: [3], val_size: 4, test_size: 4}}}}
"""


@pytest.mark.parametrize(
    "way",
    [
        "--trust",
        pytest.param("--trust=", marks=pytest.mark.slow),
        pytest.param("RIMLIT_TRUST", marks=pytest.mark.slow),
    ],
)
def test_a_module_beside_the_user_is_used_by_its_path_once_it_is_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    module = f"own_{('--trust', '--trust=', 'RIMLIT_TRUST').index(way)}"
    (folder / f"{module}.py").write_text(OWN_MODULE)
    (folder / "own.yaml").write_text(OWN_CONFIG.format(module=module))
    fit = ("fit", "--config=own.yaml", "--config=trainer/quick", *QUIET, *UNTRACKED)
    refused = rimlit(*fit)
    assert refused.code == 2
    assert f"{module}.O" in refused.err and "is outside the trusted packages" in refused.err
    assert module not in sys.modules

    trusting = {"--trust": ["--trust", module], "--trust=": [f"--trust={module}"], "RIMLIT_TRUST": []}[way]
    if way == "RIMLIT_TRUST":
        monkeypatch.setenv("RIMLIT_TRUST", module)
    succeed(*fit, *trusting)
    run = folder / "runs/own/own-seed0"
    saved = read_checkpoint(run / "checkpoints/best.ckpt")["rimlit"]
    assert saved["task"]["class_path"] == f"{module}.OwnTask"
    assert saved["task"]["init_args"]["backbone"]["class_path"] == f"{module}.OwnBackbone"
    assert saved["data"]["class_path"] == f"{module}.OwnData"
    succeed("test", "--ckpt_path", run / "checkpoints/best.ckpt", *QUIET, *UNTRACKED, *trusting)


def test_a_run_that_another_process_trains_is_refused_until_that_has_ended(
    copying: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longer = ("fit", *COPYING, *UNTRACKED, FIGURELESS, "--test_after_fit=false", "--trainer.max_steps=5")
    state = read_json(copying / "run_state.json")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        running = {**state, "status": "running", "process": process_name(other.pid)}
        (copying / "run_state.json").write_text(json.dumps(running))
        before = {path: path.read_bytes() for path in copying.rglob("*") if path.is_file()}
        for option in ("--resume=auto", "--resume=never"):
            answer = rimlit(*longer, option)
            assert answer.code == 2
            named = f"runs/copying/rim-seed0 is being trained by process {other.pid} on {socket.gethostname()}"
            assert named in answer.err
        assert {path: path.read_bytes() for path in copying.rglob("*") if path.is_file()} == before
        other.kill()
    succeed(*longer)
    assert "An earlier process of this run was killed after step 4" in caplog.text
    assert read_json(copying / "run_state.json")["process"] == process_name()


def test_of_a_process_on_another_machine_it_is_not_said_that_it_was_killed(
    copying: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = read_json(copying / "run_state.json")
    elsewhere = {**state, "status": "running", "process": "node7/4026531836/17/12345"}
    (copying / "run_state.json").write_text(json.dumps(elsewhere))
    succeed("fit", *COPYING, *UNTRACKED, FIGURELESS, "--test_after_fit=false", "--trainer.max_steps=5")
    assert "An earlier process of this run, on node7, has not recorded its end" in caplog.text
    assert "killed" not in caplog.text
    assert "killed" not in read_json(copying / "run_state.json")
