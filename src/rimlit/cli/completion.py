"""Completion in bash and zsh: shtab has the settings; commands, their options and config names are added here."""

import contextlib
import io
from collections.abc import Iterable, Iterator

from rimlit.cli.configs import config_names
from rimlit.console import say

OPTIONS = {
    "compare": "--seeds --match --match_to --match_tolerance --tune --trials --storage --prune --on --no-wait "
    "--collect --jobs --name --trust --help",
    "tune": "--space --trials --seed --prune --storage --on --no-wait --collect --jobs --name --trust --help",
    "export": "--to --format --sequence --help",
    "summarize": "--to --help",
    "sync": "--help",
    "configs": "--help",
    "mechanisms": "selection cell communication sharing input_sharing balance --help",
    "new": "task backbone selection --help",
    "doctor": "--help",
}
"""Commands whose options the parser of the settings does not have."""

PARSED = ["fit", "validate", "test", "predict"]
"""Commands whose options it has."""

TAKES_CONFIGS = ("compare", "tune", "configs")

BASH = """
_rimlit() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
  [[ $current == = ]] && current=""
  [[ $previous == = ]] && previous="${{COMP_WORDS[COMP_CWORD-2]}}"
  local configs="{configs}"
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=($(compgen -W "{commands} --help --version" -- "$current"))
    return
  fi
  case "$previous" in
    --config|-c|--match_to) COMPREPLY=($(compgen -f -W "$configs" -- "$current")); return ;;
    --format) COMPREPLY=($(compgen -W "safetensors torch onnx" -- "$current")); return ;;
    --to) COMPREPLY=($(compgen -d -- "$current")); return ;;
    --ckpt_path) COMPREPLY=($(compgen -f -W "best last" -- "$current")); return ;;
  esac
  case "$command" in
    {own}
    *)
      if [[ $current != -* && $previous != -* ]]; then
        COMPREPLY=($(compgen -f -W "$configs" -- "$current"))
      else
        _shtab_rimlit "$@"
      fi ;;
  esac
}}
complete -o filenames -F _rimlit rimlit"""


ZSH = """
_rimlit() {{
  local -a configs=({configs})
  if (( CURRENT == 2 )); then
    compadd -- {commands} --help --version
    return
  fi
  case "$words[CURRENT-1]" in
    --config|-c|--match_to) compadd -- $configs; _files; return ;;
    --format) compadd -- safetensors torch onnx; return ;;
    --to) _files -/; return ;;
    --ckpt_path) compadd -- best last; _files; return ;;
  esac
  case "$words[2]" in
    {own}
    *)
      if [[ $PREFIX != -* && $words[CURRENT-1] != -* ]]; then
        compadd -- $configs; _files
      else
        shift words
        (( CURRENT -= 1 ))
        local options="_shtab_rimlit_$words[1]_options"
        _arguments -s "${{(@P)options}}" '*:config:_files'
      fi ;;
  esac
}}
if [[ $zsh_eval_context[-1] != loadautofunc ]]; then
  compdef _rimlit rimlit
else
  _rimlit "$@"
fi"""
END_OF_SHTAB = "\nif [[ $zsh_eval_context"
"""How the part of shtab's script for zsh begins that completes alone."""


def bash_script(commands: list[str]) -> str:
    """Return what follows shtab's script in bash: it calls that one for the options of the settings."""
    own = (f'{name}) COMPREPLY=($(compgen -f -W "{words}" -- "$current")) ;;' for name, words in _own_words())
    return _filled(BASH, commands, own)


def zsh_script(commands: list[str]) -> str:
    """Return what follows shtab's script in zsh."""
    own = (f"{name}) compadd -- {words}; _files ;;" for name, words in _own_words())
    return _filled(ZSH, commands, own)


def _own_words() -> Iterator[tuple[str, str]]:
    """Yield each command of :data:`OPTIONS` and what completes it, in the words of a shell."""
    for command, options in OPTIONS.items():
        yield command, f"{options} $configs" if command in TAKES_CONFIGS else options


def _filled(script: str, commands: list[str], own: Iterable[str]) -> str:
    return script.format(configs=" ".join(config_names()), commands=" ".join(commands), own="\n    ".join(own))


def print_completion(arguments: list[str], commands: list[str]) -> None:
    """Print a completion script and end.

    Raises:
        ConfigError: The shell is not known, or shtab is not installed.
        SystemExit: It was printed.
    """
    from jsonargparse import set_parsing_settings

    from rimlit.cli.parser import build_top_parser, parse
    from rimlit.cli.setup import prepare

    parser = build_top_parser(PARSED)
    set_parsing_settings(add_print_completion_argument=True)  # else it would be an option of every command
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            parse(parser, prepare(arguments))
    except SystemExit as end:
        script = printed.getvalue()
        if not end.code and any("bash" in word for word in arguments):
            script += bash_script(commands)
        elif not end.code and any("zsh" in word for word in arguments):
            script = script.rpartition(END_OF_SHTAB)[0] + zsh_script(commands)
        say(script.removesuffix("\n"))
        raise
    finally:
        set_parsing_settings(add_print_completion_argument=False)
