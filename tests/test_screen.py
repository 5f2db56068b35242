"""The screen: which learning rate and which setting of a pool is chosen, and which runs are missing."""

from pathlib import Path
from typing import Any

import pytest
from benchmarks.screen import pools, runs
from benchmarks.screen.runs import Run, tasks, wanted, write_run

SIZE = {"width": 1, "parameters": 1}


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runs, "LOCKS", tmp_path / "locks")


def record(variant: str, rate: float, seed: int, val: float, **scores: Any) -> None:
    write_run(Run("adding", variant, rate, seed), SIZE, {"val": val, "scores": scores})


def test_the_rate_whose_first_seed_is_best_in_validation_gets_the_other_seeds() -> None:
    rates = tasks()["adding"]["rates"]
    assert wanted(["gru"], ["adding"]) == [Run("adding", "gru", rate, 0) for rate in rates]
    for rate, val in zip(rates, (0.3, 0.1, 0.2), strict=True):
        record("gru", rate, 0, val)
    assert wanted(["gru"], ["adding"]) == [Run("adding", "gru", rates[1], seed) for seed in (1, 2)]


def test_all_pools_have_as_many_settings() -> None:
    assert {len(pools.settings(pool, task)) for pool in pools.pools() for task in tasks()} == {6}


def test_a_pool_chooses_among_all_its_variants_and_rates_and_wants_five_seeds_of_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = {"dynamic": {"is": "", "of": {"awake": ["rates"], "sparse": ["rates"]}}}
    monkeypatch.setattr(pools, "pools", lambda: both)
    settings = pools.settings("dynamic", "adding")
    for number, (variant, rate) in enumerate(settings):
        assert pools.best_setting("dynamic", "adding") is None
        record(variant, rate, 0, val=0.1 if number == 4 else 0.5)
    best = pools.best_setting("dynamic", "adding")
    assert best == settings[4] and best.variant == "sparse"
    record(*best, seed=1, val=9.0)  # other seeds do not choose
    assert pools.wanted_by(["dynamic"], ["adding"]) == [Run("adding", *best, seed) for seed in (2, 3, 4)]
    assert list(pools.best_runs("dynamic", "adding")) == [0, 1]


def test_rates_that_only_a_pool_tries_do_not_choose_in_the_screen() -> None:
    task = tasks()["adding"]
    for rate in task["rates"]:
        record("gru", rate, 0, 0.2)
    record("gru", task["more_rates"][0], 0, 0.1)
    best = runs.best_of(runs.settings_of("gru", "adding"), "adding")
    assert best is not None and best.rate in task["rates"]


def test_rates_that_only_a_pool_tries_do_not_stand_in_for_one_of_the_screen() -> None:
    task = tasks()["adding"]
    for rate in (*task["rates"][:2], *task["more_rates"]):
        record("gru", rate, 0, 0.2)
    assert runs.best_of(runs.settings_of("gru", "adding"), "adding") is None
    assert wanted(["gru"], ["adding"]) == [Run("adding", "gru", task["rates"][2], 0)]
