"""The core needs torch alone: everything else that is installed is hidden from a process that uses it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import rimlit

ROOT = Path(__file__).parents[1]
CORE_PACKAGES = ("mechanisms", "kernels", "backbones", "encoders", "heads", "nn", "testing")
OTHER_PACKAGES = (
    "data",
    "tasks",
    "metrics",
    "tracking",
    "training",
    "pictures",
    "rl",
    "comparison",
    "integrations",
)
CORE_NAMES = {
    *("BRIM", "DNC", "GRU", "LSTM", "NTM", "RIM", "RMC", "RNN", "EntNet", "MinGRU", "Transformer", "Backbone"),
    *("BackboneFactory", "EncoderFactory", "HeadFactory", "__version__", "trust"),
}

HIDE = """
import sys
from importlib.machinery import PathFinder

class CoreFinder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or name.partition(".")[0] in {core!r}:
            return spec
        places = [spec.origin or "", *(spec.submodule_search_locations or [])]
        return None if any("site-packages" in place for place in places) else spec

sys.meta_path[:] = [CoreFinder if finder is PathFinder else finder for finder in sys.meta_path]
"""

USE = """
import contextlib, importlib, io, json, sys
import torch
import rimlit

answers = {}
for name in rimlit.__all__:
    try:
        answers[name] = str(getattr(rimlit, name) is None)
    except ImportError as error:
        answers[name] = f"{type(error).__name__}: {error}"
for name in PACKAGES:
    try:
        importlib.import_module(f"rimlit.{name}")
        answers[f"import {name}"] = "imported"
    except ImportError as error:
        answers[f"import {name}"] = f"{type(error).__name__}: {error}"

rim = rimlit.RIM(3, 12)
features, state = rim(torch.ones(2, 4, 3))
features.sum().backward()
answers["shape"] = list(features.shape)
answers["compiler"] = "torch._dynamo" in sys.modules

from rimlit.testing import check_backbone
from rimlit.testing import laws_of
check_backbone(lambda: rimlit.LSTM(5, 8))
answers["laws"] = sorted(laws_of.__globals__["_laws"])
try:
    from rimlit.testing import check_task
except ImportError as error:
    answers["check_task"] = f"{type(error).__name__}: {error}"

from rimlit.cli import main
for words in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main(words.split())
            code = 0
        except SystemExit as end:
            code = end.code
    answers[words] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(answers))
"""

LIGHT_COMMANDS = ("--version", "--help", "configs", "configs copying/rim")
HEAVY_COMMANDS = (
    "fit copying/rim",
    "compare copying/rim",
    "tune copying/rim",
    "summarize runs",
    "sync",
    "export runs --to out",
    "--print_completion=shtab-bash",
)


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(distributions: list[str]) -> set[str]:
    """These distributions and all that they require without an extra."""
    found: set[str] = set()
    waiting = list(distributions)
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or []:
            requirement, _, marker = line.partition(";")
            if "extra" not in marker and "sys_platform" not in marker and "platform_system" not in marker:
                waiting.append(re.match(r"[\w.-]+", requirement.strip())[0])  # type: ignore[index]
    return found


@pytest.fixture(scope="module")
def core_modules() -> set[str]:
    """Modules that are there after ``pip install rimlit`` without an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]]  # type: ignore[index]
    distributions = requirements_of(names)
    modules = metadata.packages_distributions().items()
    return {"rimlit", *(name for name, homes in modules if distributions & {normal(home) for home in homes})}


@pytest.fixture(scope="module")
def answers(core_modules: set[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process says in which only the core is installed."""
    commands = [*LIGHT_COMMANDS, *HEAVY_COMMANDS]
    given = f"PACKAGES = {[*CORE_PACKAGES, *OTHER_PACKAGES]!r}\nCOMMANDS = {commands!r}\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HIDE.format(core=core_modules) + given + USE],
        cwd=tmp_path_factory.mktemp("core"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_torch_and_what_it_requires_is_all_that_the_core_installs(core_modules: set[str]) -> None:
    assert {"torch", "filelock", "rimlit"} <= core_modules
    assert core_modules.isdisjoint({"lightning", "mlflow", "numpy", "jsonargparse", "yaml", "rich", "matplotlib"})


def test_the_backbones_work_with_torch_alone(answers: dict[str, Any]) -> None:
    assert {name: answers[name] for name in CORE_NAMES} == dict.fromkeys(CORE_NAMES, "False")
    assert {answers[f"import {name}"] for name in CORE_PACKAGES} == {"imported"}
    assert answers["shape"] == [2, 4, 12]
    assert answers["compiler"] is False  # importing it takes seconds
    assert "backbone" in answers["laws"] and "task" not in answers["laws"]


def test_what_needs_lightning_says_in_one_line_how_to_install_it(answers: dict[str, Any]) -> None:
    others = [*(set(rimlit.__all__) - CORE_NAMES), *(f"import {name}" for name in OTHER_PACKAGES), "check_task"]
    texts = {answers[name] for name in others}
    assert texts == {
        "MissingExtraError: This needs lightning, which the extra 'train' installs: pip install '.[train]' in a "
        "checkout, or pip install 'PATH_OF_THE_WHEEL[train]'."
    }


@pytest.mark.parametrize("words", LIGHT_COMMANDS)
def test_a_command_that_trains_nothing_works_with_torch_alone(answers: dict[str, Any], words: str) -> None:
    code, out, err = answers[words]
    assert (code, err) == (0, "") and out


@pytest.mark.parametrize("words", HEAVY_COMMANDS)
def test_a_command_that_needs_lightning_is_refused_in_one_line(answers: dict[str, Any], words: str) -> None:
    code, out, err = answers[words]
    assert (code, out) == (2, "")
    assert err.startswith("rimlit: error: This needs lightning, which the extra 'train' installs: pip install ")
    assert err.count("\n") == 1
