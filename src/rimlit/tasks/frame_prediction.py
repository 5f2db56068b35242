"""Predict the next frame, and roll the prediction out (Goyal et al. 2021, sec. 4.2, arXiv:1909.10893)."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric

from rimlit.backbones import BackboneFactory
from rimlit.checks import require_known
from rimlit.data.bouncing_balls import FrameBatch
from rimlit.data.sampling import rank_and_world_size
from rimlit.encoders import ConvolutionalEncoder, Encoder, EncoderFactory
from rimlit.errors import ConfigError
from rimlit.files import storage_error, whole_file
from rimlit.heads import FrameHead, HeadFactory
from rimlit.metrics.frames import FrameScores, FrameSquaredError, locate_balls
from rimlit.nn.motion import CELL, TAPS, move_cells
from rimlit.spec import build, to_spec
from rimlit.tasks.base import Task
from rimlit.tasks.signatures import OptimizerFactory, SchedulerFactory
from rimlit.types import State

Prediction = Literal["pixels", "motion"]
PREDICTIONS = ("pixels", "motion")


class FrameRollout(NamedTuple):
    """Predictions of the second frame and all that follow, from the first frames of sequences."""

    logits: Tensor  # (B, T, height, width), before the sigmoid
    features: Tensor  # (B, T, H): what the head drew them from


class FramePredictionTask(Task):
    """Predict each next frame; trained on true frames, tested on its own.

    The loss is the binary cross-entropy of the next frame given true ones, nats a pixel. The metrics score a
    rollout: ``context_length`` true frames, then ``rollout_length`` of the task's own. ``bce``, ``f1`` and
    ``position_error`` are means over it, ``…_at_N`` values of its frame N. What the task reads as its own frame is
    each pixel's likelier value, its probability where frames have shades, or with ``prediction="motion"`` the
    moved frame, which has values in between. Frames with shades have their ``mse``, a pixel, as a metric too.
    The best checkpoint is that of the least ``bce``: the next frame's loss can fall while rollouts get worse.

    Args:
        backbone: Factory of the backbone, called with the encoder's output size.
        frame_size: Pixels of a side; from the data module.
        context_length: True frames before a rollout; from the data module.
        rollout_length: Frames of a rollout that are scored; from the data module.
        encoder: Factory of the encoder, called with ``frame_size``; by default the paper's convolutions.
        head: Factory of the head, whose outputs are pixels; by default the paper's resize convolutions.
        num_channels: Channels of a frame; from the data module. With several, frames are (B, T, channels, height,
            width), and encoder and head are called with ``num_channels``.
        has_shades: Whether pixels are between black and white; from the data module.
        prediction: What the head says of the next frame: ``pixels``, as in the paper, or ``motion``, how each cell
            of 8 × 8 pixels of the frame before moves (:func:`rimlit.nn.move_cells`).
        optimizer: Factory, called with the parameters; by default Adam at 7e-4.
        scheduler: Factory, called with the optimiser; none by default.

    Raises:
        ConfigError: A factory is of a kind that a checkpoint could not hold, or a size is missing.
        ValueError: A size is out of its range.

    Example:
        >>> from functools import partial
        >>> from rimlit import LSTM
        >>> task = FramePredictionTask(partial(LSTM, hidden_size=16), 64, context_length=3, rollout_length=4)
        >>> logits, state = task(torch.zeros(2, 5, 64, 64))
        >>> logits.shape
        torch.Size([2, 5, 4096])
        >>> task.rollout(torch.zeros(2, 3, 64, 64)).logits.shape
        torch.Size([2, 6, 64, 64])
    """

    monitor = "val/bce"
    headline = ("bce_at_10", "f1_at_10", "position_error_at_10")

    def __init__(
        self,
        backbone: BackboneFactory,
        frame_size: int,
        context_length: int,
        rollout_length: int,
        *,
        encoder: EncoderFactory = ConvolutionalEncoder,
        head: HeadFactory = FrameHead,
        num_channels: int = 1,
        has_shades: bool = False,
        prediction: Prediction = "pixels",
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        require_known(prediction=(prediction, PREDICTIONS))
        if prediction == "motion" and frame_size % CELL:
            raise ConfigError(
                f"prediction='motion' needs a frame_size divisible by {CELL}; got frame_size={frame_size}."
            )
        if prediction == "motion" and (num_channels > 1 or has_shades):
            raise ConfigError(
                "prediction='motion' moves black and white frames; got "
                f"num_channels={num_channels}, has_shades={has_shades}. Use prediction='pixels'."
            )
        cells = frame_size // CELL
        encoder_spec, head_spec = to_spec(encoder, "encoder"), to_spec(head, "head")
        if num_channels > 1:
            for spec in (encoder_spec, head_spec):
                spec["init_args"]["num_channels"] = num_channels
        super().__init__(
            build(encoder_spec, Encoder, frame_size),
            backbone,
            num_channels * frame_size**2 if prediction == "pixels" else cells**2 * 2 * TAPS,
            head=head_spec,  # type: ignore[arg-type]
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.frame_size = frame_size
        self.has_shades = has_shades
        self.context_length = context_length
        self.rollout_length = rollout_length
        self._num_written = 0
        # log-odds of a pixel that is certainly moved there: .95 at the start
        self.certainty = nn.Parameter(torch.tensor(3.0)) if prediction == "motion" else None

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over frames (B, T, height, width), 0 or 1; see :meth:`Task.forward`.

        Returns:
            Logits (B, T, pixels) of the frames that follow and the backbone's state after the last step.
        """
        outputs, state = super().forward(inputs, state, resets)
        return self._draw(outputs, inputs)[0], state

    def _draw(self, outputs: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, T, pixels) of the frames that follow ``frames``, and frames to roll out from."""
        if self.certainty is None:
            own = outputs.sigmoid() if self.has_shades else (outputs > 0).to(outputs.dtype)
            return outputs, own.view(frames.shape)
        cells = self.frame_size // CELL
        scores = outputs.to(self.certainty.dtype).view(-1, cells, cells, 2, TAPS)
        moved = move_cells(frames.flatten(0, 1).to(scores.dtype), scores).reshape(frames.shape)
        # in one piece for the encoder, which is many times slower on frames that are not, in bfloat16
        return (self.certainty * (2 * moved - 1)).flatten(2), moved.contiguous()

    def loss(self, outputs: Tensor, batch: FrameBatch) -> Tensor:
        """Return the mean binary cross-entropy of all frames but the first, nats a pixel."""
        return functional.binary_cross_entropy_with_logits(outputs.float(), batch.targets.flatten(2).float())

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics of the rollout."""
        rollout: dict[str, Metric] = {"rollout": FrameScores(self.rollout_length)}
        return rollout | ({"squared_error": FrameSquaredError(self.rollout_length)} if self.has_shades else {})

    def scored(self, outputs: Tensor, batch: FrameBatch) -> tuple[Tensor, ...]:
        """Return the rolled-out logits, and what :class:`rimlit.metrics.FrameScores` compares them with."""
        start, stop = self.context_length, self.context_length + self.rollout_length
        logits = self.rollout(batch.frames[:, :start]).logits[:, start - 1 :]
        truth = (part[:, start:stop] for part in (batch.frames, batch.positions, batch.visible))
        frames, positions, visible = truth
        if frames.dim() == 5:  # the channels one above the other
            logits, frames = logits.flatten(2, 3), frames.flatten(2, 3)
        return logits, frames, batch.radii, positions, visible

    @torch.no_grad()
    def rollout(self, frames: Tensor) -> FrameRollout:
        """Predict from true frames, then from the task's own.

        Args:
            frames: True frames (B, T, height, width), 0 or 1; T at least 1.

        Returns:
            Predictions of the T − 1 frames after the first, each from true ones, and of the ``rollout_length``
            that follow, each from all before it.
        """
        features, state = self.backbone(self.encoder(frames))
        logits, own = self._draw(self.head(features), frames)
        all_logits, all_features = [logits], [features]
        for _ in range(self.rollout_length - 1):
            last = own[:, -1:]
            features, state = self.backbone.step(self.encoder(last)[:, 0], state)
            all_features.append(features[:, None])
            logits, own = self._draw(self.head(all_features[-1]), last)
            all_logits.append(logits)
        logits = torch.cat(all_logits, dim=1).view(len(frames), -1, *frames.shape[2:])
        return FrameRollout(logits, torch.cat(all_features, dim=1))

    def rollout_curves(self) -> dict[str, dict[str, Tensor]]:
        """Return the scores of the last evaluation by test set and metric: (rollout_length,), frame by frame."""
        curves = {}
        for prefix, metrics in self._metrics.items():
            scores = metrics["rollout"]
            assert isinstance(scores, FrameScores)
            curves[prefix.partition("/")[2]] = dict(scores.curves)
            error = metrics["squared_error"] if self.has_shades else None
            if isinstance(error, FrameSquaredError) and error.curve is not None:
                curves[prefix.partition("/")[2]]["mse"] = error.curve
        return curves

    def predict_step(self, batch: FrameBatch, batch_index: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Return for each sequence where the rollout has its balls and where they were, pixels.

        Where no ball is known, the frames are written to ``rollouts/`` of the run's folder, an ``.npz`` with
        ``predicted`` and ``true`` (rollout_length, [channels,] height, width), 0 to 1, for each sequence.
        """
        if batch.radii.shape[1] == 0:
            return self._write_rollouts(batch, dataloader_idx)
        logits, _, radii, positions, visible = self.scored(batch.frames, batch)
        sought = (radii[:, None] * visible).flatten(0, 1)
        found = locate_balls(logits.float().sigmoid().flatten(0, 1), sought).view(*logits.shape[:2], -1, 2)
        return [
            {
                "radii": [round(radius, 2) for radius in own_radii[own_radii > 0].tolist()],
                "found": _rounded(own_found[:, own_radii > 0]),
                "true": _rounded(own_positions[:, own_radii > 0]),
            }
            for own_radii, own_found, own_positions in zip(radii, found, positions, strict=True)
        ]

    def _write_rollouts(self, batch: FrameBatch, dataloader_idx: int) -> list[dict[str, Any]]:
        start, stop = self.context_length, self.context_length + self.rollout_length
        predicted = self.rollout(batch.frames[:, :start]).logits[:, start - 1 :].float().sigmoid()
        records = []
        for own, true in zip(predicted, batch.frames[:, start:stop], strict=True):
            rank, world_size = rank_and_world_size()
            number = rank + world_size * self._num_written
            self._num_written += 1
            path = Path(self.trainer.default_root_dir) / "rollouts" / f"{number:06d}.npz"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as file:
                    np.savez_compressed(file, predicted=own.cpu().numpy(), true=true.cpu().numpy())
            except OSError as error:
                raise storage_error(path, None, error) from error
            squares = (own - true).square().flatten(1).mean(dim=1)
            records.append({"mse": [round(square, 6) for square in squares.tolist()], "file": str(path)})
        return records

    def on_predict_start(self) -> None:
        """Count the sequences from the first."""
        self._num_written = 0


def _rounded(positions: Tensor) -> list[list[list[float] | None]]:
    """Return positions (T, balls, 2) in hundredths of a pixel, None for a ball that was not looked for."""
    return [
        [None if x != x else [round(x, 2), round(y, 2)] for x, y in frame]  # NaN alone differs from itself
        for frame in positions.tolist()
    ]
