"""The pictures of rollouts: the GIF, the curves, the numbers."""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rimlit.encoders import ObjectEncoder
from rimlit.heads import SlotMixtureHead
from rimlit.pictures import RolloutPictures
from rimlit.pictures.rollouts import Film, draw_curves, draw_gif, predict_film
from tests.tasks.running import SMALL_LSTM, SMALL_RIM, make_copying, make_copying_task, make_trainer, quiet
from tests.tasks.test_frame_prediction import make_data, make_task

pytestmark = quiet

MIXTURE = partial(SlotMixtureHead, channels=[4, 2])


def test_a_test_writes_a_gif_curves_and_numbers(tmp_path: Path) -> None:
    task, data = make_task(prediction="motion"), make_data()
    trainer = make_trainer(tmp_path, callbacks=[RolloutPictures()])
    trainer.test(task, data, verbose=False)
    assert (tmp_path / "figures/rollout_curves.png").read_bytes().startswith(b"\x89PNG")
    with Image.open(tmp_path / "figures/rollout.gif") as gif:
        assert gif.n_frames == 3 + 4 - 1  # a prediction for every frame but the first
    numbers = json.loads((tmp_path / "rollout.json").read_text())
    assert list(numbers) == ["balls_2", "curtain"]
    for predictor in ("model", "copy", "constant_velocity"):
        for metric in ("bce", "f1", "position_error"):
            assert len(numbers["curtain"][predictor][metric]) == 4
    scores = task.rollout_curves()["balls_2"]["f1"].tolist()
    assert numbers["balls_2"]["model"]["f1"] == pytest.approx(scores, abs=1e-5)
    floors = data.floor_curves()["balls_2"]["copy"]["f1"].tolist()
    assert numbers["balls_2"]["copy"]["f1"] == pytest.approx(floors, abs=1e-5)


def test_other_tasks_are_left_alone(tmp_path: Path) -> None:
    make_trainer(tmp_path, callbacks=[RolloutPictures()]).test(make_copying_task(), make_copying(), verbose=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layers", [1, 2])
def test_a_film_has_the_predictions_and_the_activity_of_the_task(layers: int) -> None:
    backbone = {**SMALL_RIM, "init_args": {**SMALL_RIM["init_args"], "num_layers": layers}}
    task, data = make_task(backbone=backbone), make_data()
    batch = next(iter(data.test_dataloader()[0]))
    film = predict_film(task, batch, "balls_2")
    assert task.training, "it is left as it was"
    logits = task.eval().rollout(batch.frames[:1, :3]).logits[0]
    assert torch.equal(film.truth, batch.frames[0, 1:7])
    torch.testing.assert_close(film.prediction, logits.sigmoid(), rtol=0, atol=1e-5)  # steps without a graph
    assert film.active is not None and film.active.shape == (6, 3)
    with task.backbone.record_activity() as activities:
        task(batch.frames[:1, :3])
    assert torch.equal(film.active[:3], activities[0].active[0])
    assert film.owners is None


def test_masks_are_shown_for_a_slot_mixture_and_no_mechanisms_for_an_lstm() -> None:
    batch = next(iter(make_data().test_dataloader()[0]))
    film = predict_film(make_task(head=MIXTURE), batch, "balls_2")
    assert film.owners is not None and film.owners.shape == (6, 16, 16)
    assert film.owners.min() >= 0 and film.owners.max() <= 2
    assert predict_film(make_task(backbone=SMALL_LSTM), batch, "balls_2").active is None


def test_a_rim_that_reads_slots_of_objects_shows_its_masks_and_its_mechanisms(tmp_path: Path) -> None:
    encoder = partial(ObjectEncoder, output_size=6, num_slots=3, channels=[2, 3])
    task, data = make_task(encoder=encoder, head=MIXTURE), make_data()
    film = predict_film(task, next(iter(data.test_dataloader()[0])), "balls_2")
    assert film.owners is not None and film.active is not None and film.active.shape == (6, 3)
    with (
        Image.open(io.BytesIO(draw_gif([film]))) as gif,
        Image.open(io.BytesIO(draw_gif([film._replace(owners=None)]))) as without,
    ):
        assert gif.size[0] == without.size[0] + 16 * 3 + 12  # a panel of 16 pixels, three wide each, and a gap


def made_up_film(**parts: Any) -> Film:
    truth = torch.zeros(4, 16, 16)
    truth[:, :8] = 1
    prediction = truth.roll(4, dims=2).transpose(1, 2)  # left half lit
    active = torch.tensor([[True, False, True]] * 4)
    return Film("made_up", truth, prediction, 2, active, None)._replace(**parts)


def test_hits_misses_and_false_alarms_have_colours_of_their_own() -> None:
    with Image.open(io.BytesIO(draw_gif([made_up_film()]))) as gif:
        gif.seek(1)
        pixels = np.asarray(gif.convert("RGB"))
    left = 12 + 16 * 3 + 12  # of the second panel
    top = 18
    quarter = {
        name: tuple(int(value) for value in pixels[top + y * 3 + 1, left + x * 3 + 1])
        for name, (x, y) in {"hit": (2, 2), "miss": (12, 2), "false": (2, 12), "dark": (12, 12)}.items()
    }
    assert quarter == {
        "hit": (0xE8, 0xE6, 0xE1),
        "miss": (0x2F, 0x6D, 0xB5),
        "false": (0xF0, 0x8A, 0x24),
        "dark": (0x15, 0x17, 0x1C),
    }


@pytest.mark.parametrize("parts", [{}, {"active": None}, {"owners": torch.ones(4, 16, 16, dtype=torch.long)}])
def test_films_are_stacked_whatever_panels_they_have(parts: dict[str, Any]) -> None:
    with Image.open(io.BytesIO(draw_gif([made_up_film(**parts)] * 2, milliseconds=50))) as gif:
        assert gif.n_frames >= 3  # frames that do not differ are merged
        assert gif.info["loop"] == 0
        height = 18 + 2 * (16 * 3 + 18 + 12)
        assert gif.size[1] == height


def test_curves_have_a_panel_for_each_metric_and_test_set_and_a_line_for_each_predictor() -> None:
    scores = {metric: torch.linspace(0, 1, 5) for metric in ("bce", "f1", "position_error")}
    figure = draw_curves({f"balls_{n}": {"model": scores, "copy": scores} for n in range(6)})
    assert len(figure.axes) == 3 * 4  # the first four sets
    assert all(len(axis.lines) == 2 for axis in figure.axes)
