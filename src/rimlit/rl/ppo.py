"""Recurrent proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347; Goyal et al. 2021, sec. 4.5).

A rollout is trained on in minibatches of whole environments: sequences from the state that the rollout began
with, the state replaced by the initial one wherever an episode starts.
"""

import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, distributed
from torch.optim import Adam

from rimlit.backbones import BackboneFactory
from rimlit.checks import require_at_least, require_share
from rimlit.data.sampling import rank_and_world_size
from rimlit.encoders import EncoderFactory
from rimlit.errors import ConfigError
from rimlit.heads import HeadFactory
from rimlit.rl.acting import ActingTask, metric_name
from rimlit.rl.advantages import estimate_advantages
from rimlit.rl.losses import clip_fraction, clipped_policy_loss, clipped_value_loss, estimate_kl
from rimlit.rl.observations import PolicyInput, Previous, VectorEncoder
from rimlit.rl.rollouts import Collected, Episode, Rollout
from rimlit.tasks import OptimizerFactory, SchedulerFactory
from rimlit.tasks.base import over_processes
from rimlit.types import State

RECENT = 100
"""Episodes over which ``train/episode_return`` is the mean."""


class Minibatch(NamedTuple):
    """Some environments of a rollout, with advantages and returns."""

    inputs: PolicyInput  # (B, T, …)
    state: State
    actions: Tensor  # (B, T), or (B, T, size) of several numbers or parts
    log_probs: Tensor  # (B, T)
    values: Tensor  # (B, T)
    advantages: Tensor  # (B, T): with mean 0 and deviation 1 over the rollout
    returns: Tensor  # (B, T): targets of the values


