"""A task that acts: a recurrent policy and its value, run on sequences or one step at a time."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from rimlit.backbones import BackboneFactory
from rimlit.checks import require_known
from rimlit.data.sampling import rank_and_world_size
from rimlit.encoders import Encoder, EncoderFactory
from rimlit.errors import ConfigError
from rimlit.files import storage_error, whole_file
from rimlit.heads import HeadFactory, LinearHead
from rimlit.mechanisms.noise import find_noise
from rimlit.metrics.mean import Mean
from rimlit.nn import direct
from rimlit.rl.observations import (
    PREVIOUS,
    Normalization,
    PolicyEncoder,
    PolicyInput,
    Previous,
    VectorEncoder,
)
from rimlit.rl.policies import Categorical, Gaussian, MultiCategorical, Policy
from rimlit.rl.rollouts import Evaluated, PlayedEpisode
from rimlit.spec import build, to_spec
from rimlit.tasks import OptimizerFactory, SchedulerFactory, Task
from rimlit.tasks.base import Stage
from rimlit.types import State, Watched

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Precisions a trainer may compute in, by Lightning's names."""


class _FastStep(NamedTuple):
    """The step function of :meth:`ActingTask.playing`, valid while the weights stay as they are."""

    step: Callable[[PolicyInput, State], tuple[Tensor, State]]
    num_environments: int
    initial_state: State


class EpisodeReturn(Mean):
    """Mean sum of an episode's rewards, each episode counted once."""

    higher_is_better = True

    def update(self, scores: Tensor, lengths: Tensor, infos: Tensor) -> None:
        """Add episodes (n,)."""
        self.add(scores)


class EpisodeLength(Mean):
    """Mean number of an episode's steps."""

    higher_is_better = None

    def update(self, scores: Tensor, lengths: Tensor, infos: Tensor) -> None:
        """Add episodes (n,)."""
        self.add(lengths)


