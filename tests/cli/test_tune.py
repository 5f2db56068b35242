"""``rimlit compare --tune``: each model has the value that is best in validation."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import rimlit
from rimlit.cli.configs import configs_folder
from rimlit.comparison import Comparison, planning, runners
from rimlit.comparison import running as loop
from rimlit.comparison.runs import Run
from tests.cli import running
from tests.cli.running import COPYING, UNTRACKED, read_json
from tests.cli.test_compare import COMPARISON, FAST, FakeFit, reader

RATES = (0.001, 0.003, 0.01)
BEST = {"rim": 0.003, "lstm": 0.01}
SPECIAL = "model.optimizer.init_args.lr"


class FakeTrial(FakeFit):
    """In place of a process: its best validation is its rate's distance from the best of its model."""

    def __init__(self, run: Run, diverging: tuple[float, ...]) -> None:
        settings = reader().read(run.arguments[1:])[0]
        rate = settings["model"]["init_args"]["optimizer"]["init_args"]["lr"]
        super().__init__(run, 5 if rate in diverging else 0)
        if rate in diverging:
            run.folder.write_state(error="NonFiniteError")
            return
        distance = abs(rate - BEST[run.config.partition("-")[0]])
        run.folder.write_results(
            best_validation={"metric": "val/cross_entropy", "score": distance, "higher_is_better": False}
        )


@pytest.fixture
def diverging() -> list[float]:
    """Rates at which a training ends in numbers that are not finite."""
    return []


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, diverging: list[float]) -> list[str]:
    names: list[str] = []

    def start(run: Run, parent: str | None) -> FakeTrial:
        names.append(run.name)
        return FakeTrial(run, tuple(diverging))

    monkeypatch.setattr(runners, "start", start)
    monkeypatch.setattr(planning, "SettingsReader", reader)
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)
    return names


def test_each_model_runs_its_seeds_at_the_rate_of_its_best_validation(folder: Path, started: list[str]) -> None:
    answer = running.rimlit("compare", *FAST, "--tune", "lr=0.001,0.003,0.01", "--jobs=2")
    assert answer.code == 0, answer.err
    trials = [f"{model}-lr-{rate}-seed0" for rate in RATES for model in ("rim", "lstm")]
    assert sorted(started[:6]) == sorted(trials)
    assert sorted(started[6:]) == ["lstm-lr-0.01-seed1", "rim-lr-0.003-seed1"]
    results = read_json(COMPARISON / "results.json")
    tuning = results["models"]["rim"]["tuning"]
    assert (tuning["metric"], tuning["seed"]) == ("val/cross_entropy", 0)
    assert tuning["space"] == {SPECIAL: {"choice": list(RATES)}}
    assert tuning["best"] == {SPECIAL: 0.003}
    assert [trial["values"][SPECIAL] for trial in tuning["tried"]] == list(RATES)
    assert [run["seed"] for run in results["models"]["lstm"]["runs"]] == [0, 1]
    assert "lstm-lr-0.01-seed1" in results["models"]["lstm"]["runs"][1]["folder"]
    assert results["differing"] == {}  # the rates were tuned
    table = (COMPARISON / "table.md").read_text()
    assert "| rim | 0.003 | 2 |" in table and "| lstm | 0.01 | 2 |" in table
    assert (
        "rim has lr 0.003. Best val/cross_entropy of seed 0: 0.002 at 0.001, 0 at 0.003, 0.007 at 0.01." in table
    )
    assert "The best lr of lstm is the largest of its grid: give larger ones." in table
    assert "The best lr of rim" not in table
    assert (COMPARISON / "table.csv").read_text().startswith("model,lr,seeds,")


def test_what_is_finished_is_not_repeated_and_a_grid_may_be_moved(folder: Path, started: list[str]) -> None:
    assert running.rimlit("compare", *FAST, "--tune=lr=0.001,0.003").code == 0
    before = len(started)
    assert running.rimlit("compare", *FAST, "--tune=lr=0.001,0.003").code == 0
    assert len(started) == before == 6
    assert running.rimlit("compare", *FAST, "--tune=lr=0.003,0.01").code == 0
    assert started[before:] == ["rim-lr-0.01-seed0", "lstm-lr-0.01-seed0", "lstm-lr-0.01-seed1"]


def test_a_rate_that_diverges_is_worst_and_is_no_failure(
    folder: Path, started: list[str], diverging: list[float]
) -> None:
    diverging.append(0.01)
    words = ("compare", *FAST, "--tune=lr=0.003,0.01")
    answer = running.rimlit(*words)
    assert answer.code == 0, answer.err
    assert "diverged at 0.01" in " ".join(answer.out.split())
    models = read_json(COMPARISON / "results.json")["models"]
    assert [models[model]["tuning"]["best"] for model in BEST] == [{SPECIAL: 0.003}] * 2
    before = len(started)
    assert running.rimlit(*words).code == 0
    assert len(started) == before
    diverging += [0.02, 0.03]
    answer = running.rimlit("compare", *FAST, "--tune=lr=0.02,0.03")
    assert answer.code == 1
    assert "rim (it diverged at every lr of its grid" in answer.err
    assert not [name for name in started[before:] if name.endswith("seed1")]


