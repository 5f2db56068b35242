"""What a call of a backbone accepts beside a batch (B, T, …): packed and single sequences, lengths, no samples."""

import bisect
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rimlit.errors import ConfigError
from rimlit.nn.surroundings import is_symbolic, is_traced
from rimlit.types import State, conform_state, map_state, replace_state

Run: TypeAlias = Callable[[Tensor, State | None, Tensor | None], tuple[Tensor, State]]
"""A backbone's own ``forward``: inputs (B, T, …), state and resets to features and state."""


def accept_layouts(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a ``forward`` that is written for (B, T, …): accept all that :class:`Backbone` lists."""

    @functools.wraps(forward)
    def accepting(
        self: Any,
        inputs: Tensor | PackedSequence,
        state: State | None = None,
        resets: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, State]:
        run: Run = functools.partial(forward, self)
        result: tuple[Any, State]
        if isinstance(inputs, PackedSequence):
            return _run_packed(self, run, inputs, state, resets, lengths)
        if not isinstance(inputs, Tensor):
            raise ConfigError(
                "inputs must be a tensor (B, T, input_size) or (T, input_size), or a PackedSequence; got a "
                f"{type(inputs).__name__}."
            )
        if inputs.dim() == 2:
            return _run_single(self, run, inputs, state, resets, lengths)
        known = None if lengths is None else read_lengths(lengths, inputs)
        if inputs.dim() > 2 and not is_traced() and inputs.shape[0] == 0 and 0 not in inputs.shape[1:]:
            result = self.run_empty(run, inputs, state)
        elif known is not None:
            result = self.run_lengths(run, inputs, state, resets, known)
        else:
            result = run(inputs, state, resets)
        return result

    return accepting


def _run_packed(
    backbone: Any, run: Run, packed: PackedSequence, state: State | None, resets: Tensor | None, lengths: Any
) -> tuple[PackedSequence, State]:
    """Run over a PackedSequence; state and resets have the samples in the order in which they were packed."""
    if lengths is not None:
        raise ConfigError(f"A PackedSequence has its lengths: leave lengths out; got lengths={lengths!r}.")
    inputs, known = pad_packed_sequence(packed, batch_first=True)
    features, state = backbone.run_lengths(run, inputs, state, resets, known)
    if packed.sorted_indices is not None:
        features = features.index_select(0, packed.sorted_indices)
        known = known.index_select(0, packed.sorted_indices.cpu())
    data = pack_padded_sequence(features, known, batch_first=True).data
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), state


def _run_single(
    backbone: Any, run: Run, inputs: Tensor, state: State | None, resets: Tensor | None, lengths: Any
) -> tuple[Tensor, State]:
    """Run over one sequence (T, input_size), with a state and features that have no batch dimension either."""
    if lengths is not None:
        raise ConfigError(
            f"lengths belong to a batch (B, T, input_size); got lengths={lengths!r} for one sequence of shape "
            f"{tuple(inputs.shape)}."
        )
    if state is not None:
        like = map_state(lambda part: part.squeeze(0), backbone.initial_state(1))
        single = conform_state(state, like, "without a batch dimension, as the inputs")
        state = map_state(lambda part: part.unsqueeze(0), single)
    features, state = run(inputs.unsqueeze(0), state, None if resets is None else resets.unsqueeze(0))
    return features.squeeze(0), map_state(lambda part: part.squeeze(0), state)


def run_empty(backbone: Any, run: Run, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
    """Run over no samples: over one of zeros, of which only the graph is kept, for every parameter's gradient."""
    if state is not None:
        conform_state(state, backbone.initial_state(0))
    features, state = run(inputs.new_zeros(1, *inputs.shape[1:]), None, None)
    return features[:0], map_state(lambda part: part[:0], state)


def run_lengths(
    backbone: Any, run: Run, inputs: Tensor, state: State | None, resets: Tensor | None, lengths: Tensor
) -> tuple[Tensor, State]:
    """Run over sequences that end at ``lengths``, and over none of their padding.

    Steps are run in as many pieces as there are different lengths, each with the sequences that have not ended.

    Returns:
        Features (B, T, output_size), zero after a sequence's end, and the state at each sequence's end.
    """
    if resets is not None:
        require_resets(inputs, resets)
    state, _ = backbone.starting_state(inputs, state)
    if is_symbolic():
        return _hold_after_end(run, inputs, state, resets, lengths.to(inputs.device))
    order, rows = lengths_in_order(lengths.to(inputs.device))
    inputs, state, resets = _rows((inputs, state, resets), order)
    batch_size, num_steps = inputs.shape[:2]
    ended, pieces, begin = [], [], 0
    for end in sorted({*rows} - {0}):
        left = bisect.bisect_right(rows, -end, key=lambda length: -length)  # longest first
        ended.append(map_state(lambda part, at=left: part[at:], state))
        features, state = run(
            inputs[:left, begin:end],
            map_state(lambda part, at=left: part[:at], state),
            None if resets is None else resets[:left, begin:end],
        )
        pieces.append(functional.pad(features, (0, 0, 0, 0, 0, batch_size - left)))
        begin = end
    ended.append(state)
    if begin < num_steps:
        pieces.append(inputs.new_zeros(batch_size, num_steps - begin, backbone.output_size))
    back = order.argsort()
    state = map_state(lambda *parts: torch.cat(parts[::-1])[back], *ended)
    return torch.cat(pieces, dim=1)[back], state


def _hold_after_end(
    run: Run, inputs: Tensor, state: State, resets: Tensor | None, lengths: Tensor
) -> tuple[Tensor, State]:
    """Run step by step and keep the state of what has ended: no shape depends on the lengths."""
    is_real = torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]  # (B, T)
    # NaN in the padding would reach the gradients
    inputs = torch.where(is_real.view(*is_real.shape, *[1] * (inputs.dim() - 2)), inputs, 0)
    pieces = []
    for step in range(inputs.shape[1]):
        now = slice(step, step + 1)
        features, new = run(inputs[:, now], state, None if resets is None else resets[:, now])
        state = replace_state(state, new, is_real[:, step])
        pieces.append(features)
    return torch.where(is_real[..., None], torch.cat(pieces, dim=1), 0), state


