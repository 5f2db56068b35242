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
from rimlit.cli.configs import list_configs, read_config
from rimlit.cli.failures import translate
from rimlit.console import guard_streams, say
from rimlit.errors import ConfigError, ProcessError, RimlitError, StoppedError

SUBCOMMANDS = {
    "fit": "train a task, then test the best checkpoint",
    "validate": "score a checkpoint on the validation data",
    "test": "score a checkpoint on the test data",
    "predict": "write a checkpoint's predictions, or continue a prompt",
    "compare": "train several configs with several seeds: one table, one figure per metric",
    "tune": "search settings of one config with one seed: rimlit tune CONFIG --space FILE --trials N",
    "summarize": "statistics over several comparisons: rimlit summarize FOLDER... --to FOLDER",
    "sync": "send to MLflow what it did not take while runs were trained: rimlit sync [FOLDER ...]",
    "export": "write a checkpoint as safetensors, torch program or ONNX: rimlit export RUN --to FOLDER",
    "configs": "list the shipped configs, or print one: rimlit configs copying/rim",
    "new": "write a class that runs, and its test: rimlit new task|backbone|selection NAME",
    "doctor": "print versions, the time loop and why, compiler, GPU, tracking: what a report of a fault needs",
}

HELP = f"""\
rimlit {__version__}: Recurrent Independent Mechanisms for PyTorch Lightning

usage: rimlit COMMAND [CONFIG ...] [--key.of.the.config VALUE ...]

commands:
{chr(10).join(f"  {name:<11}{text}" for name, text in SUBCOMMANDS.items())}

examples:
  rimlit fit copying/rim
  rimlit fit copying/rim --model.backbone.init_args.num_active 3 --seed_everything 1
  rimlit fit --config copying/rim --print_config
  rimlit test --ckpt_path runs/copying/rim-seed0/checkpoints/best.ckpt
  rimlit predict --config language/rim --ckpt_path best --data.prompt "def "
  rimlit compare copying/rim copying/lstm --seeds 3 --match params

help on the settings:
  rimlit COMMAND --help                  everything a command takes
  rimlit fit --model.help CopyingTask    a class's arguments, also for
                                         --model.init_args.backbone.help RIM, --data.help, --trainer.logger.help

other options:
  --version                  print the version
  --trust PACKAGE            allow class paths of PACKAGE in configs and checkpoints (or RIMLIT_TRUST=A,B)
  --print_completion=shtab-bash|shtab-zsh
                             print a completion script (needs the extra 'completion')

Runs are kept in runs/<dataset>/<config>-seed<seed>/ and tracked by MLflow in mlflow.db: see 'mlflow ui'.
What MLflow does not take stays in the run's folder and is sent later; --require_tracking true refuses to start.
MLflow's usage telemetry is off; MLFLOW_DISABLE_TELEMETRY=false turns it on.
RIMLIT_DEBUG=1 shows the traceback of an error.
"""

COMPARE_HELP = """\
usage: rimlit compare CONFIG... [options] [--key.of.the.config VALUE ...]

Train every config with every seed, each as 'rimlit fit' in a process of its own with one thread, and put them side
by side: a table of means and standard deviations over seeds, a figure per metric, a parent run in MLflow. The same
command resumes a comparison that was stopped; finished runs are not repeated.

  CONFIG...                  files, or names that 'rimlit configs' lists; all about the same data
  --seeds 3                  3 means 0, 1, 2; or a list: --seeds 0,5,7
  --match params|flops|state give every other model the smallest hidden_size with no fewer parameters (FLOPs a
                             step, state size) than the one of --match_to
  --match_to CONFIG          by default the first config with a RIM, or the rim.yaml beside the first config
  --match_tolerance 0.05     how much larger a matched model may be, as a share
  --tune lr=0.001,0.003,0.01 train each model with the first seed at each value, and with the other seeds at
                             the value of the best validation; lr is short for model.optimizer.init_args.lr, and
                             other settings of model and trainer work, too; a config's 'tune: {lr: [...]}' wins
  --tune space.yaml --trials N
                             search a space instead (extra 'tune'): every model gets N trials with the first
                             seed, and the other seeds at the best; see 'rimlit tune --help'
  --on slurm.yaml            run as jobs of a cluster by submitit (extra 'cluster'); the file holds its keys
  --no-wait                  submit the jobs and return; with --collect instead, the same command reads them later
  --jobs N                   runs at a time; by default as many as there are cores, one on a GPU, all on a cluster
  --name NAME                keep it in runs/<dataset>/compare-NAME; by default runs/<dataset>/compare
  --trust PACKAGE            as for fit

All other options are passed to every run: --trainer.max_steps 500, --config trainer/quick, --data.batch_size 32.
OMP_NUM_THREADS gives each run more threads. Results do not depend on --jobs.
"""


