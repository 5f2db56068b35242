"""rimlit: Recurrent Independent Mechanisms for PyTorch Lightning.

``from rimlit import RIM`` needs torch and not Lightning; names are imported when they are first used, so that
``rimlit --version`` answers without either.
"""

from typing import TYPE_CHECKING

from rimlit._lazy import lazy
from rimlit._version import __version__

if TYPE_CHECKING:
    from rimlit.backbones import (
        BRIM,
        DNC,
        GRU,
        LSTM,
        NTM,
        RIM,
        RMC,
        RNN,
        Backbone,
        BackboneFactory,
        EntNet,
        MinGRU,
        Transformer,
    )
    from rimlit.cli.fit import fit
    from rimlit.comparison import compare, match_parameters
    from rimlit.data import DataModule
    from rimlit.encoders import EncoderFactory
    from rimlit.heads import HeadFactory
    from rimlit.integrations import from_pretrained, pretrained, push_to_hub
    from rimlit.spec import trust
    from rimlit.tasks import OptimizerFactory, SchedulerFactory, Task, load_checkpoint

__all__ = [
    "BRIM",
    "DNC",
    "GRU",
    "LSTM",
    "NTM",
    "RIM",
    "RMC",
    "RNN",
    "Backbone",
    "BackboneFactory",
    "DataModule",
    "EncoderFactory",
    "EntNet",
    "HeadFactory",
    "MinGRU",
    "OptimizerFactory",
    "SchedulerFactory",
    "Task",
    "Transformer",
    "__version__",
    "compare",
    "fit",
    "from_pretrained",
    "load_checkpoint",
    "match_parameters",
    "pretrained",
    "push_to_hub",
    "trust",
]

_HOMES = {
    "BRIM": "rimlit.backbones",
    "DNC": "rimlit.backbones",
    "GRU": "rimlit.backbones",
    "LSTM": "rimlit.backbones",
    "NTM": "rimlit.backbones",
    "RIM": "rimlit.backbones",
    "RMC": "rimlit.backbones",
    "RNN": "rimlit.backbones",
    "Backbone": "rimlit.backbones",
    "BackboneFactory": "rimlit.backbones",
    "EncoderFactory": "rimlit.encoders",
    "EntNet": "rimlit.backbones",
    "HeadFactory": "rimlit.heads",
    "MinGRU": "rimlit.backbones",
    "OptimizerFactory": "rimlit.tasks",
    "SchedulerFactory": "rimlit.tasks",
    "Transformer": "rimlit.backbones",
    "DataModule": "rimlit.data",
    "Task": "rimlit.tasks",
    "compare": "rimlit.comparison",
    "fit": "rimlit.cli.fit",
    "from_pretrained": "rimlit.integrations",
    "load_checkpoint": "rimlit.tasks",
    "match_parameters": "rimlit.comparison",
    "pretrained": "rimlit.integrations",
    "push_to_hub": "rimlit.integrations",
    "trust": "rimlit.spec",
}

__getattr__ = lazy(__name__, _HOMES)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
