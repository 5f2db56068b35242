"""Figures of forecasts: next to the observations, and the error of each step ahead next to naive forecasts."""

from typing import TYPE_CHECKING, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from rimlit.data.series import Series
from rimlit.metrics.forecast import intervals, middle
from rimlit.pictures.files import save_figure
from rimlit.tasks import ForecastTask
from rimlit.tracking.optional import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_WINDOWS = 3
"""Windows that are drawn, evenly spaced over the test."""
MOST_READ = 4
"""Steps before a forecast that are drawn, in horizons."""

TRUTH, MODEL, NAIVE = "#222222", "#2F6DB5", "#A15F22"


class ForecastWindow(NamedTuple):
    """One value of a window, in the file's units."""

    name: str
    read: Tensor  # (T,): observations before the forecast
    truth: Tensor  # (H,); NaN where nothing was observed
    forecast: Tensor  # (H, Q)
    naive: Tensor  # (H,)
    times: list[str | int | float] | None  # of the forecast


class ForecastPictures(L.Callback):
    """At the end of a test of a :class:`rimlit.tasks.ForecastTask`, draw forecasts next to the observations.

    ``figures/forecast.png`` shows the first value of three windows of the test, the first and the last among them,
    with the intervals between the quantiles and the naive forecast, and the mean absolute error of each step
    ahead, in deviations. It is logged to MLflow. Nothing is drawn for other tasks.
    """

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw."""
        data = getattr(trainer, "datamodule", None)
        if not (isinstance(pl_module, ForecastTask) and isinstance(data, Series)):
            return
        with optional("The picture of forecasts"):
            if trainer.is_global_zero:
                with trainer.precision_plugin.forward_context():
                    windows = forecast_windows(pl_module, data)
                curves = {"model": next(iter(pl_module.error_curve().values())), **naive_curves(data)}
                figure = draw_forecasts(windows, curves, pl_module.quantiles)
                save_figure(trainer, figure, "forecast.png")


def naive_curves(data: Series) -> dict[str, Tensor]:
    """Return the absolute error (H,) of each naive forecast by its name."""
    curves = {}
    for season in data.seasons().values():
        guess, truth = data.naive("test", season)
        curves["last value" if season == 1 else f"value {season} steps before"] = (
            (guess - truth).abs().mean((0, 2))
        )
    return curves


@torch.no_grad()
def forecast_windows(task: ForecastTask, data: Series) -> list[ForecastWindow]:
    """Return the first value of some windows of the test, with the task's forecasts."""
    dataset = data.datasets("test")[""]
    places = np.unique(np.linspace(0, len(dataset) - 1, MOST_WINDOWS).round().astype(int)).tolist()
    batch = data.collate([dataset[place] for place in places])
    was_training = task.training
    task.eval()
    starts = None if batch.starts is None else batch.starts.to(task.device)
    forecasts = task.forecast(batch.inputs.to(task.device), starts).cpu() + batch.level[:, None, :, None]
    task.train(was_training)
    naive, _ = data.naive("test", data.seasons()[""])
    windows = []
    for forecast, place in zip(forecasts, places, strict=True):
        series, end = dataset.windows[place]
        first = max(0, end - data.horizon - min(data.window, MOST_READ * data.horizon))
        rows = data.own_units(torch.from_numpy(dataset.values[series][first:end]))[:, 0]
        windows.append(
            ForecastWindow(
                ", ".join(dict.fromkeys([str(data.sample_name("test", "", place)), data.value_names[0]])),
                rows[: -data.horizon],
                rows[-data.horizon :],
                data.own_units(forecast.movedim(-1, 0))[..., 0].T,
                data.own_units(naive[place])[:, 0],
                data.forecast_times("test", place),
            )
        )
    return windows


def draw_forecasts(
    windows: list[ForecastWindow], curves: dict[str, Tensor], levels: tuple[float, ...] = ()
) -> "Figure":
    """Draw windows, one above the other, and below them the error by step ahead."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.2 * (len(windows) + 1)), layout="constrained")
    axes = figure.subplots(len(windows) + 1, squeeze=False)[:, 0]
    for axis, window in zip(axes, windows, strict=False):
        _draw_window(axis, window, levels)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    for (name, curve), colour in zip(curves.items(), (MODEL, NAIVE, TRUTH), strict=False):
        axes[-1].plot(range(1, len(curve) + 1), curve.cpu(), color=colour, label=name, marker=".")
    axes[-1].set_xlabel("step ahead")
    axes[-1].set_ylabel("absolute error\n(deviations)")
    axes[-1].set_ylim(bottom=0)
    axes[-1].legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(curves))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_window(axis: "Axes", window: ForecastWindow, levels: tuple[float, ...]) -> None:
    ahead = range(1, len(window.truth) + 1)
    axis.plot(range(1 - len(window.read), 1), window.read, color=TRUTH, label="observed")
    axis.plot(ahead, window.truth, color=TRUTH)
    for name, (lower, upper) in intervals(levels).items():
        band = window.forecast[:, lower], window.forecast[:, upper]
        percent = name.replace("_", ".")
        axis.fill_between(ahead, *band, color=MODEL, alpha=0.2, linewidth=0, label=f"{percent} % interval")
    axis.plot(ahead, middle(window.forecast), color=MODEL, label="forecast")
    axis.plot(ahead, window.naive, color=NAIVE, linestyle=":", label="naive")
    axis.axvline(0.5, color="#999999", linewidth=0.8)
    axis.set_title(window.name, fontsize=10, loc="left")
    if window.times is not None:
        axis.set_xticks([ahead[0], ahead[-1]], [str(window.times[0]), str(window.times[-1])])
        axis.get_xticklabels()[-1].set_horizontalalignment("right")  # within the figure
