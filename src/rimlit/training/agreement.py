"""Processes that train together agree on settings, data and versions before the first step."""

import os
import platform
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import distributed

from rimlit._version import __version__
from rimlit.data import DataModule
from rimlit.data.base import PLACES
from rimlit.errors import ConfigError
from rimlit.files import sha256_of
from rimlit.spec import flat_settings

OWN_TO_A_PROCESS = ("data.init_args.num_workers", *(f"data.init_args.{name}" for name in PLACES))
"""Settings that decide where a process runs, and not what it computes."""


class RankAgreement(L.Callback):
    """Refuse a run whose processes have different settings, data or versions of the packages.

    Processes that differ in a learning rate or a seed would silently train to wrong weights; with different
    numbers of steps they would wait for each other forever.

    Args:
        settings: The resolved settings of this process, nested by their keys in a config.
        name: Name of the run.
        start: Checkpoint that the run is resumed from; None for a new run. Its content is compared, not its path.

    Raises:
        ConfigError: A setting, the content of the data, a version or a ``RIMLIT_`` variable differs; the message
            names the key and both values. Raised in every process.
    """

    def __init__(self, settings: Mapping[str, Any], *, name: str = "", start: str | None = None) -> None:
        self.settings = settings
        self.name = name
        self.start = start
        self._has_agreed = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare once, when the processes are connected; the test at the end of a fit does not compare again."""
        if trainer.world_size == 1 or self._has_agreed:
            return
        # other stages need not have the files of training, whose digest it is
        mine = facts_of(self.settings, getattr(trainer, "datamodule", None) if stage == "fit" else None)
        mine |= {"name": repr(self.name), "checkpoint that is resumed": "none"}
        if self.start is not None:
            mine["checkpoint that is resumed"] = f"SHA-256 {sha256_of(self.start)}"
        everyone: list[dict[str, str]] = [{} for _ in range(trainer.world_size)]
        distributed.all_gather_object(everyone, mine)
        require_agreement(everyone)
        self._has_agreed = True


def facts_of(settings: Mapping[str, Any], data: Any) -> dict[str, str]:
    """Return the settings and versions, as text by name, that must be equal in all processes of a run."""
    facts = {key: value for key, value in flat_settings(dict(settings)).items() if key not in OWN_TO_A_PROCESS}
    if isinstance(data, DataModule):
        facts["digest of the data"] = getattr(data, "digest", None)
    facts["version of rimlit"] = __version__
    facts["version of torch"] = torch.__version__
    facts["version of lightning"] = L.__version__
    facts["version of Python"] = platform.python_version()
    facts |= {name: value for name, value in os.environ.items() if name in ("RIMLIT_BACKEND", "RIMLIT_BUILD")}
    return {name: repr(value) for name, value in facts.items()}


def require_agreement(everyone: list[dict[str, str]]) -> None:
    """Raise a ConfigError for the first fact in which a process differs from process 0.

    Args:
        everyone: What :func:`facts_of` returned in each process, by rank.
    """
    first = everyone[0]
    for rank, facts in enumerate(everyone[1:], start=1):
        for name in sorted(first.keys() | facts.keys()):
            if first.get(name) != facts.get(name):
                raise ConfigError(
                    f"The processes of a run must have the same settings: {name} is {first.get(name)} in process "
                    f"0 and {facts.get(name)} in process {rank}."
                )