class Losses(NamedTuple):
    """The parts of the loss of a minibatch, and measures of how far the policy has moved."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor  # nats
    kl: Tensor  # nats: from the policy that collected to the one that is trained
    clip_fraction: Tensor  # share of steps whose ratio has left 1 by more than the clip


class PPOTask(ActingTask):
    """Recurrent PPO: a recurrent policy and its value, on rollouts of :class:`rimlit.rl.Experience`.

    The head returns the policy's outputs and, last, the value. Outputs that were computed while a rollout was
    collected are computed again in training, so nothing may be random in between: dropout is refused.

    Args:
        backbone: Factory of the backbone, called with the number of features it reads.
        observation_shape: Shape of an observation; from the data module.
        num_actions: Choices, where actions are discrete; from the data module.
        action_size: Numbers of an action, where actions are continuous; from the data module.
        num_choices: Choices of each part, where actions are discrete and of several parts; from the data module.
        info_keys: Keys of ``info`` whose values at the end of an episode are metrics; from the data module.
        encoder: Factory of the encoder, called with ``observation_shape``.
        previous: How the previous action and reward are read: not at all (``hidden``), ``concatenated`` to the
            encoded observation, or as an additional ``slot``, for a backbone that reads slots.
        normalize_observations: Whether observations are normalised to mean 0 and deviation 1; for vectors.
        head: Factory of the head; by default a linear map of all features, small for the policy at the start.
        discount: γ, 0 to 1.
        trace: λ of the advantage estimation, 0 to 1.
        reward_scale: Factor of the rewards that are trained on, above 0. With values far above 1 the gradient of
            the value dominates, and clipping the gradient's norm leaves almost none to the policy.
        clip: Distance of the ratio of new to old probabilities from 1 beyond which nothing is gained, above 0.
        value_clip: Distance of a value from the old one beyond which nothing is gained, above 0; None: no limit.
        value_weight: Weight of half the squared error of the value in the loss.
        entropy_weight: Weight of the entropy in the loss.
        max_kl: Divergence from the policy that collected, nats, above which the rollout is no longer trained on;
            None: never.
        evaluate_greedily: Whether validation, test and prediction take the most likely actions instead of drawing.
        optimizer: Factory, called with the parameters; by default Adam at 2.5e-4 with an ε of 1e-5.
        scheduler: Factory, called with the optimiser; it advances once a rollout. None by default.

    Raises:
        ConfigError: A value is out of its range, neither or both kinds of actions are given, a part has dropout,
            a factory is of a kind that a checkpoint could not hold, or, in training, the trainer's precision is
            none of 32-true, 16-mixed and bf16-mixed.
        ValueError: A size is below 1.

    Example:
        >>> from functools import partial
        >>> from rimlit import LSTM
        >>> task = PPOTask(partial(LSTM, hidden_size=16), [4], num_actions=2)
        >>> starts = torch.zeros(3, 5, dtype=torch.bool)
        >>> actions, rewards = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5)
        >>> inputs = PolicyInput(torch.zeros(3, 5, 4), actions, rewards, starts)
        >>> outputs, state = task(inputs)
        >>> outputs.shape  # two logits and a value
        torch.Size([3, 5, 3])
    """

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
        require_share(discount=discount, trace=trace)
        for name, limit in {
            "clip": clip,
            "value_clip": value_clip,
            "max_kl": max_kl,
            "reward_scale": reward_scale,
        }.items():
            if limit is not None and limit <= 0:
                raise ConfigError(f"{name} must be above 0; got {name}={limit}.")
        require_at_least(0, value_weight=value_weight, entropy_weight=entropy_weight)
        super().__init__(
            backbone,
            observation_shape,
            num_actions,
            action_size,
            num_choices,
            info_keys=info_keys,
            encoder=encoder,
            previous=previous,
            normalize_observations=normalize_observations,
            head=head,
            evaluate_greedily=evaluate_greedily,
            optimizer=partial(Adam, lr=2.5e-4, eps=1e-5) if optimizer is None else optimizer,
            scheduler=scheduler,
        )
        self.discount = discount
        self.trace = trace
        self.reward_scale = reward_scale
        self.clip = clip
        self.value_clip = value_clip
        self.value_weight = value_weight
        self.entropy_weight = entropy_weight
        self.max_kl = max_kl
        self.divergence = 0.0
        """Divergence from the policy that collected, of the last minibatch, nats."""
        self.has_trained = False
        """Whether a minibatch of the last rollout was trained on."""
        self.collected: Collected | None = None
        """Cost and yield of the rollout that is being trained on."""
        self._explained_variance: float | None = None
        self._recent: deque[Episode] = deque(maxlen=RECENT)
        self._rollout_began = 0.0
        self._batch_began = 0.0
        self._train_seconds = 0.0

    def prepare(self, rollout: Rollout) -> Minibatch:
        """Add advantages and returns to a rollout, and compute how well the values explain the returns."""
        advantages = estimate_advantages(
            rollout.rewards * self.reward_scale,
            rollout.values,
            rollout.next_values,
            rollout.breaks,
            discount=self.discount,
            trace=self.trace,
        )
        returns = advantages + rollout.values
        # over all processes, so that the result does not depend on their number
        moments = [advantages, advantages.square(), returns, returns.square(), torch.ones_like(returns)]
        sums = torch.stack([part.double().sum() for part in moments]).to(self.device)
        if rank_and_world_size()[1] > 1:
            distributed.all_reduce(sums)
        mean, square, mean_return, square_return, _ = (sums / sums[-1]).tolist()
        variance = square - mean**2
        variance_of_returns = square_return - mean_return**2
        # undefined where all returns are equal
        is_varied = variance_of_returns > 1e-8
        self._explained_variance = 1 - variance / variance_of_returns if is_varied else None
        if self.normalization is not None:
            self.normalization.add(rollout.inputs.observations.to(self.device))
        return Minibatch(
            rollout.inputs,
            rollout.state,
            rollout.actions,
            rollout.log_probs,
            rollout.values,
            (advantages - mean) / (max(variance, 0) ** 0.5 + 1e-8),
            returns,
        )

    def begin_rollout(self) -> None:
        """Update the scale of the observations and start the clock, before a rollout is collected."""
        self._rollout_began = time.perf_counter()
        self.divergence = 0.0
        self.has_trained = False
        if self.normalization is not None:
            self.normalization.update_scale()

    @property
    def accepts_minibatches(self) -> bool:
        """Whether the policy is still near enough to the one that collected the rollout."""
        return self.max_kl is None or self.divergence <= self.max_kl

    def losses(self, outputs: Tensor, batch: Minibatch) -> Losses:
        """Return the loss of a minibatch (Schulman et al. 2017, eq. 9) and its parts.

        Args:
            outputs: Outputs of :meth:`forward`, (B, T, size + 1).
            batch: The minibatch.
        """
        policy, values = outputs[..., :-1], outputs[..., -1]
        log_ratios = self.policy.log_prob(policy, batch.actions) - batch.log_probs
        policy_loss = clipped_policy_loss(log_ratios, batch.advantages, clip=self.clip)
        value_loss = clipped_value_loss(values, batch.returns, batch.values, clip=self.value_clip)
        entropy = self.policy.entropy(policy).mean()
        return Losses(
            policy_loss + self.value_weight * value_loss - self.entropy_weight * entropy,
            policy_loss.detach(),
            value_loss.detach(),
            entropy.detach(),
            estimate_kl(log_ratios),
            clip_fraction(log_ratios, clip=self.clip),
        )

    def loss(self, outputs: Tensor, batch: Minibatch) -> Tensor:
        """Return the loss of a minibatch; see :meth:`losses`."""
        return self.losses(outputs, batch).loss

    def weight(self, batch: Minibatch) -> Tensor:
        """Return the number of steps."""
        return torch.tensor(batch.returns.numel(), device=self.device)

    def training_step(self, batch: Minibatch, batch_index: int) -> Tensor:
        """Train on a minibatch."""
        self.has_trained = True
        outputs, _ = self(batch.inputs, batch.state)
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
        return self.penalised(loss, batch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Update, unless the minibatch was fetched before the policy was known to have moved too far."""
        if self.accepts_minibatches:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        else:
            optimizer_closure()

    def on_train_batch_start(self, batch: Minibatch, batch_index: int) -> None:
        """Start the clock."""
        self._batch_began = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Minibatch, batch_index: int) -> None:
        """Stop the clock."""
        self._train_seconds += time.perf_counter() - self._batch_began

    def on_train_epoch_end(self) -> None:
        """Log the returns and the times of the rollout."""
        if self.collected is None:
            return
        self._recent.extend(self.collected.episodes)
        sums = torch.tensor(
            [
                sum(episode.score for episode in self._recent),
                sum(episode.length for episode in self._recent),
                len(self._recent),
                *(sum(episode.infos[place] for episode in self._recent) for place in range(len(self.info_keys))),
            ],
            dtype=torch.float64,
            device=self.device,
        )
        if rank_and_world_size()[1] > 1:
            distributed.all_reduce(sums)
        score, length, number, *infos = sums.tolist()
        collected = self.collected
        values = {
            "env_steps": float(collected.env_steps),
            "collect_seconds": collected.seconds,
            "learn_seconds": self._train_seconds,
            "env_steps_per_second": collected.new_steps / (time.perf_counter() - self._rollout_began),
        }
        if self._explained_variance is not None:
            values["explained_variance"] = self._explained_variance
        if number:
            values |= {"episode_return": score / number, "episode_length": length / number}
            values |= {metric_name(key): total / number for key, total in zip(self.info_keys, infos, strict=True)}
        self._train_seconds = 0.0
        for name, value in values.items():
            self.log(f"train/{name}", value, prog_bar=name == "episode_return", rank_zero_only=False)

    @property
    def schedule_interval(self) -> Literal["step", "epoch"]:
        """Schedules advance once a rollout, even where ``max_kl`` ends training on it early."""
        return "epoch"

    def schedule_length(self) -> int | None:
        """Return the number of rollouts."""
        rollouts = self.trainer.max_epochs
        return None if rollouts is None or rollouts < 1 else rollouts