class EpisodeInfo(Mean):
    """Mean of a value that ``info`` has in the last step of an episode, such as whether it succeeded.

    Args:
        place: Its place among the keys.
    """

    higher_is_better = None

    def __init__(self, place: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.place = place

    def update(self, scores: Tensor, lengths: Tensor, infos: Tensor) -> None:
        """Add episodes (n, keys)."""
        self.add(infos[:, self.place])


def metric_name(key: str) -> str:
    """Return a key of ``info`` as the name of a metric.

    Example:
        >>> metric_name("episode.is success")
        'episode_is_success'
    """
    return re.sub(r"[^\w-]", "_", key)


class ActingTask(Task):
    """Base of the tasks that learn to act. A subclass gives :meth:`loss` and a training step.

    The head returns the policy's outputs and, last, the value. Outputs that were computed while a rollout was
    collected are computed again in training, so nothing may be random in between: dropout is refused.

    Args:
        backbone: Factory of the backbone, called with the number of features it reads.
        observation_shape: Shape of an observation.
        num_actions: Choices, where actions are discrete.
        action_size: Numbers of an action, where actions are continuous.
        num_choices: Choices of each part, where actions are discrete and of several parts.
        info_keys: Keys of ``info`` whose values at the end of an episode are metrics.
        encoder: Factory of the encoder, called with ``observation_shape``.
        previous: How the previous action and reward are read; see :class:`rimlit.rl.PPOTask`.
        normalize_observations: Whether observations are normalised to mean 0 and deviation 1; for vectors.
        head: Factory of the head; by default a linear map of all features, small for the policy at the start.
        evaluate_greedily: Whether validation, test and prediction take the most likely actions instead of drawing.
        optimizer: Factory, called with the parameters.
        scheduler: Factory, called with the optimiser.

    Raises:
        ConfigError: Neither or both kinds of actions are given, a part has dropout, or, in training, the trainer's
            precision is none of 32-true, 16-mixed and bf16-mixed.
        ValueError: A size is below 1.
    """

    monitor = "val/episode_return"
    higher_is_better = True
    headline = ("episode_return", "episode_length")

    def __init__(
        self,
        backbone: BackboneFactory,
        observation_shape: Sequence[int],
        num_actions: int | None = None,
        action_size: int | None = None,
        num_choices: Sequence[int] | None = None,
        *,
        info_keys: Sequence[str] | None = None,
        encoder: EncoderFactory = VectorEncoder,
        previous: Previous = "hidden",
        normalize_observations: bool = False,
        head: HeadFactory | None = None,
        evaluate_greedily: bool = True,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        if [num_actions, action_size, num_choices].count(None) != 2:
            raise ConfigError(
                "Actions are one of a set, and need num_actions, several of these, and need num_choices, or "
                f"continuous, and need action_size; got num_actions={num_actions}, num_choices={num_choices}, "
                f"action_size={action_size}."
            )
        require_known(previous=(previous, PREVIOUS))
        policy: Policy = Gaussian(action_size or 0)
        if num_actions is not None:
            policy = Categorical(num_actions)
        elif num_choices is not None:
            policy = MultiCategorical(num_choices)
        observed: Encoder = build(to_spec(encoder, "encoder"), Encoder, list(observation_shape))
        normalization = Normalization(observation_shape) if normalize_observations else None
        super().__init__(
            PolicyEncoder(observed, policy, previous, normalization),
            backbone,
            policy.size + 1,
            head=head,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.policy = policy
        self.info_keys = tuple(info_keys or ())
        self.evaluate_greedily = evaluate_greedily
        if isinstance(self.head, LinearHead):
            with torch.no_grad():  # policies that start without a preference
                nn.init.orthogonal_(self.head.linear.weight[:-1], 0.01)
                nn.init.orthogonal_(self.head.linear.weight[-1:], 1.0)
                nn.init.zeros_(self.head.linear.bias)
        # buffers are equal in all processes; synchronising them would make a process that plays fewer pieces of
        # episodes than another wait for it
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        self._require_no_dropout()
        # an encoder may return its input, and a backbone keep it: the next step would overwrite it
        self._copies_observations = normalization is None
        self._fast_step: _FastStep | None = None

    @property
    def normalization(self) -> Normalization | None:
        """Scale of the observations, None where they are read as they are."""
        assert isinstance(self.encoder, PolicyEncoder)
        return self.encoder.normalization

    def _require_no_dropout(self) -> None:
        noise = find_noise(self)
        if noise is not None:
            needed = "mechanisms without noise" if noise.value is None else f"{noise.source}=0"
            raise ConfigError(
                f"{type(self).__name__} needs {needed}: training could not compute again what a rollout holds; "
                f"got {noise}."
            )

    def setup(self, stage: str) -> None:
        """Refuse weights of another type: actions, scales and rollouts are of 32 bits."""
        if self.trainer.precision not in PRECISIONS:
            allowed = f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
            raise ConfigError(
                f"{type(self).__name__} needs trainer.precision {allowed}; got {self.trainer.precision}."
            )

    def forward(
        self, inputs: PolicyInput, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over a sequence.

        Args:
            inputs: The policy's input at each step, (B, T, …).
            state: The backbone's state to continue from.
            resets: (B, T) bool: where the state is replaced by the initial one before a step; by default where
                ``inputs`` say that an episode starts.

        Returns:
            The policy's outputs and, last, the value, (B, T, size + 1), and the state after the last step.
        """
        features, state = self.backbone(self.encoder(inputs), state, inputs.starts if resets is None else resets)
        outputs: Tensor = self.head(features)
        return outputs.float(), state

    def step(self, inputs: PolicyInput, state: State) -> tuple[Tensor, State]:
        """Run one step.

        Args:
            inputs: The policy's input, (B, 1, …), on the CPU or on the device of the weights.
            state: The backbone's state, the initial one where an episode starts.

        Returns:
            The policy's outputs and, last, the value, (B, size + 1), and the state after the step.
        """
        fast = self._fast_step
        step = self._step_function(self.encoder, self.backbone.step, self.head) if fast is None else fast.step
        return step(inputs, state)

    def _step_function(
        self,
        encode: Callable[[PolicyInput], Tensor],
        step: Callable[[Tensor, State], tuple[Tensor, State]],
        head: Callable[[Tensor], Tensor],
    ) -> Callable[[PolicyInput, State], tuple[Tensor, State]]:
        """Return a function that runs a single step; slots are run by the backbone's own ``step``.

        What does not change between steps is looked up once, here.
        """
        step_slots, copies_observations, device = self.backbone.step, self._copies_observations, self.device
        moves_inputs = device.type != "cpu"

        def run(inputs: PolicyInput, state: State) -> tuple[Tensor, State]:
            if moves_inputs:
                inputs = PolicyInput(*(part.to(device) for part in inputs))
            if copies_observations:
                inputs = inputs._replace(observations=inputs.observations.clone())
            encoded = encode(inputs).squeeze(1)
            features, state = step(encoded, state) if encoded.dim() == 2 else step_slots(encoded, state)
            return head(features.unsqueeze(1)).squeeze(1).float(), state

        return run

    @contextmanager
    def playing(self, num_environments: int) -> Iterator[None]:
        """Use the fast path of :meth:`step` while the weights stay as they are: no graph, no activity recorded.

        Activity is recorded when the same steps are run again as sequences.

        Args:
            num_environments: Samples of every step inside the ``with`` block.
        """
        assert isinstance(self.encoder, PolicyEncoder)
        unwatched = self.backbone.unwatched() if isinstance(self.backbone, Watched) else nullcontext()
        precision = _precision_of(self)
        with torch.inference_mode(), unwatched, precision:
            step = self.backbone.stepper(num_environments)
            self._fast_step = _FastStep(
                self._step_function(self.encoder.stepper(), step, direct(self.head)),
                num_environments,
                self.backbone.initial_state(num_environments),
            )
            try:
                yield
            finally:
                self._fast_step = None

    def initial_state(self, batch_size: int) -> State:
        """Return the backbone's state at the start of an episode."""
        fast = self._fast_step
        if fast is not None and fast.num_environments == batch_size:
            return fast.initial_state
        return self.backbone.initial_state(batch_size)

    def metrics(self) -> dict[str, Metric]:
        """Return metrics counted once per episode."""
        infos = {metric_name(key): EpisodeInfo(place) for place, key in enumerate(self.info_keys)}
        return {"episode_return": EpisodeReturn(), "episode_length": EpisodeLength(), **infos}

    def shared_step(self, batch: Evaluated, stage: Stage, group: int = 0) -> Tensor:
        """Count the episodes of an evaluation; where activity is recorded, run their steps again as sequences."""
        if isinstance(self.backbone, Watched) and self.backbone.is_watched:
            self(batch.inputs, batch.state)
        self._metrics[self.prefix(stage, group)].update(batch.scores, batch.lengths, batch.infos)
        return batch.scores

    def predict_step(
        self, batch: PlayedEpisode, batch_index: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Write an episode to ``episodes/`` of the run's folder; return its line of the predictions.

        The file, ``.npz``, holds ``observations`` (T, …), ``actions``, ``rewards`` (T,) and ``final_observation``.
        """
        rank, world_size = rank_and_world_size()
        number = batch.number * world_size + rank
        name = batch.environment.replace("/", "_").replace(":", "_")
        path = Path(self.trainer.default_root_dir) / "episodes" / f"{name}-{number:03d}.npz"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                np.savez_compressed(
                    file,
                    observations=batch.observations.cpu().numpy(),
                    actions=batch.actions.cpu().numpy(),
                    rewards=batch.scores.cpu().numpy(),
                    final_observation=batch.final_observation.cpu().numpy(),
                )
        except OSError as error:
            raise storage_error(path, None, error) from error
        return [
            {
                "environment": batch.environment,
                "episode": number,
                "return": batch.scores.sum().item(),
                "length": len(batch.scores),
                "is_cut": batch.is_cut,
                "file": str(path),
            }
        ]


def _precision_of(task: ActingTask) -> AbstractContextManager[Any]:
    try:
        return task.trainer.precision_plugin.forward_context()
    except RuntimeError:  # the task is attached to no trainer
        return nullcontext()
