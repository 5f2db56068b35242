"""Recurrent proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347; Goyal et al. 2021, sec. 4.5).

A rollout is trained on in minibatches of whole environments: sequences from the state that the rollout began
with, the state replaced by the initial one wherever an episode starts.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.optim import Adam
from torchmetrics import Metric

from rimlit.backbones import BackboneFactory
from rimlit.checks import require_known
from rimlit.data.sampling import rank_and_world_size
from rimlit.encoders import Encoder, EncoderFactory
from rimlit.errors import ConfigError
from rimlit.files import storage_error, whole_file
from rimlit.heads import HeadFactory, LinearHead
from rimlit.metrics.mean import Mean
from rimlit.nn import direct
from rimlit.rl.advantages import advantages_of
from rimlit.rl.observations import (
    PREVIOUS,
    Normalization,
    PolicyEncoder,
    Previous,
    Seen,
    VectorEncoder,
)
from rimlit.rl.policies import Categorical, Gaussian, Policy
from rimlit.rl.rollouts import Episode, Evaluated, Record, Rollout
from rimlit.spec import build, to_spec
from rimlit.tasks import OptimizerFactory, SchedulerFactory, Task
from rimlit.tasks.base import Stage, over_processes
from rimlit.types import State, Watched

RECENT = 100
"""Episodes over which ``train/episode_return`` is the mean."""

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""What a trainer may compute in, as Lightning calls it."""


class Minibatch(NamedTuple):
    """Some environments of a rollout, and what is to be trained on."""

    seen: Seen  # (B, T, …)
    state: State
    actions: Tensor  # (B, T) or (B, T, size)
    log_probs: Tensor  # (B, T)
    values: Tensor  # (B, T)
    advantages: Tensor  # (B, T): of mean 0 and deviation 1 over the rollout
    returns: Tensor  # (B, T): what the values are to be


class Collected(NamedTuple):
    """Cost and yield of collecting a rollout."""

    env_steps: int  # of all environments of all processes since the run began
    new_steps: int  # of these in this rollout
    seconds: float
    episodes: list[Episode]  # that ended in it, of this process


class Losses(NamedTuple):
    """The parts of the loss of a minibatch, and measures of how far the policy has moved."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor  # nats
    kl: Tensor  # nats: from the policy that collected to the one that is trained
    clip_fraction: Tensor  # share of steps whose ratio is beyond the clip


class _Ready(NamedTuple):
    """What single steps take, in the hand while the weights stay as they are."""

    step: Callable[[Seen, State], tuple[Tensor, State]]
    num_environments: int
    initial_state: State


class EpisodeReturn(Mean):
    """Mean sum of an episode's rewards, each episode counted once."""

    higher_is_better = True

    def update(self, scores: Tensor, lengths: Tensor) -> None:
        """Add episodes (n,)."""
        self.add(scores)


class EpisodeLength(Mean):
    """Mean number of an episode's steps."""

    higher_is_better = None

    def update(self, scores: Tensor, lengths: Tensor) -> None:
        """Add episodes (n,)."""
        self.add(lengths)


