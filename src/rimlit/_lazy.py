"""Public names that are imported when they are first used, and whether the package is installed in full."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

IN_TRAIN = ("lightning", "torchmetrics", "jsonargparse", "numpy")
"""Modules that every training needs; the extra ``train`` installs them."""


def missing_module() -> str | None:
    """Return the first of :data:`IN_TRAIN` that is not installed, None where all are."""
    return next((name for name in IN_TRAIN if importlib.util.find_spec(name) is None), None)


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose names live in the modules ``homes``."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(homes[name])
        except ModuleNotFoundError:
            importlib.import_module("rimlit._train")  # says so in one line where this is the reason
            raise
        return getattr(module, name)

    return get
