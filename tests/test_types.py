"""States as values: parts of any shape."""

import torch

from rimlit.types import replace_state
from tests.conftest import counting_tensor


def test_parts_of_any_shape_are_replaced_for_the_marked_samples_alone() -> None:
    old = (counting_tensor(3), (counting_tensor(3, 2), counting_tensor(3, 4, 2)), counting_tensor(3, 2))
    new = (-old[0], (-old[1][0], -old[1][1]), -old[2])
    first, (second, third), last = replace_state(old, new, torch.tensor([False, True, False]))
    for part in (first, second, third, last):
        assert (part[1] < 0).all()
        assert (part[[0, 2]] > 0).all()
    assert torch.equal(third[1], new[1][1][1])
