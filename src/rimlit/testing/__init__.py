"""Laws of every part, backbone, head, encoder, task and data module; see ``docs/extending.md``."""

from typing import TYPE_CHECKING

from rimlit._lazy import lazy, missing_module
from rimlit.testing import drop_in as drop_in  # its laws are found once it is imported
from rimlit.testing.backbones import check_backbone
from rimlit.testing.laws import Law, check_laws, classes_in, law, laws_of
from rimlit.testing.maps import check_encoder, check_head
from rimlit.testing.parts import check_part, rim_with

if TYPE_CHECKING or missing_module() is None:  # these two need the extra 'train'
    from rimlit.testing.data import check_data_module
    from rimlit.testing.tasks import check_task

__all__ = [
    "Law",
    "check_backbone",
    "check_data_module",
    "check_encoder",
    "check_head",
    "check_laws",
    "check_part",
    "check_task",
    "classes_in",
    "law",
    "laws_of",
    "rim_with",
]

_HOMES = {"check_data_module": "rimlit.testing.data", "check_task": "rimlit.testing.tasks"}
__getattr__ = lazy(__name__, _HOMES)
