"""In mixed precision a RIM rounds products, and neither what it decides by nor what it remembers."""

from typing import Any

import pytest
import torch

from rimlit import RIM
from rimlit.types import flat_state
from tests.conftest import random_tensor

BACKENDS = ("reference", "eager", "function", "cpu")


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_selection_and_state_are_float32_in_bf16_mixed(backend: Any, cell: Any) -> None:
    rim = RIM(6, 24, num_mechanisms=4, num_active=2, cell=cell, backend=backend, learn_initial_state=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), rim.record_activity() as activities:
        features, state = rim(random_tensor(3, 7, 6))
        rim(random_tensor(3, 7, 6, seed=1), state)
    assert features.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in flat_state(state))
    for activity in activities:
        scores = activity.null_attention
        assert scores.dtype == activity.slot_attention.dtype == torch.float32
        assert not torch.equal(scores, scores.bfloat16().float()), "not rounded on the way"
        chosen = torch.zeros_like(activity.active).scatter_(-1, scores.topk(2, largest=False).indices, True)
        assert torch.equal(activity.active, chosen), "the mechanisms of the least attention to null"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_selection_and_state_are_float32_on_a_gpu(dtype: torch.dtype) -> None:
    rim = RIM(6, 24, num_mechanisms=4, num_active=2).cuda()
    with torch.autocast("cuda", dtype=dtype), rim.record_activity() as activities:
        features, state = rim(random_tensor(3, 7, 6).cuda())
    assert features.dtype == activities[0].null_attention.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in flat_state(state))
