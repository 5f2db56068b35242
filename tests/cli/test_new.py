"""``rimlit new`` writes classes that run, with tests that pass; ``rimlit doctor`` says what a report needs."""

import subprocess
import sys
from pathlib import Path

import pytest

import rimlit as package
from rimlit.cli.new import KINDS, TRAIN, names_of
from tests.cli.running import rimlit, succeed


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_skeleton_has_a_class_and_a_test_and_says_how_to_run_them(here: Path, kind: str) -> None:
    answer = succeed("new", kind, "MyRule")
    assert sorted(path.name for path in here.iterdir()) == ["my_rule.py", "test_my_rule.py"]
    assert "class MyRule(" in (here / "my_rule.py").read_text(encoding="utf-8")
    for path in here.iterdir():
        assert "NAME" not in path.read_text(encoding="utf-8") and "MODULE" not in path.read_text(encoding="utf-8")
    assert "pytest test_my_rule.py" in answer.out
    assert TRAIN[kind].format(module="my_rule", name="MyRule") in answer.out


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_skeletons_own_test_passes_and_it_trains(here: Path, kind: str) -> None:
    succeed("new", kind, "Sample")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_sample.py"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    words = TRAIN[kind].format(module="sample", name="Sample").split()
    words += ["--trainer.fast_dev_run", "true"]
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=here, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("given", "name", "module"),
    [
        ("Fading", "Fading", "fading"),
        ("my-rule", "MyRule", "my_rule"),
        ("my_rule", "MyRule", "my_rule"),
        ("fading", "Fading", "fading"),
        ("MinGRU2", "MinGRU2", "min_gru2"),
    ],
)
def test_a_name_becomes_a_class_and_a_module(given: str, name: str, module: str) -> None:
    assert names_of(given) == (name, module)


@pytest.mark.parametrize("given", ["", "3rd", "../escape", "a b", "class", "-", "ü"])
def test_a_name_that_cannot_be_one_is_refused(here: Path, given: str) -> None:
    answer = rimlit("new", "task", given)
    assert (answer.code, answer.out) == (2, "")
    assert f"got name={given!r}" in answer.err
    assert list(here.iterdir()) == []


def test_a_kind_that_is_not_known_is_refused(here: Path) -> None:
    answer = rimlit("new", "head", "Mine")
    assert answer.code == 2
    assert "kind must be one of task, backbone, selection; got kind='head'." in answer.err
    assert rimlit("new", "task").code == 2


def test_no_file_is_overwritten(here: Path) -> None:
    (here / "test_fading.py").write_text("mine")
    answer = rimlit("new", "selection", "Fading")
    assert (answer.code, "test_fading.py exists" in answer.err) == (6, True)
    assert not (here / "fading.py").exists() and (here / "test_fading.py").read_text() == "mine"


def test_the_doctor_names_versions_loop_compiler_gpu_and_tracking(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@example.org/mlflow")
    monkeypatch.setenv("RIMLIT_SOME_TOKEN", "abc")
    monkeypatch.setenv("COLUMNS", "2000")  # nothing is wrapped
    lines = dict(line.partition(":")[::2] for line in succeed("doctor").out.splitlines() if ":" in line)
    assert lines["rimlit"].split()[0] == package.__version__
    assert {"Python", "system", "packages", "compiler", "threads", "GPU", "time loop", "tracking"} <= lines.keys()
    assert "torch 2." in lines["packages"] and "mlflow 3." in lines["packages"]
    assert lines["time loop"].split()[0] in ("cpu", "function")
    assert "https://***@example.org/mlflow" in lines["tracking"]
    assert "RIMLIT_SOME_TOKEN=***" in lines["variables"] and "secret" not in lines["variables"]
    assert list(here.iterdir()) == []


def test_the_doctor_wraps_its_lines_at_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("RIMLIT_CXXFLAGS", " ".join(["-O1"] * 40))
    lines = succeed("doctor").out.splitlines()
    assert all(len(line) <= 80 or len(line.split()[-1]) > 60 for line in lines), lines  # long paths stay whole


def test_the_doctor_says_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "none: 'no-such-compiler' is not found" in succeed("doctor").out
