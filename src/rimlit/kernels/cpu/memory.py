"""A caching allocator for large CPU buffers.

What is taken from the system costs a fault for every page of it, which for a tape of every training step comes to
some hundredths of the step's time.
"""

import contextlib
import math
import mmap
import weakref
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

_PAGE = 2**21  # a huge one, on Linux
LEAST = 2**20
"""Bytes of the smallest buffer that is pooled: smaller ones the allocator keeps by itself."""
_MOST_IDLE = 2**31

_idle: deque[mmap.mmap] = deque()  # its methods need no lock, and whoever drops a tensor may hold one


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return what :func:`torch.empty` does, in pooled memory."""
    return _allocate(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


def empty_like(tensor: Tensor) -> Tensor:
    """Return what :func:`torch.empty_like` does, strides included, in pooled memory."""
    if not tensor.is_cpu or tensor.nbytes < LEAST:
        return torch.empty_like(tensor)
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    shape = [tensor.shape[dimension] for dimension in order]
    back = sorted(range(tensor.dim()), key=order.__getitem__)
    return _allocate(tensor.nbytes).view(tensor.dtype).view(shape).permute(back)


def empty_together(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype], default: torch.dtype
) -> dict[str, Tensor]:
    """Return tensors that are not initialised and, if they are large together, lie in one piece of pooled memory.

    Args:
        shapes: Of each.
        dtypes: Of each that has another than the ``default``.
        default: Type of the rest.
    """
    places, end = {}, 0
    for name, shape in shapes.items():
        dtype, count = dtypes.get(name, default), math.prod(shape)
        places[name] = dtype, end // dtype.itemsize, count
        end += (count * dtype.itemsize + 63) // 64 * 64
    if end < LEAST:
        return {name: torch.empty(shape, dtype=dtypes.get(name, default)) for name, shape in shapes.items()}
    memory = _allocate(end)
    typed = {dtype: memory.view(dtype) for dtype in {default, *dtypes.values()}}
    return {
        name: typed[dtype].narrow(0, start, count).view(shapes[name])
        for name, (dtype, start, count) in places.items()
    }


def _allocate(size: int) -> Tensor:
    if size < LEAST or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty(size, dtype=torch.uint8)
    fitting = [block for block in list(_idle) if size <= len(block) <= 2 * size + _PAGE]
    block = None
    while fitting and block is None:
        block = min(fitting, key=len)
        try:
            _idle.remove(block)
        except ValueError:  # another thread was faster
            fitting.remove(block)
            block = None
    block = block or _new(size)
    view = memoryview(block)
    weakref.finalize(view, _give_back, block).atexit = False
    return torch.frombuffer(view, dtype=torch.uint8, count=size)


def _new(size: int) -> mmap.mmap:
    # private: a fork must not write into its parent's tapes
    block = mmap.mmap(-1, -(-size // _PAGE) * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(block, "MADV_HUGEPAGE")
    return block


def _advise(block: mmap.mmap, name: str) -> None:
    """Tell the system how the memory is used, where it wants to know: it works without."""
    advice = getattr(mmap, name, None)
    if advice is not None:
        with contextlib.suppress(OSError):
            block.madvise(advice)


def _give_back(block: mmap.mmap) -> None:
    _advise(block, "MADV_FREE")  # whoever else lacks memory may take it
    _idle.append(block)
    while sum(map(len, list(_idle))) > _MOST_IDLE:
        try:
            _idle.popleft()
        except IndexError:
            break
