"""Move the content of a frame, cell by cell."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CELL = 8
"""Pixels of a cell's side."""

REACH = 2
"""Pixels that a cell's content can come from further left, right, up or down."""

TAPS = 2 * REACH + 1
START = 3.0
"""Added to the scores of no motion, so that an untrained model moves little."""


def move_cells(frames: Tensor, scores: Tensor) -> Tensor:
    """Fill every cell of a frame with its shifted content, by the cell's own kernels.

    A cell's two kernels, one along rows and one along columns, are softmaxes of its scores: the moved frame is a
    mean of shifted ones, as in Finn et al. 2016 (arXiv:1605.07157).

    Args:
        frames: (frames, size, size), 0 to 1, size divisible by 8.
        scores: (frames, cells, cells, 2, 5): along rows, then along columns, how much of the cell comes from 2
            pixels before to 2 pixels behind.

    Returns:
        The moved frames (frames, size, size), 0 to 1.

    Example:
        >>> frame, scores = torch.zeros(1, 8, 8), torch.zeros(1, 1, 1, 2, 5)
        >>> frame[0, 3, 4] = 1
        >>> scores[0, 0, 0, 0, 1] = 60  # from one pixel to the left
        >>> scores[0, 0, 0, 1, 2] = 60  # from where it is
        >>> (move_cells(frame, scores) > 0.5).nonzero().tolist()
        [[0, 3, 5]]
    """
    size = frames.shape[1]
    at_rest = scores.new_zeros(TAPS)
    at_rest[REACH] = START
    # frames last: what is multiplied then lies side by side in memory
    kernels = (scores + at_rest).softmax(dim=-1).permute(3, 4, 1, 2, 0).contiguous()
    wide = functional.pad(frames.permute(1, 2, 0), (0, 0, REACH, REACH))
    moved: Tensor = _Move.apply(wide, kernels[0], 1)  # type: ignore[no-untyped-call]
    high = functional.pad(moved, (0, 0, 0, 0, REACH, REACH))
    moved = _Move.apply(high, kernels[1], 0)  # type: ignore[no-untyped-call]
    return moved.view(size, size, -1).permute(2, 0, 1)


class _Move(torch.autograd.Function):
    """Move along one axis; by hand, since autograd would keep and fill a frame for every tap."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, kernels: Tensor, axis: int) -> Tensor:
        """Return (size, size, frames), for frames padded along the axis and kernels (5, cells, cells, frames)."""
        ctx.save_for_backward(padded, kernels)
        ctx.axis = axis
        first, *others = zip(_shifted(padded, axis), _spread(kernels), strict=True)
        moved = first[0] * first[1]
        for part, kernel in others:
            moved.addcmul_(part, kernel)
        size = padded.shape[1 - axis]
        return moved.view(size, size, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Return the gradients of the padded frames and of the kernels."""
        padded, kernels = ctx.saved_tensors
        grad_padded = grad_kernels = None
        grad = grad.contiguous()
        by_cell = grad.view(_shifted(padded, ctx.axis)[0].shape)
        if ctx.needs_input_grad[0]:
            grad_padded = torch.zeros_like(padded)
            for part, kernel in zip(_shifted(grad_padded, ctx.axis), _spread(kernels), strict=True):
                part.addcmul_(by_cell, kernel)
        if ctx.needs_input_grad[1]:
            parts = _shifted(padded, ctx.axis)
            grad_kernels = torch.stack([(by_cell * part).sum(dim=1).sum(dim=2) for part in parts])
        return grad_padded, grad_kernels, None


def _shifted(padded: Tensor, axis: int) -> list[Tensor]:
    """Return a view of the frames for each tap, as (cells, 8, cells, 8, frames)."""
    size, cells = padded.shape[1 - axis], padded.shape[1 - axis] // CELL
    views = [padded.narrow(axis, tap, size) for tap in range(TAPS)]
    return [view.view(cells, CELL, cells, CELL, -1) for view in views]


def _spread(kernels: Tensor) -> list[Tensor]:
    """Return for each tap what all pixels of a cell share, as (cells, 1, cells, 1, frames)."""
    return [kernel[:, None, :, None] for kernel in kernels]
