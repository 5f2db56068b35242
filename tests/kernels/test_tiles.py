"""Products on tiles: as exact as any, in every layout, differentiable; torch's own where tiles do not serve."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rimlit.kernels.cpu import tiles
from tests.conftest import random_tensor

pytestmark = pytest.mark.skipif(
    not tiles.are_available(), reason="this processor has no tiles, or nothing is built"
)

# around the sides of tiles, and around what is packed at once
SIZES = [(32, 32, 32), (33, 513, 47), (65, 64, 97), (257, 1025, 63), (300, 511, 33)]


@pytest.fixture(autouse=True)
def every_size_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for bound in ("_LEAST_ROWS", "_LEAST_SIZE", "_LEAST_WORK"):
        monkeypatch.setattr(tiles, bound, 32)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def matrix(rows: int, columns: int, is_transposed: bool, seed: int = 0) -> Tensor:
    return (
        random_tensor(columns, rows, seed=seed).t() if is_transposed else random_tensor(rows, columns, seed=seed)
    )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_product_is_as_exact_as_torchs_in_every_layout(sizes: tuple[int, int, int], threads: int) -> None:
    torch.set_num_threads(threads)
    rows, inner, columns = sizes
    for x_is_transposed in (False, True):
        for y_is_transposed in (False, True):
            x, y = matrix(rows, inner, x_is_transposed), matrix(inner, columns, y_is_transposed, seed=1)
            exact = x.double() @ y.double()
            terms = x.double().abs() @ y.double().abs()
            ours, theirs = (((found - exact).abs() / terms).max() for found in (tiles.multiply(x, y), x @ y))
            assert ours < 2 * theirs + 1.2e-7  # two roundings


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3.4e38])
@pytest.mark.parametrize("is_left", [True, False])
def test_numbers_that_tiles_cannot_hold_are_multiplied_by_torch(bad: float, is_left: bool) -> None:
    torch.set_num_threads(3)
    x, y = matrix(130, 70, False) / 100, matrix(70, 40, False, seed=1) / 100
    (x if is_left else y)[60, 20] = bad
    torch.testing.assert_close(tiles.multiply(x, y), x @ y, rtol=0, atol=0, equal_nan=True)


def test_the_largest_numbers_that_tiles_hold_are_exact() -> None:
    x, y = torch.zeros(32, 32), torch.eye(32)
    x[3, 5], x[7, 9] = 3.379e38, -3.379e38
    assert torch.equal(tiles.multiply(x, y), x)
    assert torch.equal(tiles.multiply(y, x), x)


def test_rows_that_repeat_and_an_expanded_gradient_need_no_copy() -> None:
    x, y = random_tensor(1, 48).expand(40, 48), random_tensor(48, 50, seed=1).requires_grad_()
    tiles.multiply(x, y).sum().backward()
    torch.testing.assert_close(y.grad, x.t() @ torch.ones(40, 50))


@pytest.mark.parametrize("width", [70, 300])  # 300: more rows of a gradient than are packed at once
@pytest.mark.parametrize("steps", [slice(0, 20), slice(7, 16)])
def test_rows_are_read_where_they_lie_in_a_sequence(steps: slice, width: int) -> None:
    sequence, y = random_tensor(9, 20, width), random_tensor(width, 50, seed=1).requires_grad_()
    part = sequence[:, steps].requires_grad_()
    torch.autograd.backward(tiles.multiply(part, y), gradient := random_tensor(9 * part.shape[1], 50, seed=2))
    rows = part.detach().reshape(-1, width)
    torch.testing.assert_close(y.grad, rows.t() @ gradient, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(part.grad, (gradient @ y.detach().t()).view_as(part), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(tiles.multiply(part, y), rows @ y, rtol=1e-5, atol=1e-4)


def test_both_derivatives_are_those_of_torchs_product() -> None:
    def derivatives(multiply, dtype: torch.dtype) -> list[Tensor]:  # type: ignore[no-untyped-def]
        x = matrix(70, 130, True).to(dtype).requires_grad_()
        y = matrix(130, 40, False, seed=1).to(dtype).requires_grad_()
        first = torch.autograd.grad(multiply(x, y).pow(3).sum() / 1e4, (x, y), create_graph=True)
        return [*first, *torch.autograd.grad(sum(tensor.square().sum() for tensor in first), (x, y))]

    exact = derivatives(torch.mm, torch.float64)
    for ours, expected in zip(derivatives(tiles.multiply, torch.float32), exact, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_small_products_other_types_and_autocast_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = random_tensor(40, 40), random_tensor(40, 40, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert tiles.multiply(x, y).dtype == torch.bfloat16
    x, y = x.double(), y.double()
    assert torch.equal(tiles.multiply(x, y), x @ y)
    x, y = random_tensor(31, 40), random_tensor(40, 40, seed=1)
    assert torch.equal(tiles.multiply(x, y), x @ y)
    monkeypatch.undo()
    x = random_tensor(40, 40)
    assert torch.equal(tiles.multiply(x, y), x @ y)
