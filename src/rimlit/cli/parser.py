"""The parser of the settings of a command: trainer, data, task and rimlit's own options."""

from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, Namespace  # type: ignore[attr-defined]
from lightning.pytorch.cli import LightningArgumentParser

import rimlit.cli.surroundings  # the classes of these are then known by their short names
import rimlit.rl
import rimlit.training.schedules  # noqa: F401
from rimlit.cli._jsonargparse import parsing, refuse_functions
from rimlit.cli.arguments import resolve_configs
from rimlit.cli.help import SUBCOMMANDS
from rimlit.cli.messages import DEEP_IN_THE_PARSER, explain
from rimlit.cli.options import add_options
from rimlit.cli.places import choose_folder
from rimlit.data import DataModule
from rimlit.errors import ConfigError
from rimlit.tasks import Task

TRAINER_DEFAULTS = {"use_distributed_sampler": False, "num_sanity_val_steps": 0, "devices": 1}
NOT_FOR_THE_USER = {
    *("model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "weights_only", "verbose"),
}
"""Arguments of the trainer's methods that a command gives itself."""


def build_parser(command: str) -> LightningArgumentParser:
    """Return the parser of ``fit``, ``validate``, ``test`` or ``predict``.

    Trainer, data and task are built in this order: the task is given the data's sizes.
    """
    what = SUBCOMMANDS[command]
    parser = _new_parser(
        f"rimlit {command}",
        description=f"{what[0].upper()}{what[1:]}.",
        usage=f"rimlit {command} [CONFIG ...] [--key.of.the.config VALUE ...]",
    )
    parser.add_argument(
        "--seed_everything",
        type=bool | int,
        default=0,
        help="Set to an int to run seed_everything with this value before classes instantiation. "
        "Set to True to use a random seed.",
    )
    parser.add_lightning_class_args(L.Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(Task, "model", subclass_mode=True)
    add_options(parser)
    parser.add_method_arguments(L.Trainer, command, skip=NOT_FOR_THE_USER)
    titles = {"trainer": "trainer", "data": "data module", "model": "task", command: "checkpoint"}
    for name, group in (parser.groups or {}).items():
        group.title = titles[name]  # else the first line of a docstring
    return parser


def build_top_parser(commands: list[str]) -> LightningArgumentParser:
    """Return a parser of all ``commands``, for a completion script."""
    parser = _new_parser("rimlit")
    subcommands = parser.add_subcommands()
    for command in commands:
        subcommands.add_subcommand(command, build_parser(command))
    return parser


def _new_parser(name: str, **options: Any) -> LightningArgumentParser:
    parser = LightningArgumentParser(
        prog=name,
        exit_on_error=False,
        allow_abbrev=False,
        dump_header=[f"lightning.pytorch=={L.__version__}"],
        **options,
    )
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="Path to a configuration file in json or yaml format."
    )
    return parser


def parse(parser: LightningArgumentParser, words: list[str]) -> Namespace:
    """Return the settings that the words behind a command give.

    Raises:
        ConfigError: A mistake, in one message.
    """
    try:
        with parsing():
            settings: Namespace = parser.parse_args(words)
    except (ArgumentError, *DEEP_IN_THE_PARSER) as error:
        raise ConfigError(explain(error, parser)) from error
    refuse_functions(settings)
    return settings


def plain_settings(parser: LightningArgumentParser, settings: Namespace) -> dict[str, Any]:
    """Return what :func:`parse` returned as a config holds it."""
    with parsing():
        plain: dict[str, Any] = yaml.safe_load(parser.dump(settings, skip_none=True))
    return plain


class SettingsReader:
    """Resolves settings as ``rimlit fit`` does, without a run."""

    def __init__(self) -> None:
        self.parser = build_parser("fit")

    def read(self, arguments: list[str]) -> tuple[dict[str, Any], Path]:
        """Return the resolved settings and the folder of the run that ``rimlit fit`` would start.

        Args:
            arguments: What would follow ``fit``.

        Raises:
            ConfigError: They are wrong.
        """
        config = parse(self.parser, resolve_configs(["fit", *arguments])[1:])
        return plain_settings(self.parser, config), choose_folder("fit", config).path
