"""``rimlit compare``: many runs, and what is made of them."""

import copy
import functools
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import rimlit
from rimlit.cli.configs import configs_folder
from rimlit.cli.parser import SettingsReader
from rimlit.comparison import Comparison, planning, runners
from rimlit.comparison import running as loop
from rimlit.comparison.gathering import read_curve
from rimlit.comparison.runs import Run, Work, last_step, last_words
from rimlit.errors import ConfigError
from rimlit.tracking.run_folder import RunFolder
from tests.cli import running
from tests.cli.running import QUIET, SMALL_COPYING, UNTRACKED, read_json

MODELS = ("copying/rim", "copying/lstm")
SMALL = ("--config=trainer/quick", *SMALL_COPYING[3:], "--model.embedding_size=8")
FAST = (*MODELS, "--seeds=2", *SMALL, *UNTRACKED)
COMPARISON = Path("runs/copying/compare")

Ending = Callable[[Run], int]


class CachingReader(SettingsReader):
    """Parses the same words, and files of the same content, once for all tests."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[tuple[str, str], ...], tuple[dict[str, Any], Path]] = {}

    def read(self, arguments: list[str]) -> tuple[dict[str, Any], Path]:
        files = [Path(word.rpartition("=")[2]) for word in arguments]
        contents = [file.read_text() if file.is_file() else "" for file in files]
        key = tuple(zip(arguments, contents, strict=True))
        if key not in self._known:
            self._known[key] = super().read(arguments)
        return copy.deepcopy(self._known[key])


@functools.cache
def reader() -> CachingReader:
    return CachingReader()


def test_files_of_one_name_in_two_tests_are_read_each(folder: Path) -> None:
    content = yaml.safe_load((configs_folder() / "copying/lstm.yaml").read_text())
    for seed in (3, 4):
        (folder / "same.yaml").write_text(yaml.safe_dump({**content, "seed_everything": seed}))
        for words in (["--config=same.yaml"], ["--config", "same.yaml"]):
            assert reader().read(words)[0]["seed_everything"] == seed


class FakeFit:
    """In place of a process: writes what a run leaves behind, at once."""

    def __init__(self, run: Run, code: int) -> None:
        self.code, self.run = code, run
        run.log.parent.mkdir(parents=True, exist_ok=True)
        run.log.write_text("Seed set to 0\nrimlit: error: the loss is not finite.\n" if code else "fine\n")
        settings, folder = reader().read(run.arguments[1:])
        assert folder == run.folder.path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        if code:
            run.folder.write_state(status="failed", step=1)
            return
        worse = 0.5 if run.config == "lstm" else 0.0
        test = {f"span_{span}/cross_entropy": 1.0 + worse + run.seed / 4 for span in (5, 9)}
        run.folder.write_results(
            seed=run.seed, command="fit", commit="c", machine="m", steps=4, train_seconds=1.0, test=test
        )
        run.folder.write_state(status="finished", step=4)
        (folder / "metrics.csv").write_text("step,train/loss,val/cross_entropy\n1,3.0,\n2,,2.0\n4,,1.5\n")

    def poll(self) -> int:
        return self.code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were started, all of which end well unless ``ending`` says otherwise."""
    return fake(monkeypatch, lambda run: 0)


def fake(monkeypatch: pytest.MonkeyPatch, ending: Ending) -> list[str]:
    names: list[str] = []

    def start(run: Run, parent: str | None) -> FakeFit:
        names.append(run.name)
        return FakeFit(run, ending(run))

    monkeypatch.setattr(runners, "start", start)
    monkeypatch.setattr(planning, "SettingsReader", reader)  # building the parser takes its time
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)
    return names


