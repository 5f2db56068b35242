"""``rimlit doctor``: versions, the time loop and why, compiler, GPU, tracking: the contents of a bug report."""

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rimlit._lazy import missing_module
from rimlit._version import __version__
from rimlit.console import in_columns, say
from rimlit.errors import CORE_EXTRA, ConfigError, install_command

PACKAGES = ("torch", "lightning", "torchmetrics", "jsonargparse", "mlflow", "numpy", "triton", "gymnasium")
SECRET = re.compile(r"//[^/@]*@")


def run_doctor(arguments: list[str]) -> None:
    """Print the findings, wrapped at the width of the terminal. The C++ loop is built if it is not there.

    Args:
        arguments: None.

    Raises:
        ConfigError: There are some.
    """
    if arguments:
        raise ConfigError(f"rimlit doctor takes no arguments; got {' '.join(arguments)}.")
    for name, text in findings():
        say(in_columns(f"{name}:" if name else "", text, 12))
    say("\nTo report a bug, send these lines, the command, and its output with\nRIMLIT_DEBUG=1.")


def findings() -> Iterator[tuple[str, str]]:
    """Yield what was found, as a name and a line of text."""
    yield "rimlit", f"{__version__} in {Path(__file__).parents[1]}"
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "system", f"{platform.platform()}, {os.cpu_count()} cores"
    yield "packages", ", ".join(f"{name} {version_of(name)}" for name in PACKAGES)
    missing = missing_module()
    if missing is not None:
        yield "training", f"not possible: {missing} is missing. {install_command(CORE_EXTRA)}"
    yield "compiler", compiler()
    yield from torch_findings()
    yield "tracking", tracking()
    ours = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("RIMLIT_", "OMP_", "MLFLOW_"))
    }
    yield (
        "variables",
        ", ".join(f"{name}={shown(name, value)}" for name, value in ours.items()) or "none set",
    )


def torch_findings() -> Iterator[tuple[str, str]]:
    """Yield what torch says about threads, GPUs and the time loop of a default RIM."""
    import torch

    from rimlit.backbones import RIM

    yield "threads", str(torch.get_num_threads())
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield "GPU", f"{', '.join(names)} (CUDA {torch.version.cuda})"
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        yield "GPU", f"none that torch can use; torch is {built}"
    try:
        loop, why = RIM(4, 12).resolve_backend()
        yield "time loop", f"{loop} on the CPU ({why})"
        if torch.cuda.is_available():
            loop, why = RIM(4, 12).resolve_backend(device=torch.device("cuda"))
            yield "", f"{loop} on the GPU ({why})"
    except ValueError as error:  # RIMLIT_BACKEND
        yield "time loop", str(error)


def version_of(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def compiler() -> str:
    """Return the first line of what the C++ compiler says of itself."""
    command = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(command[0]) is None:
        return f"none: {command[0]!r} is not found, so that the C++ time loop cannot be built"
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout or done.stderr).strip().partition("\n")[0] or f"{command[0]} says nothing"


def tracking() -> str:
    """Return where MLflow keeps runs."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return f"MLflow at {SECRET.sub('//***@', uri)} (MLFLOW_TRACKING_URI)"
    store = Path("mlflow.db")
    return f"MLflow in {store.absolute()}{'' if store.exists() else ', not created yet'}"


def shown(name: str, value: str) -> str:
    """Return the value of a variable, without what is secret."""
    return "***" if re.search(r"TOKEN|PASSWORD|KEY|SECRET", name) else SECRET.sub("//***@", value)
