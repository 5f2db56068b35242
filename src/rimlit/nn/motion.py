"""Move what a frame shows, cell by cell."""

from torch import Tensor
from torch.nn import functional

CELL = 8
"""Pixels of a cell's side."""

REACH = 2
"""Pixels that a cell's content can come from further left, right, up or down."""

TAPS = 2 * REACH + 1
START = 3.0
"""Added to the scores of no motion, so that an untrained model moves little."""


def move_cells(frames: Tensor, scores: Tensor) -> Tensor:
    """Fill every cell of a frame with what is some pixels beside it, as kernels of its own say.

    A cell's two kernels, one along rows and one along columns, are softmaxes of its scores: the moved frame is a
    mean of shifted ones, as in Finn et al. 2016 (arXiv:1605.07157).

    Args:
        frames: (frames, size, size), 0 to 1, size divisible by 8.
        scores: (frames, cells, cells, 2, 5): along rows, then along columns, how much of the cell comes from 2
            pixels before to 2 pixels behind.

    Returns:
        The moved frames (frames, size, size), 0 to 1.

    Example:
        >>> import torch
        >>> frame, scores = torch.zeros(1, 8, 8), torch.zeros(1, 1, 1, 2, 5)
        >>> frame[0, 3, 4] = 1
        >>> scores[0, 0, 0, 0, 1] = 60  # from one pixel to the left
        >>> scores[0, 0, 0, 1, 2] = 60  # from where it is
        >>> move_cells(frame, scores).nonzero().tolist(), move_cells(frame, scores).max().item()
        ([[0, 3, 5]], 1.0)
    """
    size, cells = frames.shape[1], scores.shape[1]
    apart = (cells, CELL, cells, CELL, len(frames))
    at_rest = scores.new_zeros(TAPS)
    at_rest[REACH] = START
    # frames last: what is multiplied then lies side by side in memory
    kernels = (scores + at_rest).softmax(dim=-1).permute(3, 4, 1, 2, 0).contiguous()[:, :, :, None, :, None]
    wide = functional.pad(frames.permute(1, 2, 0), (0, 0, REACH, REACH))
    moved = wide[:, :size].view(apart) * kernels[0, 0]
    for tap in range(1, TAPS):
        moved = moved.addcmul(wide[:, tap : tap + size].view(apart), kernels[0, tap])
    high = functional.pad(moved.view(size, size, -1), (0, 0, 0, 0, REACH, REACH))
    moved = high[:size].view(apart) * kernels[1, 0]
    for tap in range(1, TAPS):
        moved = moved.addcmul(high[tap : tap + size].view(apart), kernels[1, tap])
    return moved.view(size, size, -1).permute(2, 0, 1)