class PPOTask(Task):
    """Learn to act: a recurrent policy and its value, on rollouts of :class:`rimlit.rl.Experience`.

    The head gives the policy's numbers and, last, the value. What a rollout held while it was collected is
    computed again while it is trained on, so nothing may be random in between: dropout is refused.

    Args:
        backbone: Factory of the backbone, called with the number of features it reads.
        observation_shape: Shape of an observation; from the data module.
        num_actions: Choices, where actions are discrete; from the data module.
        action_size: Numbers of an action, where actions are continuous; from the data module.
        encoder: Factory of the encoder, called with ``observation_shape``.
        previous: What becomes of the action and the reward before: ``hidden``; ``concatenated`` to the encoded
            observation; or a ``slot`` of its own, for a backbone that reads slots.
        normalize_observations: Whether observations are brought to mean 0 and deviation 1; for vectors.
        head: Factory of the head; by default a linear map of all features, small for the policy at the start.
        discount: γ, 0 to 1.
        trace: λ of the advantage estimation, 0 to 1.
        reward_scale: Factor of the rewards that are trained on, above 0. Values far above 1 have gradients that
            leave none to the policy once their norm is clipped.
        clip: How far the ratio of new to old probabilities may leave 1 with a gain, above 0.
        value_clip: How far a value may leave the old one with a gain, above 0; None: without a limit.
        value_weight: Weight of the squared error of the value, halved, in the loss.
        entropy_weight: Weight of the entropy in the loss.
        max_kl: Divergence from the policy that collected, nats, above which the rollout is no longer trained on;
            None: never.
        evaluate_greedily: Whether validation, test and prediction take the likeliest actions instead of drawing.
        optimizer: Factory, called with the parameters; by default Adam at 2.5e-4 with an ε of 1e-5.
        scheduler: Factory, called with the optimiser; it advances once a rollout. None by default.

    Raises:
        ConfigError: A value is out of its range, neither or both kinds of actions are given, something drops
            features, or a factory is of a kind that a checkpoint could not hold; later, where it is trained: the
            trainer's precision is none of 32-true, 16-mixed and bf16-mixed.
        ValueError: A size is below 1.

    Example:
        >>> from functools import partial
        >>> from rimlit import LSTM
        >>> task = PPOTask(partial(LSTM, hidden_size=16), [4], num_actions=2)
        >>> starts = torch.zeros(3, 5, dtype=torch.bool)
        >>> seen = Seen(torch.zeros(3, 5, 4), torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5), starts)
        >>> outputs, state = task(seen)
        >>> outputs.shape  # two logits and a value
        torch.Size([3, 5, 3])
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
        *,
        encoder: EncoderFactory = VectorEncoder,
        previous: Previous = "hidden",
        normalize_observations: bool = False,
        head: HeadFactory | None = None,
        discount: float = 0.99,
        trace: float = 0.95,
        reward_scale: float = 1.0,
        clip: float = 0.1,
        value_clip: float | None = None,
        value_weight: float = 0.5,
        entropy_weight: float = 0.01,
        max_kl: float | None = None,
        evaluate_greedily: bool = True,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        if (num_actions is None) == (action_size is None):
            raise ConfigError(
                "Actions are discrete, and need num_actions, or continuous, and need action_size; got "
                f"num_actions={num_actions}, action_size={action_size}."
            )
        require_known(previous=(previous, PREVIOUS))
        for name, share in {"discount": discount, "trace": trace}.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} must be between 0 and 1; got {name}={share}.")
        for name, limit in {
            "clip": clip,
            "value_clip": value_clip,
            "max_kl": max_kl,
            "reward_scale": reward_scale,
        }.items():
            if limit is not None and limit <= 0:
                raise ConfigError(f"{name} must be above 0; got {name}={limit}.")
        for name, weight in {"value_weight": value_weight, "entropy_weight": entropy_weight}.items():
            if weight < 0:
                raise ConfigError(f"{name} must be at least 0; got {name}={weight}.")
        policy: Policy = Categorical(num_actions) if num_actions is not None else Gaussian(action_size or 0)
        observed: Encoder = build(to_spec(encoder, "encoder"), Encoder, list(observation_shape))
        normalization = Normalization(observation_shape) if normalize_observations else None
        super().__init__(
            PolicyEncoder(observed, policy, previous, normalization),
            backbone,
            policy.size + 1,
            head=head,
            optimizer=partial(Adam, lr=2.5e-4, eps=1e-5) if optimizer is None else optimizer,
            scheduler=scheduler,
        )
        self.policy = policy
        if isinstance(self.head, LinearHead):
            with torch.no_grad():  # policies that start without a preference
                nn.init.orthogonal_(self.head.linear.weight[:-1], 0.01)
                nn.init.orthogonal_(self.head.linear.weight[-1:], 1.0)
                nn.init.zeros_(self.head.linear.bias)
        # equal in all processes, which play different numbers of pieces: none may wait for another's
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        self._require_no_dropout()
        self.discount = discount
        self.trace = trace
        self.reward_scale = reward_scale
        self.clip = clip
        self.value_clip = value_clip
        self.value_weight = value_weight
        self.entropy_weight = entropy_weight
        self.max_kl = max_kl
        self.evaluate_greedily = evaluate_greedily
        self.divergence = 0.0
        """Divergence from the policy that collected, of the last minibatch, nats."""
        # an encoder may hand on what it gets, and a backbone keep it: the next step would write over it
        self._copies_observations = normalization is None
        self._ready: _Ready | None = None
        self.has_learnt = False
        """Whether a minibatch of the last rollout was trained on."""
        self.collected: Collected | None = None
        """Cost and yield of the rollout that is being trained on."""
        self._explained_variance: float | None = None
        self._recent: deque[Episode] = deque(maxlen=RECENT)
        self._rollout_began = 0.0
        self._batch_began = 0.0
        self._learn_seconds = 0.0

    @property
    def _normalization(self) -> Normalization | None:
        assert isinstance(self.encoder, PolicyEncoder)
        return self.encoder.normalization

    def _require_no_dropout(self) -> None:
        for name, module in self.named_modules():
            dropouts = {key: value for key, value in vars(module).items() if "dropout" in key}
            if isinstance(module, nn.Dropout):
                dropouts["dropout"] = module.p
            for key, value in dropouts.items():
                if isinstance(value, float) and value > 0:
                    raise ConfigError(
                        f"PPOTask needs {key}=0: what a rollout held could not be computed again; got "
                        f"{key}={value} in {name}."
                    )

    def setup(self, stage: str) -> None:
        """Refuse weights of another type: actions, scales and what a rollout held are of 32 bits."""
        if self.trainer.precision not in PRECISIONS:
            allowed = f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
            raise ConfigError(f"PPOTask needs trainer.precision {allowed}; got {self.trainer.precision}.")

    def forward(
        self, inputs: Seen, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over a sequence.

        Args:
            inputs: What the policy knows at each step, (B, T, …).
            state: The backbone's state to continue from.
            resets: (B, T) bool: where the state is replaced by the initial one before a step; by default where
                ``inputs`` say that an episode starts.

        Returns:
            The policy's outputs and, last, the value, (B, T, size + 1), and the state after the last step.
        """
        features, state = self.backbone(self.encoder(inputs), state, inputs.starts if resets is None else resets)
        outputs: Tensor = self.head(features)
        return outputs.float(), state

    def step(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        """Run one step.

        Args:
            seen: What the policy knows, (B, 1, …), on the CPU or where the weights are.
            state: The backbone's state, the initial one where an episode starts.

        Returns:
            The policy's outputs and, last, the value, (B, size + 1), and the state after the step.
        """
        ready = self._ready
        step = self._step_of(self.encoder, self.backbone.step, self.head) if ready is None else ready.step
        return step(seen, state)

    def _step_of(
        self,
        encode: Callable[[Seen], Tensor],
        step: Callable[[Tensor, State], tuple[Tensor, State]],
        head: Callable[[Tensor], Tensor],
    ) -> Callable[[Seen, State], tuple[Tensor, State]]:
        """Return a single step of all parts; slots take the backbone's own.

        What is asked once here is not asked in every step.
        """
        step_slots, copies_observations, device = self.backbone.step, self._copies_observations, self.device
        is_far = device.type != "cpu"

        def run(seen: Seen, state: State) -> tuple[Tensor, State]:
            if is_far:
                seen = Seen(*(part.to(device) for part in seen))
            if copies_observations:
                seen = seen._replace(observations=seen.observations.clone())
            encoded = encode(seen).squeeze(1)
            features, state = step(encoded, state) if encoded.dim() == 2 else step_slots(encoded, state)
            return head(features.unsqueeze(1)).squeeze(1).float(), state

        return run

    @contextmanager
    def playing(self, num_environments: int) -> Iterator[None]:
        """Step as fast as can be, while the weights stay as they are: without a graph, and unwatched.

        Activity is recorded when the steps are run again as sequences.

        Args:
            num_environments: Samples of every step inside the ``with`` block.
        """
        assert isinstance(self.encoder, PolicyEncoder)
        unwatched = self.backbone.unwatched() if isinstance(self.backbone, Watched) else nullcontext()
        precision = _precision_of(self)
        with torch.inference_mode(), unwatched, precision:
            step = self.backbone.stepping(num_environments)
            self._ready = _Ready(
                self._step_of(self.encoder.stepping(), step, direct(self.head)),
                num_environments,
                self.backbone.initial_state(num_environments),
            )
            try:
                yield
            finally:
                self._ready = None

    def initial_state(self, batch_size: int) -> State:
        """Return the backbone's state at the start of an episode."""
        ready = self._ready
        if ready is not None and ready.num_environments == batch_size:
            return ready.initial_state
        return self.backbone.initial_state(batch_size)

    def prepare(self, rollout: Rollout) -> Minibatch:
        """Turn a rollout into what is trained on, all its environments; note how well values explain returns."""
        advantages = advantages_of(
            rollout.rewards * self.reward_scale,
            rollout.values,
            rollout.next_values,
            rollout.breaks,
            discount=self.discount,
            trace=self.trace,
        )
        returns = advantages + rollout.values
        # over all processes, so that several learn what one would
        moments = [advantages, advantages.square(), returns, returns.square(), torch.ones_like(returns)]
        sums = torch.stack([part.double().sum() for part in moments]).to(self.device)
        if rank_and_world_size()[1] > 1:
            distributed.all_reduce(sums)
        mean, square, mean_return, square_return, _ = (sums / sums[-1]).tolist()
        variance = square - mean**2
        variance_of_returns = square_return - mean_return**2
        # where all returns are alike nothing is there to be explained
        is_varied = variance_of_returns > 1e-8
        self._explained_variance = 1 - variance / variance_of_returns if is_varied else None
        if self._normalization is not None:
            self._normalization.add(rollout.seen.observations.to(self.device))
        return Minibatch(
            rollout.seen,
            rollout.state,
            rollout.actions,
            rollout.log_probs,
            rollout.values,
            (advantages - mean) / (max(variance, 0) ** 0.5 + 1e-8),
            returns,
        )

    def begin_rollout(self) -> None:
        """Take up what was seen so far and start the clock, before a rollout is collected."""
        self._rollout_began = time.perf_counter()
        self.divergence = 0.0
        self.has_learnt = False
        if self._normalization is not None:
            self._normalization.adopt()

    @property
    def wants_another_minibatch(self) -> bool:
        """Whether the rollout is still near enough to the policy to be trained on."""
        return self.max_kl is None or self.divergence <= self.max_kl

    def losses(self, outputs: Tensor, batch: Minibatch) -> Losses:
        """Return the loss of a minibatch (Schulman et al. 2017, eq. 9) and its parts.

        Args:
            outputs: What :meth:`forward` gives for it, (B, T, size + 1).
            batch: The minibatch.
        """
        policy, values = outputs[..., :-1], outputs[..., -1]
        log_ratio = self.policy.log_prob(policy, batch.actions) - batch.log_probs
        ratio = log_ratio.exp()
        near = ratio.clamp(1 - self.clip, 1 + self.clip)
        policy_loss = -torch.min(ratio * batch.advantages, near * batch.advantages).mean()
        error = (values - batch.returns).square()
        if self.value_clip is not None:
            close = batch.values + (values - batch.values).clamp(-self.value_clip, self.value_clip)
            error = torch.max(error, (close - batch.returns).square())
        value_loss = error.mean() / 2
        entropy = self.policy.entropy(policy).mean()
        with torch.no_grad():
            kl = (ratio - 1 - log_ratio).mean()  # of the estimators from samples the one that is never negative
            clip_fraction = ((ratio - 1).abs() > self.clip).float().mean()
        loss = policy_loss + self.value_weight * value_loss - self.entropy_weight * entropy
        return Losses(loss, policy_loss.detach(), value_loss.detach(), entropy.detach(), kl, clip_fraction)

    def loss(self, outputs: Tensor, batch: Minibatch) -> Tensor:
        """Return the loss of a minibatch; see :meth:`losses`."""
        return self.losses(outputs, batch).loss

    def weight(self, batch: Minibatch) -> Tensor:
        """Return the number of steps."""
        return torch.tensor(batch.returns.numel(), device=self.device)

    def metrics(self) -> dict[str, Metric]:
        """Return metrics counted once per episode."""
        return {"episode_return": EpisodeReturn(), "episode_length": EpisodeLength()}

    def training_step(self, batch: Minibatch, batch_index: int) -> Tensor:
        """Learn from a minibatch."""
        self.has_learnt = True
        outputs, _ = self(batch.seen, batch.state)
        losses = self.losses(outputs, batch)
        loss, whole = over_processes(losses.loss, self.weight(batch))
        self.log("train/loss", whole, prog_bar=True)
        kl = losses.kl
        if self.max_kl is not None:
            if rank_and_world_size()[1] > 1:  # all stop together
                distributed.all_reduce(kl)
                kl = kl / rank_and_world_size()[1]
            self.divergence = kl.item()
        parts = {**losses._asdict(), "kl": kl}
        del parts["loss"]
        self.log_dict(
            {f"train/{name}": value for name, value in parts.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch.returns),
            sync_dist=rank_and_world_size()[1] > 1,
        )
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Update, unless the minibatch was fetched before the policy was known to have moved too far."""
        if self.wants_another_minibatch:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        else:
            optimizer_closure()

    def on_train_batch_start(self, batch: Minibatch, batch_index: int) -> None:
        """Start the clock."""
        self._batch_began = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Minibatch, batch_index: int) -> None:
        """Stop the clock."""
        self._learn_seconds += time.perf_counter() - self._batch_began

    def on_train_epoch_end(self) -> None:
        """Log what the rollout brought and where the time went."""
        if self.collected is None:
            return
        self._recent.extend(self.collected.episodes)
        sums = torch.tensor(
            [
                sum(episode.score for episode in self._recent),
                sum(episode.length for episode in self._recent),
                len(self._recent),
            ],
            dtype=torch.float64,
            device=self.device,
        )
        if rank_and_world_size()[1] > 1:
            distributed.all_reduce(sums)
        score, length, number = sums.tolist()
        collected = self.collected
        values = {
            "env_steps": float(collected.env_steps),
            "collect_seconds": collected.seconds,
            "learn_seconds": self._learn_seconds,
            "env_steps_per_second": collected.new_steps / (time.perf_counter() - self._rollout_began),
        }
        if self._explained_variance is not None:
            values["explained_variance"] = self._explained_variance
        if number:
            values |= {"episode_return": score / number, "episode_length": length / number}
        self._learn_seconds = 0.0
        for name, value in values.items():
            self.log(f"train/{name}", value, prog_bar=name == "episode_return", rank_zero_only=False)

    def shared_step(self, batch: Evaluated, stage: Stage, group: int = 0) -> Tensor:
        """Count the episodes of an evaluation; where activity is recorded, run the steps so that it is."""
        if isinstance(self.backbone, Watched) and self.backbone.is_watched:
            self(batch.seen, batch.state)
        self._metrics[self.prefix(stage, group)].update(batch.scores, batch.lengths)
        return batch.scores

    def predict_step(self, batch: Record, batch_index: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Write an episode to ``episodes/`` of the run's folder; returns what its line of predictions says.

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

    @property
    def schedule_interval(self) -> Literal["step", "epoch"]:
        """Schedules advance once a rollout, however soon learning from it stops."""
        return "epoch"

    def schedule_length(self) -> int | None:
        """Return the number of rollouts."""
        rollouts = self.trainer.max_epochs
        return None if rollouts is None or rollouts < 1 else rollouts


def _precision_of(task: PPOTask) -> AbstractContextManager[Any]:
    try:
        return task.trainer.precision_plugin.forward_context()
    except RuntimeError:  # the task is attached to no trainer
        return nullcontext()
