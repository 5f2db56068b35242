"""A series, films and an agent by the command line: forecasts in the file's units, pictures, wrappers."""

import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from rimlit.checkpoints import read_checkpoint
from tests.cli.running import QUIET, UNTRACKED, read_json, rimlit, scores_of, succeed
from tests.rl.quadrants import COUNTERS, QUADRANTS, SCALED

OPTIONS = (*QUIET, *UNTRACKED)
SMALL = (
    "--model.num_paths=4",
    "--model.backbone.hidden_size=24",
    "--data.window=12",
    "--data.horizon=4",
    "--data.season=6",
    "--trainer.max_steps=20",
    "--trainer.val_check_interval=20",
)
PAGES = Path(__file__).parents[2] / "docs"


def write_series(path: Path, *, rows: int = 96) -> None:
    months = [f"{2000 + row // 12}-{row % 12 + 1:02d}" for row in range(rows)]
    levels = [f"{500 + row + 9 * math.sin(row * math.pi / 3):.3f}" for row in range(rows)]
    lines = (f"{month};{level}".replace(".", ",") for month, level in zip(months, levels, strict=True))
    path.write_text("\n".join(["month;level", *lines, ""]))


def test_a_series_is_forecast_beyond_its_last_month_by_the_checkpoint_alone(folder: Path) -> None:
    write_series(folder / "sales.csv")
    table = ("--data.path=sales.csv", "--data.time_column=month", "--data.delimiter=;", "--data.decimal=,")
    succeed("fit", "--config=series/lstm", *table, *SMALL, *OPTIONS, "--name=sales")
    run = folder / "runs/series/sales"
    floors = read_json(run / "results.json")["floor"]
    assert scores_of(run).keys() >= {"mae", "mse", "pinball", "coverage_80"} <= floors.keys()
    assert (run / "figures/forecast.png").stat().st_size > 10_000
    (folder / "sales.csv").unlink()
    write_series(folder / "later.csv", rows=60)
    best = run / "checkpoints/best.ckpt"
    succeed("predict", "--ckpt_path", best, "--data.predict_path=later.csv", *OPTIONS)
    (line,) = (run / "predictions.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["sequence"], record["values"], record["target"]) == ("later", ["level"], None)
    assert record["time"] == ["2005-01", "2005-02", "2005-03", "2005-04"]
    assert list(record["quantiles"]) == ["0.1", "0.5", "0.9"]
    assert all(500 < value < 620 for (value,) in record["predicted"])


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--data.horizon=60",), 3, "no series is long enough"),
        (("--model.quantiles=[0.9,0.1]",), 2, "quantiles must be levels above 0 and below 1 that rise"),
        (("--data.time_column=week",), 3, "sales.csv has no column 'week'"),
        (("--model=RegressionTask",), 2, "RegressionTask"),
    ],
)
def test_a_series_that_cannot_be_forecast_is_one_line(
    folder: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    write_series(folder / "sales.csv")
    table = ("--data.path=sales.csv", "--data.time_column=month", "--data.delimiter=;", "--data.decimal=,")
    answer = rimlit("fit", "--config=series/lstm", *table, *OPTIONS, "--data.horizon=4", *options)
    assert (answer.code, words in answer.err) == (code, True), answer.err
    assert sum("error" in line for line in answer.err.splitlines()) == 1
    assert not list(folder.rglob("*.ckpt"))


@pytest.mark.slow
def test_films_are_predicted_and_their_rollouts_written(folder: Path) -> None:
    films = np.random.default_rng(0).integers(0, 256, (12, 20, 16, 16), dtype=np.uint8)
    np.save(folder / "films.npy", films)
    small = ("--model.backbone.hidden_size=24", "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    data = ("--data.path=films.npy", "--data.batch_size=4")
    lengths = ("--data.context_length=10", "--data.rollout_length=10")
    stopping = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/bce_at_10")
    succeed("fit", "--config=frames/lstm", *data, *lengths, *small, *stopping, *OPTIONS, "--name=films")
    run = folder / "runs/frames/films"
    scores = scores_of(run)
    assert scores.keys() >= {"mse", "bce", "f1"} and read_json(run / "results.json")["floor"]["mse"] > 0
    assert (run / "figures/rollout.gif").is_file() and (run / "figures/rollout_curves.png").is_file()
    succeed("predict", "--ckpt_path", run / "checkpoints/best.ckpt", *OPTIONS)
    record = json.loads((run / "predictions.jsonl").read_text().splitlines()[0])
    assert Path(record["file"]).is_file() and len(record["mse"]) == 10


AGENT = (
    "--config=cartpole/lstm",
    "--data.observed=null",
    "--data.total_steps=128",
    "--data.num_environments=2",
    "--data.rollout_length=32",
    "--data.val_episodes=2",
    "--data.test_episodes=2",
    "--data.floor_episodes=1",
    "--trainer.check_val_every_n_epoch=2",
)


@pytest.mark.slow
def test_an_agent_s_successes_wrappers_with_arguments_and_a_vector_by_path(folder: Path) -> None:
    (folder / "agent.yaml").write_text(
        f"data:\n  init_args:\n    environment: {QUADRANTS}\n    info_keys: [is_success]\n"
        f"    wrappers: [{{class_path: {SCALED}, init_args: {{factor: 2.0}}}}]\n"
    )
    trusted = ("--trust", "tests")
    succeed("fit", *AGENT, "--config=agent.yaml", *OPTIONS, *trusted, "--name=corners")
    run = next(folder.rglob("corners"))
    assert 0 <= scores_of(run)["is_success"] <= 1
    checkpoint = read_checkpoint(run / "checkpoints/best.ckpt")
    assert checkpoint["rimlit"]["data"]["init_args"]["wrappers"][0]["init_args"] == {"factor": 2.0}
    succeed("test", "--ckpt_path", run / "checkpoints/best.ckpt", *OPTIONS, *trusted)
    succeed("fit", *AGENT, f"--data.environment={COUNTERS}", *OPTIONS, *trusted, "--name=counters")


@pytest.mark.slow
def test_the_page_on_forecasts_and_the_vector_of_the_page_on_agents_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (PAGES / "forecasting.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(code, {})
    (commands,) = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    _, fit, predict = (shlex.split(line) for line in commands.splitlines())
    succeed(*fit[1:], *SMALL[:-3], "--trainer.max_steps=2", "--trainer.val_check_interval=2", *OPTIONS)
    succeed(*predict[1:], *OPTIONS)
    record = json.loads(next(folder.rglob("predictions.jsonl")).read_text())
    example = json.loads(re.findall(r"^```json\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0])
    assert list(record) == list(example) and record["time"][:2] == example["time"]
    agents = (PAGES / "reinforcement_learning.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n# yours/envs.py\n(.*?)^```", agents, re.DOTALL | re.MULTILINE)
    (folder / "yours").mkdir()
    (folder / "yours/envs.py").write_text(code)
    (line,) = [line for line in agents.splitlines() if "yours.envs.Coins" in line and line.startswith("rimlit")]
    succeed(*shlex.split(line)[1:], *AGENT[2:], *OPTIONS)
