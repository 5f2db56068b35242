"""Large float32 products on a processor's bfloat16 tiles, as exact as any other (``amx.h``)."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from rimlit.kernels.cpu import memory
from rimlit.kernels.cpu.build import load

# from where on laying the factors out costs less than is won
_LEAST_ROWS, _LEAST_SIZE, _LEAST_WORK = 128, 64, 2**27


def are_available() -> bool:
    """Return whether the C++ library is there and this processor has tiles."""
    library, _ = load()
    return library is not None and bool(library.rimlit_has_tiles())


def multiply(x: Tensor, y: Tensor) -> Tensor:
    """Return x (…, inner) · y (inner, columns) as a matrix, on tiles where that is faster, in pooled memory."""
    rows = x.shape[:-1].numel()
    is_small = rows * y.numel() < _LEAST_WORK and rows * y.shape[1] * y.itemsize < memory.LEAST
    if is_small or x.device.type != "cpu" or x.dtype != y.dtype or torch.is_autocast_enabled("cpu"):
        return torch.mm(x.reshape(-1, x.shape[-1]), y)
    return _Product.apply(x, y, False)  # type: ignore[no-any-return, no-untyped-call]


class _Product(torch.autograd.Function):
    """Of the rows of x (…, inner), or of their transpose where ``is_turned``, and y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, is_turned: bool) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.is_turned = is_turned
        out = memory.empty(x.shape[-1] if is_turned else x.shape[:-1].numel(), y.shape[1], dtype=x.dtype)
        if _multiply_on_tiles(x, y, is_turned, out):
            return out
        rows = x.reshape(-1, x.shape[-1])
        return torch.mm(rows.mT if is_turned else rows, y, out=out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, y = ctx.saved_tensors
        wants_x, wants_y, _ = ctx.needs_input_grad
        into_x = into_y = None
        if wants_x:
            into_x = (multiply(y, gradient.mT) if ctx.is_turned else multiply(gradient, y.mT)).view(x.shape)
        if wants_y:
            into_y = _Product.apply(x, gradient, not ctx.is_turned)  # type: ignore[no-untyped-call]
        return into_x, into_y, None


def _multiply_on_tiles(x: Tensor, y: Tensor, is_turned: bool, out: Tensor) -> bool:
    """Write the product into ``out``; return False where tiles are not worth it or cannot hold the numbers."""
    (rows, columns), inner = out.shape, len(y)
    if rows < _LEAST_ROWS or min(inner, columns) < _LEAST_SIZE:
        return False
    if rows * inner * columns < _LEAST_WORK and x.is_contiguous():  # others would have to be copied first
        return False
    library, _ = load()
    if x.dtype != torch.float32 or library is None or not library.rimlit_has_tiles():
        return False
    if x.dim() != 3 or x.stride(2) != 1:
        x = x.reshape(1, -1, x.shape[-1]).contiguous()
    is_y_turned = y.stride(1) != 1
    if is_y_turned and y.stride(0) != 1:
        y, is_y_turned = y.contiguous(), False
    arguments: list[Any] = [
        *(_address(x), x.shape[1], x.stride(0), x.stride(1), is_turned),
        *(_address(y), y.stride(1 if is_y_turned else 0), is_y_turned),
        *(_address(out), rows, inner, columns, min(torch.get_num_threads(), -(-rows // 64))),
    ]
    as_integers = [value if isinstance(value, ctypes.c_void_p) else ctypes.c_int64(value) for value in arguments]
    return not library.rimlit_multiply(*as_integers)


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
