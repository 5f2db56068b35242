"""A backbone in TorchRL: a module that reads and writes tensordicts as TorchRL's own ``LSTMModule`` does.

Written for TorchRL 0.14, https://docs.pytorch.org/rl/; ``docs/torchrl.md`` trains a policy with it.
"""

import warnings
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rimlit.backbones import Backbone
from rimlit.errors import ConfigError, MissingExtraError, install_command
from rimlit.mechanisms.noise import find_noise
from rimlit.nn.surroundings import is_symbolic
from rimlit.types import State, flat_state, map_state, state_names

try:
    from tensordict import TensorDictBase
    from tensordict.nn import TensorDictModuleBase, dispatch
    from torchrl.data import Unbounded
    from torchrl.envs import TensorDictPrimer
    from torchrl.modules import recurrent_mode
except ImportError as error:
    raise MissingExtraError(
        f"rimlit.integrations.torchrl needs TorchRL: {install_command('torchrl')}. {error}"
    ) from error

Key: TypeAlias = str | tuple[str, ...]
"""A key of a tensordict; a tuple where it is nested."""

IS_INIT = "is_init"
"""Where TorchRL's ``InitTracker`` says whether a step is the first of an episode, (…, 1) bool."""


class BackboneModule(TensorDictModuleBase):  # type: ignore[misc]
    """A backbone that TorchRL's environments, collectors, losses and value estimators run.

    It reads inputs, the state before a step and ``"is_init"``; it writes features, and the state after the step
    under ``"next"``, from where the environment carries it to the next step. Wherever ``"is_init"`` is true the
    state is replaced by the backbone's initial one, in the middle of a sequence too.

    Outside recurrent mode each entry of the tensordict is a single step. In recurrent mode, which TorchRL's losses
    and value estimators turn on by themselves (``torchrl.modules.set_recurrent_mode``), the last dimension of the
    tensordict is time, and the state is read at the first step. The state that is written is then the one after
    the last step, and zeros before it.

    The environment needs the transforms ``InitTracker()`` and :meth:`make_tensordict_primer`. With
    ``backend="auto"`` a RIM also runs under ``torch.vmap``.

    Args:
        backbone: Any backbone, in one direction.
        in_key: Key of the inputs (…, input_size), or (…, N, input_size) where the backbone reads N slots. Integers
            and bools, such as one-hot vectors, are read as numbers.
        out_key: Key of the features (…, output_size).
        state_key: What the keys of the state begin with: the ones of a RIM are ``recurrent_state_hidden`` and
            ``recurrent_state_memory``. Two modules of one policy need different ones.
        default_recurrent_mode: Whether sequences are read where ``set_recurrent_mode`` is not used; None: no.

    Raises:
        ConfigError: The backbone has two directions, and so no single steps.

    Warns:
        UserWarning: The backbone has dropout or noise: probabilities of actions then differ between collecting and
            training.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import set_recurrent_mode
        >>> from rimlit import GRU
        >>> module = BackboneModule(GRU(3, 8), in_key="observation", out_key="features")
        >>> module.in_keys, module.out_keys
        (['observation', 'recurrent_state_hidden', 'is_init'], ['features', ('next', 'recurrent_state_hidden')])
        >>> starts = torch.tensor([[[True], [False], [True]]])
        >>> batch = TensorDict({"observation": torch.ones(1, 3, 3), "is_init": starts}, batch_size=[1, 3])
        >>> with set_recurrent_mode(True):
        ...     features = module(batch)["features"]
        >>> bool((features[:, 0] == features[:, 2]).all())  # an episode begins at both
        True
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        in_key: Key = "observation",
        out_key: Key = "features",
        state_key: str = "recurrent_state",
        default_recurrent_mode: bool | None = None,
    ) -> None:
        super().__init__()
        if backbone.bidirectional:
            raise ConfigError(
                "An environment is acted in step by step: backbone needs bidirectional=False; got "
                f"{type(backbone).__name__} with bidirectional=True."
            )
        if (noise := find_noise(backbone)) is not None:
            warnings.warn(
                f"{type(backbone).__name__} is random in training ({noise}): probabilities of actions differ "
                "between collecting and training, which PPO must not have.",
                stacklevel=2,
            )
        self.backbone = backbone
        self.state_keys = state_names(backbone.initial_state(1), state_key)
        self.in_keys = [in_key, *self.state_keys, IS_INIT]
        self.out_keys = [out_key, *(("next", key) for key in self.state_keys)]
        self._recurrent_mode = default_recurrent_mode

    @property
    def recurrent_mode(self) -> bool:
        """Whether sequences are read now, and not single steps."""
        mode = recurrent_mode()
        return bool(self._recurrent_mode) if mode is None else bool(mode)

    def make_tensordict_primer(self) -> Any:
        """Return the transform that gives an environment the state: zeros, until the module's first step.

        ``torchrl.modules.get_primers_from_module`` finds it in a policy.
        """
        state = flat_state(self.backbone.initial_state(1))
        specs = {
            key: Unbounded(shape=part.shape[1:], dtype=part.dtype)
            for key, part in zip(self.state_keys, state, strict=True)
        }
        return TensorDictPrimer(specs, expand_specs=True)

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Run each entry's step, or in recurrent mode each sequence, and write features and state.

        Raises:
            ConfigError: ``"is_init"`` is missing, or the state where no episode begins.
        """
        in_key, out_key = self.in_keys[0], self.out_keys[0]
        starts = tensordict.get(IS_INIT, None)
        if starts is None:
            raise ConfigError(
                f"{IS_INIT!r} is not in the tensordict, so that no state could be reset: add "
                "torchrl.envs.InitTracker() to the environment's transforms."
            )
        inputs, batch = tensordict.get(in_key), starts.shape[:-1]
        num_steps = batch[-1] if self.recurrent_mode and batch else 1
        resets = starts.reshape(-1, num_steps)
        inputs = inputs.reshape(*resets.shape, *inputs.shape[len(batch) :])
        initial = self.backbone.initial_state(1)
        if not inputs.is_floating_point():
            inputs = inputs.to(_float_type(initial))
        state = self._read_state(tensordict, resets, batch, initial)
        features, state = self.backbone(inputs, state, resets)
        tensordict.set(out_key, features.reshape(*batch, *features.shape[2:]))
        for key, part in zip(self.out_keys[1:], flat_state(state), strict=True):
            if num_steps > 1:  # the state after the last step alone is known
                part = torch.cat([part.new_zeros(len(part), num_steps - 1, *part.shape[1:]), part[:, None]], dim=1)
                part = part.flatten(0, 1)
            tensordict.set(key, part.reshape(*batch, *part.shape[1:]))
        return tensordict

    def _read_state(
        self, tensordict: TensorDictBase, resets: Tensor, batch: torch.Size, initial: State
    ) -> State | None:
        """Return the state before the first step, None where every sequence begins with a reset."""
        parts = [tensordict.get(key, None) for key in self.state_keys]
        missing = [key for key, part in zip(self.state_keys, parts, strict=True) if part is None]
        if missing:
            if is_symbolic() or bool(resets[:, 0].all()):
                return None
            raise ConfigError(
                f"{missing[0]!r} is not in the tensordict, so that nothing would be remembered: add "
                "make_tensordict_primer() of the module to the environment's transforms."
            )
        waiting = iter(parts)

        def first(like: Tensor) -> Tensor:
            part: Tensor = next(waiting)
            return part.reshape(*resets.shape, *like.shape[1:])[:, 0]

        return map_state(first, initial)


def _float_type(state: State) -> torch.dtype:
    return next(part.dtype for part in flat_state(state) if part.is_floating_point())
