"""The page about mechanisms: its rule and its test run unchanged, and its table is what the loops say."""

import importlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmarks.tables import mechanisms

from rimlit import RIM
from rimlit.cli import main
from rimlit.mechanisms import LeastNull, NoCommunication
from rimlit.testing import check_laws

PAGE = (mechanisms.ROOT / "docs/mechanisms.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def fading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module of the page's rule, imported once: a class that is made twice cannot be pickled."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "fading.py").write_text(FILES["fading.py"], encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield importlib.import_module("fading")
    sys.path.remove(str(folder))


def test_a_rule_takes_at_most_12_lines_and_keeps_the_laws_of_selections(fading: ModuleType) -> None:
    assert len([line for line in FILES["fading.py"].splitlines() if line.strip()]) <= 12
    check_laws("selection", lambda: fading.Fading(5, 2))


def test_the_log_quotes_the_reasons_of_the_page(fading: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    rim = RIM(3, 20, num_mechanisms=5, num_active=2, selection={"class_path": "fading.Fading"})
    with caplog.at_level(logging.INFO, "rimlit"):
        rim(torch.ones(2, 3, 3))
    (message,) = (text for text in caplog.messages if text.startswith("RIM time loop"))
    assert f"`{message}`" in PAGE


@pytest.mark.slow
def test_the_test_of_the_page_passes(fading: ModuleType) -> None:
    namespace: dict[str, object] = {}
    exec(FILES["test_fading.py"], namespace)  # the page's own text
    (test,) = (function for name, function in namespace.items() if name.startswith("test_"))
    test()  # type: ignore[operator]


@pytest.mark.slow
def test_the_command_of_the_page_trains_the_rule(
    fading: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^rimlit (fit .*)$", PAGE, re.MULTILINE)
    small = "--config trainer/quick --trainer.max_steps 2 --data.test_size 2 --data.val_size 2 --data.batch_size 2"
    main([*command.split(), *small.split(), "--data.test_spans", "[10]", "--data.train_span", "10"])
    assert "fading.Fading" in (tmp_path / "runs/copying/rim-seed0/config.yaml").read_text(encoding="utf-8")


def test_the_python_example_runs() -> None:
    (example,) = re.findall(r"^```python\n(import functools\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    exec(example, {})  # the page's own text


def test_the_table_is_what_the_loops_say() -> None:
    assert f"<!-- table:parts -->\n{mechanisms.parts()}\n<!-- end -->" in PAGE
    assert mechanisms.loops(mechanisms.build()) == "all"


def test_the_table_is_the_same_on_a_machine_without_a_compiler_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = mechanisms.build(), mechanisms.build(soft_cap=5.0)
    expected = [mechanisms.loops(layer) for layer in layers]
    monkeypatch.setattr("rimlit.kernels.loops._load_cpu", lambda: (False, "no compiler"))
    monkeypatch.setattr("rimlit.kernels.triton.load", lambda: (None, "no Triton"))
    where = mechanisms.Where(torch.device("cpu"), torch.float32)
    assert mechanisms.LOOPS["cpu"].cannot(layers[0], where) == "is not built: no compiler"
    assert [mechanisms.loops(layer) for layer in layers] == expected == ["all", expected[1]]
    assert "not triton" in expected[1]


def test_a_subclass_with_a_rule_of_its_own_runs_in_eager_alone() -> None:
    class MyRule(LeastNull):
        pass

    found = mechanisms.loops(mechanisms.build(selection=MyRule))
    assert found == "eager; not cpu, function, triton, reference: does not support MyRule"


def test_sources_and_first_lines_are_read_from_docstrings() -> None:
    assert mechanisms.source_of(NoCommunication) == "the paper's ablation"
    assert mechanisms.first_line(NoCommunication) == "Mechanisms do not read each other"
    assert mechanisms.in_yaml("selection", {"graded": True}) == "`selection: {graded: true}`"
