"""The configs and recorded results that ship with the package."""

from difflib import get_close_matches
from pathlib import Path

from rimlit.console import in_columns, say
from rimlit.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
_CHECKOUT = _PACKAGE.parents[1]
NAME_COLUMNS = 24


def shipped_folder(in_wheel: str, in_checkout: str) -> Path:
    """Return a folder that the wheel holds under one name and the repository under another."""
    folder = _PACKAGE / in_wheel
    return folder if folder.is_dir() else _CHECKOUT / in_checkout


def configs_folder() -> Path:
    """Return the folder of the shipped configs."""
    return shipped_folder("configs", "configs")


def config_names() -> list[str]:
    """Return the names of the shipped configs, such as ``copying/rim``."""
    folder = configs_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """Return the file for a path or for the name of a shipped config.

    Raises:
        ConfigError: There is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = configs_folder() / (name if path.suffix in (".yaml", ".yml") else f"{name}.yaml")
    if shipped.is_file():
        return shipped
    stem = name.removeprefix("configs/").removesuffix(".yaml")
    from_root = configs_folder() / f"{stem}.yaml"
    if from_root.is_file():
        return from_root
    near = get_close_matches(stem, config_names(), n=3, cutoff=0.5)
    hint = f"Did you mean {', '.join(near)}?" if near else "'rimlit configs' lists them."
    raise ConfigError(f"config={name!r} is neither a file nor the name of a shipped config. {hint}")


def run_configs(arguments: list[str]) -> None:
    """Print the list of the shipped configs, or the text of one.

    Args:
        arguments: The name or path of a config; none for the list.

    Raises:
        ConfigError: There is no such config, or more than one is named.
    """
    if len(arguments) > 1:
        raise ConfigError(f"rimlit configs takes one name; got {' '.join(arguments)}.")
    say(
        (find_config(arguments[0]).read_text(encoding="utf-8") if arguments else list_configs()).removesuffix("\n")
    )


def list_configs() -> str:
    """Return each shipped config and the first line of its header, wrapped at the width of the terminal."""
    lines = []
    for name in config_names():
        first = (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        lines.append(in_columns(name, first.removeprefix("#").strip(), NAME_COLUMNS))
    return "\n".join(lines) + "\n"
