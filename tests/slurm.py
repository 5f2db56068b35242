"""A SLURM of one machine, from Debian's packages: slurmctld, slurmd, slurm-client, munge."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "scontrol")
CONFIG = """\
ClusterName=rimlit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobRequeue=1
KillWait=60
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE State=UP
"""
"""Four jobs at a time on any machine; cgroups and plugins of tasks are not needed."""


def why_not() -> str | None:
    """Return why no SLURM can be started here, None where one may."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "slurmd is started by root, on Linux"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"no {lacking[0]}: apt-get install slurmctld slurmd slurm-client munge" if lacking else None


@contextlib.contextmanager
def single_node(folder: Path) -> Iterator[dict[str, str]]:
    """Start a SLURM whose files are in ``folder``; yield the variables with which programs find it.

    Raises:
        RuntimeError: It does not start; the message holds the end of its log.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    config, key = folder / "slurm.conf", folder / "munge.key"
    ports = {name: _free_port() for name in ("control_port", "node_port")}
    config.write_text(CONFIG.format(folder=folder, host=socket.gethostname().partition(".")[0], **ports))
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    variables = {"SLURM_CONF": str(config), "PATH": _path()}
    environment = {**os.environ, **variables}
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
    programs = (
        ["munged", "--force", "--foreground", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D", "-c", "-f", str(config)],
        ["slurmd", "-D", "-N", "node", "-f", str(config)],
    )
    started: list[subprocess.Popen[bytes]] = []
    try:
        for words in programs:
            with (folder / f"{words[0]}.out").open("wb") as out:
                started.append(
                    subprocess.Popen(words, stdout=out, stderr=out, env=environment, start_new_session=True)
                )
            time.sleep(0.5)
        _wait_until_idle(folder, environment, started)
        yield variables
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, check=False, capture_output=True, timeout=60)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
            process.wait()


def _wait_until_idle(folder: Path, environment: dict[str, str], started: list["subprocess.Popen[bytes]"]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and all(process.poll() is None for process in started):
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True, check=False
        )
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = [*folder.glob("*.log"), *folder.glob("*.out")]
    ends = [f"{log.name}: {log.read_text(errors='replace')[-300:]}" for log in logs]
    raise RuntimeError("SLURM does not start. " + " ".join(" ".join(ends).split()))


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