def test_a_run_that_fails_otherwise_leaves_the_choice_open(
    folder: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = runners.start

    def fail_once(run: Run, parent: str | None) -> Any:
        if run.name == "rim-lr-0.003-seed0":
            started.append(run.name)
            return FakeFit(run, 6)
        return start(run, parent)

    monkeypatch.setattr(runners, "start", fail_once)
    answer = running.rimlit("compare", *FAST, "--tune=lr=0.001,0.003")
    assert answer.code == 1
    assert "1 of the runs failed: rim-lr-0.003-seed0" in answer.err
    assert "rim has no best lr yet" in " ".join(answer.out.split())
    assert "rim-lr-0.001-seed1" not in started and "lstm-lr-0.003-seed1" in started
    monkeypatch.setattr(runners, "start", start)
    before = len(started)
    assert running.rimlit("compare", *FAST, "--tune=lr=0.001,0.003").code == 0
    assert started[before:] == ["rim-lr-0.003-seed0", "rim-lr-0.003-seed1"]


@pytest.fixture
def own_grid(folder: Path) -> Path:
    """A config of an LSTM with a grid of its own."""
    content = yaml.safe_load((configs_folder() / "copying/lstm.yaml").read_text())
    (folder / "lstm.yaml").write_text(yaml.safe_dump({**content, "tune": {"lr": [0.01, 0.02]}}))
    return folder / "lstm.yaml"


def test_the_grid_of_a_config_wins(own_grid: Path, started: list[str]) -> None:
    overrides = {"trainer.max_steps": 4, "trainer.logger": False, "data.train_span": 5, "data.test_spans": [5, 9]}
    comparison = rimlit.compare(
        ["copying/rim", "lstm.yaml"], seeds=1, overrides=overrides, tune={"lr": [0.001, 0.003]}
    )
    assert sorted(started) == [
        "lstm-lr-0.01-seed0",
        "lstm-lr-0.02-seed0",
        "rim-lr-0.001-seed0",
        "rim-lr-0.003-seed0",
    ]
    assert [row["lr"] for row in comparison.rows] == [0.003, 0.01]


def test_other_settings_are_tuned_and_the_size_is_that_of_the_best(folder: Path, started: list[str]) -> None:
    answer = running.rimlit("compare", *FAST[1:], "--tune=model.backbone.hidden_size=8,32")
    assert answer.code == 0, answer.err
    lstm = read_json(COMPARISON / "results.json")["models"]["lstm"]
    assert lstm["tuning"]["best"] == {"model.backbone.hidden_size": 8}  # of equal ones the first
    assert lstm["hidden_size"] == 8
    assert len(Comparison.load(COMPARISON).rows) == 1


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--tune"], ["--tune needs a value"]),
        (["--tune=lr"], ["tune must be a setting and its values", "'lr'"]),
        (["--tune=lr="], ["tune must be a setting and its values", "'lr='"]),
        (["--tune=lr=0.1"], ["two or more different values", "lr=[0.1]"]),
        (["--tune=lr=0.1,0.10"], ["two or more different values", "lr=[0.1, 0.1]"]),
        (["--tune=lr=0.1,-1"], ["numbers above 0", "lr=-1"]),
        (["--tune=lr=0.1,high"], ["numbers above 0", "lr='high'"]),
        (["--tune=seeds=1,2"], ["begins with model. or trainer.", "'seeds'"]),
        (["--tune=data.train_span=5,6"], ["begins with model. or trainer.", "'data.train_span'"]),
        (["--tune=model.optimizer.lrr=1,2"], ["lrr", "Did you mean lr?"]),
        (["--tune=model.backbone.num_active=4,many"], ["num_active", "many"]),
        (["--tune=lr=1,2", "--model.optimizer.lr=0.1"], [f"{SPECIAL} is tuned", "leave out one"]),
        (["--tune=lr=1,2", "--trainer.limit_val_batches=0"], ["trainer.limit_val_batches=0", "validation"]),
        (["--tune=lr=1,2", "--trainer.enable_checkpointing=false"], ["trainer.enable_checkpointing=False"]),
        (["--tune=model.backbone.hidden_size=24,48", "--match=params"], ["changes the size of", "--match"]),
    ],
)
def test_a_mistake_is_one_message_before_anything_runs(
    folder: Path, started: list[str], words: list[str], parts: list[str]
) -> None:
    answer = running.rimlit("compare", "copying/rim", *words)
    assert answer.code == 2, answer.out
    for part in parts:
        assert part in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not started and not (folder / "runs").exists()


def test_models_are_given_as_many_values(own_grid: Path, started: list[str]) -> None:
    for words, counted in (
        ((), "copying/rim none, lstm.yaml 2"),
        (("--tune=lr=1,2,3",), "copying/rim 3, lstm.yaml 2"),
    ):
        answer = running.rimlit("compare", "copying/rim", "lstm.yaml", *words)
        assert answer.code == 2
        assert f"tune must give every model as many values; got {counted}." in answer.err
    own_grid.write_text(own_grid.read_text().replace("0.02", "low"))
    answer = running.rimlit("compare", "lstm.yaml")
    assert answer.code == 2
    assert "lstm.yaml: tune must give lr numbers above 0; got lr='low'" in answer.err
    assert not started


def test_a_run_records_its_best_validation_and_does_not_mind_a_grid(own_grid: Path) -> None:
    answer = running.succeed("fit", "--config=lstm.yaml", *COPYING[1:2], *COPYING[5:], *UNTRACKED)
    (path,) = Path("runs").rglob("results.json")
    best = read_json(path)["best_validation"]
    assert (best["metric"], best["higher_is_better"]) == ("val/cross_entropy", False)
    assert 0 < best["score"] < 5, answer.out
    assert "tune" not in yaml.safe_load(path.with_name("config.yaml").read_text())
    refused = running.rimlit("fit", "--config=lstm.yaml", "--tune=lr=0.1,0.2")
    assert refused.code == 2
    assert "--tune is for rimlit compare" in refused.err
