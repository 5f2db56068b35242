"""Forecasts: rolled out as a slow reference does it, quantiles that widen, padding that changes nothing."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rimlit.data import Series
from rimlit.data.windows import WindowBatch
from rimlit.errors import ConfigError
from rimlit.metrics import Coverage, Pinball
from rimlit.metrics.forecast import middle
from rimlit.nn.quantiles import quantiles_of_draws, sample_quantiles, stratified_uniform
from rimlit.pictures.forecasts import draw_forecasts, forecast_windows, naive_curves
from rimlit.tasks import ForecastTask, Task
from tests.tasks.running import SMALL_LSTM, SMALL_RIM, make_trainer, quiet

pytestmark = quiet

LEVELS = (0.1, 0.5, 0.9)


def make(**arguments: Any) -> ForecastTask:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"window": 4, "horizon": 3, "num_paths": 5}
    return ForecastTask(SMALL_LSTM, 2, 3, **{**defaults, **arguments}).eval()


def inputs_of(batch_size: int = 2) -> torch.Tensor:
    return torch.arange(batch_size * 6 * 3).view(batch_size, 6, 3).sin()


# Quantiles


def test_draws_of_a_distribution_have_its_quantiles() -> None:
    quantiles = torch.tensor([[-1.0, 0.0, 3.0], [5.0, 5.5, 6.0]])
    uniform = stratified_uniform(15, (2,), seed=3)
    assert sorted(uniform[:, 0].tolist()) == pytest.approx([(place + 0.5) / 15 for place in range(15)])
    draws = sample_quantiles(quantiles, LEVELS, uniform)
    assert torch.allclose(quantiles_of_draws(draws, LEVELS), quantiles, atol=1e-5)
    assert draws[:, 0].min() < -1 and draws[:, 0].max() > 3, "there is something beyond the outermost levels"


def test_a_single_level_has_no_spread() -> None:
    assert sample_quantiles(torch.tensor([[2.0]]), [0.5], torch.tensor([0.1, 0.9])[:, None]).tolist() == [
        [2.0],
        [2.0],
    ]


@pytest.mark.parametrize(
    ("level", "forecast", "truth", "loss"), [(0.9, 1.0, 3.0, 1.8), (0.9, 3.0, 1.0, 0.2), (0.5, 1.0, 3.0, 1.0)]
)
def test_the_pinball_loss_weighs_what_lies_above_by_the_level(
    level: float, forecast: float, truth: float, loss: float
) -> None:
    metric = Pinball(1, [level])
    metric.update(torch.tensor([[[[forecast]]]]), torch.tensor([[[truth]]]))
    assert metric.compute().item() == pytest.approx(loss)


def test_coverage_is_the_share_between_two_quantiles_for_each_step() -> None:
    metric = Coverage(2, 0, 2)
    forecasts = torch.tensor([0.0, 1.0, 2.0]).expand(2, 2, 1, 3)
    metric.update(forecasts, torch.tensor([[[1.0], [3.0]], [[2.0], [-1.0]]]))
    assert metric.compute().item() == 0.5
    assert metric.curve is not None and metric.curve.tolist() == [1.0, 0.0]
    assert [name for name in make(quantiles=[0.05, 0.25, 0.5, 0.75, 0.95]).metrics() if "coverage" in name] == [
        "coverage_90",
        "coverage_50",
    ]


@pytest.mark.parametrize("quantiles", [[0.0, 0.5], [0.5, 0.5], [0.9, 0.1], [1.5]])
def test_levels_that_do_not_rise_between_0_and_1_are_refused(quantiles: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"above 0 and below 1 that rise; got quantiles=\["):
        make(quantiles=quantiles)


# Rolling out


@pytest.mark.parametrize("relative", [True, False])
def test_a_mean_is_rolled_out_step_by_step(relative: bool) -> None:
    task, inputs = make(quantiles=(), relative=relative), inputs_of()
    expected, known = inputs[:, :4], inputs[..., 2:]
    for ahead in range(3):
        outputs = task(expected)[0][:, -1]
        if ahead < 2:
            step = torch.cat([outputs, known[:, 4 + ahead]], dim=-1)
            expected = torch.cat([expected, step[:, None]], dim=1)
    forecast = task.forecast(inputs)
    assert forecast.shape == (2, 3, 2, 1)
    assert torch.allclose(forecast[:, :2, :, 0], expected[:, 4:, :2], atol=1e-6)
    assert torch.allclose(forecast[:, 2, :, 0], outputs, atol=1e-6)


def test_paths_are_rolled_out_as_a_loop_over_them_does_it() -> None:
    task, inputs = make(), inputs_of()
    uniform = stratified_uniform(5, (1, 3, 2), seed=0)[:, 0]  # (S, H, V)
    paths = []
    for path in range(5):
        read = inputs[:, :4]
        drawn = []
        for ahead in range(3):
            quantiles = task(read)[0][:, -1].view(2, 2, 3).sort(dim=-1).values
            value = sample_quantiles(quantiles, LEVELS, uniform[path, ahead].expand(2, 2))
            drawn.append(value)
            if ahead < 2:
                read = torch.cat([read, torch.cat([value, inputs[:, 4 + ahead, 2:]], -1)[:, None]], dim=1)
        paths.append(torch.stack(drawn, dim=1))
    expected = quantiles_of_draws(torch.stack(paths), LEVELS)
    assert torch.allclose(task.forecast(inputs), expected, atol=1e-5)


def test_a_forecast_reads_nothing_after_the_window_but_what_is_known_ahead() -> None:
    task, inputs = make(), inputs_of()
    changed = inputs.clone()
    changed[:, 4:, :2] = 99
    assert torch.equal(task.forecast(changed), task.forecast(inputs))
    changed[:, 4:, 2:] = 99
    assert not torch.equal(task.forecast(changed), task.forecast(inputs))


def test_a_forecast_depends_on_no_other_series_of_the_batch() -> None:
    task, inputs = make(), inputs_of(3)
    alone = torch.cat([task.forecast(each[None]) for each in inputs])
    assert torch.allclose(task.forecast(inputs), alone, atol=1e-5)
    assert torch.equal(task.forecast(inputs), task.forecast(inputs)), "the draws are always the same"


@pytest.mark.parametrize("backbone", [SMALL_RIM, SMALL_LSTM])
def test_rows_before_a_series_begins_change_nothing(tmp_path: Path, backbone: dict[str, Any]) -> None:
    short = np.arange(9.0)[:, None] ** 1.5
    np.savez(tmp_path / "a.npz", inputs=short[None], lengths=np.array([9]))
    options: dict[str, Any] = {
        "horizon": 2,
        "val_fraction": 0.25,
        "test_fraction": 0.25,
        "batch_size": 1,
        "seed": 1,
    }
    whole = Series(str(tmp_path / "a.npz"), window=9, **options)
    padded = Series(str(tmp_path / "a.npz"), window=12, **options)
    padded.load_state_dict(whole.state_dict())
    torch.manual_seed(0)
    task = ForecastTask(backbone, 1, 1, window=9, horizon=2, num_paths=4).eval()
    other = ForecastTask(backbone, 1, 1, window=12, horizon=2, num_paths=4).eval()
    other.load_state_dict(task.state_dict())
    pairs: list[tuple[ForecastTask, WindowBatch]] = []
    for each, data in ((task, whole), (other, padded)):
        batch = data.collate([data.datasets("predict")[""][0]])
        pairs.append((each, batch))
    assert pairs[0][1].starts is None and pairs[1][1].starts is not None
    forecasts = [each.forecast(batch.inputs, batch.starts) for each, batch in pairs]
    assert torch.allclose(*forecasts, atol=1e-5)


# In a run


@pytest.fixture
def waves(tmp_path: Path) -> Series:
    """A season of four steps on a slope, with some noise."""
    generator, time = np.random.default_rng(0), np.arange(160)
    np.save(tmp_path / "waves.npy", np.sin(time * np.pi / 2) + 0.02 * time + 0.1 * generator.normal(size=160))
    return Series(str(tmp_path / "waves.npy"), window=8, horizon=4, season=4, batch_size=8, seed=1)


def test_a_run_scores_predicts_and_draws(waves: Series, tmp_path: Path) -> None:
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=0.01)
    task = ForecastTask(SMALL_LSTM, 1, 1, window=8, horizon=4, num_paths=8, optimizer=adam)
    trainer: Trainer = make_trainer(tmp_path, max_steps=60, limit_val_batches=1)
    trainer.fit(task, datamodule=waves)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer.test(task, datamodule=waves, verbose=False)
    scores, floors = trainer.callback_metrics, task.floors()
    assert scores["test/mae"] < floors["last_value_mae"]
    assert set(floors) == {
        f"{prefix}{name}" for prefix in ("", "last_value_") for name in ("mse", "mae", "pinball", "coverage_80")
    }
    assert 0.5 < floors["coverage_80"] <= 1
    assert 0 <= scores["test/coverage_80"] <= 1
    assert task.error_curve()[""].mean().item() == pytest.approx(scores["test/mae"].item(), abs=1e-5)
    windows = forecast_windows(task, waves)
    assert [len(window.read) for window in windows] == [8] * 3
    windows = [window._replace(times=["2016-01", "2016-12"]) for window in windows]
    curves = {"model": task.error_curve()[""], **naive_curves(waves)}
    assert list(curves) == ["model", "value 4 steps before", "last value"]
    figure = draw_forecasts(windows, curves, task.quantiles)
    axes = figure.axes
    assert len(axes) == 4
    FigureCanvasAgg(figure).draw()
    assert axes[-1].get_legend().get_window_extent().y0 > axes[-1].bbox.y1, "the legend hides no curve"
    for label in axes[0].get_xticklabels():
        assert label.get_window_extent().x1 <= figure.bbox.x1 and label.get_text()
    drawn = axes[0].lines[1].get_ydata()
    assert np.allclose(drawn, windows[0].truth), "the observations are drawn next to the forecast"
    loaded = Task.load_from_checkpoint(tmp_path / "a.ckpt")
    (record,) = trainer.predict(loaded, datamodule=waves)[0]  # type: ignore[index]
    assert record["target"] is None
    assert np.shape(record["predicted"]) == (4, 1)
    assert record["quantiles"]["0.5"] == record["predicted"]
    low, high = (np.array(record["quantiles"][level]) for level in ("0.1", "0.9"))
    assert (low <= high).all()
    end = np.load(tmp_path / "waves.npy")[-8:].mean()
    assert abs(np.mean(record["predicted"]) - end) < 1, "in the file's own units"


def test_the_middle_of_an_even_number_of_quantiles_is_between_two() -> None:
    assert middle(torch.tensor([1.0, 2.0, 4.0, 8.0])).item() == 3.0
