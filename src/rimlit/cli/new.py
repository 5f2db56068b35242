"""``rimlit new KIND NAME``: a class that runs, and its test, in the working directory."""

import keyword
import re
from pathlib import Path

from rimlit.checks import require_known
from rimlit.console import say
from rimlit.errors import ConfigError, StorageError
from rimlit.files import write_file

KINDS = ("task", "backbone", "selection")
TRAIN = {
    "task": "rimlit fit --trust {module} --model {module}.{name} --model.backbone RIM --data {module}.{name}Data "
    "--model.backbone.hidden_size 60 --trainer.max_epochs 5 --model.optimizer AdamW --model.optimizer.lr 1e-3",
    "backbone": "rimlit fit copying/lstm --trust {module} --model.backbone {module}.{name} "
    "--model.backbone.hidden_size 64",
    "selection": "rimlit fit copying/rim --trust {module} --model.backbone.selection {module}.{name}",
}
"""How to train with what was written."""


def run_new(arguments: list[str]) -> None:
    """Write the two files and say how to run them.

    Args:
        arguments: A kind and a name, for example ``selection Fading``.

    Raises:
        ConfigError: The kind or the name is not one.
        StorageError: A file of that name exists, or cannot be written.
    """
    if len(arguments) != 2:
        raise ConfigError(f"rimlit new needs a kind and a name: rimlit new {'|'.join(KINDS)} NAME.")
    kind, given = arguments
    require_known(kind=(kind, KINDS))
    name, module = names_of(given)
    texts = {f"{module}.py": f"{kind}.txt", f"test_{module}.py": f"{kind}_test.txt"}
    for path in texts:
        if Path(path).exists():
            raise StorageError(f"{path} exists. Take another name, or move it away.")
    folder = Path(__file__).with_name("templates")
    for path, template in texts.items():
        text = (folder / template).read_text(encoding="utf-8")
        write_file(Path(path), text.replace("NAME", name).replace("MODULE", module))
    say(f"Wrote {' and '.join(texts)}.")
    say(f"Test it:   pytest test_{module}.py")
    say(f"Train it:  {TRAIN[kind].format(module=module, name=name)}")


def names_of(given: str) -> tuple[str, str]:
    """Return the names of the class and of the module: ``Fading`` and ``fading``, also from ``my-rule``.

    Raises:
        ConfigError: It cannot be the name of a class.
    """
    words = re.findall(r"[A-Z]+[0-9]*(?![a-z0-9])|[A-Z]?[a-z0-9]+", given)
    is_plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", given) is not None
    module = "_".join(word.lower() for word in words)
    if not is_plain or not words or keyword.iskeyword(module):
        raise ConfigError(
            "name must begin with a letter and hold letters, digits, '-' and '_', and must not be a keyword "
            f"of Python; got name={given!r}."
        )
    name = (
        given if given[0].isupper() and given.isalnum() else "".join(word[0].upper() + word[1:] for word in words)
    )
    return name, module
