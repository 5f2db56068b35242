"""Spaces that are searched, and searches that are killed at any instant."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from rimlit import files
from rimlit.comparison.optuna_search import OptunaSearch, StudyPlace
from rimlit.comparison.space import read_space
from rimlit.comparison.tuning import Trial, tuning_notes
from rimlit.errors import ConfigError, StorageError
from rimlit.tracking.run_folder import RunFolder

LR = "model.optimizer.init_args.lr"
SPACE = {"lr": {"log_uniform": [1e-4, 1e-1]}, "model.backbone.num_active": {"int": [1, 4]}}


def search_in(
    folder: Path, trials: int = 6, space: Any = SPACE, steps: int | None = None, **options: Any
) -> OptunaSearch:
    place = StudyPlace(options.pop("storage", str(folder / "trials.journal")), "copying/tune/rim")
    search = OptunaSearch(
        read_space(space),
        trials,
        0,
        lambda label: RunFolder(folder / f"{label}-seed0"),
        place,
        monitor="val/loss",
        higher_is_better=options.pop("higher_is_better", False),
        steps=steps,
        **options,
    )
    search.open()
    return search


def finish(search: OptunaSearch, trial: Trial, score: float | None = None) -> None:
    """Write what a run leaves behind: its best validation, or that it diverged."""
    folder = search.folder_of(trial.label)
    if score is None:
        folder.write_state(status="failed", error="NonFiniteError")
        return
    folder.write_state(status="finished")
    best = {"metric": "val/loss", "score": score, "higher_is_better": search._is_higher}
    folder.write_results(test={"loss": 1.0}, best_validation=best)


def cost(trial: Trial) -> float:
    return abs(trial.values[LR] - 0.01) + abs(trial.values["model.backbone.num_active"] - 2)


def run(search: OptunaSearch, trials: int) -> list[dict[str, Any]]:
    """Ask for trials and end each at once; return their values."""
    asked = []
    for _ in range(trials):
        trial = search.ask()
        if trial is None:
            break
        finish(search, trial, cost(trial))
        search.note_end(trial)
        asked.append(trial.values)
    return asked


def test_values_stay_in_their_ranges_and_the_best_is_that_of_validation(tmp_path: Path) -> None:
    space = {**SPACE, "model.backbone.cell": ["lstm", {"class_path": "gru"}], "model.x": {"log_int": [2, 64]}}
    search = search_in(tmp_path, 12, space)
    run(search, 20)
    assert len(search.trials) == 12 and search.ask() is None
    for trial in search.trials:
        assert 1e-4 <= trial.values[LR] <= 1e-1
        assert trial.values["model.backbone.num_active"] in range(1, 5)
        assert trial.values["model.x"] in range(2, 65)
        assert trial.values["model.backbone.cell"] in ("lstm", {"class_path": "gru"})
    assert {str(trial.values["model.backbone.cell"]) for trial in search.trials} == {
        "lstm",
        "{'class_path': 'gru'}",
    }
    best = search.best()
    assert best is not None and cost(best) == min(map(cost, search.trials))
    assert search.report()["best"] == best.values


def test_the_highest_is_best_where_higher_is_better(tmp_path: Path) -> None:
    search = search_in(tmp_path, 5, higher_is_better=True)
    run(search, 5)
    best = search.best()
    assert best is not None and cost(best) == max(map(cost, search.trials))


def test_a_search_that_was_stopped_anywhere_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """Asked, told, or neither: the trials are those of an uninterrupted search."""
    whole = run(search_in(tmp_path / "whole", 8), 8)
    found: list[dict[str, Any]] = []
    for stop in range(4):
        search = search_in(tmp_path / "parts", 8)
        assert [trial.values for trial in search.trials] == found
        found += run(search, 1)
        trial = search.ask()
        assert trial is not None
        found.append(trial.values)
        if stop % 2:  # its run ended, which was not noted
            finish(search, trial, cost(trial))
        else:
            search = search_in(tmp_path / "parts", 8)
            finish(search, search.trials[-1], cost(trial))
            search.note_end(search.trials[-1])
        assert search_in(tmp_path / "parts", 8).outcome(trial) is not None
    assert found == whole


def test_a_journal_cut_at_any_byte_loses_no_trial_that_was_told(tmp_path: Path) -> None:
    run(search_in(tmp_path, 4), 3)
    journal = tmp_path / "trials.journal"
    content = journal.read_bytes()
    last = content.rindex(b"\n", 0, -1) + 1
    for cut in (len(content) - 1, (last + len(content)) // 2, last + 1):
        journal.write_bytes(content[:cut])
        os.symlink(journal, journal.with_name("trials.journal.lock"))  # a process that was killed held it
        search = search_in(tmp_path, 4)
        assert len(search.trials) == 3
        assert all(search.outcome(trial) is not None for trial in search.trials)
        assert search.is_over() is False and len(run(search, 4)) == 1
        assert search.is_over()


def test_a_trial_whose_values_were_being_chosen_gets_the_rest(tmp_path: Path) -> None:
    run(search_in(tmp_path, 4), 1)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "trials.journal"))
    )
    half = optuna.load_study(study_name="copying/tune/rim", storage=storage).ask()
    half.suggest_float(LR, 1e-4, 1e-1, log=True)
    search = search_in(tmp_path, 4)
    assert len(search.trials) == 2
    assert set(search.trials[1].values) == {LR, "model.backbone.num_active"}
    assert search.trials[1].values[LR] == half.params[LR]


def test_what_diverged_or_cannot_be_built_is_worst_and_counts(tmp_path: Path) -> None:
    search = search_in(tmp_path, 3)
    first, second = search.ask(), search.ask()
    assert first is not None and second is not None
    finish(search, first)
    search.note_end(first)
    search.refuse(second, "num_active must be at most 3")
    run(search, 1)
    assert [trial["ended"] for trial in search.report()["tried"]] == ["diverged", "refused", "finished"]
    assert search.best() == search.trials[2]
    again = search_in(tmp_path, 3)
    assert again.report() == search.report() and again.ask() is None
    notes = tuning_notes("rim", again.report())
    assert "3 of 3 trials: 1 finished, 1 diverged, 1 refused. Best val/loss of seed 0:" in notes[0]


def test_a_run_that_failed_otherwise_leaves_its_trial_open(tmp_path: Path) -> None:
    search = search_in(tmp_path, 1)
    trial = search.ask()
    assert trial is not None
    search.folder_of(trial.label).write_state(status="failed", error="RuntimeError")
    search.note_end(trial)
    assert search.outcome(trial) is None and search.best() is None and not search.is_over()


def write_curve(search: OptunaSearch, trial: Trial, values: list[float]) -> None:
    path = search.folder_of(trial.label).path
    path.mkdir(parents=True, exist_ok=True)
    rows = [f"{10 * (index + 1)},{value}" for index, value in enumerate(values)]
    (path / "metrics.csv").write_text("\n".join(["step,val/loss", *rows, ""]))


@pytest.mark.parametrize(("prune", "is_pruned"), [(True, True), (False, False)])
def test_a_trial_below_the_median_at_its_step_is_pruned_after_a_quarter_of_the_steps(
    tmp_path: Path, prune: bool, is_pruned: bool
) -> None:
    search = search_in(tmp_path, 7, steps=80, prune=prune)
    for score in (1.0, 1.1, 1.2, 1.3, 1.4):
        trial = search.ask()
        assert trial is not None
        write_curve(search, trial, [score] * 8)
        assert not search.is_hopeless(trial)  # of the first five none is pruned
        finish(search, trial, score)
        search.note_end(trial)
    bad = search.ask()
    assert bad is not None
    write_curve(search, bad, [5.0])
    assert not search.is_hopeless(bad)  # step 10 of 80
    write_curve(search, bad, [5.0, 4.0])
    assert search.is_hopeless(bad) is is_pruned  # step 20: the median of the others is 1.2
    assert not search.is_hopeless(bad)  # said once
    outcome = search.outcome(bad)
    assert (None if outcome is None else outcome.ended) == ("pruned" if is_pruned else None)
    assert search_in(tmp_path, 7, steps=80, prune=prune).outcome(bad) == outcome
    good = search.ask()
    assert good is not None
    write_curve(search, good, [5.0, 1.1])
    assert not search.is_hopeless(good)


def test_another_space_in_the_same_study_is_refused(tmp_path: Path) -> None:
    run(search_in(tmp_path, 3), 1)
    with pytest.raises(ConfigError, match=r"has another space, .*num_active.*another --name"):
        search_in(tmp_path, 3, {"lr": {"log_uniform": [1e-4, 1e-1]}})


def test_a_database_keeps_a_search_too(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/tune.db"
    first = search_in(tmp_path / "runs", 2, storage=storage)
    found = run(first, 1)
    search = search_in(tmp_path / "runs", 2, storage=storage)
    assert [trial.values for trial in search.trials] == found
    for each in (first, search):
        each._storage.remove_session()
        each._storage.engine.dispose()


def test_sqlite_on_a_network_disk_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    places = (("/", "ext4"), (str(tmp_path), "nfs4"))
    disks = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in places]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: disks)
    assert files.network_disk(tmp_path / "a/b.db") == "nfs4"
    assert files.network_disk(Path("/usr")) is None
    with pytest.raises(ConfigError, match=r"SQLite on a network disk \(nfs4\).*name a journal file"):
        search_in(tmp_path, storage=f"sqlite:///{tmp_path}/tune.db")
    run(search_in(tmp_path, 2), 2)  # a journal is fine there


@pytest.mark.parametrize(
    ("storage", "words"),
    [("mysterious://host/db", "cannot be opened: Could not parse|cannot be opened"), ("{folder}/file", "damaged")],
)
def test_a_storage_that_cannot_be_opened_is_one_message(tmp_path: Path, storage: str, words: str) -> None:
    (tmp_path / "file").write_text("no journal\nat all\n")
    with pytest.raises((StorageError, ConfigError), match=words):
        search_in(tmp_path, storage=storage.format(folder=tmp_path))


def test_yaml_s_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("model.optimizer.lr: {log_uniform: [1e-4, 1e-2]}\n")
    (dimension,) = read_space(tmp_path / "space.yaml").dimensions
    assert dimension.values == (0.0001, 0.01)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "must hold settings, such as model.optimizer.lr"),
        ([1], "must hold settings"),
        ({"lr": 0.1}, "lr must have one of uniform, log_uniform"),
        ({"lr": {"log_unform": [1, 2]}}, "'log_unform'.*Did you mean log_uniform"),
        ({"lr": {"uniform": 3}}, r"lr.uniform must be a list.*got 3"),
        ({"lr": {"uniform": [1]}}, r"must be \[LOW, HIGH\].*got \[1\]"),
        ({"lr": {"uniform": [2, 1]}}, r"\[LOW, HIGH\].*got \[2, 1\]"),
        ({"lr": {"log_uniform": [0, 1]}}, r"numbers above 0.*got \[0, 1\]"),
        ({"lr": {"uniform": [0.1, "much"]}}, r"got \[0.1, 'much'\]"),
        ({"lr": {"uniform": [0.1, float("inf")]}}, r"got \[0.1, inf\]"),
        ({"model.a": {"int": [1, 2.5]}}, r"whole numbers.*got \[1, 2.5\]"),
        ({"model.a": {"int": [False, 2]}}, r"got \[False, 2\]"),
        ({"model.a": {"log_int": [0, 2]}}, r"at least 1.*got \[0, 2\]"),
        ({"model.a": ["x"]}, r"two or more different values; got \['x'\]"),
        ({"model.a": ["x", "x"]}, r"two or more different values"),
        ({"seed_everything": [1, 2]}, "begins with model. or trainer.*'seed_everything'"),
        ({"lr": [1, 2], "model.optimizer.lr": [1, 2]}, "has model.optimizer.lr twice"),
    ],
)
def test_a_space_that_cannot_be_searched_names_key_value_and_what_is_allowed(space: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_space(space)


def test_a_space_s_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"space='nowhere.yaml': there is no such file"):
        read_space("nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("lr: [1, 2\n")
    with pytest.raises(ConfigError, match=r"bad.yaml' is not valid YAML"):
        read_space(tmp_path / "bad.yaml")


def test_a_report_is_plain_data_and_a_best_at_an_end_is_named(tmp_path: Path) -> None:
    search = search_in(tmp_path, 1, {"lr": {"log_uniform": [1e-4, 1e-1]}})
    trial = search.ask()
    assert trial is not None
    finish(search, trial, 0.5)
    report = json.loads(json.dumps(search.report()))
    assert report["tried"] == [{"label": "trial-000", "values": trial.values, "score": 0.5, "ended": "finished"}]
    report["best"] = {LR: 0.099}
    assert (
        tuning_notes("rim", report)[1] == "The best lr of rim is near the largest of its range: give larger ones."
    )