def test_every_config_runs_with_every_seed_and_a_table_and_figures_come_of_it(
    folder: Path, started: list[str]
) -> None:
    answer = running.rimlit("compare", *FAST, "--jobs=3")
    assert answer.code == 0, answer.err
    assert started == ["rim-seed0", "lstm-seed0", "rim-seed1", "lstm-seed1"]
    results = read_json(COMPARISON / "results.json")
    assert results["command"].startswith("rimlit compare copying/rim copying/lstm --seeds=2")
    assert results["seeds"] == [0, 1]
    assert results["dataset"] == "copying"
    assert results["higher_is_better"] == {"cross_entropy": False, "sequence_accuracy": True}
    assert [run["seed"] for run in results["models"]["lstm"]["runs"]] == [0, 1]
    assert results["models"]["rim"]["runs"][0]["val"] == {"cross_entropy": [[2, 2.0], [4, 1.5]]}
    table = (COMPARISON / "table.md").read_text()
    assert "| **1.125 ± 0.177** |" in table and "| 1.625 ± 0.177 |" in table
    assert (COMPARISON / "figures/cross_entropy.png").stat().st_size > 10_000
    assert "4 of 4 runs" in answer.out and "1.125" in answer.out


def test_what_is_finished_is_not_repeated_and_more_may_be_added(folder: Path, started: list[str]) -> None:
    assert running.rimlit("compare", *FAST).code == 0
    assert running.rimlit("compare", *FAST).code == 0
    assert len(started) == 4
    assert running.rimlit("compare", *MODELS, "copying/gru", "--seeds=0,1,7", *FAST[3:]).code == 0
    assert started[4:] == ["gru-seed0", "gru-seed1", "rim-seed7", "lstm-seed7", "gru-seed7"]
    assert read_json(COMPARISON / "results.json")["seeds"] == [0, 1, 7]


def test_runs_of_other_settings_are_refused_before_anything_runs(folder: Path, started: list[str]) -> None:
    assert running.rimlit("compare", *FAST).code == 0
    answer = running.rimlit("compare", *FAST, "--trainer.max_steps=9")
    assert answer.code == 2
    assert "was started with trainer.max_steps=4; got 9" in answer.err and "--name" in answer.err
    assert len(started) == 4
    assert running.rimlit("compare", *FAST, "--trainer.max_steps=9", "--name=longer").code == 0
    assert (folder / "runs/copying/compare-longer/table.csv").is_file()


def test_a_run_that_fails_does_not_stop_the_rest_and_is_named_with_its_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = fake(monkeypatch, lambda run: 5 if run.name == "rim-seed0" else 0)
    answer = running.rimlit("compare", *FAST, "--jobs=1")
    assert answer.code == 1
    assert "1 of the runs failed: rim-seed0 (exit code 5: the loss is not finite." in answer.err
    assert str(COMPARISON / "logs/rim-seed0.log") in answer.err
    assert len(started) == 4
    comparison = Comparison.load(COMPARISON)
    assert [run["name"] for run in comparison.failed] == ["rim-seed0"]
    assert [row["seeds"] for row in comparison.rows] == [1, 2]
    again = fake(monkeypatch, lambda run: 0)
    assert running.rimlit("compare", *FAST).code == 0
    assert again == ["rim-seed0"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_stops_the_rest_and_leaves_a_table_of_what_was_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, signum: int, code: int
) -> None:
    def interrupt(run: Run) -> int:
        if run.name == "lstm-seed0":
            os.kill(os.getpid(), signum)
        return 0

    started = fake(monkeypatch, interrupt)
    answer = running.rimlit("compare", *FAST, "--jobs=1")
    assert answer.code == code
    assert "The same command resumes it" in answer.err
    assert started == ["rim-seed0", "lstm-seed0"]
    assert Comparison.load(COMPARISON).rows[0]["seeds"] == 1
    rest = fake(monkeypatch, lambda run: 0)
    assert running.rimlit("compare", *FAST).code == 0
    assert rest == ["rim-seed1", "lstm-seed1"]


