"""A causal Transformer (Vaswani et al. 2017, sec. 3, arXiv:1706.03762) that carries a cache of keys and values."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones.base import Backbone, require_input
from rimlit.checks import require_at_least, require_dropout, require_positive
from rimlit.errors import ConfigError
from rimlit.nn.surroundings import is_symbolic
from rimlit.types import State, conform_state, loads_as_data


@loads_as_data
class TransformerState(NamedTuple):
    """State of a causal Transformer: what the last steps left, the newest last."""

    keys: Tensor  # (B, layers, context - 1, hidden_size), before rotation
    values: Tensor  # (B, layers, context - 1, hidden_size)
    filled: Tensor  # (B, context - 1) bool: steps since the sample's start


class Transformer(Backbone):
    """A causal Transformer (Vaswani et al. 2017): a step attends to itself and to ``context - 1`` steps before it.

    A sequence is run at once; step by step, with the state passed on, it gives the same. What lies further back
    than the context is seen through the layers only. A reset hides everything before it.

    Departs from the paper: a decoder without an encoder; positions by rotation of queries and keys (Su et al.
    2021, arXiv:2104.09864), so that only distances count and a sequence may be of any length; layer norms before
    each part and at the end (Xiong et al. 2020, arXiv:2002.04745), which need no warm-up.

    Args:
        input_size: Features of each step, at least 1.
        hidden_size: Width of the layers and of the features, at least 1.
        num_layers: Layers, at least 1 (paper: 6).
        num_heads: Heads of each attention, 1 to hidden_size (paper: 8). Feature i belongs to head i modulo
            num_heads, so that any width can be shared out.
        feedforward_size: Width inside the feed-forward parts; by default 4 · hidden_size (paper).
        context: Steps that a step attends to, itself included, at least 2.
        dropout: Dropout on what each part adds, 0 to 1 (paper: .1).
        bidirectional: Whether a second one reads each sequence from its end; see :class:`Bidirectional`.

    Raises:
        ConfigError: A size is below 1, the context below 2, the dropout out of range, or there are more heads than
            features.

    Example:
        >>> features, state = Transformer(3, 8, num_layers=2)(torch.ones(2, 5, 3))
        >>> features.shape, state.keys.shape, state.filled.sum(dim=1).tolist()
        (torch.Size([2, 5, 8]), torch.Size([2, 2, 511, 8]), [5, 5])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 6,
        num_heads: int = 8,
        feedforward_size: int | None = None,
        context: int = 512,
        dropout: float = 0.1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        feedforward_size = 4 * hidden_size if feedforward_size is None else feedforward_size
        require_positive(
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            feedforward_size=feedforward_size,
        )
        require_dropout(dropout=dropout)
        if num_heads > hidden_size:
            raise ConfigError(
                f"num_heads must be at most hidden_size; got num_heads={num_heads}, hidden_size={hidden_size}."
            )
        require_at_least(2, context=context)
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.context = context
        self.num_heads = num_heads
        self.input = nn.Linear(input_size, hidden_size)
        layers = [TransformerLayer(hidden_size, num_heads, feedforward_size, dropout) for _ in range(num_layers)]
        self.head_size = layers[0].head_size
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(hidden_size)

    def initial_state(self, batch_size: int) -> TransformerState:
        """Return an empty cache."""
        shape = batch_size, len(self.layers), self.context - 1, self.output_size
        empty = self.norm.weight.new_zeros(()).expand(shape)
        filled = torch.zeros(batch_size, self.context - 1, dtype=torch.bool, device=empty.device)
        return TransformerState(empty, empty, filled)

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, TransformerState]:
        """Run over (B, T, input_size); see :meth:`Backbone.forward`."""
        require_input(self, inputs, resets)
        initial = self.initial_state(inputs.shape[0])
        # what the cache lacks in every sample is not attended to: a short past costs little
        cached = 0
        if state is None:
            state = initial
        else:
            state = conform_state(state, initial)
            # a graph reads the whole cache, since its size may not depend on the cache's content
            cached = self.context - 1 if is_symbolic() else int(state.filled.sum(dim=1).max())
        past_filled = state.filled[:, self.context - 1 - cached :]
        segments = number_segments(inputs, past_filled, resets)  # (B, cached + T)
        is_plain = cached == 0 and resets is None
        visible = None if is_plain and inputs.shape[1] <= self.context else self._visible(segments, cached)
        rotation = rotations(segments.shape[1], self.head_size, self.norm.weight)
        hidden = self.input(inputs)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            past = None if cached == 0 else (state.keys[:, index, -cached:], state.values[:, index, -cached:])
            hidden, key, value = layer(hidden, past, visible, rotation)
            keys.append(key)
            values.append(value)
        filled = segments[:, 1 - self.context :] == segments[:, -1:]
        missing = self.context - 1 - filled.shape[1]

        def cache(parts: list[Tensor]) -> Tensor:
            newest = torch.stack([part[:, 1 - self.context :] for part in parts], dim=1)
            kept = newest if is_plain else newest.where(filled[:, None, :, None], 0)
            return functional.pad(kept, (0, 0, missing, 0))

        state = TransformerState(cache(keys), cache(values), functional.pad(filled, (missing, 0)))
        return self.norm(hidden), state

    def flops_per_step(self) -> int:
        """Count as :meth:`Backbone.flops_per_step` does, a step that attends to a full context."""
        attended = (self.context - 1) * self.num_heads * self.head_size
        return super().flops_per_step() + 4 * len(self.layers) * attended

    def _visible(self, segments: Tensor, cached: int) -> Tensor:
        """Return which steps (…, cached + T) each of T steps attends to, (B, 1, T, cached + T) bool."""
        steps = torch.arange(segments.shape[1], device=segments.device)
        distance = steps[cached:, None] - steps  # (T, cached + T)
        is_near = (distance >= 0) & (distance < self.context)
        return (is_near & (segments[:, cached:, None] == segments[:, None, :])).unsqueeze(1)


