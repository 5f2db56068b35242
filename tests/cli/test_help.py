"""Help, names of configs, completion: quick, and parsed by what they print."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import rimlit as package
from rimlit.backbones.rim_parts import KINDS
from rimlit.cli import SUBCOMMANDS
from rimlit.cli.completion import OPTIONS
from rimlit.cli.configs import config_names, configs_folder
from rimlit.cli.help import HELP_OF
from rimlit.mechanisms import known_parts
from tests.cli.running import COPYING, rimlit, succeed

ASK = """\
import sys
from rimlit.cli import main
main(sys.argv[1:])
print(*sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["--version"], f"rimlit {package.__version__}\n"),
        (["--help"], f"rimlit {package.__version__}: Recurrent Independent Mechanisms"),
        ([], f"rimlit {package.__version__}: Recurrent Independent Mechanisms"),
        (["configs"], "ablations/copying/rim_without_communication"),
        (["compare", "--help"], "usage: rimlit compare CONFIG"),
        (["export", "--help"], "usage: rimlit export RUN_OR_CHECKPOINT --to FOLDER"),
        (["configs", "--help"], "usage: rimlit configs [CONFIG]"),
        (["doctor", "--help"], "usage: rimlit doctor\n"),
        (["sync", "--help"], "usage: rimlit sync [FOLDER...]"),
    ],
)
def test_an_answer_that_needs_no_torch_comes_without_it(arguments: list[str], start: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith(start)
    assert {"torch", "lightning", "mlflow", "matplotlib", "jsonargparse", "numpy"}.isdisjoint(done.stderr.split())


def test_help_names_every_command_and_how_to_ask_further() -> None:
    text = succeed("--help").out
    for word in (
        "fit",
        "validate",
        "test",
        "predict",
        "compare",
        "export",
        "configs",
        "--version",
        "--trust",
        "RIMLIT_DEBUG",
        "--help",
    ):
        assert word in text


def test_a_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rimlit", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"rimlit {package.__version__}\n"


def test_configs_lists_every_file_with_its_first_line_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = succeed("configs").out
    assert max(map(len, text.splitlines())) <= 80
    listed = [entry.split(maxsplit=1) for entry in re.split(r"\n(?! )", text.strip())]
    files = sorted(configs_folder().rglob("*.yaml"))
    assert len(files) == len(listed) > 0
    for path, (name, first) in zip(files, listed, strict=True):
        assert name == path.relative_to(configs_folder()).with_suffix("").as_posix()
        assert first.split() == path.read_text().splitlines()[0].removeprefix("# ").split()
    assert config_names() == [name for name, _ in listed]


def test_mechanisms_lists_every_part_of_each_kind_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = succeed("mechanisms").out
    assert max(map(len, text.splitlines())) <= 80
    assert [line.removesuffix(":") for line in text.splitlines() if line[0] != " "] == list(KINDS)
    for kind, base in KINDS.items():
        listed = re.findall(r"^  (\w+)", succeed("mechanisms", kind).out, flags=re.MULTILINE)
        assert set(listed) == set(known_parts(base)) and len(listed) > 1
    answer = rimlit("mechanisms", "balances")
    assert answer.code == 2 and "kind must be one of selection, cell" in answer.err
    assert "got kind='balances'" in answer.err


@pytest.mark.parametrize("command", ["", *SUBCOMMANDS])
def test_every_command_has_a_help_that_fits_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = succeed(*command.split(), "--help").out.splitlines()
    assert len(lines) > 3 and command in lines[0 if command else 2]
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["doctor", "now"], "rimlit doctor takes no arguments; got now."),
        (
            ["configs", "copying/rim", "copying/lstm"],
            "rimlit configs takes one name; got copying/rim copying/lstm.",
        ),
    ],
)
def test_arguments_that_a_command_does_not_have_are_refused(arguments: list[str], words: str) -> None:
    answer = rimlit(*arguments)
    assert answer.code == 2
    assert words in answer.err


@pytest.mark.parametrize("command", ["compare", "tune", "summarize"])
def test_each_option_of_the_help_is_completed(command: str) -> None:
    named = set(re.findall(r"^  (--[\w-]+)", HELP_OF[command], flags=re.MULTILINE))
    assert named and named <= set(OPTIONS[command].split())


