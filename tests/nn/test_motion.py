"""Cells that move, against a slow loop over pixels."""

import torch

from rimlit.nn import move_cells
from tests.conftest import random_tensor


def slow_move(frames: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The same by loops: first along rows, then along columns, zeros outside the frame."""
    scores = scores.clone()
    scores[..., 2] += 3
    kernels = scores.softmax(dim=-1)
    number, size, _ = frames.shape
    for axis in (0, 1):
        moved = torch.zeros_like(frames)
        for n in range(number):
            for y in range(size):
                for x in range(size):
                    for tap in range(5):
                        row, column = (y, x + tap - 2) if axis == 0 else (y + tap - 2, x)
                        if 0 <= row < size and 0 <= column < size:
                            weight = kernels[n, y // 8, x // 8, axis, tap]
                            moved[n, y, x] += weight * frames[n, row, column]
        frames = moved
    return frames


def test_moving_is_the_slow_loop_in_outputs_and_gradients() -> None:
    frames = random_tensor(2, 16, 16, dtype=torch.float64).sigmoid().requires_grad_()
    scores = random_tensor(2, 2, 2, 2, 5, seed=1, dtype=torch.float64).requires_grad_()
    weight = random_tensor(2, 16, 16, seed=2, dtype=torch.float64)
    fast, slow = move_cells(frames, scores), slow_move(frames, scores)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad((fast * weight).sum(), (frames, scores))
    wanted = torch.autograd.grad((slow * weight).sum(), (frames, scores))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_frame_stays_between_dark_and_lit() -> None:
    moved = move_cells(torch.ones(3, 16, 16), 5 * random_tensor(3, 2, 2, 2, 5))
    assert moved.min() >= 0 and moved.max() <= 1 + 1e-6
    torch.testing.assert_close(moved[:, 2:-2, 2:-2], torch.ones(3, 12, 12))
