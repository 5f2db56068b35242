"""What every test starts from: one thread, a seed, no override from the environment, and tensors that tell."""

import math
import signal

import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what nohup ignores is what some tests send


@pytest.fixture(autouse=True)
def fresh_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed torch, and forget settings that the caller's shell may hold."""
    for name in ("RIMLIT_BACKEND", "RIMLIT_TRUST", "PL_GLOBAL_SEED"):
        monkeypatch.delenv(name, raising=False)
    torch.manual_seed(7)


def counting_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return 1, 2, 3, … over their number, in ``shape``."""
    number = math.prod(shape)
    return (torch.arange(1, number + 1, dtype=torch.float64) / number).reshape(shape).to(dtype)


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers that depend on ``seed`` and ``shape`` only."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