TUNE_HELP = """\
usage: rimlit tune CONFIG --space space.yaml --trials N [options] [--key.of.the.config VALUE ...]

Train a config with one seed at N points of a space, each as 'rimlit fit' in a process of its own. Optuna chooses
the next point by what was best in validation so far; test scores play no part. The best settings are written as a
config. The same command resumes a search that was stopped or killed: no trial is lost or repeated.

  --space space.yaml         settings, such as model.optimizer.lr: {log_uniform: [0.0001, 0.01]}
                             kinds: uniform, log_uniform, int, log_int: [LOW, HIGH]; choice: [A, B, ...]
  --trials N                 how many trials there are in all
  --seed 0                   seed of all trials
  --prune false              do not stop trials that are worse than the median of the others at the same step
  --storage WHERE            a journal file, or a database's URL; by default a journal in the search's folder
  --on slurm.yaml            run as jobs of a cluster by submitit; --no-wait and --collect as for compare
  --jobs N                   runs at a time; by default as many as there are cores, one on a GPU, 8 on a cluster
  --name NAME                keep it in runs/<dataset>/tune-NAME; by default tune-<config>
  --trust PACKAGE            as for fit
"""


SUMMARIZE_HELP = """\
usage: rimlit summarize FOLDER... [--to FOLDER]

Put the runs of several comparisons, one per dataset, on one scale (0 the floor, 1 the best run) and print each
model's interquartile mean and how often it is better than the first model with the same seed, with 95 % intervals.
With --to the table, a performance profile and all pairs are written to FOLDER: statistics.md, statistics.json,
figures/.
"""


EXPORT_HELP = """\
usage: rimlit export RUN_OR_CHECKPOINT --to FOLDER [--format FORMAT ...] [--sequence STEPS]

Write the task of a checkpoint, or of a run's best one, to a new or empty folder, with a README.md whose code runs
it.

  --to FOLDER                where to write; an earlier export in the same formats is replaced
  --format FORMAT ...        one or several of
                             safetensors  the weights, and the task with its arguments, the data's sizes and the
                                          versions in config.json: rimlit.load_checkpoint("FOLDER") loads the
                                          task, and any other program reads both files. By default
                             torch        model.pt2, a program of torch.export: runs with torch alone
                             onnx         model.onnx: runs with ONNX Runtime and NumPy (extra 'onnx')
  --sequence STEPS           programs run a whole sequence of this length; by default one step,
                             (inputs, *state) -> (outputs, *next state)

Programs take batches of any size and contain encoder and head: they read what the data holds. Each is compared
with the backbone's own step over 20 steps, or over the sequence, before anything is written: a difference above
1e-5 is refused.
"""


NEW_HELP = """\
usage: rimlit new task|backbone|selection NAME

Write a class to a module of that name in the working directory, and a test that runs the laws of rimlit.testing on
it. Both run as they are; the class is an example to change.
"""


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
    """A command with arguments of its own: where its function is, its help, and whether it needs the extra."""

    module: str
    function: str
    help: str | None = None  # None: an empty command runs, and the function takes --help
    needs_extra: bool = True


OWN = {
    "new": Own("new", "run_new", NEW_HELP, needs_extra=False),
    "sync": Own("sync", "sync"),
    "export": Own("export", "run_export", EXPORT_HELP),
    "compare": Own("compare", "run_compare", COMPARE_HELP),
    "tune": Own("compare", "run_tune", TUNE_HELP),
    "summarize": Own("summarize", "run_summarize", SUMMARIZE_HELP),
}


def _run_own(command: Own, arguments: list[str]) -> None:
    if command.help is not None and (not arguments or {"-h", "--help"} & set(arguments)):
        say(command.help.removesuffix("\n"))
        return
    if command.needs_extra:
        _require_extra()
    getattr(importlib.import_module(f"rimlit.cli.{command.module}"), command.function)(arguments)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(HELP.removesuffix("\n"))
    elif arguments[0] == "--version":
        say(f"rimlit {__version__}")
    elif arguments[0] == "configs":
        say((read_config(arguments[1]) if len(arguments) > 1 else list_configs()).removesuffix("\n"))
    elif arguments[0] == "doctor":
        from rimlit.cli.doctor import run_doctor

        run_doctor()
    elif arguments[0] in OWN:
        _run_own(OWN[arguments[0]], arguments[1:])
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
        raise ConfigError(f"{arguments[0]!r} is no command; there are {', '.join(SUBCOMMANDS)}.{hint}")
