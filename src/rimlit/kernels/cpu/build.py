"""Compile the C++ time loop once per machine, on first use or by ``python -m rimlit.kernels.cpu``."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

from rimlit.files import cache_folder

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("loop.cpp")
SOURCES = (SOURCE, *sorted(SOURCE.parent.glob("*.h")))
FLAGS = (
    "-std=c++20",
    "-shared",
    "-fPIC",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp-simd",
    "-pthread",
)
LIBRARIES = ("-ltorch_cpu",)  # torch's products of matrices
BUILD_SECONDS = 300.0


def library_path() -> Path:
    """Return where this machine's library lies: another processor, torch or source is another file."""
    key = "\0".join((torch.__version__, *FLAGS, *LIBRARIES, *_extra_flags(), platform.machine(), _processor()))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES) + key.encode()).hexdigest()[:16]
    return cache_folder() / f"cpu-{digest}" / "loop.so"


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, built if need be, or None and the reason in one line."""
    try:
        path = library_path()
        if not path.exists():
            if os.environ.get("RIMLIT_BUILD") == "0":
                return None, "RIMLIT_BUILD=0 forbids building the C++ loop"
            _build(path)
        return ctypes.CDLL(str(path)), f"built from C++ for this machine: {path.parent.name}"
    except Exception as error:  # after any failure here another loop is used
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        log.warning("The C++ time loop cannot be used; the slower 'function' runs instead: %s", reason)
        return None, f"C++ cannot be used: {reason}"


def _build(path: Path) -> None:
    """Build ``path``; of processes that start together one builds and the others wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the kernel lets go of this lock if the process that holds it is killed
    with FileLock(path.with_suffix(".lock"), timeout=BUILD_SECONDS):
        if path.exists():
            return
        log.warning("Building the C++ time loop, once for this machine (some ten seconds) …")
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / "loop.so"
            libraries = ("-L", str(Path(torch.__file__).parent / "lib"), *LIBRARIES)
            command = [*_compiler(), *FLAGS, *_extra_flags(), str(SOURCE), "-o", str(built), *libraries]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS)
            if done.returncode != 0:
                raise RuntimeError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
            # a build that is killed leaves no half-written library behind
            os.replace(built, path)


def _compiler() -> list[str]:
    """Return the compiler's command, from the variable that other tools read, too."""
    command = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"there is no C++ compiler {command[0]!r}")
    return command


def _extra_flags() -> list[str]:
    return os.environ.get("RIMLIT_CXXFLAGS", "").split()


def _processor() -> str:
    """Return what -march=native depends on: one home folder may serve machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\0".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def main() -> None:
    """Build the library and print its path, or why it cannot be built."""
    library, reason = load()
    print(f"C++ time loop: {reason if library is None else library_path()}")