def number_segments(inputs: Tensor, past_filled: Tensor, resets: Tensor | None) -> Tensor:
    """Number every step by the resets before it: only steps of one number see each other; −1 is not a step.

    Args:
        inputs: (B, T, …).
        past_filled: (B, P) bool: which steps of the cache there were.
        resets: (B, T) bool.

    Returns:
        (B, P + T).
    """
    steps = inputs.new_zeros(inputs.shape[:2], dtype=torch.bool) if resets is None else resets
    return torch.cat([past_filled.long() - 1, steps.cumsum(dim=1)], dim=1)


class TransformerLayer(nn.Module):
    """Attention and a feed-forward part, each behind a layer norm and around a residual.

    Args:
        size: Width.
        num_heads: Heads of the attention.
        feedforward_size: Width inside the feed-forward part.
        dropout: Dropout on what each part adds.
    """

    def __init__(self, size: int, num_heads: int, feedforward_size: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.size = size
        self.head_size = 2 * -(-size // (2 * num_heads))  # rotation turns pairs: zeros fill up what is missing
        self.attention_norm = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.attended = nn.Linear(size, size)
        self.feedforward_norm = nn.LayerNorm(size)
        self.feedforward = nn.Sequential(
            nn.Linear(size, feedforward_size), nn.ReLU(), nn.Linear(feedforward_size, size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden: Tensor,
        past: tuple[Tensor, Tensor] | None,
        visible: Tensor | None,
        rotation: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run over a sequence.

        Args:
            hidden: (B, T, size).
            past: Keys and values from before, each (B, P, size).
            visible: (B, 1, T, P + T) bool; None: all steps up to and with the own.
            rotation: Cosines and sines for P + T steps.

        Returns:
            The hidden states (B, T, size), and keys and values (B, P + T, size).
        """
        query, key, value = self.query_key_value(self.attention_norm(hidden)).chunk(3, dim=-1)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1)
        queries, keys, values = (self.split_heads(part) for part in (query, key, value))
        read = functional.scaled_dot_product_attention(
            rotate(queries, rotation), rotate(keys, rotation), values, visible, is_causal=visible is None
        )
        joined = read.permute(0, 2, 3, 1).flatten(2)[..., : self.size]
        hidden = hidden + self.dropout(self.attended(joined))
        hidden = hidden + self.dropout(self.feedforward(self.feedforward_norm(hidden)))
        return hidden, key, value

    def split_heads(self, part: Tensor) -> Tensor:
        """Share the features of (B, steps, size) out to the heads, (B, num_heads, steps, head_size)."""
        padded = functional.pad(part, (0, self.head_size * self.num_heads - self.size))
        return padded.view(*part.shape[:2], self.head_size, self.num_heads).permute(0, 3, 1, 2).contiguous()


def rotations(num_steps: int, head_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (num_steps, head_size / 2) in the type of ``like`` (Su et al. 2021, sec. 3.2)."""
    exact = torch.promote_types(like.dtype, torch.float32)
    pairs = torch.arange(0, head_size, 2, dtype=exact, device=like.device)
    angles = torch.outer(torch.arange(num_steps, dtype=exact, device=like.device), 10000 ** (-pairs / head_size))
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(vectors: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn feature i and i + head_size / 2 of each of the last T steps by the step's angle.

    Args:
        vectors: (B, heads, T, head_size).
        rotation: Cosines and sines for T steps or more.
    """
    cos, sin = (part[-vectors.shape[2] :] for part in rotation)
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
