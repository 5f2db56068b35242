"""The fast path to a module's forward is taken only where it makes no difference."""

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from rimlit.nn import direct


def test_a_module_without_hooks_is_run_by_its_forward() -> None:
    layer = nn.Linear(2, 3)
    assert direct(layer) == layer.forward


def test_a_hook_of_the_module_or_of_all_modules_asks_for_the_long_way() -> None:
    layer = nn.Linear(2, 3)
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook, register_module_forward_hook):
        hook = register(lambda *_: None)  # type: ignore[operator]
        assert direct(layer) is layer
        hook.remove()
    assert direct(layer) == layer.forward


def test_a_compiled_module_is_run_as_it_was_compiled() -> None:
    layer = nn.Linear(2, 3)
    layer.compile(backend="eager")
    assert direct(layer) is layer


def test_a_call_of_its_own_is_what_runs_a_module() -> None:
    class Doubled(nn.Linear):
        def __call__(self, inputs: Tensor) -> Tensor:
            return 2 * self.forward(inputs)

    layer = Doubled(2, 3)
    assert torch.equal(direct(layer)(torch.ones(1, 2)), 2 * layer.forward(torch.ones(1, 2)))
