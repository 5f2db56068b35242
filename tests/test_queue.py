"""The queue of long trainings: ``make results``."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.results_queue import entries as queue_entries
from benchmarks.results_queue import working
from benchmarks.results_queue.__main__ import lines_of
from benchmarks.results_queue.entries import Starts, read_queue
from benchmarks.results_queue.working import Queue, clean_commit, lock_of
from benchmarks.sharing import let_others_go_first, locked
from rich.console import Console

from rimlit.cli.configs import config_names
from rimlit.comparison.runs import Run

ROOT = Path(__file__).parents[1]


def write_queue(folder: Path, *runs: dict[str, Any]) -> Path:
    path = folder / "queue.yaml"
    given = {"config": "copying/rim", "seeds": [0], "results": "benchmarks/results/queue"}
    path.write_text(yaml.safe_dump({"runs": [{**given, **run} for run in runs]}))
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(working, "clean_commit", lambda: "c1")
    return tmp_path


def end(run: Run, score: float | None = 1.0) -> None:
    """Write what a run leaves behind; without a score it diverged."""
    if score is None:
        run.folder.write_state(status="failed", error="NonFiniteError")
        run.status = "failed"
        return
    run.folder.write_state(status="finished")
    run.folder.write_results(
        **dict.fromkeys(("machine", "steps"), "x"),
        command=" ".join(("rimlit", *run.arguments)),
        commit="c1+",
        seed=run.seed,
        data={"init_args": {}, "digest": None},
        test={"loss": 1.0},
        best_validation={"metric": "val/loss", "score": score, "higher_is_better": False},
    )
    run.status = "finished"


def test_the_shipped_queue_names_configs_that_exist_and_no_entry_twice() -> None:
    found = read_queue(ROOT / "benchmarks/queue.yaml")
    assert {entry.config for entry in found} <= set(config_names())
    assert len({entry.results for entry in found}) == len(found) > 20
    for entry in found:
        assert entry.results.is_relative_to("benchmarks/results") and not entry.results.is_absolute()


def test_entries_come_in_order_and_other_seeds_run_at_the_best_rate(folder: Path) -> None:
    path = write_queue(folder, {"name": "a", "seeds": [0, 4], "tune": {"lr": [0.1, 0.2, 0.3]}}, {"name": "b"})
    queue = Queue(read_queue(path), Console(quiet=True))
    taken: list[str] = []
    for score in (2.0, 1.0, None, 1.0, 1.0):
        run = queue.take()
        assert run is not None
        taken.append(run.name)
        end(run, score)
        queue.note_end(run)
    assert taken == ["a-lr-0.1-seed0", "a-lr-0.2-seed0", "a-lr-0.3-seed0", "b-seed0", "a-lr-0.2-seed4"]
    assert queue.take() is None
    assert queue.total == 5
    results = Path("benchmarks/results/queue")
    assert {path.name for path in results.iterdir()} == {
        *("lr-0.1-seed0.json", "lr-0.2-seed0.json", "lr-0.2-seed4.json", "seed0.json", "tuning.json")
    }
    tuning = json.loads((results / "tuning.json").read_text())
    rate = "model.optimizer.init_args.lr"
    assert tuning["best"] == {rate: 0.2}
    diverged = {"label": "lr-0.3", "values": {rate: 0.3}, "score": None, "ended": "diverged"}
    assert tuning["tried"][2] == diverged
    assert json.loads((results / "seed0.json").read_text())["commit"] == "c1"


def test_what_is_recorded_is_not_trained_again_where_the_folders_of_runs_are_not(folder: Path) -> None:
    path = write_queue(folder, {"name": "a", "seeds": [0, 4], "tune": {"lr": [0.1, 0.2, 0.3]}})
    queue = Queue(read_queue(path), Console(quiet=True))
    for score in (2.0, 1.0, None):
        run = queue.take()
        assert run is not None
        end(run, score)
        queue.note_end(run)
    shutil.rmtree("runs")
    queue = Queue(read_queue(path), Console(quiet=True))
    run = queue.take()
    assert run is not None and run.name == "a-lr-0.2-seed4"
    assert [each.status for each in queue.runs] == ["finished", "finished", "failed", "waiting"]
    recorded = Path("benchmarks/results/queue/lr-0.1-seed0.json")
    recorded.write_text(recorded.read_text().replace("copying/rim", "copying/lstm"))
    with pytest.raises(SystemExit, match=r"a-lr-0\.1-seed0 was started with other arguments"):
        Queue(read_queue(path), Console(quiet=True)).update()


def test_a_run_of_another_command_is_passed_over_and_listed(folder: Path) -> None:
    queue = Queue(read_queue(write_queue(folder, {"name": "a"}, {"name": "b"})), Console(quiet=True))
    queue.update()
    lock = lock_of(queue.runs[0])
    lock.parent.mkdir(parents=True)
    program = "import sys; from pathlib import Path; from benchmarks.sharing import locked\n"
    program += f"with locked(Path({str(lock)!r})): print('locked', flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        assert "running" in lines_of(queue.entries[0], queue)[0]
        with locked(lock, wait=False) as is_ours:
            assert not is_ours
        run = queue.take()
        assert run is not None and run.name == "b-seed0"
        other.communicate("")


def test_a_run_lets_everything_else_go_first() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as run:
        let_others_go_first(run.pid, 19)
        assert os.getpriority(os.PRIO_PROCESS, run.pid) == 19
        session = Path(f"/proc/{run.pid}/autogroup")
        assert not session.is_file() or session.read_text().split()[-1] in ("19", "0")
        run.communicate(b"\n")


def test_a_checkout_that_moves_on_is_said_and_the_first_commit_is_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_queue(folder, {"name": "a"})
    assert Queue(read_queue(path), Console()).take() is not None  # and is killed
    monkeypatch.setattr(working, "clean_commit", lambda: "c2")
    queue = Queue(read_queue(path), Console())
    run = queue.take()
    assert run is not None
    monkeypatch.setattr(working, "clean_commit", lambda: None)
    end(run)
    queue.note_end(run)
    result = json.loads(Path("benchmarks/results/queue/seed0.json").read_text())
    assert (result["commit"], result["resumed_at_commits"]) == ("c1", ["c2"])
    assert "a-seed0: the checkout has changed since" in capsys.readouterr().out


def test_nothing_starts_in_a_changed_checkout_or_without_its_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_queue(folder, {"name": "a", "needs": "data/mnist"}, {"name": "b"})
    queue = Queue(read_queue(path), Console(quiet=True))
    assert getattr(queue.take(), "name", None) == "b-seed0"
    assert "waits for data/mnist" in lines_of(queue.entries[0], queue)[0]
    monkeypatch.setattr(working, "clean_commit", lambda: None)
    (folder / "data/mnist").mkdir(parents=True)
    assert queue.take() is None
    assert queue.has_changes


def test_an_entry_that_was_started_with_other_arguments_is_refused(folder: Path) -> None:
    entry = read_queue(write_queue(folder, {"name": "a"}))[0]
    Starts(entry.first_runs()[0]).add("c1")
    changed = read_queue(write_queue(folder, {"name": "a", "overrides": {"trainer.max_steps": 5}}))
    with pytest.raises(SystemExit, match="a-seed0 was started with other arguments"):
        Queue(changed, Console(quiet=True)).update()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"name": "a", "seed": [0]}, "'a' has 'seed'"),
        ({}, "None lacks 'name'"),
        ({"name": "a", "config": "copying/rimm"}, "Did you mean copying/rim"),
        ({"name": "a", "tune": {"lr": [-1, 1]}}, "numbers above 0"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(folder: Path, run: dict[str, Any], words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        read_queue(write_queue(folder, run))


def git(*words: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)


def test_results_do_not_mark_the_checkout_as_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorded, code = tmp_path / "benchmarks/results/a.json", tmp_path / "code.py"
    recorded.parent.mkdir(parents=True)
    for file in (recorded, code):
        file.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    recorded.write_text("2")
    commit = clean_commit()
    assert commit is not None and len(commit) == 40
    code.write_text("2")
    assert clean_commit() is None


@pytest.mark.slow
def test_a_queue_that_is_stopped_and_killed_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"train_span": 5, "test_spans": [5], "val_size": 8, "test_size": 8, "batch_size": 4}
    overrides = {f"data.{name}": value for name, value in sizes.items()}
    overrides |= {"model.backbone.hidden_size": 24, "model.embedding_size": 8, "trainer.logger": False}
    overrides |= {"trainer.max_steps": 600, "trainer.val_check_interval": 100}
    common = {"overrides": overrides}
    write_queue(
        tmp_path,
        {"name": "first", **common, "results": "benchmarks/results/first"},
        {"name": "second", **common, "results": "benchmarks/results/second", "config": "copying/lstm"},
    )
    git("init")
    git("add", "queue.yaml")
    git("commit", "-m", "first")
    places = [str(ROOT), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-m", "benchmarks.results_queue", "--queue=queue.yaml", "--jobs=1", "--nice=0"]
    first = tmp_path / "runs/queue/first/seed0"

    def begin() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    process = begin()
    try:
        for _ in range(3000):
            if (first / "checkpoints/last.ckpt").is_file() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143, out
    stopped = json.loads((first / "run_state.json").read_text())
    assert stopped["status"] == "stopped" and 0 < stopped["step"] < 600
    process = begin()
    try:
        out, _ = process.communicate(timeout=1200)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert "Resuming" in (queue_entries.log_of(first)).read_text()
    for name in ("first", "second"):
        result = json.loads((tmp_path / f"benchmarks/results/{name}/seed0.json").read_text())
        assert (result["steps"], len(result["commit"])) == (600, 40)
        assert "1 threads" in result["machine"]