def test_every_model_but_the_target_gets_the_width_of_equal_size(folder: Path, started: list[str]) -> None:
    answer = running.rimlit("compare", *FAST, "--match=params", "--model.backbone.hidden_size=24")
    assert answer.code == 0, answer.err
    results = read_json(COMPARISON / "results.json")
    rim, lstm = results["models"]["rim"], results["models"]["lstm"]
    assert rim["hidden_size"] == 24
    assert rim["parameters"] <= lstm["parameters"] < 1.05 * rim["parameters"]
    assert results["match"] == {"measure": "params", "words": "parameters", "to": "copying/rim"}
    config = yaml.safe_load((COMPARISON / "lstm-seed0/config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["init_args"]["hidden_size"] == lstm["hidden_size"] != 24


@pytest.fixture
def mine(folder: Path) -> Path:
    """A user's config of an LSTM, with another recipe, where no rim.yaml is."""
    content = yaml.safe_load((configs_folder() / "copying/lstm.yaml").read_text())
    content["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    content["data"]["init_args"]["batch_size"] = 2
    content["trainer"]["gradient_clip_val"] = 0.25
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return folder / "mine.yaml"


def test_the_first_rim_among_the_configs_is_what_others_are_matched_to(mine: Path, started: list[str]) -> None:
    small = [word for word in SMALL if "batch_size" not in word]
    answer = running.rimlit(
        "compare", "mine.yaml", "copying/rim", "--seeds=1", "--match=params", *small, *UNTRACKED
    )
    assert answer.code == 0, answer.err
    (path,) = mine.parent.rglob("compare/results.json")
    results = read_json(path)
    assert results["match"]["to"] == "copying/rim"
    assert results["models"]["rim"]["hidden_size"] == 384
    assert results["models"]["mine"]["parameters"] >= results["models"]["rim"]["parameters"]
    assert set(results["differing"]) == {"optimizer", "batch_size", "gradient_clip_val"}
    assert "Not trained alike: optimizer is SGD(lr=0.5) (mine), " in answer.out
    assert "Not trained alike: gradient_clip_val is 0.25 (mine), 1.0 (rim)." in answer.out


def test_configs_without_a_rim_need_a_target(mine: Path, started: list[str]) -> None:
    answer = running.rimlit("compare", "mine.yaml", "--match=params", *UNTRACKED)
    assert answer.code == 2
    assert "There is no rim.yaml to match: give --match_to CONFIG" in answer.err


@pytest.mark.parametrize("content", ["", '{"test": {"span_5', "[1]", '{"seed": 0}', '{"test": 5}'])
def test_a_run_whose_results_are_damaged_runs_again(folder: Path, started: list[str], content: str) -> None:
    assert running.rimlit("compare", *FAST, "--seeds=1").code == 0
    (COMPARISON / "rim-seed0/results.json").write_text(content)
    answer = running.rimlit("compare", *FAST, "--seeds=1")
    assert answer.code == 0, answer.err
    assert started == ["rim-seed0", "lstm-seed0", "rim-seed0"]
    assert [row["seeds"] for row in Comparison.load(COMPARISON).rows] == [1, 1]


def test_results_that_lack_what_the_table_does_not_need_are_no_error(folder: Path, started: list[str]) -> None:
    assert running.rimlit("compare", *FAST, "--seeds=1").code == 0
    (COMPARISON / "rim-seed0/results.json").write_text('{"test": {"span_5/cross_entropy": 0.25}}')
    (COMPARISON / "rim-seed0/config.yaml").write_text("{")
    assert running.rimlit("compare", *FAST, "--seeds=1").code == 0
    assert len(started) == 2
    assert Comparison.load(COMPARISON).rows[0]["span_5/cross_entropy"] == 0.25


def test_a_run_that_ends_well_and_writes_no_scores_has_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(fit: FakeFit) -> int:
        (fit.run.folder.path / "results.json").unlink()
        return 0

    started = fake(monkeypatch, lambda run: 0)
    monkeypatch.setattr(FakeFit, "poll", lose)
    answer = running.rimlit("compare", *FAST, "--seeds=1")
    assert answer.code == 1
    assert "results.json holds no test scores" in answer.err
    assert len(started) == 2


def test_python_gives_the_same_comparison(folder: Path, started: list[str]) -> None:
    overrides = {
        "trainer.max_steps": 4,
        "trainer.logger": False,
        "data.train_span": 5,
        "data.test_spans": [5, 9],
        "model.embedding_size": 8,
    }
    comparison = rimlit.compare(MODELS, seeds=[3], overrides=overrides, name="python")
    assert comparison.folder == Path("runs/copying/compare-python")
    assert started == ["rim-seed3", "lstm-seed3"]
    assert comparison.rows[0]["span_9/cross_entropy"] == 1.75
    assert comparison.results["data"]["class_path"] == "rimlit.data.Copying"
    assert comparison.results["data"]["init_args"]["test_spans"] == [5, 9]
    assert comparison.results["differing"] == {}
    assert "| rim | 1 |" in comparison._repr_markdown_()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["copying/rim", "copying/lstn"], ["config='copying/lstn'", "Did you mean copying/lstm"]),
        (
            ["copying/rim", "language/lstm"],
            ["copying/rim and language/lstm are about different data", "class_path"],
        ),
        (["copying/rim", "--seeds=0"], ["seeds must be at least 1", "seeds=0"]),
        (["copying/rim", "--seeds=three"], ["seeds must be a number, or a list", "'three'"]),
        (["copying/rim", "--seeds"], ["--seeds needs a value"]),
        (["copying/rim", "--jobs=0"], ["jobs must be at least 1; got jobs=0"]),
        (["copying/rim", "--jobs=two"], ["jobs must be a whole number; got 'two'"]),
        (["copying/rim", "--match=size"], ["match must be one of params, flops, state; got match='size'"]),
        (["copying/rim", "--match=params", "--match_to=copying/rimm"], ["'copying/rimm'", "copying/rim"]),
        (["copying/rim", "--name=../mine"], ["name must be that of a folder", "'../mine'"]),
        (["copying/rim", "--name="], ["name must be that of a folder", "got name=''"]),
        (["copying/rim", "--seed_everything=3"], ["--seed_everything is set by compare itself"]),
        (["copying/rim", "--trainer.max_step=3"], ["max_step", "Did you mean"]),
        (["copying/rim", "copying/rim"], ["Two configs are called 'rim'"]),
        (["--seeds=2"], ["compare needs the files or names of configs"]),
        (
            ["copying/rim", "--seeds", "1", "copying/lstm"],
            ["'copying/lstm' follows an option", "rimlit compare copying/rim copying/lstm"],
        ),
        (["copying/rim", "--trainer.max_steps=4", "copying/lstm"], ["'copying/lstm' follows an option"]),
        (["--seeds", "1", "copying/lstm"], ["'copying/lstm' follows an option"]),
        (
            ["copying/rim", "paper/copying/rim"],
            ["about different data: data.min_train_span is 1 and None"],
        ),
    ],
)
def test_a_mistake_is_one_message_before_anything_runs(
    folder: Path, started: list[str], arguments: list[str], words: list[str]
) -> None:
    answer = running.rimlit("compare", *arguments)
    assert answer.code == 2, answer.err
    for word in words:
        assert word in answer.err
    assert not started
    assert not (folder / "runs").exists()


