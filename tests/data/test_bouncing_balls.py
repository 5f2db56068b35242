"""The bouncing balls' data: laws of the dynamics, frames, seeds, sets, floors, refusals."""

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rimlit.data import BouncingBalls
from rimlit.data.balls import parse_ball_set, render, simulate
from rimlit.data.bouncing_balls import FrameBatch, Scene
from rimlit.errors import ConfigError


def make_data(**arguments: Any) -> BouncingBalls:
    return BouncingBalls(**{"batch_size": 4, "val_size": 6, "test_size": 6, "seed": 3, **arguments})


def batch_of(split: Any, group: str = "", size: int = 64, **arguments: Any) -> FrameBatch:
    data = make_data(**arguments)
    return data.collate(data.datasets(split)[group].__getitems__(list(range(size))))


SHORT = {"context_length": 1, "rollout_length": 1}


def units(batch: FrameBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, velocities, radii and masses of the sets of the paper, in units."""
    radii = batch.radii.double() / 6.4
    masses = torch.where(radii > 0.9, 6.0, 1.0) * (radii > 0)
    return batch.positions.double() / 6.4, batch.velocities.double() / 6.4, radii, masses


# What was measured of the frames of the data's authors


def test_four_balls_light_a_tenth_of_the_pixels() -> None:
    lit = batch_of("train", size=300).frames.float().mean().item()
    assert lit == pytest.approx(0.103, abs=0.002)
    entropy = -lit * math.log(lit) - (1 - lit) * math.log(1 - lit)
    assert entropy == pytest.approx(0.332, abs=0.004)  # nats a pixel of a constant prediction


@pytest.mark.parametrize(("radius", "pixels"), [(0.8, 82.3), (1.0, 128.7), (1.2, 185.3)])
def test_a_ball_lights_as_many_pixels_as_were_counted(radius: float, pixels: float) -> None:
    places = 10 + 44 * torch.rand(1, 2000, 1, 2, generator=torch.Generator().manual_seed(0))
    frames = render(places, torch.tensor([[6.4 * radius]]), torch.zeros(1, 3), 64)
    assert frames.float().sum(dim=(2, 3)).mean().item() == pytest.approx(pixels, abs=0.4)


def test_balls_are_heavy_or_light_with_the_same_probability() -> None:
    radii = batch_of("train", size=400, num_frames=2, **SHORT).radii / 6.4
    assert sorted({round(radius, 4) for radius in radii.flatten().tolist()}) == [0.8, 1.0]
    assert (radii > 0.9).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("group", "norm"), [("balls_4", 1 / 3), ("balls_6-8", 1 / 3), ("curtain", 1 / 2)])
def test_the_velocities_of_all_balls_together_have_the_norm_that_was_measured(group: str, norm: float) -> None:
    _, velocities, _, _ = units(batch_of("test", group))
    first = velocities[:, 0].square().sum(dim=(1, 2)).sqrt()
    torch.testing.assert_close(first, torch.full_like(first, norm), rtol=1e-5, atol=0)


# Laws


@pytest.mark.parametrize("group", ["balls_4", "balls_6-8", "curtain"])
def test_energy_is_conserved(group: str) -> None:
    batch = batch_of("test", group)
    _, velocities, _, masses = units(batch)
    energy = (masses[:, None] * velocities.square().sum(dim=-1)).sum(dim=-1)  # (B, T)
    torch.testing.assert_close(energy, energy[:, :1].expand_as(energy), rtol=1e-4, atol=0)


def test_momentum_is_conserved_at_collisions_and_changes_at_walls_only() -> None:
    positions, velocities, radii, masses = units(batch_of("train", size=300))
    momentum = (masses[:, None, :, None] * velocities).sum(dim=2)  # (B, T, 2)
    near = 0.4  # no ball moves further in a frame
    at_wall = (positions < radii[:, None, :, None] + near) | (positions > 10 - radii[:, None, :, None] - near)
    free = ~(at_wall[:, 1:] | at_wall[:, :-1]).any(dim=2)  # (B, T - 1, 2)
    turned = (velocities[:, 1:] - velocities[:, :-1]).abs().amax(dim=(2, 3)) > 1e-6
    assert (free & turned[..., None]).sum() > 100, "collisions far from walls"
    change = (momentum[:, 1:] - momentum[:, :-1]).abs()
    assert change[free].max() < 1e-5
    assert change[~free].max() > 0.1


def start(*balls: tuple[float, float, float, float, float, float]) -> tuple[np.ndarray, ...]:
    """One scene from x, y, velocity, radius and mass of each ball."""
    given = np.array(balls)[None]
    return given[..., :2], given[..., 2:4], given[..., 4], given[..., 5]


def test_a_head_on_collision_exchanges_velocities_by_mass() -> None:
    _, velocities = simulate(*start((4, 5, 0.3, 0, 1, 6), (6.2, 5, -0.3, 0, 1, 1)), 4)
    # elastic, one dimension: ((m - n) v + 2 n w) / (m + n)
    assert velocities[0, -1, 0].tolist() == pytest.approx([(5 * 0.3 - 2 * 0.3) / 7, 0])
    assert velocities[0, -1, 1].tolist() == pytest.approx([(5 * 0.3 + 12 * 0.3) / 7, 0])


def test_a_glancing_collision_changes_velocities_along_the_line_of_centres_only() -> None:
    positions, velocities = simulate(*start((4, 4.6, 0.3, 0, 1, 1), (6, 5.4, 0, 0, 1, 1)), 3)
    change = velocities[0, -1] - velocities[0, 0]
    assert np.abs(change).max() > 0.01
    np.testing.assert_allclose(change[0], -change[1], atol=1e-12)
    line = positions[0, 1, 0] - positions[0, 1, 1]
    assert change[0, 0] * line[1] - change[0, 1] * line[0] == pytest.approx(0, abs=0.02)


def test_balls_that_overlap_and_part_are_left_alone() -> None:
    _, velocities = simulate(*start((5, 5, -0.1, 0, 1, 1), (6, 5, 0.1, 0, 1, 1)), 5)
    assert (velocities == velocities[:, :1]).all()


def test_walls_reflect_and_hold_all_balls() -> None:
    positions, velocities = simulate(*start((1.1, 5, -0.4, 0.1, 1, 1)), 3)
    assert positions[0, :, 0].tolist() == [[1.1, 5], pytest.approx([1.3, 5.1]), pytest.approx([1.7, 5.2])]
    assert velocities[0, 1, 0].tolist() == [0.4, 0.1]
    positions, _, radii, _ = units(batch_of("test", "balls_6-8"))
    radii = radii[:, None, :, None]
    is_there = (radii > 0).expand_as(positions)
    assert (positions >= radii - 1e-5)[is_there].all() and (positions <= 10 - radii + 1e-5)[is_there].all()


def test_balls_start_without_overlap_all_over_the_box() -> None:
    positions, _, radii, _ = units(batch_of("test", "balls_6-8", size=200, num_frames=2, **SHORT))
    first = positions[:, 0]
    apart = torch.cdist(first, first) - radii[:, :, None] - radii[:, None]
    pairs = (radii[:, :, None] > 0) & (radii[:, None] > 0) & ~torch.eye(8, dtype=torch.bool)
    assert apart[pairs].min() > -1e-5
    places = first[radii > 0]
    assert places.min() < 1.1 and places.max() > 8.9
    assert places.mean(dim=0).tolist() == pytest.approx([5, 5], abs=0.3)


# Frames


def test_a_pixel_is_lit_where_its_centre_is_inside_a_ball() -> None:
    batch = batch_of("train", size=3)
    for sequence, frame in ((0, 0), (1, 17), (2, 50)):
        for y in range(64):
            for x in range(64):
                lit = any(
                    math.hypot(x + 0.5 - a, y + 0.5 - b) < radius
                    for (a, b), radius in zip(
                        batch.positions[sequence, frame].tolist(), batch.radii[sequence].tolist(), strict=True
                    )
                )
                assert batch.frames[sequence, frame, y, x] == lit


def test_what_is_outside_the_frame_is_not_drawn() -> None:
    places = torch.tensor([[[[-2.0, 8.0]]], [[[19.0, 3.0]]], [[[-40.0, 200.0]]]])
    frames = render(places, torch.full((3, 1), 4.0), torch.zeros(3, 3), 16)
    whole = render(places + 32, torch.full((3, 1), 4.0), torch.zeros(3, 3), 80)[:, :, 32:48, 32:48]
    assert torch.equal(frames, whole)
    assert frames[0].any() and frames[1].any() and not frames[2].any()


def test_the_curtain_is_a_black_square_over_three_equal_balls() -> None:
    batch = batch_of("test", "curtain", size=100)
    assert batch.radii.flatten().tolist() == pytest.approx([1.2 * 6.4] * 300)
    bare = render(batch.positions, batch.radii, torch.zeros_like(batch.curtain), 64)
    corners = set()
    for sequence, (left, top, width) in enumerate(batch.curtain.int().tolist()):
        assert width == 28 and 0 <= left <= 36 and 0 <= top <= 36
        inside = torch.zeros(64, 64, dtype=torch.bool)
        inside[top : top + 28, left : left + 28] = True
        assert not batch.frames[sequence][:, inside].any()
        assert torch.equal(batch.frames[sequence][:, ~inside], bare[sequence][:, ~inside])
        corners.add((left, top))
    assert bare.sum() > batch.frames.sum()
    assert len(corners) > 80


def test_a_ball_counts_as_visible_while_its_centre_is_not_behind_the_curtain() -> None:
    batch = batch_of("test", "curtain", size=20)
    left, top, width = batch.curtain.T[..., None, None]
    x, y = batch.positions.unbind(dim=-1)
    behind = (x >= left) & (x <= left + width) & (y >= top) & (y <= top + width)
    assert torch.equal(batch.visible, ~behind)
    assert 0.1 < behind.float().mean() < 0.5
    several = batch_of("test", "balls_6-8", size=20)
    assert torch.equal(several.visible, (several.radii > 0)[:, None].expand_as(several.visible))


def test_inputs_are_all_frames_but_the_last_and_targets_all_but_the_first() -> None:
    batch = batch_of("train", size=2)
    assert batch.frames.shape == (2, 51, 64, 64) and batch.frames.dtype == torch.uint8
    assert torch.equal(batch.inputs, batch.frames[:, :50])
    assert torch.equal(batch.targets, batch.frames[:, 1:])


# Seeds and sets


def same(one: Scene, other: Scene) -> bool:
    return all(torch.equal(part, its) for part, its in zip(one, other, strict=True))


@pytest.mark.parametrize("group", ["balls_4", "balls_6-8", "curtain"])
def test_a_sample_is_a_function_of_seed_split_and_index_whatever_is_simulated_beside_it(group: str) -> None:
    dataset = make_data(test_size=40).datasets("test")[group]
    alone = [dataset[index] for index in range(12)]
    together = dataset.__getitems__([11, 3, 39, *range(12)])
    assert all(same(one, other) for one, other in zip(alone, together[3:], strict=True))
    assert same(together[0], alone[11]) and same(together[1], alone[3])
    assert not same(alone[0], alone[1])


def test_a_loader_gives_the_same_sequences_in_batches_of_any_size_and_from_workers() -> None:
    def first(**arguments: Any) -> Tensor:
        loader = make_data(train_size=None, **arguments).train_dataloader()
        return torch.cat([batch.frames for batch in islice(loader, 12 // loader.batch_size)])

    assert torch.equal(first(batch_size=3), first(batch_size=6))
    assert torch.equal(first(batch_size=3), first(batch_size=3, num_workers=1))


def test_splits_and_seeds_differ() -> None:
    starts = {
        tuple(make_data(seed=seed).datasets(split)[group][0].positions[0].flatten().tolist())
        for seed in (3, 4)
        for split, group in (("train", ""), ("val", ""), ("test", "balls_4"), ("predict", "balls_4"))
    }
    assert len(starts) == 8


def test_every_number_of_balls_of_a_range_occurs() -> None:
    counts = (batch_of("test", "balls_6-8", size=60, num_frames=2, **SHORT).radii > 0).sum(dim=1)
    assert set(counts.tolist()) == {6, 7, 8}
    for count in range(1, 9):
        radii = make_data(test_balls=[count]).datasets("test")[f"balls_{count}"][0].radii
        assert len(radii) == count and (radii > 0).all()


def test_there_is_a_loader_for_every_set_named_once() -> None:
    data = make_data(test_balls=[4, "6-8", "4", "curtain"])
    assert data.group_names("test") == ["balls_4", "balls_6-8", "curtain"]
    assert [len(loader.dataset) for loader in data.test_dataloader()] == [6, 6, 6]  # type: ignore[arg-type]
    assert data.group_names("val") == [""]


def test_training_has_the_size_it_is_given_or_no_end() -> None:
    assert make_data().size_of(make_data().datasets("train")[""]) == 50_000
    endless = make_data(train_size=None).datasets("train")[""]
    assert make_data().size_of(endless) is None
    with pytest.raises(TypeError, match="endless stream"):
        len(endless)


def test_radii_and_masses_are_those_given() -> None:
    data = make_data(radii=[0.5], masses=[2.0], frame_size=32)
    dataset = data.datasets("train")[""]
    assert dataset[0].radii.tolist() == pytest.approx([0.5 * 3.2] * 4)
    assert dataset._draw(0)[3].tolist() == [2.0] * 4
    assert data.collate([dataset[0]]).frames.shape[-2:] == (32, 32)


# Floors


def test_the_floors_are_what_their_names_say() -> None:
    data = make_data(test_balls=[4], test_size=40)
    curves = data.floor_curves()["balls_4"]
    batch = data.collate(data.datasets("test")["balls_4"].__getitems__(list(range(40))))
    last, ahead = batch.frames[:, 14:15], batch.frames[:, 15:50]
    hits = (last & ahead).sum(dim=(0, 2, 3))
    f1 = 2 * hits / (last.sum() + ahead.sum(dim=(0, 2, 3)))
    torch.testing.assert_close(curves["copy"]["f1"], f1.double(), rtol=1e-5, atol=0)
    probabilities = last.double().clamp(0.01, 0.99).expand(ahead.shape)
    for frame in (0, 9):
        bce = torch.nn.functional.binary_cross_entropy(probabilities[:, frame], ahead[:, frame].double())
        assert curves["copy"]["bce"][frame].item() == pytest.approx(bce.item(), rel=1e-5)
    moved = (batch.positions[:, 15] - batch.positions[:, 14]).norm(dim=-1).mean().item()
    assert curves["copy"]["position_error"][0].item() == pytest.approx(moved, rel=1e-4)
    assert len(curves["copy"]["f1"]) == 35


def test_the_oracle_is_strong_early_and_lost_late() -> None:
    curve = make_data(test_balls=[4], test_size=100, batch_size=50).floor_curves()["balls_4"]["constant_velocity"]
    f1 = [curve["f1"][frame - 1].item() for frame in (1, 5, 10, 20)]
    assert f1 == pytest.approx([0.998, 0.93, 0.78, 0.49], abs=0.05)
    assert curve["position_error"][0] < 0.1 < 10 < curve["position_error"][19]


def test_a_ball_that_meets_nothing_goes_where_the_oracle_says() -> None:
    data = make_data(test_balls=[1], test_size=30)
    batch = data.collate(data.datasets("test")["balls_1"].__getitems__(list(range(30))))
    velocities = batch.velocities[:, 14:25]
    straight = (velocities == velocities[:, :1]).all(dim=(1, 2, 3))
    assert straight.sum() >= 5
    guess = data._straight_on(batch)["constant_velocity"][straight, :10]
    torch.testing.assert_close(guess, batch.positions[straight, 15:25], rtol=0, atol=1e-3)


def test_floors_are_named_like_the_scores_of_a_task() -> None:
    floors = make_data(test_balls=[2], frame_size=16).floors()
    for metric in ("bce", "f1", "position_error"):
        for name in (metric, f"{metric}_at_1", f"{metric}_at_10", f"{metric}_at_20"):
            assert {f"balls_2/{name}", f"balls_2/constant_velocity_{name}"} <= set(floors)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"train_balls": 9},
            "train_balls must be a number of balls from 1 to 8, a range such as 6-8, or curtain; got",
        ),
        ({"train_balls": "8-6"}, "train_balls='8-6'"),
        ({"test_balls": [4, "many"]}, r"test_balls\[1\]='many'"),
        ({"test_balls": []}, "test_balls must name at least one set"),
        ({"frame_size": 30}, "frame_size must be a multiple of 8; got frame_size=30"),
        ({"radii": [0.8]}, r"masses must be as many as radii, at least one; got radii=\[0.8\]"),
        ({"radii": [0.8, 1.3]}, "radii must be above 0 and at most 1.25 units; got 1.3"),
        ({"masses": [1.0, -6.0]}, "masses must be above 0 and finite; got -6.0"),
        ({"num_frames": 40}, "num_frames must be at least 50; got num_frames=40"),
        ({"rollout_length": 0}, "rollout_length must be at least 1; got rollout_length=0"),
        ({"train_size": 0}, "train_size must be at least 1; got train_size=0"),
    ],
)
def test_a_wrong_value_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_data(**arguments)


def test_sets_are_read_from_numbers_ranges_and_names() -> None:
    assert parse_ball_set(4)[:3] == parse_ball_set("4")[:3] == ("balls_4", 4, 4)
    assert parse_ball_set("1-8")[:3] == ("balls_1-8", 1, 8)
    assert parse_ball_set("curtain").has_curtain
