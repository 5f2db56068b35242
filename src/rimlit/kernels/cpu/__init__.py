"""The time loop in C++: only active mechanisms are computed, and threads own samples (``loop.cpp``)."""

import torch

from rimlit.kernels.cpu.call import DTYPES as DTYPES
from rimlit.kernels.cpu.loop import CPULoop as CPULoop
from rimlit.kernels.cpu.stepper import LayerStep as LayerStep
from rimlit.kernels.cpu.tiles import multiply as multiply
from rimlit.kernels.layer import LayerInputs
from rimlit.mechanisms import LayerWeights, RIMLayer

_PASSING = 24
"""Multiplications that take as long as a number of folded values, which passes through memory five times."""


def folds_values(layer: RIMLayer, weights: LayerWeights, inputs: LayerInputs) -> bool:
    """Return whether it is cheaper to multiply values by the cell's weights ahead than in the loop.

    Ahead all mechanisms are computed, in one large product; in the loop the active ones, in products of few rows.
    """
    if layer.project_in_bf16 or torch.is_autocast_enabled("cpu"):
        return True
    batch_size, _, _, input_size = inputs.sequence.shape
    groups, _, value_size = weights.input_value.shape
    num_mechanisms, _, num_gates = weights.cell_input.shape
    computed: float = num_mechanisms if layer.computes_all else layer.num_active
    if not layer.selection.is_exact and not layer.computes_all:
        computed /= 2  # the number is not known ahead; many are inactive
    rows = batch_size * computed / num_mechanisms
    small_products = 1 + 4 / rows  # a product of 8 rows takes about 1.4 times as long per row as one of 64
    folded, in_loop_gates = num_mechanisms * num_gates, computed * num_gates * small_products
    ahead = _PASSING * folded + min(value_size * (groups * input_size + folded), input_size * folded)
    in_loop = min(value_size * (groups * input_size + in_loop_gates), input_size * in_loop_gates)
    return bool(ahead <= in_loop)
