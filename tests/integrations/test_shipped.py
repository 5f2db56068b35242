"""The trained models that the package contains load without a network and have the scores of their cards."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from benchmarks.pretrained import MODELS, MOST_BYTES, card_of

import rimlit
from rimlit.data import DataModule
from rimlit.integrations.shipped import FOLDER
from rimlit.spec import build

ROOT = Path(__file__).parents[2]
SMALL: dict[str, dict[str, Any]] = {
    "copying": {"test_spans": [50, 100], "test_size": 128},
    "bouncing_balls": {"test_balls": [4]},
    "cartpole": {"test_episodes": 4, "floor_episodes": 1},
}
"""What of each model's data is tested here: a part of the card's."""

NEAR = {
    "copying": {"span_50/cross_entropy": 0.01, "span_100/cross_entropy": 0.01, "span_100/sequence_accuracy": 0.02},
    # the same sequences, in 32 bits where the card has bfloat16
    "bouncing_balls": {"balls_4/bce_at_1": 0.005, "balls_4/f1_at_5": 0.01, "balls_4/position_error_at_1": 0.1},
    "cartpole": {"episode_return": 5.0},
}
"""Scores that are compared with the card's, and how far they may be apart."""


def test_three_models_ship_and_are_listed_with_what_they_are() -> None:
    assert rimlit.pretrained().keys() == MODELS.keys() == {"copying", "bouncing_balls", "cartpole"}
    assert rimlit.pretrained()["copying"].startswith("A RIM of 6 mechanisms")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_small_and_loads_without_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    files = {path.name: path.stat().st_size for path in (FOLDER / name).iterdir()}
    assert files.keys() == {"README.md", "config.json", "model.safetensors", "results.json"}
    assert sum(files.values()) < MOST_BYTES
    task = rimlit.from_pretrained(name)
    results = json.loads((FOLDER / name / "results.json").read_text())
    assert not task.training
    assert sum(parameter.numel() for parameter in task.parameters()) == results["parameters"]


@pytest.mark.parametrize("name", MODELS)
def test_a_card_is_what_the_files_say(name: str) -> None:
    assert (FOLDER / name / "README.md").read_text(encoding="utf-8") == card_of(name)


@pytest.mark.parametrize("name", MODELS)
def test_a_card_says_where_a_model_comes_from(name: str) -> None:
    card = (FOLDER / name / "README.md").read_text()
    results = json.loads((FOLDER / name / "results.json").read_text())
    for key in ("command", "commit", "machine"):
        assert results[key] in card
    assert not results["commit"].endswith("+")
    assert f"- seed: {results['seed']}" in card
    assert "## Limits" in card and "Licence: MIT." in card


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "bouncing_balls" else ()) for name in MODELS]
)
def test_a_model_has_the_scores_of_its_card(name: str, tmp_path: Path) -> None:
    pytest.importorskip("gymnasium", reason="an extra") if name == "cartpole" else None
    spec = json.loads((FOLDER / name / "config.json").read_text())["data"]
    data = build({**spec, "init_args": {**spec["init_args"], **SMALL[name]}}, DataModule)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    scores: dict[str, float] = {}
    for group in trainer.test(rimlit.from_pretrained(name), data, verbose=False):
        scores |= group
    card = json.loads((FOLDER / name / "results.json").read_text())["test"]
    for key, distance in NEAR[name].items():
        assert scores[f"test/{key}"] == pytest.approx(card[key], abs=distance), key


def test_the_code_of_the_page_recalls_the_symbols(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert found is not None
    exec(found[1], {})  # the page's own text
    assert capsys.readouterr().out.endswith("[3, 1, 4, 1, 5, 2, 6, 5, 3, 5]\n")
