"""``slurm.yaml``: submitit's own keys."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rimlit.errors import ConfigError, install_command
from rimlit.yaml_files import load_given

CLUSTERS = ("slurm", "local", "debug")
KEYS = "submitit's keys, such as timeout_min: 240"


def import_submitit() -> Any:
    """Return the module, which asks clusters for SIGUSR1 before the time limit: the signal that rimlit handles.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # for the jobs
    try:
        import submitit
        from submitit.core.job_environment import JobEnvironment
    except ImportError as error:
        raise ConfigError(f"Jobs on a cluster need submitit: {install_command('cluster')}.") from error
    JobEnvironment.USR_SIG = "USR1"  # it may have been imported before
    return submitit


@dataclass(frozen=True)
class JobSettings:
    """An executor of submitit and its parameters.

    Args:
        cluster: ``slurm``; ``local``, processes that outlive this one; ``debug``, this process.
        parameters: Its parameters.
    """

    cluster: str
    parameters: dict[str, Any]

    def parameters_of(self, nodes: int, devices: int) -> dict[str, Any]:
        """Return the parameters for runs of ``devices`` processes on each of ``nodes`` machines.

        Raises:
            ConfigError: The file gives other numbers.
        """
        found = dict(self.parameters)
        for key, value, setting in (("tasks_per_node", devices, "devices"), ("nodes", nodes, "num_nodes")):
            name = {"tasks_per_node": "slurm_ntasks_per_node", "nodes": "slurm_nodes"}[key]
            given = found.get(name, found.get(key, value))
            if given != value:
                raise ConfigError(
                    f"{key} must be trainer.{setting}, one task per process; got {key}={given} and "
                    f"trainer.{setting}={value}."
                )
            found[key] = value
        if self.cluster == "debug" and devices * nodes > 1:
            raise ConfigError(
                f"cluster 'debug' has one process; got trainer.devices={devices}, num_nodes={nodes}."
            )
        if self.cluster == "slurm":
            extra = found.get("slurm_additional_parameters") or {}
            found["slurm_additional_parameters"] = {"requeue": True, **extra}
        return {"name": "rimlit", "stderr_to_stdout": True, **found}


def read_job_settings(path: str | Path) -> JobSettings:
    """Return what a file of submitit's keys holds.

    Args:
        path: A YAML file: ``cluster`` (``slurm`` by default), and keys of submitit's
            ``AutoExecutor.update_parameters`` such as ``timeout_min``, ``cpus_per_task`` and ``slurm_partition``.

    Raises:
        ConfigError: It cannot be read, has an unknown key or a wrong value; submitit or the cluster is missing.
    """
    whose = f"on={str(path)!r}"
    given = load_given(Path(path), whose, KEYS)
    if not isinstance(given, Mapping):
        raise ConfigError(f"{whose} must hold {KEYS}; got {given!r}.")
    submitit = import_submitit()
    settings = dict(given)
    cluster = settings.pop("cluster", "slurm")
    if cluster not in CLUSTERS:
        raise ConfigError(f"{whose}: cluster must be one of {', '.join(CLUSTERS)}; got {cluster!r}.")
    known = parameter_names(submitit)
    for key in settings:
        if key not in known:
            near = get_close_matches(str(key), ["cluster", *known], n=1)
            hint = f" Did you mean {near[0]}?" if near else f" It has cluster, {', '.join(sorted(known))}."
            raise ConfigError(f"{whose}: {key!r} is not a key of submitit.{hint}")
    if cluster != "debug" and not {"timeout_min", f"{cluster}_time", f"{cluster}_timeout_min"} & settings.keys():
        raise ConfigError(f"{whose} must hold timeout_min, the minutes of a job: submitit's default is a few.")
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError(
            f"{whose}: there is no sbatch on this machine. Submit from a node of the cluster, or give "
            "'cluster: local' for processes of this machine."
        )
    if cluster == "slurm" and shutil.which("srun") is None:
        raise ConfigError(
            f"{whose}: there is sbatch on this machine, but no srun, which submitit starts jobs with."
        )
    _try(submitit, cluster, settings, whose)
    return JobSettings(cluster, settings)


def parameter_names(submitit: Any) -> set[str]:
    """Return the keys that submitit accepts: shared ones, and those of each executor with its name in front."""
    executors = {"slurm": submitit.SlurmExecutor, "local": submitit.LocalExecutor}
    shared = set(submitit.AutoExecutor._typed_parameters())
    own = {f"{name}_{key}" for name, executor in executors.items() for key in executor._valid_parameters()}
    return shared | own | {f"{name}_{key}" for name in executors for key in shared}


def _try(submitit: Any, cluster: str, settings: Mapping[str, Any], whose: str) -> None:
    """Refuse values of the wrong type; nothing is written.

    Raises:
        ConfigError: A value is wrong.
    """
    typed = submitit.AutoExecutor._typed_parameters()
    for key, value in settings.items():
        kind = typed.get(key.removeprefix(f"{cluster}_"))
        kind = (int, float) if kind is float else kind
        if kind is not None and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
            name = (
                "a number" if isinstance(kind, tuple) else {int: "a whole number", str: "a word"}.get(kind, "true")
            )
            raise ConfigError(f"{whose}: {key} must be {name}; got {value!r}.")
        if isinstance(value, int) and not isinstance(value, bool) and value < 0:
            raise ConfigError(f"{whose}: {key} must be at least 0; got {value!r}.")
