"""Parts without time and without Lightning: grouped linear maps, attention, selection."""

from rimlit.nn.attention import attend_slots, communicate
from rimlit.nn.grouped_linear import GroupedLinear
from rimlit.nn.selection import select_active

__all__ = ["GroupedLinear", "attend_slots", "communicate", "select_active"]