def lengths_in_order(lengths: Tensor) -> tuple[Tensor, list[int]]:
    """Return the order that sorts sequences by their lengths, the longest first, and the lengths in that order."""
    order = lengths.argsort(descending=True, stable=True)
    return order, lengths[order].tolist()


def _rows(values: Any, order: Tensor) -> Any:
    return tuple(None if value is None else map_state(lambda part: part[order], value) for value in values)


def read_lengths(lengths: Tensor | Sequence[int], inputs: Tensor) -> Tensor:
    """Return the lengths of the sequences in ``inputs`` (B, T, …) as a tensor (B,).

    Raises:
        ConfigError: They are not integers from 0 to T, one for each sequence.
    """
    found = lengths if isinstance(lengths, Tensor) else torch.tensor(lengths, dtype=torch.long)
    if found.is_floating_point() or found.dtype == torch.bool or found.shape != inputs.shape[:1]:
        raise ConfigError(
            f"lengths must be integers of shape (B,) = {tuple(inputs.shape[:1])}; got {found.dtype} of shape "
            f"{tuple(found.shape)}."
        )
    num_steps = inputs.shape[1]
    if not is_symbolic() and bool(((found < 0) | (found > num_steps)).any()):
        raise ConfigError(f"lengths must be 0 to T = {num_steps}; got lengths={found.tolist()}.")
    return found


def require_resets(inputs: Tensor, resets: Tensor) -> None:
    """Raise a ConfigError if ``resets`` are not bool (B, T) for ``inputs`` (B, T, …)."""
    if not isinstance(resets, Tensor):
        raise ConfigError(f"resets must be a bool tensor (B, T); got a {type(resets).__name__}.")
    if resets.shape != inputs.shape[:2] or resets.dtype != torch.bool:
        raise ConfigError(
            f"resets must be bool of shape (B, T) = {tuple(inputs.shape[:2])}; "
            f"got {resets.dtype} of shape {tuple(resets.shape)}."
        )


def ends_of(
    features: Tensor | PackedSequence, lengths: Tensor | Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the features of each sequence's first and last step, (B, output_size), or of the one sequence's."""
    if isinstance(features, PackedSequence):
        features, lengths = pad_packed_sequence(features, batch_first=True)
    if lengths is None:
        return features.select(-2, 0), features.select(-2, -1)
    last = (read_lengths(lengths, features).to(features.device) - 1).clamp(min=0)
    return features[:, 0], features.take_along_dim(last[:, None, None], dim=1).squeeze(1)


def reverse(sequences: Tensor, lengths: Tensor | None) -> Tensor:
    """Return sequences (B, T, …) from their ends to their starts; padding stays where it is.

    Example:
        >>> reverse(torch.arange(3).repeat(2, 1), torch.tensor([3, 2])).tolist()
        [[2, 1, 0], [1, 0, 2]]
    """
    if lengths is None:
        return sequences.flip(1)
    steps = torch.arange(sequences.shape[1], device=sequences.device)
    mirrored = lengths.to(sequences.device)[:, None] - 1 - steps
    index = torch.where(mirrored < 0, steps, mirrored)
    return sequences.take_along_dim(index.view(*index.shape, *[1] * (sequences.dim() - 2)), dim=1)


def reverse_resets(resets: Tensor, lengths: Tensor | None) -> Tensor:
    """Return where sequences that are read from their ends are reset, if they are cut before the same steps.

    Example:
        >>> reverse_resets(torch.tensor([[False, False, False, True]]), None).tolist()
        [[False, True, False, False]]
    """
    after = functional.pad(resets[:, 1:], (0, 1))  # whether a cut follows a step
    if lengths is not None:  # a cut at the end, before the padding, is none
        steps = torch.arange(1, resets.shape[1] + 1, device=resets.device)
        after = after & (steps < lengths.to(resets.device)[:, None])
    return reverse(after, lengths)
