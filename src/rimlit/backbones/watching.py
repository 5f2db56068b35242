"""Recording of what mechanisms do, for any backbone that has some."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from rimlit.backbones.base import Backbone
from rimlit.backbones.layouts import Run, lengths_in_order
from rimlit.kernels import Activity
from rimlit.nn.surroundings import is_symbolic
from rimlit.types import State


def _each(function: Callable[..., Tensor], *activities: Activity) -> Activity:
    """Apply ``function`` to every field that is there."""
    fields: list[Any] = [None if parts[0] is None else function(*parts) for parts in zip(*activities, strict=True)]
    return Activity(*fields)


def _join(pieces: tuple[Activity, ...], back: Tensor, num_steps: int) -> Activity:
    """Join what consecutive steps recorded of the sequences that had not ended, which are sorted by length."""

    def join(*parts: Tensor) -> Tensor:
        whole = parts[0].new_zeros(len(back), num_steps, *parts[0].shape[2:])
        begin = 0
        for part in parts:
            whole[: len(part), begin : begin + part.shape[1]] = part
            begin += part.shape[1]
        return whole[back]

    return _each(join, *pieces)


ActivityHook = Callable[[tuple[Activity, ...]], None]


class WatchedBackbone(Backbone):
    """A backbone whose mechanisms can be watched; it implements :class:`rimlit.types.Watched`.

    A subclass passes the activity of all its layers to :meth:`report_activity` in every forward in which
    :attr:`is_watched`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._activity_hooks: list[ActivityHook] = []

    def run_lengths(
        self, run: Run, inputs: Tensor, state: State | None, resets: Tensor | None, lengths: Tensor
    ) -> tuple[Tensor, State]:
        """See :meth:`Backbone.run_lengths`; the activity is reported once, with nothing active in the padding."""
        if not self.is_watched or is_symbolic():
            return super().run_lengths(run, inputs, state, resets, lengths)
        with self._collecting() as pieces:
            result = super().run_lengths(run, inputs, state, resets, lengths)
        if pieces:
            back = lengths_in_order(lengths)[0].argsort().to(inputs.device)
            join = functools.partial(_join, back=back, num_steps=inputs.shape[1])
            self.report_activity(tuple(map(join, zip(*pieces, strict=True))))
        return result

    def run_empty(self, run: Run, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """See :meth:`Backbone.run_empty`; the activity that is reported has no samples either."""
        with self._collecting() as pieces:
            result = super().run_empty(run, inputs, state)
        for activities in pieces:
            self.report_activity(tuple(_each(lambda part: part[:0], activity) for activity in activities))
        return result

    @contextmanager
    def _collecting(self) -> Iterator[list[tuple[Activity, ...]]]:
        """Collect in a list what would be reported, for the hooks that there are."""
        pieces: list[tuple[Activity, ...]] = []
        hooks, self._activity_hooks = self._activity_hooks, [pieces.append] if self.is_watched else []
        try:
            yield pieces
        finally:
            self._activity_hooks = hooks

    def report_activity(self, activities: tuple[Activity, ...]) -> None:
        """Call the hooks with the activity of every layer."""
        for hook in self._activity_hooks:
            hook(activities)

    @contextmanager
    def record_activity(self) -> Iterator[list[Activity]]:
        """Collect what the mechanisms do in the forwards inside the ``with`` block.

        Yields:
            A list to which each forward adds one :class:`Activity` per layer.
        """
        activities: list[Activity] = []
        with self.watch(activities.extend):
            yield activities

    @contextmanager
    def watch(self, hook: ActivityHook) -> Iterator[None]:
        """Call ``hook`` with the activity of every layer in each forward inside the ``with`` block."""
        self._activity_hooks.append(hook)
        try:
            yield
        finally:
            self._activity_hooks.remove(hook)

    @property
    def is_watched(self) -> bool:
        """Whether the activity of forward passes is being recorded."""
        return bool(self._activity_hooks)

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Record no activity inside the ``with`` block; single steps then take the fast path."""
        hooks, self._activity_hooks = self._activity_hooks, []
        try:
            yield
        finally:
            self._activity_hooks = hooks
