"""The GIF of an episode: its contents, and the environments that have none."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rimlit.pictures import EpisodePictures
from rimlit.pictures.activity import COLOURS
from rimlit.pictures.episodes import MOST_STEPS, WINDOW, EpisodeClip, draw_episode, play_episode
from rimlit.rl.observations import PolicyInput
from rimlit.types import State
from tests.rl.corridor import BACKBONES, CORRIDOR, Corridor, make_experience, make_task
from tests.tasks.running import make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet


class Pictured(Corridor):
    """A corridor whose picture is as bright as it has steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012, as gymnasium has it

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.full((8, 12, 3), self.steps, np.uint8)


PICTURED = f"{__name__}.Pictured"


def take(backbone: Any = "RIM", *, length: int = 5, **options: Any) -> EpisodeClip | None:
    data = make_experience(PICTURED, options={"length": length})
    environments = data.make(PICTURED, 1, can_render=True)
    return play_episode(make_task(data, backbone), environments, 3, **options)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_take_shows_each_step_before_it_is_taken(layers: int) -> None:
    backbone = {**BACKBONES["RIM"], "init_args": {**BACKBONES["RIM"]["init_args"], "num_layers": layers}}
    taken = take(backbone)
    assert taken is not None and taken.active is not None
    assert [int(picture[0, 0, 0]) for picture in taken.pictures] == [0, 1, 2, 3, 4]
    assert taken.scores == [1, 2, 3, 4, 5]
    num_active = BACKBONES["RIM"]["init_args"]["num_active"]
    assert taken.active.sum(dim=1).tolist() == [num_active] * 5


def test_the_mechanisms_of_a_take_are_those_of_the_same_episode_in_one_piece() -> None:
    data = make_experience(PICTURED, options={"length": 5})
    task = make_task(data)
    seen = []
    step = task.step

    def watched(now: PolicyInput, state: State) -> tuple[Tensor, State]:
        seen.append(PolicyInput(*(part.clone() for part in now)))
        return step(now, state)

    task.step = watched  # type: ignore[method-assign]
    taken = play_episode(task, data.make(PICTURED, 1, can_render=True), 3)
    assert taken is not None and taken.active is not None
    whole = PolicyInput(*(torch.cat(parts, dim=1) for parts in zip(*seen, strict=True)))
    with task.backbone.record_activity() as activities:
        task(whole)
    assert torch.equal(activities[0].active[0], taken.active)


def test_a_long_episode_is_cut() -> None:
    taken = take("LSTM", length=100, most_steps=7)
    assert taken is not None and len(taken.pictures) == 7
    assert taken.active is None


def test_a_test_writes_an_episode_of_the_environment(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = make_experience("CartPole-v1", options={"max_episode_steps": 6}, test_episodes=1)
    make_trainer(tmp_path, callbacks=[EpisodePictures()]).test(make_task(data), data, verbose=False)
    assert "XDG_RUNTIME_DIR" not in capfd.readouterr().err
    with Image.open(tmp_path / "figures/episode.gif") as gif:
        assert gif.n_frames == 6
        assert gif.size == (12 + 300 + 12 + 80 * 3 + 12, 200 + 2 * 18 + 12)  # 600 × 400, halved
        assert gif.info["loop"] == 0


def test_environments_without_pictures_and_other_tasks_are_left_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[EpisodePictures()])
    data = make_experience(CORRIDOR, test_episodes=1)
    trainer.test(make_task(data), data, verbose=False)
    trainer.test(make_copying_task(), make_copying(), verbose=False)
    assert not list(tmp_path.iterdir())


class Faulty(Pictured):
    """A corridor whose picture is of another type, or cannot be drawn."""

    def __init__(self, fault: str, **options: Any) -> None:
        super().__init__(**options)
        self.picture_fault = fault

    def render(self) -> Any:
        if self.picture_fault == "raises":
            raise RuntimeError("no colours left")
        return np.zeros((8, 12, 3)) if self.picture_fault == "float" else np.zeros((8, 12), np.uint8)

    def close(self) -> None:
        closed.append(self.render_mode)


closed: list[str | None] = []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("float", r"renders float64 of shape \(8, 12, 3\); pictures are uint8"),
        ("grey", r"renders uint8 of shape \(8, 12\); pictures are uint8 of \(height, width, 3\)"),
        ("raises", "RuntimeError: no colours left"),
    ],
)
def test_a_picture_that_fails_is_a_warning_and_its_environment_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str, says: str
) -> None:
    data = make_experience(f"{__name__}.Faulty", options={"fault": fault}, test_episodes=1)
    task, trainer = make_task(data), make_trainer(tmp_path, callbacks=[EpisodePictures()])
    closed.clear()
    trainer.test(task, data, verbose=False)
    assert re.search(says, caplog.text)
    assert closed.count("rgb_array") == 1
    assert not list(tmp_path.iterdir())


def test_an_episode_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "figures").write_text("a file where the folder should be")
    data = make_experience(PICTURED, test_episodes=1)
    make_trainer(tmp_path, callbacks=[EpisodePictures()]).test(make_task(data), data, verbose=False)
    assert "figures/episode.gif could not be written" in caplog.text


def made_up(length: int) -> EpisodeClip:
    """Bright pictures; the first mechanism is active in even steps, the second in odd ones."""
    active = torch.tensor([[step % 2 == 0, step % 2 == 1] for step in range(length)])
    pictures = [np.full((160, 20, 3), step % 256, np.uint8) for step in range(length)]
    return EpisodeClip(pictures, [1.0] * length, active)


def rgb(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


@pytest.mark.parametrize("length", [4, WINDOW + 5])
def test_the_panel_of_mechanisms_grows_and_then_moves_on(length: int) -> None:
    with Image.open(io.BytesIO(draw_episode(made_up(length)))) as gif:
        assert gif.n_frames == length
        gif.seek(length - 1)
        pixels = np.asarray(gif.convert("RGB")).astype(int)
    left, top = 12 + 20 + 12, 18
    last = left + 3 * (min(length, WINDOW) - 1) + 1  # the column of the last step
    for row, colour in enumerate(COLOURS[:2]):
        for step, column in ((length - 1, last), (length - 2, last - 3)):
            drawn = pixels[top + 40 + 80 * row, column]
            wanted = np.array(rgb(colour)) // (1 if step % 2 == row else 3)
            assert np.abs(drawn - wanted).max() <= 8, (row, step)
    assert MOST_STEPS > WINDOW
