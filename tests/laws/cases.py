"""The laws of a kind as pytest parameters."""

from typing import Any

import pytest

from rimlit.testing import Law, laws_of


def name_of(law: Law) -> str:
    return law.__name__.removeprefix("check_")


def law_cases(kind: str) -> list[Any]:
    """A pytest parameter for each law, marked ``slow`` or ``gpu`` where it is."""
    fast, slow = laws_of(kind), laws_of(kind, slow=True)
    return [
        pytest.param(law, id=name_of(law), marks=() if law in fast else _mark(law in slow))
        for law in laws_of(kind, slow=True, gpu=True)
    ]


def _mark(is_slow: bool) -> pytest.MarkDecorator:
    return pytest.mark.slow if is_slow else pytest.mark.gpu
