import pytest
import torch

from rimlit.nn.dropout import draw_dropout_factors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.01, 0.1, 0.5, 0.9])
def test_factors_are_zero_as_often_as_asked_and_one_in_the_mean(dropout: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    factors = draw_dropout_factors((500, 401), dropout, torch.zeros((), dtype=dtype))
    assert factors.shape == (500, 401)
    assert factors.dtype == dtype
    zero, kept = sorted(set(factors.flatten().tolist()))
    assert zero == 0
    assert kept == pytest.approx(1 / (1 - dropout), rel=0.01 if dtype == torch.bfloat16 else 1e-3)
    deviation = (dropout * (1 - dropout) / factors.numel()) ** 0.5
    assert (factors == 0).double().mean().item() == pytest.approx(dropout, abs=5 * deviation)


def test_each_of_four_factors_of_one_number_is_drawn_for_itself() -> None:
    torch.manual_seed(0)
    dropped = (draw_dropout_factors((50_000, 4), 0.5, torch.zeros(())) == 0).double()
    correlation = torch.corrcoef(dropped.T)
    assert (correlation - torch.eye(4)).abs().max() < 0.025  # five standard deviations
    assert dropped.mean(0).sub(0.5).abs().max() < 0.012


def test_the_seed_of_torch_decides() -> None:
    def drawn() -> torch.Tensor:
        torch.manual_seed(3)
        return draw_dropout_factors((7, 3), 0.4, torch.zeros(()))

    assert torch.equal(drawn(), drawn())


@pytest.mark.parametrize("shape", [(), (5,), (3, 0, 2)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert draw_dropout_factors(shape, 0.5, torch.zeros(())).shape == shape


@pytest.mark.parametrize("dropout", [1e-7, 0.9999999])
def test_a_probability_beyond_a_step_is_neither_0_nor_1(dropout: float) -> None:
    torch.manual_seed(0)
    factors = draw_dropout_factors((1000, 1000), dropout, torch.zeros(()))
    assert 0 < (factors == 0).sum() < factors.numel()


def test_under_a_transform_torch_draws() -> None:
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda x: x * draw_dropout_factors((4,), 0.5, x))(torch.ones(3, 4))
    drawn = torch.func.vmap(lambda x: x * draw_dropout_factors((4,), 0.5, x), randomness="different")
    assert set(drawn(torch.ones(30, 4)).flatten().tolist()) == {0.0, 2.0}
