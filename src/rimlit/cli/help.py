"""The help texts of the commands, at most 80 columns wide."""

from rimlit._version import __version__

SUBCOMMANDS = {
    "fit": "train a task, then test the best checkpoint",
    "validate": "score a checkpoint on the validation data",
    "test": "score a checkpoint on the test data",
    "predict": "write a checkpoint's predictions, or continue a prompt",
    "compare": "train configs with several seeds: a table, a figure per metric",
    "tune": "search settings: rimlit tune CONFIG --space FILE --trials N",
    "summarize": "statistics over comparisons: rimlit summarize FOLDER...",
    "sync": "send to MLflow what it did not take before: rimlit sync [FOLDER...]",
    "export": "write safetensors, torch or ONNX: rimlit export RUN --to FOLDER",
    "configs": "list the shipped configs, or print one: rimlit configs copying/rim",
    "mechanisms": "list the parts of a RIM, or of one kind: rimlit mechanisms balance",
    "new": "write a class and its test: rimlit new task|backbone|selection NAME",
    "doctor": "print versions, time loop, compiler, GPU, tracking, for bug reports",
}

HELP = f"""\
rimlit {__version__}: Recurrent Independent Mechanisms for PyTorch Lightning

usage: rimlit COMMAND [CONFIG ...] [--key.of.the.config VALUE ...]

commands:
{chr(10).join(f"  {name:<10} {text}" for name, text in SUBCOMMANDS.items())}

examples:
  rimlit fit copying/rim
  rimlit fit copying/rim --model.backbone.num_active 3 --seed_everything 1
  rimlit fit --config copying/rim --print_config
  rimlit test --ckpt_path runs/copying/rim-seed0/checkpoints/best.ckpt
  rimlit predict --config language/rim --ckpt_path best --data.prompt "def "
  rimlit compare copying/rim copying/lstm --seeds 3 --match params

help on the settings:
  rimlit COMMAND --help                   everything a command takes
  rimlit fit --model.help CopyingTask     arguments of a class; likewise
                                          --data.help, --trainer.logger.help,
                                          --model.init_args.backbone.help RIM

other options:
  --version           print the version
  --trust PACKAGE     allow class paths of PACKAGE in configs and checkpoints
                      (or RIMLIT_TRUST=A,B)
  --print_completion=shtab-bash|shtab-zsh
                      print a completion script (needs the extra 'completion')

Runs are kept in runs/<dataset>/<config>-seed<seed>/ and tracked by MLflow in
mlflow.db: see 'mlflow ui'. Entries that MLflow does not take stay in the run's
folder and are sent later; --require_tracking true refuses to start without it.
MLflow's usage telemetry is off; MLFLOW_DISABLE_TELEMETRY=false turns it on.
RIMLIT_DEBUG=1 shows the traceback of an error.
"""

COMPARE_HELP = """\
usage: rimlit compare CONFIG... [options] [--key.of.the.config VALUE ...]

Train every config with every seed, each as 'rimlit fit' in a separate process
with one thread, and compare them: a table of means and standard deviations over
seeds, a figure per metric, a parent run in MLflow. The same command resumes a
comparison that was stopped; finished runs are not repeated.

  CONFIG...             files, or names that 'rimlit configs' lists; all of them
                        with the same data
  --seeds 3             3 means 0, 1, 2; or a list: --seeds 0,5,7
  --match params|flops|state
                        give every other model the smallest hidden_size with no
                        fewer parameters (FLOPs per step, state size) than the
                        model of --match_to
  --match_to CONFIG     by default the first config with a RIM, or the rim.yaml
                        beside the first config
  --match_tolerance 0.05
                        how much larger a matched model may be, as a share
  --tune lr=0.001,0.003,0.01
                        train each model with the first seed at each value, and
                        with the other seeds at the value of the best
                        validation; lr is short for
                        model.optimizer.init_args.lr, and other settings of
                        model and trainer work, too; a config's
                        'tune: {lr: [...]}' wins
  --tune space.yaml --trials N
                        search a space instead (extra 'tune'): every model gets
                        N trials with the first seed, and the other seeds at the
                        best; see 'rimlit tune --help'
  --on slurm.yaml       run as jobs of a cluster by submitit (extra 'cluster');
                        the file holds submitit's keys
  --no-wait             submit the jobs and return; the same command with
                        --collect instead reads them later
  --jobs N              runs at a time; by default as many as there are cores,
                        one on a GPU, all on a cluster
  --name NAME           keep it in runs/<dataset>/compare-NAME; by default in
                        runs/<dataset>/compare
  --trust PACKAGE       as for fit

All other options are passed to every run: --trainer.max_steps 500,
--config trainer/quick, --data.batch_size 32. OMP_NUM_THREADS gives each run
more threads. Results do not depend on --jobs.
"""

