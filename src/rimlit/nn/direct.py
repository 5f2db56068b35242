"""The fast path to a module's forward, for many small steps."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook


def direct(module: nn.Module) -> Callable[..., Tensor]:
    """Return what runs ``module``: its ``forward``, unless calls of it are listened to or compiled.

    A call of a module asks for hooks each time, which in single steps takes longer than a small layer: this asks
    once. Hooks that are registered later are not called.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> direct(layer) == layer.forward
        True
        >>> hook = layer.register_forward_hook(lambda *_: print("heard"))
        >>> outputs = direct(layer)(layer.weight)
        heard
    """
    is_plain = type(module).__call__ is nn.Module.__call__ and module._compiled_call_impl is None
    is_heard = module._forward_hooks or module._forward_pre_hooks or has_any_global_hook()  # type: ignore[no-untyped-call]
    return module.forward if is_plain and not is_heard else module
