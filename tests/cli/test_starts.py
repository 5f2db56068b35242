"""The start of a run: all is checked before anything is created, one process at a time, ranks agree."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from rimlit.checkpoints import read_checkpoint, write_checkpoint
from rimlit.files import write_file
from rimlit.tracking.run_folder import RunLock
from tests.cli.running import COPYING, QUIET, SMALL_RIM, UNTRACKED, Answer, read_json, rimlit, succeed
from tests.cli.test_errors import nothing_is_left, refused
from tests.processes import Warm

FIGURELESS = "--trainer.callbacks+={class_path: rimlit.pictures.MechanismActivity, init_args: {figure: false}}"
SHORT = (*COPYING, *UNTRACKED, FIGURELESS, "--test_after_fit=false")
LONGER = ("fit", *SHORT, "--trainer.max_steps=6")


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file and folder below ``folder``, hidden ones included."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# A saved config is a recipe


def test_a_saved_config_holds_nothing_of_its_run_and_a_new_name_is_a_new_run(copying: Path) -> None:
    settings = yaml.safe_load((copying / "config.yaml").read_text())
    own = {"name", "resume", "ckpt_path", "allow_changes", "match", "match_to", "config"}
    assert own.isdisjoint(settings) and "default_root_dir" not in settings["trainer"]
    assert str(copying.parent) not in (copying / "config.yaml").read_text()
    before = contents(copying)
    options = (*UNTRACKED, FIGURELESS, "--test_after_fit=false")
    rate = "--model.optimizer.lr=0.1"
    succeed("fit", f"--config={copying / 'config.yaml'}", "--name=two", rate, "--trainer.max_steps=3", *options)
    assert contents(copying) == before
    two = copying.with_name("two")
    assert read_json(two / "run_state.json")["step"] == 3
    assert yaml.safe_load((two / "config.yaml").read_text())["model"]["init_args"]["optimizer"]["init_args"] == {
        **settings["model"]["init_args"]["optimizer"]["init_args"],
        "lr": 0.1,
    }


def test_a_saved_config_names_its_own_run_for_a_test(copying: Path) -> None:
    before = read_json(copying / "results.json")["test"]
    (copying / "results.json").unlink()
    succeed("test", f"--config={copying / 'config.yaml'}", *UNTRACKED)
    assert read_json(copying / "results.json")["test"] == pytest.approx(before, rel=1e-6)


# What is refused leaves nothing behind


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--trainer.max_steps=0", ["trainer.max_steps must be at least 1, or -1 for no limit; got 0."]),
        ("--trainer.max_steps=-2", ["trainer.max_steps must be at least 1, or -1 for no limit; got -2."]),
        ("--trainer.max_epochs=0", ["trainer.max_epochs must be at least 1, or -1 for no limit; got 0."]),
        ("--trainer.max_time=00:00:00:00", ["trainer.max_time must be longer than 0 seconds", "00:00:00:00"]),
        ("--trainer.max_time={hours: 0}", ["trainer.max_time must be longer than 0 seconds"]),
        ("--trainer.gradient_clip_val=.nan", ["trainer.gradient_clip_val must be a number; got nan."]),
        ("--model.optimizer.lr=.nan", ["model.optimizer.lr must be a number; got nan."]),
        ("--data.train_size=1", ["there are 1 samples, fewer than a batch"]),
        (
            "--model.scheduler={class_path: OneCycleLR, init_args: {max_lr: 1, total_steps: 2}}",
            ["total_steps", "2"],
        ),
        ("--model.optimizer={class_path: SGD, init_args: {lr: 1, momentum: -1}}", ["SGD", "momentum", "-1"]),
    ],
)
def test_a_start_that_is_refused_leaves_nothing(folder: Path, store: str, option: str, words: list[str]) -> None:
    runs = len(MlflowClient(store).search_runs(["0"]))
    answer = rimlit("fit", *COPYING, option)
    refused(answer, 3 if "train_size" in option else 2, *words)
    assert nothing_is_left(folder) and list(folder.iterdir()) == []
    assert len(MlflowClient(store).search_runs(["0"])) == runs


def write_values(folder: Path) -> None:
    rows = "".join(f"s{s},{s + t / 10},{s % 3}\n" for s in range(30) for t in range(3))
    write_file(folder / "values.csv", f"sequence,x,target\n{rows}")


@pytest.mark.parametrize(
    ("task", "target", "words"),
    [
        ("ClassificationTask", "value", ["ClassificationTask needs classes", "RegressionTask"]),
        ("RegressionTask", "label", ["RegressionTask"]),
    ],
)
def test_a_task_that_does_not_fit_the_data_is_refused_before_anything_is_created(
    folder: Path, task: str, target: str, words: list[str]
) -> None:
    write_values(folder)
    options = (f"--model={task}", "--model.backbone=LSTM", "--model.backbone.hidden_size=8", "--data=Sequences")
    settings = (
        "--data.path=values.csv",
        f"--data.target={target}",
        "--data.batch_size=4",
        "--trainer.max_steps=2",
    )
    refused(rimlit("fit", *options, *settings, *QUIET, "--trainer.accelerator=cpu"), 2, *words)
    assert [path.name for path in folder.iterdir()] == ["values.csv"]


def _of_another_model(folder: Path) -> Path:
    succeed("fit", *SHORT, "--model.backbone.hidden_size=12", "--trainer.max_steps=1", "--name=small")
    return folder / "runs/copying/small/checkpoints/last.ckpt"


def _of_another_optimizer(folder: Path) -> Path:
    succeed(
        "fit", *SHORT, "--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--trainer.max_steps=1", "--name=sgd"
    )
    return folder / "runs/copying/sgd/checkpoints/last.ckpt"


def _damaged(folder: Path) -> Path:
    path = folder / "damaged.ckpt"
    path.write_bytes((folder / "runs/copying/rim-seed0/checkpoints/last.ckpt").read_bytes()[:-100])
    return path


def _without_optimizer(folder: Path) -> Path:
    checkpoint = read_checkpoint(folder / "runs/copying/rim-seed0/checkpoints/last.ckpt")
    checkpoint["optimizer_states"][0]["param_groups"][0]["params"].pop()
    write_checkpoint(checkpoint, folder / "odd.ckpt")
    return folder / "odd.ckpt"


@pytest.mark.parametrize("make", [_of_another_model, _of_another_optimizer, _damaged, _without_optimizer])
def test_a_checkpoint_that_is_refused_moves_no_earlier_run(copying: Path, make: Callable[[Path], Path]) -> None:
    other = make(copying.parents[2])
    before = contents(copying.parent)
    for option in (f"--ckpt_path={other}", f"--resume={other}"):
        answer = rimlit(*LONGER, option, "--allow_changes=true")
        assert answer.code in (2, 4) and answer.err.count("rimlit: error: ") == 1, answer.err
        assert contents(copying.parent) == before


def test_a_full_disk_is_noticed_before_anything_is_created(copying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(copying.parents[1])
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    for name in ("rim-seed0", "new"):
        answer = rimlit(*LONGER, f"--name={name}", "--resume=never")
        assert answer.code == 6 and "10 bytes are free" in answer.err
        assert contents(copying.parents[1]) == before


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_folder_that_cannot_be_used_is_named_with_exit_code_6(copying: Path, command: str) -> None:
    root = copying.parents[2]
    (root / "loop").symlink_to(root / "loop")
    (root / "nowhere").symlink_to(root / "gone")
    (root / "file").write_text("")
    for path in ("loop/a", "nowhere/a", "file/a", f"runs/{'a' * 300}"):
        named = (f"--ckpt_path={copying / 'checkpoints/best.ckpt'}",) if command == "test" else ()
        answer = rimlit(command, *COPYING, *UNTRACKED, *named, f"--trainer.default_root_dir={path}")
        refused(answer, 6, path, "cannot be written (")


# The data are known by their content

OWN = ("--model=ClassificationTask", "--model.backbone=LSTM", "--model.backbone.hidden_size=8", "--data=Sequences")
OWN_FIT = ("fit", *OWN, *QUIET, *UNTRACKED, "--data.batch_size=4", "--trainer.accelerator=cpu", "--name=mine")


def write_labels(path: Path, swap: bool = False) -> None:
    rows = [f"s{s},{s + t / 10},{('a', 'b')[(s + swap) % 2]}\n" for s in range(30) for t in range(3)]
    write_file(path, f"sequence,x,target\n{''.join(rows)}")


def test_changed_data_are_refused_and_moved_data_are_the_same(folder: Path) -> None:
    write_labels(folder / "a.csv")
    succeed(*OWN_FIT, "--data.path=a.csv", "--trainer.max_steps=2")
    run = folder / "runs/sequences/mine"
    digest = read_json(run / "results.json")["data"]["digest"]
    assert (
        len(digest) == 64 and read_checkpoint(run / "checkpoints/last.ckpt")["rimlit_run"]["data_digest"] == digest
    )
    write_labels(folder / "b.csv", swap=True)
    before = contents(run)
    for steps in (2, 4):
        answer = rimlit(*OWN_FIT, "--data.path=b.csv", f"--trainer.max_steps={steps}")
        refused(answer, 2, "mine was trained on data of other content", digest[:12], "--allow_changes true")
        assert contents(run) == before
    (folder / "elsewhere").mkdir()
    (folder / "a.csv").rename(folder / "elsewhere/c.csv")
    succeed(*OWN_FIT, "--data.path=elsewhere/c.csv", "--trainer.max_steps=4")
    assert read_json(run / "run_state.json")["step"] == 4
    succeed(*OWN_FIT, "--data.path=b.csv", "--trainer.max_steps=6", "--allow_changes=true")
    assert read_json(run / "results.json")["data"]["digest"] != digest


def test_data_that_give_reason_for_doubt_are_a_warning_or_with_strict_an_error(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"s{s},{s % 2},{('a', 'b')[s % 2]}\n" for s in range(30)]
    write_file(folder / "same.csv", f"sequence,x,target\n{''.join(rows)}")
    options = (*OWN_FIT, "--data.path=same.csv", "--trainer.max_steps=1")
    answer = rimlit(*options, "--strict")
    refused(answer, 3, "same.csv", "every sequence of val is also in train")
    assert [path.name for path in folder.iterdir()] == ["same.csv"]
    succeed(*options)
    assert "every sequence of val is also in train" in caplog.text


def test_the_working_directory_may_be_the_runs_folder(folder: Path) -> None:
    (folder / "here").mkdir()
    os.chdir(folder / "here")
    succeed("fit", *SHORT, "--trainer.default_root_dir=.", "--trainer.max_steps=1")
    assert read_json(folder / "here/run_state.json")["step"] == 1
    assert not list(folder.glob(".*.lock"))


def test_checkpoints_may_be_a_link_to_another_disk(copying: Path) -> None:
    elsewhere = copying.parents[2] / "disk"
    (copying / "checkpoints").rename(elsewhere)
    (copying / "checkpoints").symlink_to(elsewhere)
    succeed(*LONGER)
    assert [path.name for path in copying.parent.iterdir()] == ["rim-seed0"], "the same run, resumed"
    assert read_json(copying / "run_state.json")["step"] == 6


@pytest.mark.parametrize("name", ["LOCAL_RANK", "WORLD_SIZE", "SLURM_NTASKS", "PL_GLOBAL_SEED"])
def test_a_variable_that_is_no_number_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    refused(rimlit("fit", *SHORT), 2, f"{name} in the environment must be a whole number; got 'x'.")


@pytest.mark.parametrize("precision", ["64", "bf16-true"])
def test_a_precision_that_converts_the_data_is_tried_with_converted_data(folder: Path, precision: str) -> None:
    write_labels(folder / "a.csv")
    succeed(*OWN_FIT, "--data.path=a.csv", "--trainer.max_steps=1", f"--trainer.precision={precision}")


# Links in a run's folder


def test_no_link_in_a_runs_folder_is_written_through(copying: Path) -> None:
    victim = copying.parents[2] / "victim"
    victim.write_text("mine")
    names = ["config.yaml", "run_state.json", "results.json", "metrics.csv", "checkpoints/.tried"]
    for name in [*names, "figures/activity.png"]:
        (copying / name).unlink(missing_ok=True)
        (copying / name).symlink_to(victim)
    succeed("fit", *COPYING, *UNTRACKED, "--trainer.max_steps=6")
    assert victim.read_text() == "mine"
    assert read_json(copying / "run_state.json")["step"] == 6


@pytest.mark.parametrize("name", ["run_state.json", "results.json", "tracking.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"tested": 3, "status": {}, "step": "x"}'])
def test_a_damaged_file_of_state_counts_as_absent(copying: Path, name: str, content: str) -> None:
    (copying / name).write_text(content)
    tracked = () if name == "tracking.json" else UNTRACKED
    answer = rimlit("fit", *COPYING, *tracked, FIGURELESS, "--trainer.max_steps=5", "--test_after_fit=false")
    assert answer.code == 0, answer.err
    assert read_json(copying / name)


# One process at a time


def start_twice(warm: Warm, folder: Path) -> tuple[list[int], str]:
    """Start the same run in two processes at once; return their exit codes, sorted, and all they printed."""
    wait = "{class_path: tests.processes.Fault, init_args: {kind: wait, rank: 0, step: 1}}"
    command = ["fit", *SHORT, "--trainer.max_steps=3", "--trust=tests", f"--trainer.callbacks+={wait}"]
    warm.start_alone(folder, command, command)
    ended = warm.wait()
    return sorted(end.code for end in ended), "".join(end.error for end in ended)


@pytest.mark.slow
def test_of_two_starts_at_the_same_time_one_trains_and_one_is_refused(folder: Path, warm: Warm) -> None:
    for number in range(3):
        place = folder / str(number)
        place.mkdir()
        codes, printed = start_twice(warm, place)
        assert codes == [0, 2], printed
        assert re.search(r"rim-seed0 is being used by process \d+ on ", printed)
        assert sorted(path.name for path in (place / "runs/copying").iterdir()) == ["rim-seed0"]
        assert read_json(place / "runs/copying/rim-seed0/run_state.json")["status"] == "finished"


# Ranks agree


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("--model.optimizer.lr=0.1", "model.init_args.optimizer.init_args.lr is 0.005 in process 0 and 0.1"),
        ("--seed_everything=7", "seed_everything is 0 in process 0 and 7"),
        ("--trainer.max_steps=5", "trainer.max_steps is 4 in process 0 and 5"),
        ("--data.batch_size=8", "data.init_args.batch_size is 4 in process 0 and 8"),
        ("--name=other", "name is 'same' in process 0 and 'other'"),
    ],
)
def test_a_process_with_other_settings_is_refused_with_key_and_both_values(
    folder: Path, warm: Warm, option: str, key: str
) -> None:
    name = "--name=same"
    warm.start(folder, "fit", *SHORT, name, own={1: [option]})
    ended = warm.wait()
    assert [end.code for end in ended] == [2, 2], [end.error for end in ended]
    for end in ended:
        assert key in end.error and "in process 1." in end.error
        assert "Traceback" not in end.error
    assert not (folder / "runs").exists()


# Lengths and what callbacks set


def resumed(folder: Path, *options: str, steps: int = 6) -> Answer:
    return succeed("fit", *SHORT, *options, f"--trainer.max_steps={steps}")


def rate_of(folder: Path) -> Any:
    checkpoint = read_checkpoint(folder / "runs/copying/rim-seed0/checkpoints/last.ckpt")
    return checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]


def test_a_schedule_as_long_as_the_run_is_stretched_with_it(folder: Path) -> None:
    schedule = ("--model.scheduler={class_path: OneCycleLR, init_args: {max_lr: 0.01}}",)
    resumed(folder, *schedule, steps=4)
    resumed(folder, *schedule, steps=8)
    stretched = rate_of(folder)
    (folder / "other").mkdir()
    os.chdir(folder / "other")
    resumed(folder, *schedule, steps=8)
    assert stretched == rate_of(folder / "other")


def test_settings_of_a_callback_do_not_count_as_changed_by_the_user(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accumulate = "{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 2}}}"
    options = (f"--trainer.callbacks+={accumulate}",)
    resumed(folder, *options, steps=4)
    with caplog.at_level(logging.INFO, logger="rimlit"):
        resumed(folder, *options, steps=6)
    assert "accumulate_grad_batches" not in caplog.text


def test_settings_of_the_run_and_its_data_are_in_the_results(copying: Path) -> None:
    results = json.loads((copying / "results.json").read_text())
    assert results["data"]["class_path"] == "rimlit.data.Copying"
    assert results["data"]["init_args"]["train_span"] == 5
    assert results["data"]["digest"] is None


def test_a_run_that_is_done_is_not_taken_for_one_with_another_rate(copying: Path) -> None:
    rate = "--model.optimizer.lr=0.1"
    answer = rimlit("fit", *SHORT, "--trainer.max_steps=4", rate)
    refused(answer, 2, "is done, 4 steps, with model.init_args.optimizer.init_args.lr=0.005; got 0.1", "--name")
    assert "is done, 4 steps. Test it with" in succeed("fit", *SHORT, "--trainer.max_steps=4").out


# Loggers and a refusal that comes late


def test_a_refusal_by_the_checkpoint_leaves_the_earlier_runs_records_alone(copying: Path) -> None:
    odd = _without_optimizer(copying.parents[2])
    before = contents(copying.parents[2])
    answer = rimlit("fit", *COPYING, "--trainer.max_steps=6", f"--ckpt_path={odd}", "--allow_changes=true")
    assert answer.code == 4 and "odd.ckpt" in answer.err and "Traceback" not in answer.err
    assert contents(copying.parents[2]) == before


OWN_DATA = """\
from rimlit.data import Copying


