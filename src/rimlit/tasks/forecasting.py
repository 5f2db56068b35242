"""Forecast long series: one step ahead in training, rolled out in evaluation, with quantiles."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from rimlit.backbones import BackboneFactory
from rimlit.checks import require_positive
from rimlit.data.series import Series
from rimlit.data.windows import WindowBatch
from rimlit.encoders import EncoderFactory
from rimlit.errors import ConfigError
from rimlit.heads import HeadFactory
from rimlit.metrics.forecast import (
    Coverage,
    ForecastAbsoluteError,
    ForecastMean,
    ForecastSquaredError,
    Pinball,
    intervals,
    middle,
    pinball_losses,
)
from rimlit.nn.quantiles import quantiles_of_draws, sample_quantiles, stratified_uniform
from rimlit.tasks.base import Stage, Task
from rimlit.tasks.inputs import input_encoder
from rimlit.tasks.signatures import OptimizerFactory, SchedulerFactory
from rimlit.types import State, Watched, map_state

MOST_ERRORS = 2000
"""Windows of training whose errors give the quantiles of a naive forecast."""


class ForecastTask(Task):
    """Forecast the values of a :class:`rimlit.data.Series`, several steps ahead.

    Training predicts each next step from true ones. Evaluation reads the first ``window`` steps and then rolls
    out: each forecast is read as the next step. With quantiles, ``num_paths`` futures are drawn from the forecast
    quantiles, step by step, and their quantiles are the forecast, so that intervals widen as errors add up (as in
    DeepAR, Salinas et al. 2020, arXiv:1704.04110, with quantiles in place of a density). The draws are the
    same for every series and in every evaluation.

    The loss is the mean pinball loss of the quantiles, or the mean squared error without any. Metrics are of the
    rolled-out forecast: ``mse`` and ``mae`` of its median, ``pinball``, and the share ``coverage_80`` of true
    values between the quantiles .1 and .9, and the same for each pair of levels that add up to 1.

    Args:
        backbone: Factory of the backbone, called with the encoder's output size.
        output_size: Values that are forecast; from the data module.
        input_size: Numbers read in each step; from the data module.
        window: Steps read before a forecast; from the data module.
        horizon: Steps of a forecast; from the data module.
        quantiles: Levels, rising, between 0 and 1; none for the mean alone.
        relative: Whether the change from the step before is predicted, and not the value.
        num_paths: Futures that are drawn, at least 1; not used without quantiles. A level that is one of (k − ½) /
            ``num_paths`` is read without interpolation, as .1, .5 and .9 are of 45.
        encoder: Factory of the encoder, called with ``input_size``; by default none.
        head: Factory of the head; by default a linear map of all features.
        optimizer: Factory, called with the parameters; by default Adam at 7e-4.
        scheduler: Factory, called with the optimiser; none by default.

    Raises:
        ConfigError: The levels are not rising between 0 and 1, or a factory is of a kind that a checkpoint could
            not hold.
        ValueError: A size is below 1.

    Example:
        >>> from functools import partial
        >>> from rimlit import LSTM
        >>> task = ForecastTask(partial(LSTM, hidden_size=16), 2, 2, window=10, horizon=5)
        >>> outputs, state = task(torch.zeros(3, 14, 2))  # three quantiles of two values
        >>> outputs.shape, task.forecast(torch.zeros(3, 14, 2)).shape
        (torch.Size([3, 14, 6]), torch.Size([3, 5, 2, 3]))
    """

    monitor = "val/mae"
    headline = ("mae", "mse", "pinball", "coverage_80")

    def __init__(
        self,
        backbone: BackboneFactory,
        output_size: int,
        input_size: int,
        window: int,
        horizon: int,
        *,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        relative: bool = True,
        num_paths: int = 45,
        encoder: EncoderFactory | None = None,
        head: HeadFactory | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        require_positive(output_size=output_size, window=window, horizon=horizon, num_paths=num_paths)
        levels = tuple(quantiles)
        if any(not 0 < level < 1 for level in levels) or list(levels) != sorted(set(levels)):
            raise ConfigError(
                f"quantiles must be levels above 0 and below 1 that rise; got quantiles={list(levels)}."
            )
        super().__init__(
            input_encoder(None, input_size, 1, encoder),
            backbone,
            output_size * max(1, len(levels)),
            head=head,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.num_values = output_size
        self.window, self.horizon = window, horizon
        self.quantiles = levels
        self.relative = relative
        self.num_paths = num_paths

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Predict the next step from each; see :meth:`Task.forward`.

        Returns:
            The quantiles of every value of the next step, or the values, (B, T, V · Q), and the backbone's state
            after the last step.
        """
        outputs, state = super().forward(inputs, state, resets)
        return self._absolute(outputs, inputs), state

    def _absolute(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Return what the head's outputs (…, V · Q) say of the values themselves."""
        if not self.relative:
            return outputs
        return outputs + inputs[..., : self.num_values].repeat_interleave(max(1, len(self.quantiles)), dim=-1)

    def _by_value(self, outputs: Tensor) -> Tensor:
        """Return outputs (…, V · Q) as (…, V, Q)."""
        return outputs.reshape(*outputs.shape[:-1], self.num_values, -1)

    def shared_step(self, batch: WindowBatch, stage: Stage, group: int = 0) -> Tensor:
        """Run a batch of any stage; a series that begins within its window has its state begin there."""
        outputs, _ = self(batch.inputs, None, batch.starts)
        return self.log_step(outputs, batch, stage, group)

    def loss(self, outputs: Tensor, batch: WindowBatch) -> Tensor:
        """Return the mean pinball loss, or squared error, of the next steps that are scored."""
        predicted = self._by_value(outputs)[batch.scored].to(batch.targets.dtype)  # (n, V, Q)
        targets = batch.targets[batch.scored]
        if self.quantiles:
            return pinball_losses(predicted, targets, self.quantiles).mean()
        return functional.mse_loss(predicted[..., 0], targets)

    def weight(self, batch: WindowBatch) -> Tensor:
        """Return the number of steps that are scored."""
        return batch.scored.sum()

    def metrics(self) -> dict[str, Metric]:
        """Return metrics of the rolled-out forecast."""
        found: dict[str, Metric] = {
            "mse": ForecastSquaredError(self.horizon),
            "mae": ForecastAbsoluteError(self.horizon),
        }
        if self.quantiles:
            found["pinball"] = Pinball(self.horizon, self.quantiles)
        for name, places in intervals(self.quantiles).items():
            found[f"coverage_{name}"] = Coverage(self.horizon, *places)
        return found

    def scored(self, outputs: Tensor, batch: WindowBatch) -> tuple[Tensor, Tensor]:
        """Return the rolled-out forecast (B, H, V, Q) and the true values (B, H, V)."""
        return self.forecast(batch.inputs, batch.starts), batch.targets[:, -self.horizon :]

    @torch.no_grad()
    def forecast(self, inputs: Tensor, starts: Tensor | None = None) -> Tensor:
        """Forecast the ``horizon`` steps after the first ``window`` ones.

        Args:
            inputs: (B, window + horizon − 1, V + K), as :class:`rimlit.data.windows.WindowBatch` has them; values
                after the first ``window`` steps are not read.
            starts: Where short series begin, of the same shape, bool; None: all are whole.

        Returns:
            (B, horizon, V, Q): quantiles that do not fall, or Q = 1 without any.
        """
        if (
            isinstance(self.backbone, Watched) and self.backbone.is_watched
        ):  # sampled paths do not count as activity
            with self.backbone.unwatched():
                return self.forecast(inputs, starts)
        read = slice(0, self.window)
        outputs, state = self(inputs[:, read], None, None if starts is None else starts[:, read])
        last = self._by_value(outputs[:, -1]).float()
        if not self.quantiles:
            return self._roll_out(last[..., 0], inputs, state, None).unsqueeze(-1)
        paths = self.num_paths
        uniform = stratified_uniform(paths, (1, self.horizon, self.num_values), seed=0).to(last)  # (S, 1, H, V)
        # every series has its paths next to each other
        state = map_state(lambda part: part.repeat_interleave(paths, dim=0), state)
        uniform = uniform.transpose(0, 1).expand(len(inputs), -1, -1, -1).flatten(0, 1)
        drawn = self._roll_out(
            last.repeat_interleave(paths, dim=0), inputs.repeat_interleave(paths, dim=0), state, uniform
        )
        return quantiles_of_draws(drawn.view(-1, paths, *drawn.shape[1:]).transpose(0, 1), self.quantiles)

    def _roll_out(self, last: Tensor, inputs: Tensor, state: State, uniform: Tensor | None) -> Tensor:
        """Return forecasts (B, H, V), each of which was read as the next step."""
        found: list[Tensor] = []
        for ahead in range(self.horizon):
            if uniform is not None:  # predicted quantiles may cross: their order is what is drawn from
                last = sample_quantiles(last.sort(dim=-1).values, self.quantiles, uniform[:, ahead])
            found.append(last)
            if ahead + 1 < self.horizon:
                known = inputs[:, self.window + ahead, self.num_values :]
                step = torch.cat([last.to(inputs.dtype), known], dim=-1)[:, None]
                outputs, state = self(step, state)
                predicted = self._by_value(outputs[:, 0]).float()
                last = predicted if uniform is not None else predicted[..., 0]
        return torch.stack(found, dim=1)

    def error_curve(self) -> dict[str, Tensor]:
        """Return the absolute error of the last evaluation by group: (horizon,), step by step ahead."""
        curves = {}
        for prefix, metrics in self._metrics.items():
            metric = metrics["mae"]
            assert isinstance(metric, ForecastMean)
            if metric.curve is not None:
                curves[prefix.partition("/")[2]] = metric.curve
        return curves

    def floors(self) -> dict[str, float]:
        """Return the scores of repeating the last season, or the last value, on the test.

        Their quantiles are those of their own errors in training, for each step ahead.
        """
        floors = super().floors()
        data = getattr(self.trainer, "datamodule", None)
        if not (isinstance(data, Series) and self.quantiles):
            return floors
        for prefix, season in data.seasons().items():
            guess, truth = data.naive("train", season, most=MOST_ERRORS)
            errors = quantiles_of_draws(truth - guess, self.quantiles)  # (H, V, Q)
            guess, truth = data.naive("test", season)
            for name, metric in self.metrics().items():
                if name not in ("mse", "mae"):
                    metric.update(guess[..., None] + errors, truth)
                    floors[f"{prefix}{name}"] = float(metric.compute())
        return floors

    def predict_step(self, batch: WindowBatch, batch_index: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Return the forecast after the last observation of each series, in the file's units.

        ``predicted`` is the median, or the mean, of each step and value, (horizon, V); ``quantiles`` has the same
        for every level.
        """
        forecasts, targets = self.scored(batch.inputs, batch)
        forecasts, targets = forecasts + batch.level[:, None, :, None], targets + batch.level[:, None]
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, Series):
            turned = data.own_units(forecasts.movedim(-1, 0)).movedim(0, -1)
            forecasts, targets = turned, data.own_units(targets)
        records = []
        for forecast, target in zip(forecasts, targets, strict=True):
            record: dict[str, Any] = {
                "target": target.tolist() if bool(target.isfinite().any()) else None,
                "predicted": middle(forecast).tolist(),
            }
            if self.quantiles:
                by_level = zip(self.quantiles, forecast.unbind(-1), strict=True)
                record["quantiles"] = {f"{level:g}": values.tolist() for level, values in by_level}
            records.append(record)
        return records
