"""How mechanisms compete for the input (Goyal et al. 2021, sec. 2.1 and app. C.1, arXiv:1909.10893)."""

from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rimlit.checks import require_known
from rimlit.errors import ConfigError
from rimlit.mechanisms.base import Choice, Part
from rimlit.nn.attention import attend_slots
from rimlit.nn.selection import rank, select_active

Margin = Literal["none", "scores", "probabilities", "best"]
MARGINS: tuple[Margin, ...] = ("none", "scores", "probabilities", "best")


def require_active(num_active: int, num_mechanisms: int) -> None:
    """Raise a ConfigError unless 1 ≤ ``num_active`` ≤ ``num_mechanisms``."""
    if not 1 <= num_active <= num_mechanisms:
        raise ConfigError(
            f"num_active must be between 1 and num_mechanisms; got num_active={num_active}, "
            f"num_mechanisms={num_mechanisms}."
        )


class Selection(Part):
    """Which mechanisms are active in a step. A subclass gives :meth:`attend` or :meth:`choose`, or both.

    Args:
        num_mechanisms: Mechanisms M, at least 1.
        num_active: Mechanisms that may be active in a step, 1 to M.

    Raises:
        ConfigError: ``num_active`` is out of its range.
    """

    sizes: ClassVar[tuple[str, ...]] = ("num_mechanisms", "num_active")

    def __init__(self, num_mechanisms: int, num_active: int) -> None:
        super().__init__()
        require_active(num_active, num_mechanisms)
        self.num_mechanisms = num_mechanisms
        self.num_active = num_active

    @property
    def is_exact(self) -> bool:
        """Whether exactly ``num_active`` mechanisms are active in every step, whatever the scores."""
        return True

    @property
    def is_continuous(self) -> bool:
        """Whether the state is a continuous function of the scores, also where ranks change."""
        return self.num_active == self.num_mechanisms

    def noise(self, num_steps: int, batch_size: int, like: Tensor) -> Tensor | None:
        """Return noise of the ranking (T, M, B), drawn ahead for all time loops, or None.

        It reaches :meth:`choose` as the offset. Return none in evaluation (``self.training`` is false).

        Args:
            num_steps: Steps T.
            batch_size: Samples B.
            like: A tensor of the device and type that it is to have.
        """
        return None

    @property
    def is_noisy(self) -> bool:
        """Whether the ranking of training is noisy."""
        return type(self).noise is not Selection.noise

    def initial_carried(self, batch_size: int) -> Tensor | None:
        """Return what the rule carries from step to step, (B, …), at the start of a sequence, or None.

        A rule that carries something gets it as third argument of :meth:`choose` and returns it in the choice.
        """
        return None

    def attend(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attention to the input slots and the relevance of the input to each mechanism.

        By default the paper's: a softmax over the slots and a null slot whose score is 0, and as relevance the
        log-odds of reading the input against null, log((1 − P_null) / P_null), with the probability P_null
        averaged over heads. With one head this is the logsumexp of the scores; no difference of nearly equal
        numbers is formed, so that it ranks also where P_null is close to 0 or 1.

        Args:
            scores: Scores (M, B, I, N) of mechanisms, samples, heads and slots, divided by the root of the key
                size.

        Returns:
            Attention to the slots (M, B, I, N) and relevance (M, B).
        """
        attention, total = attend_against_null(scores)
        return attention, log_odds(total)

    def choose(self, relevance: Tensor, offset: Tensor | None = None) -> Choice:
        """Return which mechanisms are active, by default the K of greatest relevance plus offset.

        Args:
            relevance: (M, B).
            offset: Added for the ranking only, (M, B or 1), without gradient; −∞ keeps a mechanism inactive.
        """
        return Choice(select_active(relevance, self.num_active, offset))

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self._arguments.items() if name not in self.sizes)


class LeastNull(Selection):
    """The K mechanisms that attend least to the null slot (Goyal et al. 2021, sec. 2.1), hard or continuous.

    With ``margin`` the competition is continuous: the update of a winner fades in with its lead over the best
    loser, gate = clamp((r − r_loser) / width, 0, 1). Exactly K mechanisms are active, the others keep their state
    bit for bit, the state is a continuous function of the scores, and the competition gets a gradient.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step, 1 to M.
        margin: What the lead is measured in: ``none`` (the paper: a winner updates in full), ``scores`` (the
            relevance, the log-odds of reading) or ``probabilities`` (1 − P_null); or ``best``: the lead is that
            over the greatest relevance minus ``width``, so that the strongest mechanism updates in full, the
            others less the further they are behind it, and those behind by ``width`` or more are not active.
        width: Lead at which a winner updates in full, above 0; without effect where ``margin`` is ``none``.
        graded: Whether an active mechanism moves only as far as it attends to the input, 1 − P_null, times the
            gate of the margin.
        dynamic: Whether only mechanisms that attend to the input more than to null, P_null < ½, are active. With
            ``num_active`` equal to M nothing else bounds their number. The lead is then over ½ where that is the
            higher bar. Give scores a bias (``score_bias=1.0`` or more), or about half of the mechanisms start
            inactive.

    Raises:
        ConfigError: An argument is out of its range or unknown.

    Example:
        >>> selection = LeastNull(3, 2, margin="scores", width=0.5)
        >>> attention, relevance = selection.attend(torch.tensor([0.7, 0.4, 0.3]).view(3, 1, 1, 1))
        >>> choice = selection.choose(relevance)
        >>> choice.active.flatten().tolist()
        [True, True, False]
        >>> [round(gate, 2) for gate in choice.gate.flatten().tolist()]
        [0.8, 0.2, 0.0]
    """

    def __init__(
        self,
        num_mechanisms: int,
        num_active: int,
        *,
        margin: Margin = "none",
        width: float = 0.5,
        graded: bool = False,
        dynamic: bool = False,
    ) -> None:
        super().__init__(num_mechanisms, num_active)
        require_known(margin=(margin, MARGINS))
        if not 0 < width < torch.inf:
            raise ConfigError(
                f"width must be above 0 and finite; got width={width}. For a hard choice use margin='none'."
            )
        self.margin = margin
        self.width = width
        self.graded = graded
        self.dynamic = dynamic

    @property
    def rule(self) -> "Rule":
        """The arguments as functions take them that are not parts."""
        return Rule(self.num_mechanisms, self.num_active, self.margin, self.width, self.graded, self.dynamic)

    @property
    def is_exact(self) -> bool:
        """See :attr:`Selection.is_exact`."""
        return not self.dynamic and self.margin != "best"

    @property
    def is_continuous(self) -> bool:
        """See :attr:`Selection.is_continuous`."""
        if self.margin == "best":
            return self.num_active == self.num_mechanisms
        return self.margin != "none" or (self.num_active == self.num_mechanisms and not self.dynamic)

    def choose(self, relevance: Tensor, offset: Tensor | None = None) -> Choice:
        """See :meth:`Selection.choose`."""
        return compete(relevance, offset, self.rule)


class AcrossMechanisms(Selection):
    """A softmax over mechanisms instead of the null slot (Goyal et al. 2021, app. C.1).

    The K mechanisms with the greatest share are active.

    The relevance is the log-odds of a mechanism's share.

    Example:
        >>> selection = AcrossMechanisms(3, 1)
        >>> attention, relevance = selection.attend(torch.tensor([0.7, 0.4, 0.3]).view(3, 1, 1, 1))
        >>> round(attention.sum().item(), 4), selection.choose(relevance).active.flatten().tolist()
        (1.0, [True, False, False])
    """

    def attend(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Selection.attend`; shares are averaged over heads and slots."""
        return attend_across(scores)


class Rule(NamedTuple):
    """The arguments of :class:`LeastNull`."""

    num_mechanisms: int
    num_active: int
    margin: str
    width: float
    graded: bool
    dynamic: bool

    @property
    def has_margin(self) -> bool:
        """Whether the gates of winners depend on their lead."""
        return self.margin != "none" and (self.num_active < self.num_mechanisms or self.dynamic or self.is_to_best)

    @property
    def is_to_best(self) -> bool:
        """Whether the strongest mechanism sets the bar, and not the best loser."""
        return self.margin == "best"

    @property
    def bar_place(self) -> int | None:
        """Rank of the mechanism that sets the bar, None where only a relevance of 0 does."""
        if self.is_to_best:
            return 0
        return self.num_active if self.num_active < self.num_mechanisms else None


def attend_against_null(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention to the slots (M, B, I, N) and the logsumexp of each head's scores (M, B, I)."""
    if scores.shape[3] == 1:
        return scores.sigmoid(), scores[..., 0]
    return attend_slots(scores)[0], scores.logsumexp(dim=-1)


def attend_across(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return a softmax of the scores over mechanisms (M, B, I, N) and the log-odds of the shares (M, B)."""
    attention = scores.softmax(dim=0)
    share = attention.mean(dim=(2, 3))
    return attention, share.log() - (1 - share).log()


def log_odds(total: Tensor) -> Tensor:
    """Return the log-odds of reading (M, B) from each head's logsumexp of its scores (M, B, I)."""
    if total.shape[2] == 1:
        return total[..., 0]
    return logsigmoid(total).logsumexp(dim=-1) - logsigmoid(-total).logsumexp(dim=-1)


def log_odds_gradient(total: Tensor) -> Tensor:
    """Return the derivative of :func:`log_odds` by ``total``, (M, B, I)."""
    reads, skips = logsigmoid(total).softmax(dim=-1), logsigmoid(-total).softmax(dim=-1)
    return reads * (-total).sigmoid() + skips * total.sigmoid()


def compete(relevance: Tensor, offset: Tensor | None, rule: Rule) -> Choice:
    """Return the choice of :class:`LeastNull`; arguments as in :meth:`Selection.choose`."""
    ranked = relevance if offset is None else relevance + offset.detach()
    place = rank(ranked)
    active = place < rule.num_active
    if offset is not None:
        active = active & (offset != -torch.inf)
    if rule.dynamic:
        active = active & (ranked > 0)
    gate = None
    if rule.has_margin:
        own, bar, _ = _own_and_bar(ranked, place, rule)
        if rule.is_to_best:
            active = active & (own > bar)
        gate = _lead(own, bar, active, rule).clamp(0, 1)
    if rule.graded:
        attended = relevance.sigmoid()
        gate = attended if gate is None else attended * gate
    return Choice(active, None if gate is None else torch.where(active, gate, 0))


def gate_gradient(
    gradient: Tensor, relevance: Tensor, offset: Tensor | None, active: Tensor, rule: Rule
) -> Tensor:
    """Return the gradient (M, B) of the relevance from that of the gates of :func:`compete`."""
    gradient = torch.where(active, gradient, 0)
    attended = relevance.sigmoid()
    into = torch.zeros_like(gradient)
    lead = None
    if rule.has_margin:
        ranked = relevance if offset is None else relevance + offset
        place = rank(ranked)
        own, bar, bar_moves = _own_and_bar(ranked, place, rule)
        lead = _lead(own, bar, active, rule)
        through = gradient * attended if rule.graded else gradient
        through = torch.where((lead >= 0) & (lead <= 1), through, 0) / rule.width
        to_bar = torch.where(bar_moves, -through.sum(dim=0), 0)
        if rule.margin == "probabilities":
            through, to_bar = through * own * (1 - own), to_bar * bar * (1 - bar)
        into = through
        if rule.bar_place is not None:
            into = into + torch.where(place == rule.bar_place, to_bar, 0)
    if rule.graded:
        of_attention = gradient if lead is None else gradient * lead.clamp(0, 1)
        into = into + of_attention * attended * (1 - attended)
    return into


def _lead(own: Tensor, bar: Tensor, active: Tensor, rule: Rule) -> Tensor:
    """Return how far active mechanisms are above the bar, in widths; 0 for the others, where both may be −∞."""
    return torch.where(active, own - bar, 0) / rule.width


def _own_and_bar(ranked: Tensor, place: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the lead is measured in, of mechanisms (M, B) and the bar (B), and where a mechanism sets it."""
    if rule.bar_place is not None:
        # a sum that skips the others, so that no −∞ of another meets a zero
        bar = torch.where(place == rule.bar_place, ranked, 0).sum(dim=0)
        if rule.is_to_best:
            bar = bar - rule.width
        bar_moves = torch.ones_like(bar, dtype=torch.bool)
        if rule.dynamic:
            bar_moves = bar >= 0
            bar = bar.clamp(min=0)
    else:
        bar = ranked.new_zeros(ranked.shape[1:])
        bar_moves = torch.zeros_like(bar, dtype=torch.bool)
    if rule.margin == "probabilities":
        return ranked.sigmoid(), bar.sigmoid(), bar_moves
    return ranked, bar, bar_moves
