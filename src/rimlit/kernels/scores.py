"""The scores of a sequence, formed again from the states that a time loop returned: no loop has to keep them."""

import torch
from torch import Tensor

from rimlit.kernels.layer import Activity, LayerInputs
from rimlit.kernels.projection import expand_tokens, project
from rimlit.kernels.step import score
from rimlit.mechanisms import RIMLayer


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


def penalty_of(layer: RIMLayer, inputs: LayerInputs, features: Tensor, activity: Activity) -> Tensor | None:
    """Return what the layer's balance and communication add to the loss, after ``features`` and ``activity``."""
    penalty = None if activity.penalty is None else activity.penalty.mean()
    if layer.balance_is_penalised:
        active = activity.active.permute(1, 2, 0)  # (T, M, B)
        own = layer.balance.penalty(scores_of(layer, inputs, features), active)
        penalty = own if penalty is None or own is None else penalty + own
    return penalty