def test_configs_that_cannot_be_compared_are_named_before_anything_runs(folder: Path, started: list[str]) -> None:
    rim, lstm = (yaml.safe_load((configs_folder() / f"{name}.yaml").read_text()) for name in MODELS)
    rim["data"]["init_args"]["train_span"] = 7
    (folder / "rim.yaml").write_text(yaml.safe_dump(rim))  # what --match=params takes by default
    (folder / "lstm.yaml").write_text(yaml.safe_dump(lstm))
    answer = running.rimlit("compare", "lstm.yaml", "--match=params", *UNTRACKED)
    assert answer.code == 2
    assert "match_to='rim.yaml' are about different data: data.train_span is 50 and 7" in answer.err
    (folder / "asking.yaml").write_text(yaml.safe_dump({**lstm, "match": "params"}))
    answer = running.rimlit("compare", "asking.yaml", *UNTRACKED)
    assert answer.code == 2
    assert "asking.yaml holds match='params': give it to compare" in answer.err
    assert not started and not (folder / "runs").exists()


def test_a_config_that_names_its_runs_gives_the_model_s_name(folder: Path, started: list[str]) -> None:
    content = yaml.safe_load((configs_folder() / "copying/lstm.yaml").read_text())
    (folder / "mine.yaml").write_text(yaml.safe_dump({**content, "name": "wide"}))
    assert running.rimlit("compare", "copying/rim", "mine.yaml", "--seeds=1", *FAST[3:]).code == 0
    assert started == ["rim-seed0", "wide-seed0"]


