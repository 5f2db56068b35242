"""What settings may import, and jsonargparse's private names: each is still there and does what is needed."""

import argparse
import copy
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import lightning
import pytest
import torch
import torchmetrics
from jsonargparse import ArgumentParser, Namespace, _common, _paths, _typehints

import rimlit
from rimlit.backbones import RIM
from rimlit.cli._jsonargparse import DENIED, parsing, refuse_functions, setting_names
from rimlit.cli.parser import SettingsReader
from rimlit.errors import ConfigError
from rimlit.mechanisms import SchemataDynamics
from rimlit.spec import build, check_spec, trust
from rimlit.tasks import SchedulerFactory


def chosen(kind: Any, value: Any) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--chosen", type=kind)
    with parsing():
        return parser.parse_args([f"--chosen={value}"]).chosen


@pytest.mark.parametrize("path", ["torch.optim.Adam", "rimlit.backbones.LSTM", "torchmetrics.MeanMetric"])
def test_a_class_of_a_trusted_package_is_imported(path: str) -> None:
    assert chosen(type, path).__name__ == path.rpartition(".")[2]


@pytest.mark.parametrize(
    "path",
    [
        "decimal.Decimal",
        "torch.os.system",
        "torch.serialization.pickle.loads",
        "torch.hub.load",
        "torch.utils.cpp_extension.load",
        "torch.package.PackageImporter",
        "jsonargparse.set_parsing_settings",
        "rimlit.__main__.main",
        "rimlit.kernels.cpu.__main__.build",
    ],
)
def test_anything_else_is_refused(path: str) -> None:
    with pytest.raises(jsonargparse.ArgumentError, match=r"is not allowed, denied by"):
        chosen(Callable[..., Any], path)


def test_trust_is_given_for_as_long_as_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rimlit.spec._trusted_here", set())
    trust("decimal")
    assert chosen(type, "decimal.Decimal").__name__ == "Decimal"
    monkeypatch.setattr("rimlit.spec._trusted_here", set())
    with pytest.raises(jsonargparse.ArgumentError, match="is not allowed"):
        chosen(type, "decimal.Decimal")


def test_another_parser_of_this_process_may_import_what_it_could_before() -> None:
    """``parsing_settings`` is where jsonargparse keeps what is allowed."""
    before = copy.deepcopy(_common.parsing_settings)
    with parsing():
        assert _common.parsing_settings["import_path_verdicts"]["*"] is False
        with parsing():
            pass
        assert _common.parsing_settings["import_path_verdicts"]["*"] is False
    assert _common.parsing_settings == before and "*" not in before["import_path_verdicts"]


@pytest.mark.parametrize("package", [rimlit, torch, lightning, torchmetrics])
def test_no_program_inside_a_trusted_package_can_be_started(package: Any) -> None:
    root = Path(package.__file__).parent
    programs = {
        ".".join(path.relative_to(root.parent).with_suffix("").parts) for path in root.rglob("__main__.py")
    }
    assert programs <= {*DENIED, f"{package.__name__}.__main__"}


def test_a_function_is_refused_wherever_it_stands_and_a_default_is_not() -> None:
    refuse_functions(Namespace(a=[1, "b", {"c": None}], d=Namespace(class_path="torch.optim.Adam")))
    default = Namespace(class_path="torch.nn.TransformerEncoderLayer", init_args=Namespace(activation=torch.relu))
    for value in (torch.relu, functools.partial(torch.relu), default):
        with pytest.raises(ConfigError, match="is not a class"):
            refuse_functions(Namespace(a=[Namespace(b=value)]))
    default.init_args.activation = torch.nn.functional.relu
    refuse_functions(default)
    with pytest.raises(ConfigError, match=r"class_path='torch\.relu' is not a class\."):
        refuse_functions(Namespace(class_path="torch.relu"))


def test_a_path_among_data_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "never_imported.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    refuse_functions(Namespace(options={"class_path": "never_imported.X", "init_args": {}}))
    assert "never_imported" not in sys.modules


def test_a_short_name_stands_for_one_class() -> None:
    """``get_all_subclass_paths`` is what short names are looked up in."""
    found = _typehints.get_all_subclass_paths(torch.optim.lr_scheduler.LRScheduler)
    assert sum(path.endswith(".ReduceLROnPlateau") for path in found) == 2  # Lightning's, too
    given = chosen(SchedulerFactory, "ReduceLROnPlateau")
    assert given.class_path == "torch.optim.lr_scheduler.ReduceLROnPlateau"


@pytest.mark.parametrize("name", ["schemata", "SchemataDynamics"])
def test_a_part_by_a_short_name_with_arguments_is_data(name: str) -> None:
    """``cached_get_class_parser`` would import the class path of anything that has one and arguments."""
    part = {"class_path": name, "init_args": {"num_schemata": 3}}
    words = ["--model.backbone.hidden_size=24", f"--model.backbone.cell={json.dumps(part)}"]
    before = _typehints.cached_get_class_parser
    settings, _ = SettingsReader().read(["--config=copying/rim", *words])
    assert _typehints.cached_get_class_parser is before
    backbone = settings["model"]["init_args"]["backbone"]
    assert backbone["init_args"]["cell"] == part
    check_spec(backbone, ())  # as a checkpoint's
    rim = build(backbone, RIM, 4)
    assert {type(layer.dynamics) for layer in rim.layers} == {SchemataDynamics}


def test_a_short_class_path_with_arguments_is_a_backbone() -> None:
    words = ["--model.backbone.class_path=GRU", "--model.backbone.init_args.num_layers=2"]
    settings, _ = SettingsReader().read(["--config=copying/rim", *words])
    backbone = settings["model"]["init_args"]["backbone"]
    assert (backbone["class_path"], backbone["init_args"]["num_layers"]) == ("rimlit.GRU", 2)


def test_a_config_is_read_as_utf8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``open`` is looked up in jsonargparse's module of paths."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--name", type=str)
    (tmp_path / "a.yaml").write_bytes("\ufeffname: Zoë".encode())
    with parsing():
        with parsing():  # a comparison reads settings inside of a command
            pass
        assert parser.parse_args([f"--config={tmp_path}/a.yaml"]).name == "Zoë"
    assert not hasattr(_paths, "open")


def test_a_parser_tells_the_names_of_its_settings() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--size")
    assert setting_names(parser) == ["size"]
