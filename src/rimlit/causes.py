"""Where an error comes from: its chain of causes, and the line of the user's own code that raised it."""

import os
import re
import sys
import sysconfig
import traceback


def causes(error: BaseException) -> list[BaseException]:
    """Return an error and what led to it, the outermost first."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def text_of(error: BaseException) -> str:
    """Return an error's class and text in one line, without the traceback of a loader's process."""
    name, text = type(error).__name__, str(error)
    if "Original Traceback" in text:
        name, _, text = text.strip().splitlines()[-1].partition(": ")
    text = " ".join(text.split())
    return f"{name}: {text}" if text else name


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory of the machine or of a GPU is lacking."""
    return re.search(_OUT_OF_MEMORY, text_of(error)) is not None


def place_in_user_code(error: BaseException) -> str:
    """Return the file and line where the user's own code failed, ready to follow a message; else an empty text."""
    in_worker = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', str(error))  # of a loader's process
    frames = [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    for file, line, name in reversed([*frames, *((file, int(line), name) for file, line, name in in_worker)]):
        if _is_users(file):
            return f" [{os.path.relpath(file)}, line {line}, in {name}]"
    return ""


_OUT_OF_MEMORY = (
    r"can't allocate memory|out of memory|bad_?alloc|^MemoryError|^OutOfMemoryError|ArrayMemoryError|"
    r"Unable to allocate"
)
PACKAGE = os.path.dirname(os.path.abspath(__file__))
_INSTALLED = tuple({*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix})


def _is_users(file: str) -> bool:
    is_installed = "site-packages" in file or file.startswith(tuple(f"{root}{os.sep}" for root in _INSTALLED))
    return not file.startswith(("<", PACKAGE + os.sep)) and not is_installed and os.path.isfile(file)
