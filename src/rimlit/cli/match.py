"""``--match``: the width at which a model is as large as another one, solved from the settings of both."""

import logging
import re
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from rimlit.cli.arguments import named_configs, shared_options
from rimlit.cli.failures import cause_of
from rimlit.cli.parser import parse, plain_settings
from rimlit.cli.settings import build_data, build_task, find_target, require_same_data
from rimlit.comparison.matching import match_parameters
from rimlit.errors import ConfigError
from rimlit.tracking.process_names import is_rank_zero

log = logging.getLogger(__name__)


def match_width(parser: LightningArgumentParser, words: list[str], config: Namespace) -> None:
    """Solve the backbone's width and put it into the settings, as if it had been given.

    Args:
        parser: Parser of the command that is run.
        words: Arguments after the command.
        config: Its settings, with ``match`` and ``match_to``.

    Raises:
        ConfigError: There is nothing to match, or no width matches.
    """
    target = find_target(config.match_to, named_configs(words))
    config.match_to = str(target)
    if any(re.match(r"--model\..*\bhidden_size\b", word) for word in words):
        raise ConfigError("hidden_size is what match solves: leave out one of the two.")
    try:
        of_target = parse(parser, ["--config", str(target), *shared_options(words)])
    except ConfigError as error:
        raise ConfigError(f"match_to: {error}") from error
    ours, theirs = (plain_settings(parser, settings) for settings in (config, of_target))
    is_itself = any(Path(path).resolve() == target.resolve() for path in named_configs(words))
    if is_itself and ours["model"]["init_args"]["backbone"] == theirs["model"]["init_args"]["backbone"]:
        raise ConfigError(f"match_to={str(target)!r} is the config itself; name another one.")
    require_same_data({"this config": ours, f"match_to={str(target)!r}": theirs})
    try:
        data = build_data(ours)
        found = match_parameters(
            build_task(ours, data),
            build_task(theirs, data),
            measure=config.match,
            tolerance=config.match_tolerance,
        )
    except Exception as error:
        cause = cause_of(error)
        if cause is None:
            raise
        raise cause from error
    config.model.init_args.backbone.init_args["hidden_size"] = found.width
    if is_rank_zero():
        log.info("Matched to %s: %s.", target, found)
