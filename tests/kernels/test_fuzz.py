"""Random RIMs: every loop that can equals ``eager`` in outputs and all gradients; see ``fuzz.py``."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from rimlit.mechanisms import Dynamics, Sharing, known_parts
from rimlit.mechanisms.communication import INACTIVE, OUTPUTS
from rimlit.mechanisms.selection import MARGINS
from tests.kernels import fuzz
from tests.kernels.fuzz import COMPARED, TOLERANCE, able, covering, differences, draw, kinds, pairs, run

SEEDS = covering(1000)
"""Some forty configurations, which try every pair of values that the first thousand try."""


@pytest.mark.parametrize("seed", SEEDS)
def test_every_loop_that_can_equals_eager(seed: int, threads: Any) -> None:
    case = draw(seed)
    threads(case.threads)
    assert set(COMPARED) <= set(able(case))
    for loop, error, what in differences(case, COMPARED):
        assert error < TOLERANCE, f"{loop}: {what} differs by {error:.3g}: {case}"


@pytest.mark.gpu
@pytest.mark.parametrize("seed", SEEDS)
def test_the_loop_of_a_gpu_equals_eager_there(seed: int) -> None:
    for _, error, what in differences(draw(seed), ["function"], torch.device("cuda")):
        assert error < TOLERANCE, f"{what} differs by {error:.3g}: {draw(seed)}"


def test_the_configurations_have_every_value_of_every_choice() -> None:
    drawn: dict[str, set[Any]] = {}
    for seed in SEEDS:
        for name, value in kinds(draw(seed)).items():
            drawn.setdefault(name, set()).add(value)
    assert [name for name, values in drawn.items() if len(values) == 1] == []
    shipped = {
        kind: {name for name, cls in known_parts(kind).items() if cls.__module__.startswith("rimlit.")}
        for kind in (Dynamics, Sharing)
    }
    assert drawn["cell"] == shipped[Dynamics] - {"schemata"}  # eager alone runs these
    assert drawn["sharing"] == drawn["input_sharing"] == shipped[Sharing]
    assert drawn["selection"] == {*MARGINS, "across_mechanisms", "least_null"}
    assert drawn["communication"] == {*OUTPUTS, "none"}
    assert drawn["communication.inactive"] == {*INACTIVE}
    assert drawn["slots"] == {None, 1, 2, 3}
    assert drawn["table is projected"] == {None, False, True}
    assert drawn["input_heads"] == drawn["communication.heads"] == {1, 2, 3}
    assert drawn["active"] == {"one", "some", "all"}


def test_the_seeds_try_the_pairs_that_other_draws_try() -> None:
    covered = set().union(*(pairs(draw(seed)) for seed in SEEDS))
    others = [pairs(draw(seed)) for seed in range(1000, 1200)]
    assert sum(bool(other - covered) for other in others) <= 2


def test_the_configurations_distinguish_selections() -> None:
    drawn = [seed for seed in SEEDS if kinds(draw(seed))["active"] == "some" and draw(seed).steps > 1][:8]
    masks = [torch.cat([layer.active.flatten(0, 1) for layer in run(draw(seed), "function")[1]]) for seed in drawn]
    assert sum(len(mask.unique(dim=0)) > 1 for mask in masks) >= 7


def report(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fuzz", *words])
    with pytest.raises(SystemExit) as ended:
        fuzz.main()
    return int(ended.value.code or 0)


def test_a_part_of_the_seeds_is_run_and_counted_for_each_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: Any
) -> None:
    assert report(monkeypatch, "--first=3", "--count=2", "--loops", "cpu", "function") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", largest difference")[0] for line in lines] == [
        "cpu: 2 of 2 configurations",
        "function: 2 of 2 configurations",
    ]


def test_a_loop_that_differs_is_named_with_its_seed_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: Any
) -> None:
    def run_wrongly(case: fuzz.Case, loop: str, **options: Any) -> tuple[dict[str, Tensor], list[Any]]:
        found, activities = run(case, loop, **options)
        return {**found, "features": found["features"] + (loop == "cpu")}, activities

    monkeypatch.setattr(fuzz, "run", run_wrongly)
    assert report(monkeypatch, "--first=3", "--count=1") == 1
    out = capsys.readouterr().out
    assert out.startswith("seed 3, cpu: features differs by ")
    assert "\nfunction: 1 of 1 configurations, largest difference" in out
