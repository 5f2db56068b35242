"""What backbones of RIM layers share: the balance of mechanisms, and what a step costs."""

from abc import ABC
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from rimlit.backbones.layouts import Run
from rimlit.backbones.watching import WatchedBackbone
from rimlit.kernels import Activity
from rimlit.mechanisms import Balance, RIMLayer
from rimlit.mechanisms.balance import added_up
from rimlit.types import State


class Followed(NamedTuple):
    """What a layer's parts count and penalise after a training forward, when the mask is known."""

    balance: Balance
    relevance: Tensor | None  # (T, M, B), where the balance has a penalty
    active: Tensor  # (T, M, B) bool
    of_talk: Tensor | None  # (B, T): what the communication adds to the loss

    @classmethod
    def of(cls, layer: RIMLayer, activity: Activity) -> "Followed":
        """Return it for a layer and what its mechanisms did."""
        relevance = None
        if layer.gives_relevance:
            assert activity.relevance is not None
            relevance = activity.relevance.permute(1, 2, 0)
        return cls(layer.balance, relevance, activity.active.permute(1, 2, 0), activity.penalty)

    @property
    def num_steps(self) -> int:
        """Steps of all samples."""
        return self.active.shape[0] * self.active.shape[2]

    def note(self, mask: Tensor | None = None) -> None:
        """Let the balance note who was active in the steps that ``mask`` (B, T) marks, by default all."""
        if self.balance.has_counts:
            self.balance.observe(_counted(self.active, mask))

    def penalty(self, mask: Tensor | None = None) -> Tensor | None:
        """Return what is added to the loss for the steps that ``mask`` (B, T) marks, by default all."""
        own = talk = None
        if self.relevance is not None:
            own = self.balance.penalty(_counted(self.relevance, mask), _counted(self.active, mask))
        if self.of_talk is not None:
            talk = (self.of_talk if mask is None else self.of_talk[mask]).mean()
        return added_up((own, talk))


def _counted(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the steps of ``values`` (T, M, B) that ``mask`` (B, T) marks, as (steps, M, 1)."""
    if mask is None or bool(mask.all()):
        return values
    return values.movedim(2, 1)[mask.T].unsqueeze(2)


class BalancedBackbone(WatchedBackbone, ABC):
    """A backbone whose ``layers`` are :class:`rimlit.mechanisms.RIMLayer`, each with its balance.

    A forward calls :meth:`_forget` before it runs and :meth:`_follow` for each layer afterwards.
    """

    layers: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self._followed: list[Followed] = []
        self._penalty: Tensor | None = None
        self._is_in_pieces = False

    @property
    def _layers(self) -> list[RIMLayer]:
        return cast(list[RIMLayer], list(self.layers))

    def penalty(self, mask: Tensor | None = None) -> Tensor | None:
        """See :meth:`Backbone.penalty`: what balance and communication of all layers add to the loss."""
        followed = self._note(mask)
        if followed:
            # a forward with lengths runs in pieces, of which the mean is taken, weighted by their steps
            whole = sum(each.num_steps for each in followed) / len(self.layers)
            parts = ((each.penalty(mask), each.num_steps / whole) for each in followed)
            self._penalty = added_up(None if part is None else part * share for part, share in parts)
        return self._penalty

    def run_lengths(
        self, run: Run, inputs: Tensor, state: State | None, resets: Tensor | None, lengths: Tensor
    ) -> tuple[Tensor, State]:
        """See :meth:`Backbone.run_lengths`."""
        self._forget()
        self._is_in_pieces = True
        try:
            return super().run_lengths(run, inputs, state, resets, lengths)
        finally:
            self._is_in_pieces = False

    def after_step(self, rate: float = 1.0) -> None:
        """See :meth:`Backbone.after_step`: the balance of every layer moves."""
        self._note()
        for layer in self._layers:
            layer.balance.after_step(layer, rate)

    def active_parameters(self) -> int:
        """Return how many parameters take part in one step of one sequence.

        Dynamics and communication belong to a mechanism and count for the K active ones; where others read the
        candidates of inactive ones, all mechanisms compute them. Everything else counts in full.
        """
        idle = sum(
            (1 - layer.num_active / layer.num_mechanisms) * layer.parameters_of_mechanisms()
            for layer in self._layers
            if not layer.computes_all
        )
        return super().active_parameters() - round(idle)

    def flops_per_step(self) -> int:
        """Return the multiplications and additions of one step of one sequence with one input slot, forward.

        Counted are the products of matrices that a step needs, which are those that the C++ loop runs: queries,
        input keys and values and the scores of all mechanisms; dynamics and communication of the K active ones
        (of all where others read candidates), since what others read of an inactive one stays as it was.
        """
        return sum(layer.flops_per_step() for layer in self._layers)

    def _follow(self, layer: RIMLayer, activity: Activity, hidden: Tensor, *, is_followed: bool) -> Activity:
        """Keep what the layer's parts count and penalise; return the activity as it is reported, with states."""
        if is_followed:
            self._followed.append(Followed.of(layer, activity))
        return activity._replace(hidden=hidden.detach(), penalty=None, relevance=None)

    def _forget(self) -> None:
        if not self._is_in_pieces:
            self._note()
            self._penalty = None

    def _note(self, mask: Tensor | None = None) -> list[Followed]:
        """Let balances note who was active in the last training forward, once, and return what to penalise."""
        followed, self._followed = self._followed, []
        for each in followed:
            each.note(mask)
        return followed

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds a graph."""
        return {**self.__dict__, "_followed": [], "_penalty": None}
