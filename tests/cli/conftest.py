"""What a command changes in its process is restored; two small runs are trained once for all tests."""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from rimlit import spec
from rimlit.cli import messages
from tests.cli.running import COPYING, LANGUAGE, succeed, write_novel
from tests.conftest import list_shipped_classes
from tests.processes import Warm


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore what ``main`` changes in the process."""
    monkeypatch.setattr(sys, "argv", ["rimlit"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(spec, "_trusted_here", set())
    list_shipped_classes(monkeypatch, messages)
    environment, handlers = dict(os.environ), list(logging.getLogger("rimlit").handlers)
    # a run that a fixture of the session trained has left the one that writes into its own stderr
    logging.getLogger("rimlit").handlers.clear()
    with warnings.catch_warnings():
        yield
    os.environ.clear()
    os.environ.update(environment)
    logging.getLogger("rimlit").handlers[:] = handlers


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store for all commands: making a fresh one takes seconds.

    MLflow keeps stores by their address for as long as the process lives, so that the default, a file in the
    working directory, would stay in the first one.
    """
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture
def folder(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, outside the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return tmp_path


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A process that has imported the package and starts others."""
    parent = Warm(tmp_path_factory.mktemp("warm"))
    yield parent
    parent.close()


def _train(folder: Path, store: str, *arguments: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("RIMLIT_TRUST", raising=False)
        patch.delenv("PL_GLOBAL_SEED", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", store)
        patch.setattr(sys, "argv", ["rimlit"])
        environment = dict(os.environ)
        succeed("fit", *arguments)
        os.environ.clear()
        os.environ.update(environment)
    return folder


@pytest.fixture(scope="session")
def trained_copying(tmp_path_factory: pytest.TempPathFactory, store: str) -> Path:
    """A working directory in which copying was trained for four steps, tracked by MLflow. Only to be read."""
    return _train(tmp_path_factory.mktemp("copying"), store, *COPYING)


@pytest.fixture(scope="session")
def trained_language(tmp_path_factory: pytest.TempPathFactory, store: str) -> Path:
    """The same for a language model of characters, whose text lies in ``novel``. Only to be read."""
    folder = tmp_path_factory.mktemp("language")
    write_novel(folder)
    return _train(folder, store, *LANGUAGE)


@pytest.fixture
def copying(trained_copying: Path, folder: Path) -> Path:
    """The working directory, with a copy of the trained copying run, to be changed at will; returns the run."""
    shutil.copytree(trained_copying / "runs", folder / "runs")
    return folder / "runs/copying/rim-seed0"


@pytest.fixture
def language(trained_language: Path, folder: Path) -> Path:
    """The same with the language model and its text."""
    shutil.copytree(trained_language / "runs", folder / "runs")
    shutil.copytree(trained_language / "novel", folder / "novel")
    return folder / "runs/language/rim-seed0"
