"""The scores of a sequence, formed again from the states that a time loop returned: no loop has to keep them."""

from typing import NamedTuple

import torch
from torch import Tensor

from rimlit.kernels.layer import Activity, LayerInputs
from rimlit.kernels.projection import expand_tokens, project
from rimlit.kernels.step import score
from rimlit.mechanisms import Balance, RIMLayer
from rimlit.mechanisms.balance import added_up


def scores_of(layer: RIMLayer, inputs: LayerInputs, features: Tensor) -> Tensor:
    """Return the scores (T, M, B, I, N) of the input, with a gradient.

    Args:
        layer: The layer.
        inputs: What it ran on.
        features: What it returned, (B, T, M, d).
    """
    weights = layer.weights()
    before = torch.cat([inputs.state.hidden[:, None], features[:, :-1]], dim=1)  # (B, T, M, d)
    if inputs.resets is not None:
        before = torch.where(inputs.resets[:, :, None, None], inputs.initial.hidden[:, None], before)
    weights, inputs = project(layer, weights, inputs)
    keys = expand_tokens(inputs).keys
    num_steps, batch_size = keys.shape[1:3]
    hidden = before.permute(2, 1, 0, 3).flatten(1, 2)  # (M, T·B, d)
    rows = score(layer, weights, hidden, keys.flatten(1, 2))  # (M, T·B, I, N)
    return rows.view(len(rows), num_steps, batch_size, *rows.shape[2:]).transpose(0, 1)


class Followed(NamedTuple):
    """What a layer's parts count and penalise after a training forward, when the mask is known."""

    balance: Balance
    scores: Tensor | None  # (T, M, B, I, N), where the balance has a penalty
    active: Tensor  # (T, M, B) bool
    of_talk: Tensor | None  # (B, T): what the communication adds to the loss

    @classmethod
    def of(cls, layer: RIMLayer, inputs: LayerInputs, features: Tensor, activity: Activity) -> "Followed":
        """Return it for a layer, what it ran on, what it returned, (B, T, M, d), and what its mechanisms did."""
        scores = scores_of(layer, inputs, features) if layer.balance.has_penalty else None
        return cls(layer.balance, scores, activity.active.permute(1, 2, 0), activity.penalty)

    @property
    def num_steps(self) -> int:
        """Steps of all samples."""
        return self.active.shape[0] * self.active.shape[2]

    def note(self, mask: Tensor | None = None) -> None:
        """Let the balance note who was active in the steps that ``mask`` (B, T) marks, by default all."""
        if self.balance.has_counts:
            self.balance.observe(_counted(self.active, mask))

    def penalty(self, mask: Tensor | None = None) -> Tensor | None:
        """Return what is added to the loss for the steps that ``mask`` (B, T) marks, by default all."""
        own = talk = None
        if self.scores is not None:
            own = self.balance.penalty(_counted(self.scores, mask), _counted(self.active, mask))
        if self.of_talk is not None:
            talk = (self.of_talk if mask is None else self.of_talk[mask]).mean()
        return added_up((own, talk))


def _counted(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the steps of ``values`` (T, M, B, …) that ``mask`` (B, T) marks, as (steps, M, 1, …)."""
    if mask is None or bool(mask.all()):
        return values
    return values.movedim(2, 1)[mask.T].unsqueeze(2)