@pytest.mark.parametrize("name", ["copying/rim", "configs/copying/rim.yaml", "copying/rim.yaml"])
def test_a_config_is_found_by_its_name_and_printed(folder: Path, name: str) -> None:
    assert succeed("configs", name).out == (configs_folder() / "copying/rim.yaml").read_text()


def test_a_file_of_the_user_goes_before_a_shipped_one(folder: Path) -> None:
    (folder / "copying").mkdir()
    (folder / "copying/rim.yaml").write_text("# mine\n")
    assert succeed("configs", "copying/rim.yaml").out == "# mine\n"


def test_the_printed_config_parses_back_to_itself(folder: Path) -> None:
    first = succeed("fit", *COPYING, "--print_config").out
    (folder / "printed.yaml").write_text(first)
    assert succeed("fit", "--config=printed.yaml", "--print_config").out == first
    content = yaml.safe_load(first)
    assert content["model"]["init_args"]["backbone"]["init_args"]["hidden_size"] == 24
    assert content["data"]["init_args"]["test_spans"] == [5, 9]
    assert content["trainer"]["max_steps"] == 4
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_of_a_command_lists_its_settings(command: str) -> None:
    answer = rimlit(command, "--help")
    assert answer.code == 0
    for word in ("--config", "--model", "--data", "--trainer.max_steps", "--ckpt_path", "--seed_everything"):
        assert word in answer.out
    assert not answer.err
    assert {"trainer:", "data module:", "task:", "checkpoint:"} <= set(answer.out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.help=CopyingTask"], ["embedding_size", "recall_length"]),
        (["--data.help=Copying"], ["train_span", "samples_per_span"]),
        (["--model.init_args.backbone.help=RIM"], ["num_active", "communication"]),
    ],
)
def test_help_of_a_class_lists_its_arguments(arguments: list[str], words: list[str]) -> None:
    answer = rimlit("fit", "--config=copying/rim", *arguments)
    assert answer.code == 0, answer.err
    for word in words:
        assert word in answer.out


@pytest.mark.parametrize("shell", ["bash", pytest.param("zsh", marks=pytest.mark.slow)])
def test_completion_is_a_script_for_the_shell(shell: str) -> None:
    pytest.importorskip("shtab")
    answer = rimlit(f"--print_completion=shtab-{shell}")
    assert answer.code == 0, answer.err
    assert "rimlit" in answer.out
    assert "trainer.max_steps" in answer.out
    assert "copying/rim_paper" in answer.out and "--seeds" in answer.out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=answer.out, text=True, check=True, timeout=60)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rimlit ", list(SUBCOMMANDS)),
        ("rimlit ex", ["export"]),
        ("rimlit fit copying/ri", ["copying/rim"]),
        ("rimlit fit --config copying/ri", ["copying/rim"]),
        ("rimlit fit --config = copying/ri", ["copying/rim"]),
        ("rimlit fit --trainer.max_st", ["--trainer.max_steps"]),
        ("rimlit compare copying/ri", ["copying/rim"]),
        ("rimlit compare copying/rim --see", ["--seeds"]),
        ("rimlit configs language/", ["language/rim"]),
        ("rimlit export --t", ["--to"]),
        ("rimlit test --ckpt_path be", ["best"]),
        ("rimlit tune copying/ri", ["copying/rim"]),
        ("rimlit tune copying/rim --tri", ["--trials"]),
        ("rimlit summarize --t", ["--to"]),
        ("rimlit new sel", ["selection"]),
        ("rimlit mechanisms ba", ["balance"]),
    ],
)
def test_completion_in_bash_has_commands_options_and_config_names(
    completion: str, folder: Path, line: str, words: list[str]
) -> None:
    typed = [*line.split(), *([""] if line.endswith(" ") else [])]
    (folder / "completion.sh").write_text(completion)
    script = (
        "source completion.sh",
        f"COMP_WORDS=({' '.join(map(repr, typed))}); COMP_CWORD={len(typed) - 1}",
        f"_rimlit rimlit {typed[-1]!r} {typed[-2]!r}",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    )
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert set(words) <= set(done.stdout.split()), (done.stdout, done.stderr)


@pytest.fixture(scope="module")
def completion() -> str:
    """The completion script for bash."""
    pytest.importorskip("shtab")
    return succeed("--print_completion=shtab-bash").out
