"""Laws are listed, parametrised and run; classes are found in any package."""

import sys
import unittest
from pathlib import Path

import pytest
import torch

from rimlit import GRU, LSTM
from rimlit.backbones import Backbone
from rimlit.testing import check_backbone, classes_in, laws_of
from rimlit.testing.laws import BrokenError, require_close


def test_slow_laws_and_those_for_a_gpu_are_listed_where_they_are_asked_for() -> None:
    fast, slow, everything = (
        laws_of("backbone"),
        laws_of("backbone", slow=True),
        laws_of("backbone", slow=True, gpu=True),
    )
    assert {law.__name__ for law in slow} - {law.__name__ for law in fast} == {
        "check_compiled_equals_eager",
        "check_exported_takes_any_batch",
        "check_traced_takes_any_batch",
    }
    assert [law.__name__ for law in everything if law not in slow] == ["check_gpu_equals_cpu"]


def test_every_law_says_what_it_states() -> None:
    for kind in ("backbone", "head", "encoder", "task", "data_module"):
        for law in laws_of(kind, slow=True, gpu=True):
            assert law.__doc__ and law.__name__.startswith("check_"), law


def test_an_unknown_kind_or_law_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of .*backbone.*; got kind='colour'\."):
        laws_of("colour")
    with pytest.raises(
        ValueError, match=r"backbone has no law 'check_colours'; it has .*check_step_equals_sequence"
    ):
        check_backbone(lambda: GRU(3, 4), skip=["check_colours"])


def test_a_law_draws_the_same_every_time_and_leaves_the_caller_s_generator_alone() -> None:
    seen = []

    def build() -> GRU:
        backbone = GRU(3, 4)
        seen.append(backbone.recurrent.weight_hh_l0.sum().item())
        return backbone

    law = laws_of("backbone")[0]
    torch.manual_seed(3)
    expected = torch.rand(2).tolist()
    torch.manual_seed(3)
    law(build)
    assert torch.rand(2).tolist() == expected
    count = len(seen)
    law(build)
    assert seen[:count] == seen[count:]


def test_a_law_leaves_the_object_alone_that_it_is_given() -> None:
    backbone = LSTM(3, 4)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    check_backbone(backbone)
    assert backbone.training and all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_law_that_does_not_apply_is_skipped_in_any_test_runner() -> None:
    law = next(law for law in laws_of("backbone") if "tokens" in law.__name__)
    with pytest.raises(unittest.SkipTest, match="the backbone reads slots"):
        law(_reads_slots, torch.randn(2, 5, 3, 4))


def _reads_slots() -> Backbone:
    from rimlit import RIM

    return RIM(4, 6, num_mechanisms=2, num_active=1)


PACKAGE = {
    "__init__.py": "",
    "__main__.py": "raise SystemExit('a program')",
    "models.py": """
        from rimlit import GRU
        from rimlit.backbones import Backbone
        class Unfinished(Backbone): pass
        class Mine(GRU): pass
    """,
    "inner/__init__.py": "",
    "inner/more.py": "from found_backbones.models import Mine\nclass Another(Mine): pass",
}


def test_classes_are_found_in_every_module_of_a_package_and_programs_are_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in PACKAGE.items():
        path = tmp_path / "found_backbones" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.strip() for line in text.splitlines()))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert [cls.__name__ for cls in classes_in("found_backbones", Backbone)] == ["Another", "Mine"]
    finally:
        for name in [name for name in sys.modules if name.startswith("found_backbones")]:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        (torch.ones(2), torch.ones(3), r"^x: got shape \(2,\), expected \(3,\)$"),
        (torch.ones(2), torch.ones(2).double(), r"^x: got dtype torch\.float32, expected torch\.float64$"),
        (torch.tensor([3, 5]), torch.tensor([3, 4]), r"^x at \[1\]: got 5, expected 4; 1 of 2 numbers differ "),
        ({"a": [1]}, {"a": [2]}, r"^x\['a'\]\[0\]: got 1, expected 2$"),
        ([1], [1, 2], "^x: got 1 parts, expected 2$"),
        ((1,), [1], "^x: got a tuple, expected a list$"),
    ],
)
def test_a_difference_is_named_by_its_place(actual: object, expected: object, message: str) -> None:
    with pytest.raises(BrokenError, match=message):
        require_close("x", actual, expected)


def test_nan_equals_nan_in_its_place() -> None:
    values = {"a": torch.tensor([1.0, torch.nan]), "b": [float("nan"), None]}
    require_close("x", {"a": values["a"].clone(), "b": [float("nan"), None]}, values)
