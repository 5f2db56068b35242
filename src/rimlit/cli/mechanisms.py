"""Another number of mechanisms at test time than in training: ``--model.backbone.num_mechanisms``."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from rimlit.spec import with_defaults


def keep_size_of_mechanisms(config: Namespace, checkpoint: Mapping[str, Any]) -> None:
    """Scale ``hidden_size`` with ``num_mechanisms`` where a command gives another number than a checkpoint has.

    Each mechanism keeps its size, which its weights have. Where all mechanisms might be active, all may be. A
    ``hidden_size`` or ``num_active`` that differs from the checkpoint's was given, and stays.

    Args:
        config: Settings of the command, changed in place.
        checkpoint: Contents of the checkpoint whose weights are read.
    """
    task = checkpoint.get("rimlit", {}).get("task")
    saved = with_defaults(task)["init_args"].get("backbone") if task else None
    now = config.model.init_args.get("backbone")
    if not isinstance(saved, Mapping) or not isinstance(now, Namespace) or "init_args" not in now:
        return
    before, own = saved.get("init_args", {}), now.init_args
    old, new, width = before.get("num_mechanisms"), own.get("num_mechanisms"), before.get("hidden_size")
    if not (type(old) is type(new) is type(width) is int) or old == new or width % old:
        return
    if own.hidden_size == width:
        own.hidden_size = width // old * new
    if own.get("num_active") == before.get("num_active") == old:
        own.num_active = new
