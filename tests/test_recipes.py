"""The commands and the code of docs/recipes.md run."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rimlit.cli import main
from tests.tracking.test_mlflow_server import Server, run_command, server  # noqa: F401, a fixture

PAGE = (Path(__file__).parents[1] / "docs/recipes.md").read_text(encoding="utf-8")
SMALL = {
    "data.test_size": 2,
    "data.val_size": 2,
    "data.batch_size": 2,
    "data.test_spans": [50, 60],
    "model.backbone.hidden_size": 24,
}
OPTIONS = [f"--{name}={value}" for name, value in SMALL.items()]
NEEDED = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb", "import optuna": "optuna"}
WRITTEN = {
    "TensorBoardLogger": "logs/copying/*/events.out.tfevents.*",
    "CSVLogger": "logs/copying/*/metrics.csv",
    "WandbLogger": "wandb/offline-run-*/run-*.wandb",
}


def section(title: str) -> str:
    """The text below a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.DOTALL | re.MULTILINE)


def require(text: str) -> None:
    for words, package in NEEDED.items():
        if words in text:
            pytest.importorskip(package, reason=f"the recipe is for {package}")


TITLES = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("title", [title for title in TITLES if title != "Loggers" and blocks(title, "bash")])
def test_the_commands_of_a_recipe_run(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require(section(title))
    monkeypatch.chdir(tmp_path)
    for content in blocks(title, "yaml"):
        (tmp_path / content.split("\n")[0].removeprefix("# ")).write_text(content)
    commands = [line.split("  #")[0] for block in blocks(title, "bash") for line in block.splitlines()]
    for command in commands:
        words = shlex.split(command)
        if words[:2] == ["rimlit", "fit"]:
            steps = ["--config=trainer/quick", *OPTIONS]
            try:
                main([*words[1:], *steps])
            except SystemExit as stop:
                if stop.code:
                    pytest.fail(f"{command} exits {stop.code}: {capsys.readouterr().err}")
        else:
            assert words[0] in ("pip", "python"), command


def logger_line(name: str) -> list[str]:
    """The words of a logger's documented line, at a small size."""
    (line,) = [line for line in blocks("Loggers", "bash")[0].splitlines() if name in line]
    return [*shlex.split(line), "--config=trainer/quick", *OPTIONS]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_the_line_of_a_logger_writes_its_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(name)
    monkeypatch.chdir(tmp_path)
    words = logger_line(name)
    assert words[:2] == ["rimlit", "fit"]
    main(words[1:])
    written = list(tmp_path.glob(WRITTEN[name]))  # TensorBoard has a file for training and one for the test
    assert written and all(path.stat().st_size > 0 for path in written)


@pytest.mark.slow
def test_the_line_of_an_mlflow_server_sends_the_run_there(server: Server, tmp_path: Path) -> None:  # noqa: F811
    variable, program, *words = logger_line("MLFLOW_TRACKING_URI")
    assert (variable, program) == ("MLFLOW_TRACKING_URI=http://localhost:5000", "rimlit")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri}
    done = run_command([sys.executable, "-m", "rimlit", *words], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(server.uri)
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert "val/loss" in run.data.metrics


@pytest.mark.slow
@pytest.mark.parametrize("title", [title for title in TITLES if blocks(title, "python")])
def test_the_code_of_a_recipe_runs(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(section(title))
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(title, "python")
    small = code.replace(
        '"trainer.max_steps": 1000,', f'"trainer.max_steps": 2, "trainer.val_check_interval": 2, **{SMALL},'
    )
    small = small.replace("n_trials=10", "n_trials=2")
    assert small.count("**{") == 1 and "n_trials=2" in small
    exec(small, {})
    assert len(list(tmp_path.glob("runs/copying/compare-*/results.json"))) == 2
