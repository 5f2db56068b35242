"""Blinking balls: what is shown and asked, seeds, groups, floors, refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rimlit.data import BlinkingBalls
from rimlit.data.blinking_balls import PALETTE, BlinkingBallsDataset, draw_blinks
from rimlit.errors import ConfigError

COLOURS = PALETTE[3:]


def make(**arguments: Any) -> BlinkingBalls:
    sizes: dict[str, Any] = {"batch_size": 4, "val_size": 4, "test_size": 4, "seed": 1}
    return BlinkingBalls(**{**sizes, **arguments})


def dataset(**arguments: Any) -> BlinkingBallsDataset:
    return make(**arguments).datasets("train")[""]


def colours_in(picture: Tensor) -> set[tuple[int, ...]]:
    """The colours of a picture (3, size, size), without the background."""
    return {tuple(pixel) for pixel in picture.flatten(1).T.tolist()} - {PALETTE[0]}


@pytest.mark.parametrize("question", ["first", "most"])
@pytest.mark.parametrize(("num_balls", "length", "num_colours"), [(1, 1, 2), (3, 10, 5), (8, 4, 6), (2, 9, 2)])
def test_the_answer_is_the_first_or_the_most_frequent_colour_of_the_ball(
    question: Any, num_balls: int, length: int, num_colours: int
) -> None:
    generator, asked = np.random.default_rng(0), set()
    for _ in range(200):
        blinks = draw_blinks(num_balls, length, num_colours, question, generator)
        assert set(blinks.balls) <= set(range(num_balls)) and set(blinks.colours) <= set(range(num_colours))
        own = [
            colour
            for ball, colour in zip(blinks.balls.tolist(), blinks.colours.tolist(), strict=True)
            if ball == blinks.asked
        ]
        if question == "first":
            assert own[0] == blinks.answer
        else:
            others = [own.count(colour) for colour in range(num_colours) if colour != blinks.answer]
            assert own.count(blinks.answer) > max(others)
        asked.add(blinks.asked)
    assert asked == set(range(num_balls))


def test_each_frame_has_one_ball_in_colour_and_the_last_one_in_grey() -> None:
    data = dataset(train_balls=3, train_length=8, num_colours=4, frame_size=64)
    for index in range(5):
        frames, answer = data[index]
        blinks = data._draw(index)[0]
        assert frames.shape == (9, 3, 64, 64) and frames.dtype == torch.uint8
        for frame, colour in zip(frames[:-1], blinks.colours.tolist(), strict=True):
            assert colours_in(frame) == {PALETTE[1], COLOURS[colour]}
        assert colours_in(frames[-1]) == {PALETTE[1], PALETTE[2]}
        assert answer.item() == blinks.answer and 0 <= answer < 4


def test_the_ball_that_is_asked_for_is_the_one_that_had_the_answer() -> None:
    """Where it stands in the last frame, going back frame by frame leads to the colour."""
    data = dataset(train_balls=3, train_length=8, frame_size=64, speed=0.5)
    for index in range(10):
        frames, answer = data[index]
        lit = (frames.float() == torch.tensor(PALETTE[2]).view(3, 1, 1)).all(dim=1)[-1]
        place = lit.nonzero().double().mean(dim=0)
        own: list[tuple[int, ...]] = []
        for frame in frames[:-1].flip(0):
            is_ball = (frame > 0).any(dim=0)
            near = (is_ball.nonzero() - place).square().sum(dim=1) < 6.4**2
            pixels = is_ball.nonzero()[near]
            shades = [tuple(frame[:, y, x].tolist()) for y, x in pixels.tolist()]
            place = pixels.double().mean(dim=0)
            shade = max(set(shades), key=shades.count)
            if shade in COLOURS:
                own.append(shade)
        assert COLOURS.index(own[-1]) == answer.item(), f"sample {index}: {own[::-1]}"


def test_balls_look_alike_and_their_area_is_that_of_their_radius() -> None:
    frames, _ = dataset(train_balls=1, train_length=4, frame_size=64)[0]
    lit = (frames > 0).any(dim=1).sum(dim=(1, 2)).float()
    torch.testing.assert_close(lit, torch.full((5,), torch.pi * 6.4**2), rtol=0.05, atol=0)


def test_samples_do_not_depend_on_the_batch_they_come_in() -> None:
    data = dataset(train_balls="1-4")
    together = data.__getitems__([7, 2, 5])
    for index, (frames, answer) in zip([7, 2, 5], together, strict=True):
        assert torch.equal(frames, data[index][0]) and torch.equal(answer, data[index][1])


def test_tests_come_for_every_set_at_every_length() -> None:
    data = make(test_balls=[2, "4-6", 2], test_lengths=[3, 7])
    names = ["balls_2_length_3", "balls_2_length_7", "balls_4-6_length_3", "balls_4-6_length_7"]
    assert data.group_names("test") == data.group_names("predict") == names
    assert [next(iter(loader)).inputs.shape[1] for loader in data.test_dataloader()] == [4, 8, 4, 8]


@pytest.mark.parametrize("question", ["first", "most"])
def test_floors_are_those_of_guessing_and_of_colours_without_their_balls(question: Any) -> None:
    data = make(question=question, test_balls=[1, 3], test_lengths=[6], test_size=400)
    floors = data.floors()
    answers = [data.datasets("test")["balls_3_length_6"]._draw(index)[0].answer for index in range(400)]
    assert np.bincount(answers).max() / 400 == pytest.approx(floors["accuracy"], abs=0.07)  # 3 deviations
    assert floors["accuracy"] == 1 / 5 and floors["cross_entropy"] == pytest.approx(np.log(5))
    assert floors["balls_1_length_6/unbound_accuracy"] == 1.0  # there is nothing to confuse
    expected = 1 / 3 + 2 / 3 / 5  # it is the asked ball's colour, or right by chance
    assert floors["accuracy"] + 0.1 < floors["balls_3_length_6/unbound_accuracy"] < 0.75
    if question == "first":
        assert floors["balls_3_length_6/unbound_accuracy"] == pytest.approx(expected, abs=0.09)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"question": "last"}, "question must be one of first, most; got question='last'"),
        ({"num_colours": 1}, "num_colours must be at least 2; got num_colours=1"),
        ({"num_colours": 7}, "num_colours must be at most 6; got num_colours=7"),
        ({"train_length": 0}, "train_length must be at least 1; got train_length=0"),
        ({"test_lengths": [5, 0]}, r"test_lengths\[1\] must be at least 1"),
        ({"test_lengths": []}, "test_lengths must name at least one length"),
        ({"test_balls": []}, "test_balls must name at least one set"),
        ({"train_balls": 9}, "train_balls must be a number of balls from 1 to 8"),
        (
            {"train_balls": "curtain"},
            "train_balls must be a number of balls from 1 to 8, .* got train_balls='curtain'",
        ),
        ({"speed": 0.0}, "speed must be above 0 and at most 2 units a frame; got speed=0.0"),
        ({"frame_size": 12}, "frame_size must be a multiple of 8; got frame_size=12"),
        ({"train_size": 0}, "train_size must be at least 1; got train_size=0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BlinkingBalls(**arguments)
