"""The folder of a run, and what is written down there."""

import logging
import subprocess
from functools import partial
from pathlib import Path

import pytest
import yaml
from torch.optim import SGD

import rimlit
from rimlit.backbones import RIM
from rimlit.tasks import CopyingTask
from rimlit.tracking import recording
from rimlit.tracking.recording import RunRecorder, describe, git_commit, machine, sizes_of
from rimlit.tracking.run_folder import RunFolder
from tests.tasks.running import SMALL_LSTM, SMALL_RIM, make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet


def test_entries_of_state_and_results_are_added_to_those_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs/copying/mine")
    assert folder.read_state() == folder.read_results() == {}
    folder.write_state(a=1)
    folder.write_state(b=[2, None])
    folder.write_results(test={"x": 0.5})
    again = RunFolder(tmp_path / "runs/copying/mine")
    assert again.read_state() == {"a": 1, "b": [2, None]}
    assert again.read_results() == {"test": {"x": 0.5}}
    assert again.checkpoints == tmp_path / "runs/copying/mine/checkpoints"


def test_an_earlier_run_is_archived_under_the_next_free_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path / "mine")
    folder.archive_earlier_run()  # there is none
    (tmp_path / "mine").mkdir()
    folder.archive_earlier_run()  # there is nothing in it
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with caplog.at_level(logging.INFO, logger="rimlit"):
        for number in (1, 2):
            folder.write_state(number=number)
            folder.archive_earlier_run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.1", "mine.2"]
    assert [RunFolder(tmp_path / f"mine.{number}").read_state()["number"] for number in (1, 2)] == [1, 2]
    assert "--name mine.2" in caplog.text


def test_the_recorder_writes_config_counts_floor_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    task, data = make_copying_task(), make_copying()
    recorder = RunRecorder(RunFolder(tmp_path / "run"), "rimlit fit --and so on", "model: mine\n")
    trainer = make_trainer(tmp_path, callbacks=[recorder])
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    assert (tmp_path / "run/config.yaml").read_text() == "model: mine\n"
    results = RunFolder(tmp_path / "run").read_results()
    assert results["command"] == "rimlit fit --and so on"
    assert (results["seed"], results["steps"]) == (5, 2)
    assert results["parameters"] == sum(weight.numel() for weight in task.parameters())
    assert results["floor"] == data.floors()
    assert RunFolder(tmp_path / "run").has_own_test()
    assert results["versions"]["rimlit"] == rimlit.__version__
    assert set(results["test"]) == {
        name.removeprefix("test/") for name in trainer.callback_metrics if "test" in name
    }
    assert not (tmp_path / "run/checkpoints").exists()  # the trainer saves none


def test_a_test_alone_adds_its_scores_and_leaves_the_config(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.write_results(steps=9, test={"old": 1.0})
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump({"kept": True}))
    trainer = make_trainer(tmp_path, callbacks=[RunRecorder(folder, "rimlit test", "lost: true\n")])
    trainer.test(make_copying_task(), make_copying(), verbose=False)
    assert "kept" in (tmp_path / "run/config.yaml").read_text()
    results = folder.read_results()
    assert results["steps"] == 9
    assert "old" not in results["test"] and "span_3/cross_entropy" in results["test"]
    assert results["tested"]["command"] == "rimlit test"
    assert not folder.has_own_test()  # fit, asked again, tests its best checkpoint once more


def test_a_run_is_described_by_what_differs_from_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    task = CopyingTask(
        partial(RIM, hidden_size=12, num_mechanisms=3, num_active=2),
        10,
        4,
        embedding_size=6,
        optimizer=partial(SGD, lr=0.1),
    )
    trainer = make_trainer(tmp_path)
    trainer.validate(task, make_copying(train_span=3), verbose=False)
    described = describe(trainer, task)
    assert described["task"] == "CopyingTask"
    assert described["backbone"] == "RIM"
    assert (described["backbone.hidden_size"], described["backbone.num_active"]) == (12, 2)
    assert "backbone.cell" not in described
    assert described["embedding_size"] == 6
    assert (described["optimizer"], described["optimizer.lr"]) == ("SGD", 0.1)
    assert (described["data"], described["data.train_span"]) == ("Copying", 3)
    assert described["seed"] == "3"
    assert described["precision"] == "32-true"


def test_parameters_are_counted_in_all_and_in_a_step() -> None:
    lstm = sizes_of(make_copying_task(backbone=SMALL_LSTM))
    assert lstm["parameters"] == lstm["active_parameters"]
    task = make_copying_task(backbone=SMALL_RIM)
    rim = sizes_of(task)
    assert rim["parameters"] == sum(weight.numel() for weight in task.parameters())
    assert 0 < rim["active_parameters"] < rim["parameters"]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_working_directory_with_a_mark_for_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() == "unknown"
    (tmp_path / "a.txt").write_text("a")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit() == commit
    (tmp_path / "untracked.txt").write_text("b")
    assert git_commit() == commit
    (tmp_path / "a.txt").write_text("b")
    assert git_commit() == f"{commit}+"


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: str) -> str:
        raise FileNotFoundError("git")

    monkeypatch.setattr(recording, "_git", missing)
    assert git_commit() == "unknown"


def test_the_machine_is_described_by_cores_and_threads() -> None:
    assert "cores (" in machine() and "threads" in machine()
