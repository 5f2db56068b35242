"""``rimlit tune`` and ``rimlit compare --tune space.yaml``: every model gets the same number of trials."""

import builtins
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rimlit.comparison import planning, runners
from rimlit.comparison import running as loop
from rimlit.comparison.runs import Run
from tests.cli import running
from tests.cli.running import SMALL_RIM, UNTRACKED, read_json
from tests.cli.test_compare import COMPARISON, FAST, SMALL, FakeFit, reader

TUNE = Path("runs/copying/tune-rim")
LR = "model.optimizer.init_args.lr"
BEST = {"rim": 0.003, "lstm": 0.02}


class FakeSearchFit(FakeFit):
    """In place of a process: its best validation is how far its rate is from the best of its model."""

    def __init__(self, run: Run) -> None:
        super().__init__(run, 0)
        settings = reader().read(run.arguments[1:])[0]
        self.rate = settings["model"]["init_args"]["optimizer"]["init_args"]["lr"]
        score = abs(math.log(self.rate / BEST[run.config.partition("-")[0]]))
        run.folder.write_results(
            best_validation={"metric": "val/cross_entropy", "score": score, "higher_is_better": False}
        )


def fake(monkeypatch: pytest.MonkeyPatch, make: Callable[[Run], Any] = FakeSearchFit) -> list[Run]:
    """Replace processes; return the runs that are started."""
    started: list[Run] = []

    def start(run: Run, parent: str | None) -> Any:
        started.append(run)
        return make(run)

    monkeypatch.setattr(runners, "start", start)
    monkeypatch.setattr(planning, "SettingsReader", reader)
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)
    return started


@pytest.fixture
def space(folder: Path) -> Path:
    (folder / "space.yaml").write_text("lr: {log_uniform: [1e-4, 1e-1]}\n")
    return folder / "space.yaml"


