"""Random RIMs: every loop that can equals ``eager`` in outputs and all gradients; see ``fuzz.py``."""

from typing import Any

import pytest

from tests.kernels.fuzz import able, difference, draw


@pytest.mark.parametrize("seed", range(40))
def test_every_loop_that_can_equals_eager(seed: int, threads: Any) -> None:
    case = draw(seed)
    threads(case.threads)
    loops = able(case)
    assert {"cpu", "function", "reference"} <= set(loops)
    for loop in ("cpu", "function", "reference"):
        error, what = difference(case, loop)
        assert error < 1e-8, f"{loop}: {what} differs by {error:.3g}"
