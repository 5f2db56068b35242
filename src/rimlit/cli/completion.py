"""Completion in bash: shtab has the settings; commands, their own options and config names are added here."""

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

SCRIPT = """
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


def bash_script(commands: list[str]) -> str:
    """Return what follows shtab's script in bash: it calls that one for the options of the settings."""
    own = "\n    ".join(
        f'{command}) COMPREPLY=($(compgen -f -W "{words}" -- "$current")) ;;'
        for command, options in OPTIONS.items()
        for words in (f"{options} $configs" if command in TAKES_CONFIGS else options,)
    )
    return SCRIPT.format(configs=" ".join(config_names()), commands=" ".join(commands), own=own)


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
    try:
        parse(parser, prepare(arguments))
    except SystemExit as end:
        if not end.code and any("bash" in word for word in arguments):
            say(bash_script(commands))
        raise
    finally:
        set_parsing_settings(add_print_completion_argument=False)