def test_every_model_gets_as_many_trials_and_then_its_seeds_at_the_best(
    space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = fake(monkeypatch)
    answer = running.rimlit("compare", *FAST, "--tune=space.yaml", "--trials=4", "--jobs=2")
    assert answer.code == 0, answer.err
    names = [run.name for run in started]
    assert sorted(names[:8]) == sorted(f"{model}-trial-00{n}-seed0" for model in ("rim", "lstm") for n in range(4))
    models = read_json(COMPARISON / "results.json")["models"]
    for model, facts in models.items():
        tried = facts["tuning"]["tried"]
        best = min(tried, key=lambda trial: trial["score"])
        assert facts["tuning"]["best"] == best["values"]
        assert f"{model}-{best['label']}-seed1" in names[8:]
        assert [run["seed"] for run in facts["runs"]] == [0, 1]
        assert read_json(COMPARISON / f"search-{model}.json") == facts["tuning"]
        assert (COMPARISON / f"figures/search-{model}.png").stat().st_size > 5_000
        config = yaml.safe_load((COMPARISON / f"best/{model}.yaml").read_text())
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == best["values"][LR]
    # the models are tried at the same first points
    assert models["rim"]["tuning"]["tried"][0]["values"] == models["lstm"]["tuning"]["tried"][0]["values"]
    assert "rim has lr" in answer.out and "4 of 4 trials: 4 finished." in answer.out
    before = len(started)
    assert running.rimlit("compare", *FAST, "--tune=space.yaml", "--trials=4").code == 0
    assert len(started) == before
    assert running.rimlit("compare", *FAST, "--tune=space.yaml", "--trials=5").code == 0
    more = [run.name for run in started[before:]]
    assert {"rim-trial-004-seed0", "lstm-trial-004-seed0"} <= set(more)


def test_tune_writes_the_best_settings_as_a_config_that_fit_takes(
    space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = fake(monkeypatch)
    words = ("tune", "copying/rim", "--space=space.yaml", "--trials=3", *SMALL, *UNTRACKED)
    answer = running.rimlit(*words)
    assert answer.code == 0, answer.err
    assert [run.name for run in started] == [f"rim-trial-00{number}-seed0" for number in range(3)]
    best = TUNE / "best/rim.yaml"
    assert f"rimlit fit --config {best}" in answer.out
    settings, folder = reader().read([f"--config={best}"])
    report = read_json(TUNE / "search-rim.json")
    assert settings["model"]["init_args"]["optimizer"]["init_args"]["lr"] == report["best"][LR]
    assert folder == Path("runs/copying/rim-seed0")


def test_values_that_make_no_model_count_as_worst(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six active of three mechanisms is refused by the RIM, which no parser knows."""
    (folder / "space.yaml").write_text("model.backbone.num_active: [2, 6]\n")
    started = fake(monkeypatch)
    words = ("tune", "copying/rim", "--space=space.yaml", "--trials=5", *SMALL_RIM[:2], *SMALL, *UNTRACKED)
    answer = running.rimlit(*words)
    assert answer.code == 0, answer.err
    report = read_json(TUNE / "search-rim.json")
    ended = [(trial["values"]["model.backbone.num_active"], trial["ended"]) for trial in report["tried"]]
    assert set(ended) == {(2, "finished"), (6, "refused")}
    assert len(started) == sum(value == 2 for value, _ in ended)
    assert report["best"] == {"model.backbone.num_active": 2}


def test_a_trial_that_is_behind_is_stopped_and_named(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        """Validates at step 2 of 4, and then waits to be stopped, or ends at the second look."""

        def __init__(self, run: Run) -> None:
            self.run, self.polls, self.is_stopped = run, 0, False
            number = int(run.name.split("-")[2])
            run.folder.path.mkdir(parents=True)
            loss = 9.0 if number == 5 else 1.0 + number / 10
            (run.folder.path / "metrics.csv").write_text(f"step,val/cross_entropy\n2,{loss}\n")

        def terminate(self) -> None:
            self.is_stopped = True

        def poll(self) -> int | None:
            self.polls += 1
            if self.is_stopped:
                return 143
            if self.polls == 1:
                return None
            FakeSearchFit(self.run)
            return 0

    started = fake(monkeypatch, Slow)
    words = ("tune", "copying/rim", "--space=space.yaml", "--trials=6", "--jobs=1", *SMALL, *UNTRACKED)
    answer = running.rimlit(*words)
    assert answer.code == 0, answer.err
    assert len(started) == 6
    assert "rim-trial-005-seed0: pruned, 6 of 6 runs" in answer.out
    assert "6 of 6 trials: 5 finished, 1 pruned" in " ".join(answer.out.split())
    again = len(started)
    assert running.rimlit(*words).code == 0 and len(started) == again


def test_a_search_that_is_killed_in_python_asks_for_no_trial_twice(
    space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(run: Run) -> Any:
        if run.name.endswith("002-seed0"):
            raise Killed
        return FakeSearchFit(run)

    words = ("tune", "copying/rim", "--space=space.yaml", "--trials=4", "--jobs=1", *SMALL, *UNTRACKED)
    first = fake(monkeypatch, die)
    with pytest.raises(Killed):
        running.rimlit(*words)
    killed_at = reader().read(first[2].arguments[1:])[0]
    rest = fake(monkeypatch)
    assert running.rimlit(*words).code == 0
    assert [run.name for run in rest] == ["rim-trial-002-seed0", "rim-trial-003-seed0"]
    assert reader().read(rest[0].arguments[1:])[0] == killed_at


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["tune"], ["--space"]),
        (["tune", "copying/rim", "copying/lstm", "--space=space.yaml", "--trials=2"], ["tune takes one config"]),
        (["tune", "copying/rim", "--trials=2"], ["tune needs --space space.yaml"]),
        (["tune", "copying/rim", "--space=space.yaml"], ["tune needs --trials N"]),
        (["tune", "copying/rim", "--space=space.yaml", "--trials=0"], ["trials must be at least 1; got trials=0"]),
        (
            ["tune", "copying/rim", "--space=space.yaml", "--trials=2", "--prune=no"],
            ["prune must be true or false"],
        ),
        (["tune", "copying/rim", "--space=nowhere.yaml", "--trials=2"], ["'nowhere.yaml': there is no such file"]),
        (["tune", "copying/rim", "--space=typo.yaml", "--trials=2"], ["num_activ", "Did you mean num_active?"]),
        (["tune", "copying/rim", "--space=type.yaml", "--trials=2"], ["num_active", "0.5"]),
        (["compare", "copying/rim", "--tune=space.yaml"], ["needs --trials N"]),
        (["compare", "copying/rim", "--trials=3"], ["trials=3 needs a space"]),
        (["compare", "copying/rim", "--tune=lr=1,2", "--storage=x"], ["storage='x' without --trials"]),
        (
            ["tune", "copying/rim", "--space=space.yaml", "--trials=2", "--model.optimizer.lr=0.1"],
            [f"{LR} is tuned", "leave out one"],
        ),
        (
            ["tune", "copying/rim", "--space=space.yaml", "--trials=2", "--no-wait"],
            ["give --on slurm.yaml as well"],
        ),
    ],
)
def test_a_mistake_is_one_message_before_anything_runs(
    space: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], parts: list[str]
) -> None:
    Path("typo.yaml").write_text("model.backbone.num_activ: {int: [1, 2]}\n")
    Path("type.yaml").write_text("model.backbone.num_active: {uniform: [0.5, 2]}\n")
    started = fake(monkeypatch)
    answer = running.rimlit(*words)
    if words == ["tune"]:
        assert answer.code == 0 and "--space" in answer.out
        return
    assert answer.code == 2, answer.out
    for part in parts:
        assert part in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not started and not Path("runs").exists()


def test_without_optuna_the_message_is_the_command_that_installs_it(
    space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return given(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    answer = running.rimlit("tune", "copying/rim", "--space=space.yaml", "--trials=2")
    assert answer.code == 2
    assert "Searching a space needs Optuna: pip install" in answer.err


@pytest.mark.slow
def test_twelve_trials_survive_kill_9_and_are_those_of_a_search_that_was_not_killed(
    space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real trainings, in the process that is killed: the debug executor of submitit."""
    Path("debug.yaml").write_text("cluster: debug\n")
    options = ("--space=space.yaml", "--trials=12", "--on=debug.yaml", "--prune=false", *SMALL, *UNTRACKED)
    words = [sys.executable, "-m", "rimlit", "tune", "copying/lstm", *options]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    folder = Path("runs/copying/tune-lstm")
    for kill_after in (3, 7):
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + 300
        while len(list(folder.glob("*/run_state.json"))) < kill_after and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        assert len(list(folder.glob("*/run_state.json"))) >= kill_after, out
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = read_json(folder / "search-lstm.json")
    assert [trial["label"] for trial in report["tried"]] == [f"trial-{number:03d}" for number in range(12)]
    assert {trial["ended"] for trial in report["tried"]} == {"finished"}
    # a run that was killed before its first checkpoint is archived under another name
    assert {path.name for path in folder.glob("lstm-*-seed0")} == {f"lstm-trial-{n:03d}-seed0" for n in range(12)}
    whole = [*words, "--name=whole"]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(Path("runs/copying/tune-whole/search-lstm.json")) == report
