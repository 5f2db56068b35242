"""What tests of time loops share."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
