"""Atari by the command line: any game is trained on, tested and recorded; what is not a game exits with 2."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.running import QUIET, UNTRACKED, read_checkpoint, read_json, rimlit, succeed

GAME = (
    "--config=atari/rim",
    *QUIET,
    *UNTRACKED,
    "--model.backbone.hidden_size=12",
    "--model.encoder.output_size=8",
    "--data.num_environments=2",
    "--data.batch_size=1",
    "--data.rollout_length=8",
    "--data.num_passes=1",
    '--data.options={"max_episode_steps":6}',
    "--data.val_episodes=1",
    "--data.test_episodes=2",
    "--data.floor_episodes=1",
)
RUN = Path("runs/atari/rim-seed0")


@pytest.mark.slow
def test_a_game_is_trained_on_resumed_tested_and_recorded(folder: Path) -> None:
    game = (*GAME, "--data.environment=ALE/Breakout-v5")
    succeed("fit", *game, "--data.total_steps=16", "--test_after_fit=false")
    succeed("fit", *game, "--data.total_steps=32")
    last = read_checkpoint(folder / RUN / "checkpoints/last.ckpt")
    assert (last["Experience"]["env_steps"], last["global_step"]) == (32, 4)
    results = read_json(folder / RUN / "results.json")
    assert results["test"]["episode_length"] == 6
    with Image.open(folder / RUN / "figures/episode.gif") as gif:
        assert gif.n_frames == 6
        assert gif.size == (12 + 168 + 12 + 80 * 3 + 12, 168 + 2 * 18 + 12)


def test_an_unknown_game_is_answered_with_the_nearest_ones(folder: Path) -> None:
    answer = rimlit("fit", *GAME, "--data.environment=ALE/Pongg-v5")
    assert answer.code == 2
    assert "environment='ALE/Pongg-v5' is not a game of ale-py. Did you mean ALE/Pong-v5" in answer.err


def test_a_missing_extra_is_answered_with_the_command_that_installs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    answer = rimlit("fit", *GAME)
    assert answer.code == 2
    assert "pip install '.[atari]'" in answer.err and "'ale-py" in answer.err
    assert not (folder / RUN).exists()
