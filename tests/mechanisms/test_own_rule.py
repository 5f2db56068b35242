"""A selection rule of a package of one's own: trained from a YAML, run by the laws, named in the log."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

RULE = '''
import torch
from rimlit.mechanisms import Choice, Selection
from rimlit.nn.selection import select_active


class Rotating(Selection):
    """The K mechanisms of greatest relevance among those that lead by a share of the others' mean."""

    def choose(self, relevance, offset=None):
        lead = relevance - 0.5 * relevance.mean(dim=0)
        active = select_active(lead, self.num_active, offset)
        return Choice(active, torch.where(active, relevance.sigmoid(), 0))
'''
LAWS = """
import pytest
from rules.rotating import Rotating
from rimlit.testing import laws_of, rim_with


@pytest.mark.parametrize("law", laws_of("rim") + laws_of("selection"), ids=lambda law: law.__name__)
def test_the_rule_keeps_the_law(law):
    build = rim_with(selection=Rotating)
    law(build if law in laws_of("rim") else lambda: build().layers[0].selection)
"""
CONFIG = """
model:
  class_path: rimlit.tasks.CopyingTask
  init_args:
    backbone:
      class_path: rimlit.backbones.RIM
      init_args:
        hidden_size: 12
        num_mechanisms: 3
        num_active: 2
        learn_initial_state: true
        selection: {class_path: rules.rotating.Rotating}
data:
  class_path: rimlit.data.Copying
  init_args: {train_span: 3, test_spans: [3], val_size: 4, test_size: 4, batch_size: 4}
trainer: {accelerator: cpu, max_steps: 2, val_check_interval: 2, check_val_every_n_epoch: null}
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "__init__.py").touch()
    (tmp_path / "rules" / "rotating.py").write_text(RULE)
    (tmp_path / "test_rule.py").write_text(LAWS)
    (tmp_path / "rim.yaml").write_text(CONFIG)
    return tmp_path


def start(package: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=package,
        env={**os.environ, "PYTHONPATH": paths, "MLFLOW_TRACKING_URI": f"sqlite:///{package}/mlflow.db"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_rule_is_one_small_class() -> None:
    assert len(RULE[RULE.index("class ") :].strip().splitlines()) <= 15


def test_it_is_trained_by_yaml_named_in_the_log_and_recorded_with_the_run(package: Path) -> None:
    finished = start(package, "rimlit", "fit", "--config", "rim.yaml", "--trust", "rules", "--name", "own")
    assert finished.returncode == 0, finished.stderr[-3000:]
    text = finished.stdout + finished.stderr
    assert (
        text.count("RIM time loop: eager (cpu: does not support Rotating; function: does not support Rotating).")
        == 1
    )
    (saved,) = package.glob("runs/*/own/config.yaml")
    assert "rules.rotating.Rotating" in saved.read_text()
    with contextlib.closing(sqlite3.connect(package / "mlflow.db")) as store:
        assert store.execute("select value from params where key = 'backend'").fetchall() == [("eager",)]


def test_a_rule_that_is_not_trusted_is_refused(package: Path) -> None:
    finished = start(package, "rimlit", "fit", "--config", "rim.yaml", "--name", "own")
    assert finished.returncode == 2
    assert "pass --trust rules" in finished.stderr + finished.stdout


def test_the_laws_run_on_it(package: Path) -> None:
    finished = start(package, "pytest", "-q", "-p", "no:cacheprovider", "test_rule.py")
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert " passed" in finished.stdout
