"""Parts without time and without Lightning: grouped linear maps, attention, selection, memories."""

from rimlit.nn.attention import attend_slots, communicate
from rimlit.nn.content import address_content
from rimlit.nn.controller import LSTMController
from rimlit.nn.grouped_linear import GroupedLinear
from rimlit.nn.selection import select_active

__all__ = ["GroupedLinear", "LSTMController", "address_content", "attend_slots", "communicate", "select_active"]