TUNE_HELP = """\
usage: rimlit tune CONFIG --space space.yaml --trials N [options]
                   [--key.of.the.config VALUE ...]

Train a config with one seed at N points of a space, each as 'rimlit fit' in a
separate process. Optuna chooses the next point from the validations so far;
test scores play no part. The best settings are written as a config. The same
command resumes a search that was stopped or killed: no trial is lost or
repeated.

  --space space.yaml    settings, such as
                        model.optimizer.lr: {log_uniform: [0.0001, 0.01]}
                        kinds: uniform, log_uniform, int, log_int: [LOW, HIGH];
                        choice: [A, B, ...]
  --trials N            how many trials there are in all
  --seed 0              seed of all trials
  --prune false         do not stop trials that are worse than the median of the
                        others at the same step
  --storage WHERE       a journal file, or a database's URL; by default a
                        journal in the search's folder
  --on slurm.yaml       run as jobs of a cluster by submitit; --no-wait and
                        --collect as for compare
  --jobs N              runs at a time; by default as many as there are cores,
                        one on a GPU, 8 on a cluster
  --name NAME           keep it in runs/<dataset>/tune-NAME; by default in
                        tune-<config>
  --trust PACKAGE       as for fit
"""

SUMMARIZE_HELP = """\
usage: rimlit summarize FOLDER... [--to FOLDER]

Put the runs of several comparisons, one per dataset, on one scale (0 the floor,
1 the best run) and print each model's interquartile mean and how often it is
better than the first model with the same seed, with 95 % intervals.

  --to FOLDER           write the table, a performance profile and all pairs to
                        FOLDER: statistics.md, statistics.json, figures/
"""

EXPORT_HELP = """\
usage: rimlit export RUN_OR_CHECKPOINT --to FOLDER [--format FORMAT ...]
                     [--sequence STEPS]

Write the task of a checkpoint, or of a run's best one, to a new or empty
folder, with a README.md whose code runs it.

  --to FOLDER        where to write; an earlier export in the same formats is
                     replaced
  --format FORMAT ...
                     one or several of
                     safetensors  the default: the weights, and in config.json
                                  the task with its arguments, the data's sizes
                                  and the versions. Any program can read both;
                                  rimlit.load_checkpoint("FOLDER") loads it
                     torch        model.pt2, a program of torch.export: runs
                                  with torch alone
                     onnx         model.onnx: runs with ONNX Runtime and NumPy
                                  (extra 'onnx')
  --sequence STEPS   programs run a whole sequence of this length; by default
                     one step, (inputs, *state) -> (outputs, *next state)

Programs accept batches of any size and contain encoder and head: they read what
the data holds. Each is compared with the backbone's own step over 20 steps, or
over the sequence, before anything is written: a difference above 1e-5 is
refused.
"""

MECHANISMS_HELP = """\
usage: rimlit mechanisms [KIND ...]

List the parts that the mechanisms of a RIM are made of, by kind: selection,
cell, communication, sharing, input_sharing, balance. Each short name is a value
of the argument of that kind: --model.backbone.selection entmax.
docs/mechanisms.md describes them.
"""

NEW_HELP = """\
usage: rimlit new task|backbone|selection NAME

Write a class to a module of that name in the working directory, and a test that
runs the laws of rimlit.testing on it. Both run unchanged; the class is an
example to edit.
"""

SYNC_HELP = """\
usage: rimlit sync [FOLDER...]

Send to MLflow the entries that it did not take while runs were trained, for
example because its server was down. FOLDERs are runs, or hold runs; the default
is runs.
"""

CONFIGS_HELP = """\
usage: rimlit configs [CONFIG]

List the shipped configs, each with what it trains, or print one of them. Every
name works where a command takes a config: rimlit fit copying/rim.
"""

DOCTOR_HELP = """\
usage: rimlit doctor

Print what a bug report needs: versions, compiler, GPU, the time loop of a RIM
and why it was chosen, where runs are tracked, and the environment variables
that matter. Builds the C++ loop if it has not been built yet.
"""

HELP_OF = {
    "compare": COMPARE_HELP,
    "tune": TUNE_HELP,
    "summarize": SUMMARIZE_HELP,
    "sync": SYNC_HELP,
    "export": EXPORT_HELP,
    "configs": CONFIGS_HELP,
    "mechanisms": MECHANISMS_HELP,
    "new": NEW_HELP,
    "doctor": DOCTOR_HELP,
}
"""Commands whose help is a text; the others have a parser."""
