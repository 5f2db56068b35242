"""Options of the frame task from the command line, and what a run of it leaves."""

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.running import QUIET, UNTRACKED, read_json, succeed

SMALL_BALLS = (
    "--data.frame_size=16",
    "--data.batch_size=2",
    "--data.val_size=2",
    "--data.test_size=2",
    "--data.test_balls=[2,curtain]",
)
OPTIONS = {
    "slots": ("--model.prediction=pixels", "--model.head=SlotMixtureHead"),
    "positions": (
        "--model.encoder=ConvolutionalEncoder",
        "--model.encoder.output_size=8",
        "--model.encoder.position_wise=true",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_a_few_words_and_the_run_leaves_pictures_and_numbers(folder: Path, name: str) -> None:
    command = ("fit", "--config=bouncing_balls/rim", "--config=trainer/quick", "--trainer.max_steps=2")
    succeed(*command, *OPTIONS[name], *SMALL_BALLS, *QUIET, *UNTRACKED, f"--name={name}")
    run = folder / "runs/bouncing_balls" / name
    assert {"rollout.gif", "rollout_curves.png"} <= {path.name for path in (run / "figures").iterdir()}
    numbers = read_json(run / "rollout.json")
    assert set(numbers) == {"balls_2", "curtain"}
    assert set(numbers["balls_2"]) == {"model", "copy", "constant_velocity"}
    results = read_json(run / "results.json")
    assert results["test"]["balls_2/f1_at_10"] == pytest.approx(numbers["balls_2"]["model"]["f1"][9], abs=1e-5)
    assert results["floor"]["balls_2/f1_at_10"] == pytest.approx(numbers["balls_2"]["copy"]["f1"][9], abs=1e-5)
    with Image.open(run / "figures/rollout.gif") as gif:
        assert gif.n_frames > 40