class Habit(Copying):
    def __init__(self, train_span: int = 3):
        super().__init__(train_span=train_span, test_spans=[3], batch_size=4, val_size=4, test_size=4)
        self.save_hyperparameters()
"""


def test_what_lightning_logs_early_goes_to_the_new_run(copying: Path) -> None:
    (copying.parents[2] / "habit_data.py").write_text(OWN_DATA)
    before = (copying / "tracking.jsonl").read_bytes()
    own = ("--trust=habit_data", "--data=habit_data.Habit", "--name=rim-seed0", "--resume=never")
    config = (*SMALL_RIM, *QUIET, "--config=trainer/quick", FIGURELESS, "--test_after_fit=false")
    answer = rimlit("fit", "--config=copying/rim", *config, *own, f"--trainer.default_root_dir={copying}")
    assert answer.code == 0, answer.err
    assert (copying.with_name("rim-seed0.1") / "tracking.jsonl").read_bytes() == before
    kinds = [json.loads(line)["kind"] for line in (copying / "tracking.jsonl").read_text().splitlines()]
    assert {"params", "metrics", "status"} <= set(kinds)


def test_a_tracker_that_is_required_is_asked_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/own.db")
    answer = rimlit("fit", *COPYING, "--require_tracking=true", "--trainer.max_steps=-1")
    refused(answer, 2, "no end")
    assert list(folder.iterdir()) == []


def test_a_run_is_not_tested_while_it_is_trained(copying: Path) -> None:
    lock = RunLock(copying)
    lock.acquire()
    try:
        answer = rimlit("test", f"--ckpt_path={copying / 'checkpoints/best.ckpt'}", *UNTRACKED, *QUIET)
    finally:
        lock.release()
    refused(answer, 2, "rim-seed0 is being used by process")


def test_a_saved_config_of_a_fine_tuned_run_can_be_tested(copying: Path) -> None:
    succeed("fit", *SHORT, "--name=tuned", f"--init_from={copying}", "--trainer.max_steps=1")
    tuned = copying.with_name("tuned")
    succeed("test", f"--config={tuned / 'config.yaml'}", *UNTRACKED, "--ckpt_path=last")
    assert read_json(tuned / "results.json")["test"]


def test_a_run_that_a_timer_ended_is_resumed_by_a_longer_one(folder: Path) -> None:
    timed = ("fit", *SHORT, "--trainer.max_steps=100000", "--trainer.callbacks+=Timer")
    succeed(*timed, "--trainer.callbacks.duration=00:00:00:01")
    (state,) = folder.glob("runs/*/*/run_state.json")
    first = read_json(state)
    assert first["status"] == "finished" and first["step"] < 100000
    succeed(*timed, "--trainer.callbacks.duration=00:00:00:03")
    assert read_json(state)["step"] > first["step"]
