"""Recording of what mechanisms do, for any backbone that has some."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rimlit.backbones.base import Backbone
from rimlit.kernels import Activity

ActivityHook = Callable[[tuple[Activity, ...]], None]


class WatchedBackbone(Backbone):
    """A backbone whose mechanisms can be watched; it implements :class:`rimlit.types.Watched`.

    A subclass passes the activity of all its layers to :meth:`report_activity` in every forward in which
    :attr:`is_watched`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._activity_hooks: list[ActivityHook] = []

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
