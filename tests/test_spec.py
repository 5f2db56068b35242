"""Plain descriptions of objects, and which classes may be imported."""

import functools
import gc
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rimlit
from rimlit import spec
from rimlit.backbones import LSTM, RIM, Backbone
from rimlit.data import Copying
from rimlit.errors import ConfigError
from rimlit.spec import (
    Rebuildable,
    build,
    find_class,
    given_arguments,
    non_default_arguments,
    path_of,
    to_plain,
    to_spec,
    trusted_packages,
)


@pytest.fixture(autouse=True)
def no_trust_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "_trusted_here", set())


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A foreign package that can be imported and leaves a mark when it is."""
    (tmp_path / "stranger.py").write_text(
        "from rimlit.backbones import LSTM\nclass Own(LSTM):\n    pass\nclass Other:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "stranger.Own"
    sys.modules.pop("stranger", None)
    gc.collect()  # a class that is alive is found by its path without an import


# Trust


def test_a_class_outside_the_trusted_packages_is_refused_with_the_remedy_and_not_imported(stranger: str) -> None:
    message = (
        r"class_path='stranger\.Own' is outside the trusted packages \(rimlit, torch, lightning, torchmetrics\)\. "
        r"If it is yours, pass --trust stranger or set RIMLIT_TRUST=stranger; "
        r"from Python: rimlit\.trust\('stranger'\)"
    )
    with pytest.raises(ConfigError, match=message):
        find_class(stranger, Backbone)
    assert "stranger" not in sys.modules


@pytest.mark.parametrize(
    "class_path", ["os.system", "builtins.eval", "rimlitx.RIM", "torchvision.models.VGG", "RIM"]
)
def test_a_name_that_only_looks_trusted_is_refused(class_path: str) -> None:
    with pytest.raises(ConfigError, match="is outside the trusted packages"):
        find_class(class_path, Backbone)


def test_the_environment_names_trusted_packages(stranger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIMLIT_TRUST", "another, stranger.models ,")
    assert trusted_packages()[-2:] == ("another", "stranger")
    assert find_class(stranger, Backbone).__name__ == "Own"


def test_python_names_trusted_packages(stranger: str) -> None:
    rimlit.trust("stranger")
    backbone = build({"class_path": stranger, "init_args": {"hidden_size": 5}}, Backbone, 3)
    assert isinstance(backbone, LSTM)
    with pytest.raises(ConfigError, match=r"stranger\.Other' must be a subclass of rimlit\.backbones\.Backbone"):
        find_class("stranger.Other", Backbone)


def test_packages_that_register_as_plugins_are_trusted(stranger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("own", "stranger:Own", "rimlit.plugins")
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] if group == "rimlit.plugins" else []
    )
    monkeypatch.setattr(spec, "_plugins", spec._plugins.__wrapped__)  # what is installed is read once
    assert find_class(stranger, Backbone).__name__ == "Own"


def test_a_subclass_that_is_already_there_needs_no_trust() -> None:
    class Here(LSTM):
        pass

    assert find_class(path_of(Here), Backbone) is Here


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("rimlit.backbones.RIMM", "cannot be imported: module 'rimlit.backbones' has no attribute 'RIMM'"),
        ("rimlit.backbone.RIM", "cannot be imported: No module named 'rimlit.backbone'"),
        ("torch", "cannot be imported: Empty module name"),
        ("torch.nn.LSTM", "must be a subclass of rimlit.backbones.Backbone"),
        ("rimlit.backbones.base.segments", "must be a subclass of rimlit.backbones.Backbone"),
    ],
)
def test_a_path_to_something_else_is_refused_with_what_is_wrong(class_path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_class(class_path, Backbone)
    assert str(caught.value).startswith(f"class_path={class_path!r} {message}")


def test_the_path_of_a_class_is_the_shortest_public_one_and_leads_back() -> None:
    assert path_of(RIM) == "rimlit.backbones.RIM"
    assert path_of(Copying) == "rimlit.data.Copying"
    assert path_of(torch.optim.Adam) == "torch.optim.adam.Adam"
    assert find_class(path_of(RIM), Backbone) is RIM


# Specs


@pytest.mark.parametrize(
    ("factory", "init_args"),
    [
        (RIM, {}),
        (functools.partial(RIM, hidden_size=12, num_active=2), {"hidden_size": 12, "num_active": 2}),
        ({"class_path": "rimlit.backbones.RIM"}, {}),
        ({"class_path": "rimlit.backbones.RIM", "init_args": None}, {}),
        ({"class_path": "rimlit.backbones.RIM", "init_args": {"hidden_size": 12}}, {"hidden_size": 12}),
    ],
)
def test_a_class_a_partial_and_a_dict_become_the_same_spec(factory: Any, init_args: dict[str, Any]) -> None:
    assert to_spec(factory, "backbone") == {"class_path": "rimlit.backbones.RIM", "init_args": init_args}


@pytest.mark.parametrize(
    "factory", [lambda size: size, functools.partial(print, end=""), functools.partial(map, int, float), 3, "RIM"]
)
def test_another_factory_is_refused_with_its_name_and_value(factory: Any) -> None:
    with pytest.raises(ConfigError, match=r"^backbone must be a class, functools\.partial") as caught:
        to_spec(factory, "backbone")
    assert repr(factory) in str(caught.value)


@pytest.mark.parametrize("factory", [{"init_args": {}}, {"class_path": "a.B", "kwargs": {}}])
def test_a_dict_with_other_keys_is_refused_with_them(factory: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must have the keys class_path and init_args; got") as caught:
        to_spec(factory, "backbone")
    assert str(sorted(factory)) in str(caught.value)


def test_plain_data_stays_and_what_is_not_becomes_plain() -> None:
    value = {"a": (1, 2.5), "b": [True, None, "x"], 3: Path("runs"), "c": RIM}
    plain = to_plain(value, "value")
    assert plain == {
        "a": [1, 2.5],
        "b": [True, None, "x"],
        "3": "runs",
        "c": {"class_path": "rimlit.backbones.RIM", "init_args": {}},
    }
    assert json.loads(json.dumps(plain)) == plain


def test_a_value_deep_inside_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^options\.betas\[1\] must be"):
        to_plain({"betas": [0.9, torch.ones(1)]}, "options")


def test_building_gives_the_size_first_and_the_arguments_by_name() -> None:
    backbone = build(to_spec(functools.partial(RIM, hidden_size=12, num_active=3), "backbone"), Backbone, 5)
    assert isinstance(backbone, RIM)
    assert (backbone.input_size, backbone.output_size, backbone.num_active) == (5, 12, 3)


def test_building_with_an_unknown_argument_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^LSTM has no argument 'width'; it has input_size, hidden_size, "):
        build({"class_path": "rimlit.backbones.LSTM", "init_args": {"width": 3}}, Backbone, 5)


# Recording


class Base(Rebuildable):
    def __init__(self, first: int, *, second: Any = "two", **rest: Any) -> None:
        self.first = first


class Renamed(Base):
    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(size + 1, **options)


def test_an_object_remembers_how_it_was_made_whatever_its_base_calls_it() -> None:
    made = Renamed(4, second=(1, 2), third=RIM)
    assert made.first == 5
    assert made.spec["class_path"] == "tests.test_spec.Renamed"
    assert made.spec["init_args"] == {
        "size": 4,
        "second": [1, 2],
        "third": {"class_path": "rimlit.backbones.RIM", "init_args": {}},
    }
    assert Base(1).spec["init_args"] == {"first": 1, "second": "two"}
    again = build(made.spec, Rebuildable)
    assert again.spec == made.spec


def test_positional_arguments_without_names_are_refused() -> None:
    class Loose(Base):
        def __init__(self, *values: Any, **options: Any) -> None:
            super().__init__(*values, **options)

    with pytest.raises(ConfigError, match=r"Loose takes \*values, .* pass them by keyword\. Got 3, 'x'\."):
        Loose(3, "x")
    assert given_arguments(Loose, (), {"first": 3}) == {"first": 3}


def test_only_what_differs_from_the_defaults_is_shown_to_people() -> None:
    made = {
        "class_path": "rimlit.backbones.RIM",
        "init_args": {"hidden_size": 12, "num_mechanisms": 6, "cell": "gru"},
    }
    assert non_default_arguments(made) == {
        "hidden_size": 12,
        "cell": "gru",
    }


def test_a_list_that_equals_a_default_tuple_is_not_shown() -> None:
    made = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-8}}
    assert non_default_arguments(made) == {"lr": 0.1}


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    values = {"a": np.float64(0.5), "b": np.int64(3), "c": torch.tensor(2.5), "d": np.bool_(True)}
    plain = to_plain(values, "x")
    assert plain == {"a": 0.5, "b": 3, "c": 2.5, "d": True}
    assert [type(value) for value in plain.values()] == [float, int, float, bool]
