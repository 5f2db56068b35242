"""What every test starts from: one thread, a seed, no override in the environment, tensors of distinct numbers."""

import csv
import logging
import math
import multiprocessing
import os
import random
import signal
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from rimlit import spec
from rimlit.mechanisms import base as parts

torch.set_num_threads(1)
# TorchRL makes "spawn" the way in which all processes start, unless another one was chosen before it is imported
multiprocessing.set_start_method(multiprocessing.get_start_method(), force=True)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what nohup ignores is what some tests send


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--shuffle``."""
    parser.addoption(
        "--shuffle",
        type=int,
        default=None,
        metavar="SEED",
        help="run the files, and the tests of each, in an order drawn from SEED; 0 draws the seed and prints it",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed once; the processes that pytest-xdist starts later take it from their environment."""
    if config.option.shuffle == 0:
        drawn = str(random.SystemRandom().randrange(1, 2**31))
        config.option.shuffle = int(os.environ.setdefault("RIMLIT_TEST_ORDER", drawn))


def pytest_report_header(config: pytest.Config) -> str | None:
    """Print the seed of the order."""
    seed = config.option.shuffle
    return None if seed is None else f"shuffled: --shuffle {seed} gives the same order"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle the files, and the tests in each, so that a fixture of a file is still made once."""
    if config.option.shuffle is None:
        return
    order = random.Random(config.option.shuffle)
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    names = sorted(files)
    order.shuffle(names)
    for name in names:
        order.shuffle(files[name])
    items[:] = [item for name in names for item in files[name]]


def list_shipped_classes(monkeypatch: pytest.MonkeyPatch, where: ModuleType, *modules: str) -> None:
    """Let the messages of a module list the classes of packages, without those that other tests define.

    Args:
        monkeypatch: Puts the module's ``subclasses`` back.
        where: The module.
        modules: Modules whose classes are listed too.
    """

    def listed(base: type) -> list[type]:
        shipped = {*spec.TRUSTED_PACKAGES, *modules}
        return [
            cls for cls in spec.subclasses(base) if {cls.__module__, cls.__module__.split(".")[0]} & {*shipped}
        ]

    monkeypatch.setattr(where, "subclasses", listed)


@pytest.fixture(autouse=True)
def fresh_start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed torch, forget settings of the caller's shell, what other tests logged and the parts they define."""
    list_shipped_classes(monkeypatch, parts, request.module.__name__)
    logging.getLogger("rimlit").setLevel(logging.NOTSET)
    for name in ("RIMLIT_BACKEND", "RIMLIT_TRUST", "PL_GLOBAL_SEED"):
        monkeypatch.delenv(name, raising=False)
    torch.manual_seed(7)


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table with a header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def counting_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return 1, 2, 3, … over their number, in ``shape``."""
    number = math.prod(shape)
    return (torch.arange(1, number + 1, dtype=torch.float64) / number).reshape(shape).to(dtype)


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers that depend on ``seed`` and ``shape`` only."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
