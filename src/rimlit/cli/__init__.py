"""The command ``rimlit``. This module imports neither torch nor Lightning, so that help answers at once."""

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from rimlit._version import __version__
from rimlit.cli.failures import translate
from rimlit.cli.help import HELP, HELP_OF, SUBCOMMANDS
from rimlit.console import guard_streams, say
from rimlit.errors import ConfigError, ProcessError, RimlitError, StoppedError


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with the codes of :mod:`rimlit.errors`.

    Args:
        argv: Arguments without the program's name; by default those of the process.
    """
    if argv is None:  # the process is this command's own
        guard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _require_numbers()
        _dispatch(arguments)
    except KeyboardInterrupt:  # before a run listens, or where there is nothing to save
        if os.environ.get("RIMLIT_DEBUG"):
            traceback.print_exc()
        say("rimlit: interrupted", sys.stderr)
        raise SystemExit(130) from None
    except ProcessError as error:
        raise SystemExit(error.exit_code) from None  # the reason has been printed
    except Exception as raised:
        failure = translate(raised)
        if os.environ.get("RIMLIT_DEBUG"):
            traceback.print_exc()
        if isinstance(failure, StoppedError) and argv is None:  # the process is this command's own, and ends now
            for signum in ("SIGINT", "SIGTERM", "SIGUSR1"):
                if hasattr(signal, signum):
                    signal.signal(getattr(signal, signum), signal.SIG_IGN)
        say(f"rimlit: error: {_text_of(failure)}", sys.stderr)
        raise SystemExit(failure.exit_code) from None


NUMBERS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_PORT", "PL_GLOBAL_SEED"),
    *("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
)
"""Variables of the environment that Lightning reads as whole numbers, some already while it is imported."""


def _require_numbers() -> None:
    for name in NUMBERS:
        value = os.environ.get(name, "")
        if value and not value.removeprefix("-").isdecimal():
            raise ConfigError(f"{name} in the environment must be a whole number; got {value!r}.")


def _text_of(error: RimlitError) -> str:
    """Return an error's message in one printable line, without the traceback of a loader's process."""
    text = str(error)
    if "Original Traceback" in text:
        text = text[text.rindex(f"{type(error).__name__}: ") :].removeprefix(f"{type(error).__name__}: ").strip()
    text = "".join(sign if sign.isprintable() else " " for sign in " ".join(text.split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 500]} … {text[-500:]}"


LONGEST = 2000
"""Characters of a message that are shown; of a longer one the middle is left out."""


def _require_extra() -> None:
    """Answer in one line where only the core is installed."""
    import rimlit._train  # noqa: F401


class Own(NamedTuple):
    """A command with arguments of its own: where its function is, and what it needs."""

    module: str
    function: str
    needs_arguments: bool = True  # without any it shows its help
    needs_extra: bool = True


OWN = {
    "new": Own("new", "run_new", needs_extra=False),
    "sync": Own("sync", "sync", needs_arguments=False),
    "configs": Own("configs", "run_configs", needs_arguments=False, needs_extra=False),
    "mechanisms": Own("parts", "run_mechanisms", needs_arguments=False, needs_extra=False),
    "doctor": Own("doctor", "run_doctor", needs_arguments=False, needs_extra=False),
    "export": Own("export", "run_export"),
    "compare": Own("compare", "run_compare"),
    "tune": Own("compare", "run_tune"),
    "summarize": Own("summarize", "run_summarize"),
}


def _run_own(name: str, arguments: list[str]) -> None:
    command = OWN[name]
    if {"-h", "--help"} & set(arguments) or (command.needs_arguments and not arguments):
        say(HELP_OF[name].removesuffix("\n"))
        return
    if command.needs_extra:
        _require_extra()
    getattr(importlib.import_module(f"rimlit.cli.{command.module}"), command.function)(arguments)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(HELP.removesuffix("\n"))
    elif arguments[0] == "--version":
        say(f"rimlit {__version__}")
    elif arguments[0] in OWN:
        _run_own(arguments[0], arguments[1:])
    elif arguments[0].startswith("--print_completion"):
        _require_extra()
        from rimlit.cli.completion import print_completion

        print_completion(arguments, list(SUBCOMMANDS))
    elif arguments[0] in SUBCOMMANDS:
        _require_extra()
        from rimlit.cli.run import run

        run(arguments)
    else:
        near = get_close_matches(arguments[0], SUBCOMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{arguments[0]!r} is not a command; there are {', '.join(SUBCOMMANDS)}.{hint}")
