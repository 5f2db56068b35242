"""Metrics of rolled-out frames against what is known by hand, and how well balls are found."""

import math

import pytest
import torch
from torch import Tensor

from rimlit.data.balls import render
from rimlit.metrics.frames import FrameScores, drawn_frame_scores, frame_scores, locate_balls, summarise


def draw(positions: Tensor, radii: Tensor, size: int = 64) -> Tensor:
    """Frames (B, T, size, size) without a curtain."""
    return render(positions, radii, torch.zeros(len(radii), 3), size)


def apart(frames: int, balls: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Positions (frames, 1, balls, 2) of balls that do not overlap, and radii (frames, balls)."""
    generator = torch.Generator().manual_seed(seed)
    radii = torch.where(torch.rand(frames, balls, generator=generator) < 0.5, 5.12, 6.4)
    positions = torch.zeros(frames, balls, 2)
    for frame in range(frames):
        while True:
            places = 7 + 50 * torch.rand(balls, 2, generator=generator)
            gaps = torch.cdist(places, places) - radii[frame] - radii[frame, :, None]
            if (gaps + 1e3 * torch.eye(balls) > 0).all():
                positions[frame] = places
                break
    return positions[:, None], radii


@pytest.mark.parametrize("balls", [1, 4, 6])
def test_balls_of_true_frames_are_found_within_a_fraction_of_a_pixel(balls: int) -> None:
    positions, radii = apart(60, balls)
    found = locate_balls(draw(positions, radii)[:, 0].float(), radii)
    errors = (found - positions[:, 0]).norm(dim=-1)
    # of one size, balls may be found in another order
    same = torch.stack([torch.cdist(a, b).amin(dim=1) for a, b in zip(positions[:, 0], found, strict=True)])
    assert same.mean() < 0.15
    assert same.max() < 1
    if balls == 1:
        assert errors.max() < 0.5


def test_a_ball_is_found_by_its_size() -> None:
    positions = torch.tensor([[[[15.3, 40.2], [45.1, 20.6]]]])
    radii = torch.tensor([[5.12, 6.4]])
    found = locate_balls(draw(positions, radii)[0].float(), radii)
    assert (found[0] - positions[0, 0]).norm(dim=-1).max() < 0.3
    swapped = locate_balls(draw(positions, radii)[0].float(), radii.flip(1))
    assert (swapped[0] - positions[0, 0].flip(0)).norm(dim=-1).max() < 0.3


def test_a_faint_ball_is_found_where_the_light_is() -> None:
    positions, radii = apart(8, 1, seed=1)
    frames = draw(positions, radii)[:, 0].float()
    torch.testing.assert_close(locate_balls(0.25 * frames, radii), locate_balls(frames, radii), rtol=0, atol=1e-3)


def test_a_ball_that_is_not_looked_for_is_nowhere_and_one_that_is_not_there_is_in_a_corner() -> None:
    positions, radii = apart(1, 2)
    found = locate_balls(draw(positions, radii)[:, 0].float(), radii * torch.tensor([1.0, 0.0]))
    assert not found[0, 0].isnan().any() and found[0, 1].isnan().all()
    assert locate_balls(torch.zeros(1, 64, 64), radii)[0].tolist() == [[0.5, 0.5]] * 2


def test_locating_changes_nothing_in_what_it_is_given() -> None:
    positions, radii = apart(2, 3)
    frames = draw(positions, radii)[:, 0].float()
    before = frames.clone(), radii.clone()
    locate_balls(frames, radii)
    assert torch.equal(frames, before[0]) and torch.equal(radii, before[1])


def values(sums: dict[str, tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    return {name: (total / count).tolist() for name, (total, count) in sums.items()}


def test_scores_of_small_frames_are_known_by_hand() -> None:
    frames = torch.tensor([[[[1, 1], [0, 0]], [[0, 0], [0, 1]]]], dtype=torch.uint8)  # (1, 2, 2, 2)
    logits = torch.tensor([[[[2.0, -2.0], [2.0, -2.0]], [[-1.0, -1.0], [-1.0, 1.0]]]])
    positions = torch.tensor([[[[0.0, 0.0], [4.0, 0.0]], [[1.0, 1.0], [9.0, 9.0]]]])
    found = torch.tensor([[[[4.0, 1.0], [0.0, 2.0]], [[1.0, 4.0], [torch.nan, torch.nan]]]])
    visible = torch.tensor([[[True, True], [True, False]]])
    scores = values(frame_scores(logits, frames, found, positions, visible))
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert scores["bce"] == pytest.approx([(2 * right + 2 * wrong) / 4, math.log(1 + math.exp(-1))])
    assert scores["f1"] == pytest.approx([2 * 1 / (2 + 2), 1])
    assert scores["position_error"] == pytest.approx([(2 + 1) / 2, 3])  # crosswise; the hidden ball does not count


def test_drawn_frames_are_scored_as_probabilities_of_one_in_a_hundred() -> None:
    positions, radii = apart(6, 3)
    moved = positions + 1.5
    drawn, frames = draw(moved, radii), draw(positions, radii)
    visible = torch.ones(6, 1, 3, dtype=torch.bool)
    scores = values(drawn_frame_scores(drawn, frames, moved, positions, visible))
    logits = drawn.double().clamp(0.01, 0.99).logit()
    expected = values(frame_scores(logits, frames, moved, positions, visible))
    for name in expected:
        assert scores[name] == pytest.approx(expected[name], rel=1e-6)
    assert scores["position_error"] == pytest.approx([1.5 * math.sqrt(2)], rel=1e-4)


def test_the_metric_counts_over_batches_as_over_one() -> None:
    positions, radii = apart(8, 3)
    frames = draw(positions, radii).unflatten(0, (4, 2))[:, :, 0]  # (4, 2, 64, 64): four sequences of two frames
    logits = torch.randn(4, 2, 64, 64, generator=torch.Generator().manual_seed(0)) + 6.0 * frames - 3
    radii, positions = radii[::2], positions[:, 0].unflatten(0, (4, 2))
    visible = torch.ones(4, 2, 3, dtype=torch.bool)
    visible[0, 1, 2] = False
    whole, parts = FrameScores(2), FrameScores(2)
    whole.update(logits, frames, radii, positions, visible)
    for rows in (slice(0, 1), slice(1, 4)):
        parts.update(logits[rows], frames[rows], radii[rows], positions[rows], visible[rows])
    for name, value in whole.compute().items():
        torch.testing.assert_close(parts.compute()[name], value, rtol=1e-6, atol=0)
    assert set(whole.compute()) == {
        *("bce", "f1", "position_error"),
        *("bce_at_1", "f1_at_1", "position_error_at_1"),
    }


def test_a_frame_in_which_nothing_counts_scores_zero_and_not_nan() -> None:
    metric = FrameScores(1)
    hidden = torch.zeros(1, 1, 2, dtype=torch.bool)
    dark = torch.zeros(1, 1, 8, 8)
    metric.update(dark - 9, dark, torch.ones(1, 2), torch.zeros(1, 1, 2, 2), hidden)
    assert metric.compute()["position_error"] == 0 and metric.compute()["f1"] == 0


def test_a_curve_is_told_by_its_mean_and_some_of_its_frames() -> None:
    curve = torch.arange(1.0, 13.0)
    told = summarise("f1", curve)
    assert {name: value.item() for name, value in told.items()} == {
        "f1": 6.5,
        "f1_at_1": 1,
        "f1_at_5": 5,
        "f1_at_10": 10,
    }
