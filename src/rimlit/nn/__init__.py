"""Parts without time and without Lightning: grouped linear maps, attention, selection, memories, motion."""

from rimlit.nn.attention import attend_slots, communicate
from rimlit.nn.content import address_content
from rimlit.nn.controller import LSTMController
from rimlit.nn.direct import direct
from rimlit.nn.grouped_linear import GroupedLinear
from rimlit.nn.motion import move_cells
from rimlit.nn.selection import select_active

__all__ = [
    "GroupedLinear",
    "LSTMController",
    "address_content",
    "attend_slots",
    "communicate",
    "direct",
    "move_cells",
    "select_active",
]