def test_two_comparisons_do_not_share_a_folder(folder: Path, started: list[str]) -> None:
    from filelock import FileLock

    COMPARISON.mkdir(parents=True)
    with FileLock(COMPARISON / ".lock"):
        answer = running.rimlit("compare", *FAST)
    assert answer.code == 2
    assert "Another comparison is running in" in answer.err


def test_a_folder_that_cannot_be_written_is_one_message(folder: Path, started: list[str]) -> None:
    (folder / "runs").write_text("no folder")
    answer = running.rimlit("compare", *FAST)
    assert answer.code == 6
    assert f"{COMPARISON} cannot be written" in answer.err and "Traceback" not in answer.err
    assert not started


def test_one_config_may_be_given_by_itself(folder: Path, started: list[str]) -> None:
    overrides = {"trainer.max_steps": 4, "trainer.logger": False, "data.train_span": 5, "data.test_spans": [5, 9]}
    assert rimlit.compare("copying/rim", seeds=1, overrides=overrides).models.keys() == {"rim"}
    assert started == ["rim-seed0"]


def test_overrides_are_words_or_a_mapping(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--resume is set by compare itself"):
        rimlit.compare(MODELS, overrides={"resume": "never"})


def test_a_run_does_not_see_slurm_which_would_be_asked_twice_for_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("RIMLIT_BACKEND", "eager")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\nenv\n")
    (tmp_path / "python").chmod(0o755)
    run = Run("rim", 0, ["fit"], RunFolder(tmp_path / "run"), tmp_path / "log")
    assert runners.start(run, None).wait(timeout=30) == 0
    assert "RIMLIT_BACKEND=eager" in run.log.read_text()
    assert "SLURM_" not in run.log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for it")
def test_a_run_is_asked_to_stop_when_the_comparison_is_killed() -> None:
    run = """if True:
        import signal, sys
        from rimlit.__main__ import end_with_parent
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved", flush=True)))
        end_with_parent()
        print("at work", flush=True)
        signal.pause()
    """
    comparison = f"""if True:
        import os, subprocess, sys
        environment = {{**os.environ, "RIMLIT_PARENT_PROCESS": str(os.getpid())}}
        subprocess.run([sys.executable, "-c", {run!r}], env=environment, start_new_session=True)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", comparison], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    process.kill()
    out, _ = process.communicate(timeout=60)
    assert out == "saved\n"


def test_a_run_whose_comparison_died_before_it_began_does_not_begin() -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "RIMLIT_PARENT_PROCESS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "rimlit", "--version"], capture_output=True, env=environment, check=False
    )
    assert done.returncode == (143 if sys.platform == "linux" else 0)


def test_the_step_is_read_from_the_last_lines_of_the_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert last_step(path) == 0
    path.write_text("loss,step\n" + "".join(f"{1 / (step + 1):.17f},{step}\n" for step in range(3000)) + "0.5,")
    assert last_step(path) == 2999
    assert read_curve(path, "val/loss") == []


@pytest.mark.parametrize("line", ["3,0.2", "three,0.25", "\0\0\0", "5", "6,0.1,,,", "\xff,\xfe", '7,"0.5'])
def test_a_damaged_line_of_the_metrics_is_left_out_of_the_curve(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,val/loss\n1,0.75\n2,0.5\n" + line.encode("latin-1"))
    assert read_curve(path, "val/loss")[:2] == [(1, 0.75), (2, 0.5)]


def test_the_reason_is_the_error_in_the_log_or_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("rimlit: error: no space\nsomething after\n\n")
    assert last_words(log) == "no space"
    log.write_text("Killed\n")
    assert last_words(log) == "Killed"
    log.write_text("")
    assert last_words(log) == "it printed nothing"


def command(*arguments: str, models: Sequence[str] = MODELS[:1]) -> list[str]:
    return [sys.executable, "-m", "rimlit", "compare", *models, *SMALL, *QUIET[1:], *arguments]


@pytest.mark.slow
def test_real_runs_end_in_a_table_and_in_children_of_one_mlflow_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    store = f"sqlite:///{folder}/own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    options = ("--seeds=1", "--match=params", "--model.backbone.hidden_size=24")
    done = subprocess.run(
        command(*options, models=MODELS), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 runs" in done.stdout
    comparison = Comparison.load(COMPARISON)
    assert [row["seeds"] for row in comparison.rows] == [1, 1]
    assert all("1 threads" in run["machine"] for run in comparison.models["rim"]["runs"])
    client = mlflow.MlflowClient(store)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    by_name = {run.info.run_name: run for run in found}
    parent = by_name.pop("compare")
    assert {run.data.tags["mlflow.parentRunId"] for run in by_name.values()} == {parent.info.run_id}
    assert sorted(by_name) == ["lstm-seed0", "rim-seed0"]
    assert parent.data.metrics["test/rim/span_5/cross_entropy"] == pytest.approx(
        comparison.rows[0]["span_5/cross_entropy"]
    )
    assert {"flops_per_step", "state_size", "active_parameters"} <= by_name["rim-seed0"].data.params.keys()
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"table.md", "table.csv", "results.json", "figures"} <= files
    assert running.rimlit("test", f"--ckpt_path={COMPARISON}/lstm-seed0/checkpoints/best.ckpt").code == 0


@pytest.mark.slow
def test_an_interrupted_comparison_saves_its_runs_and_resumes_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    options = (
        "--seeds=1",
        "--model.backbone.hidden_size=24",
        "--trainer.max_steps=1000",
        "--trainer.val_check_interval=500",
        "--trainer.logger=false",
    )
    process = subprocess.Popen(command(*options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = COMPARISON / "rim-seed0"
    state = run / "run_state.json"
    try:
        for _ in range(1200):
            if state.is_file() and "running" in state.read_text():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, out
    stopped = read_json(state)
    assert stopped["status"] == "stopped"
    assert 0 <= stopped["step"] < 1000
    done = subprocess.run(command(*options), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert "Resuming" in (COMPARISON / "logs/rim-seed0.log").read_text()
    assert read_json(run / "results.json")["steps"] == 1000


def test_the_progress_bar_shows_what_is_done_and_the_step_of_each_run_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(FakeFit):
        def __init__(self, run: Run) -> None:
            self.polls = 0
            self.run = run

        def poll(self) -> int | None:  # type: ignore[override]
            self.polls += 1
            self.run.folder.write_state(step=self.polls)
            return 0 if self.polls == 3 else None

    monkeypatch.setattr(runners, "start", lambda run, parent: Slow(run))
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.2)  # the bar is drawn ten times a second
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    several = [Run("rim", seed, [], RunFolder(tmp_path / str(seed)), tmp_path / "log", steps=4) for seed in (0, 1)]
    loop.run_all(Work(several), runners.LocalProcesses(1), console=console)
    text = screen.getvalue()
    assert "runs: 0 finished, 1 waiting" in text and "runs: 1 finished, 0 waiting" in text
    assert "rim-seed0" in text and "2/4" in text
    assert "rim-seed1: finished, 2 of 2 runs" in text
