"""Statistics over tasks and seeds, against what can be worked out by hand, and where they are written."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import trim_mean

from rimlit.comparison import Comparison, Study
from rimlit.comparison.statistics import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from rimlit.comparison.study import study_of
from rimlit.errors import DataError
from tests.cli import running
from tests.comparison.test_results import model, results


def test_an_interval_is_the_percentiles_of_means_with_each_task_s_seeds_drawn_again() -> None:
    """Against a bootstrap written out as loops: strata that were mixed would be as wide as all scores together."""
    tasks = [[0.0, 0.1, 0.2, 0.3], [0.8, 0.9, 0.9, 1.0]]
    found = interquartile_mean(tasks)
    assert found.value == pytest.approx(trim_mean([score for task in tasks for score in task], 0.25))
    generator = np.random.default_rng(1)
    drawn = [
        trim_mean(np.concatenate([generator.choice(task, len(task)) for task in tasks]), 0.25) for _ in range(1500)
    ]
    assert found.low is not None and found.high is not None
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.03)
    mixed = [trim_mean(generator.choice(np.ravel(tasks), 8), 0.25) for _ in range(1500)]
    assert np.ptp(np.percentile(mixed, [2.5, 97.5])) > 1.5 * (found.high - found.low)


def test_the_mean_is_of_the_middle_half_and_an_outlier_does_not_count() -> None:
    assert interquartile_mean([[0.5, 0.5, 0.5, 900.0]]).value == 0.5
    assert interquartile_mean([[0.0, 0.0, 3.0]]).value == 1.0  # of fewer than four it is the mean


def test_a_single_seed_has_no_interval() -> None:
    assert interquartile_mean([[0.5], [0.25, 0.75]]) == (0.5, None, None)
    assert probability_of_improvement([{0: 1.0}], [{0: 0.5}]) == (1.0, None, None)
    assert performance_profile([[0.5]], [0.0]).low is None


def test_runs_are_paired_by_seed_and_not_every_one_with_every_one() -> None:
    """Seed by seed the first is better in all; of all nine pairs it is better in six."""
    first, second = {0: 0.2, 1: 0.5, 2: 0.8}, {0: 0.1, 1: 0.4, 2: 0.7}
    better = probability_of_improvement([first], [second])
    assert better == (1.0, 1.0, 1.0)
    assert probability_of_improvement([first], [second], higher_is_better=False) == (0.0, 0.0, 0.0)
    assert probability_of_improvement([{0: 0.5, 9: 0.1}], [{0: 0.5, 4: 0.2}]) == (0.5, None, None)  # a tie
    assert probability_of_improvement([{0: 0.5}], [{1: 0.5}]) is None


def test_every_task_counts_alike_however_many_seeds_it_has() -> None:
    many, few = dict.fromkeys(range(8), 1.0), {0: 0.0, 1: 0.0}
    others = [dict.fromkeys(range(8), 0.0), dict.fromkeys(range(2), 1.0)]
    better = probability_of_improvement([many, few], others)
    assert better is not None and better.value == 0.5
    assert performance_profile([list(many.values()), list(few.values())], [0.5]).shares == [0.5]


def test_a_profile_falls_from_all_runs_to_none_within_its_band() -> None:
    profile = performance_profile([[0.1, 0.4, 0.6], [0.2, 0.5, 0.9]], [0.0, 0.3, 0.55, 1.0])
    assert profile.shares == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])
    assert profile.low is not None and profile.high is not None
    ends = zip(profile.low, profile.shares, profile.high, strict=True)
    assert all(low <= share <= high for low, share, high in ends)


def test_scores_are_shares_of_the_way_from_the_floor_to_the_best_run() -> None:
    study = Study([Comparison(results())])
    # span 5 has no floor: the worst run, 2.5, is 0 and the best, 1.0, is 1; span 9: the floor 2.0 is below all
    # runs, so the worst run, 5.0, is 0 and the best, 2.5, is 1
    assert study.scores["mine"]["rim"] == pytest.approx({0: (1 + 0.8) / 2, 1: (1 / 3 + 0) / 2})
    assert study.scores["mine"]["lstm"] == pytest.approx({0: (1 / 3 + 1) / 2, 1: (0 + 1) / 2})
    higher = Study([Comparison(results(metrics=["accuracy"]))])
    assert higher.scores["mine"]["rim"] == pytest.approx({0: 1.0, 1: (0.7 - 0.25) / (0.9 - 0.25)})


def test_several_datasets_are_put_together_and_a_model_that_one_lacks_is_named(tmp_path: Path) -> None:
    other = results(dataset="other", metrics=["accuracy"])
    other["models"]["gru"] = model({"accuracy": 0.5})
    for name, given in (("a", results()), ("b", other)):
        Comparison(given).save(tmp_path / name)
    answer = running.rimlit("summarize", tmp_path / "a", tmp_path / "b", "--to", tmp_path / "all")
    assert answer.code == 0, answer.err
    report = json.loads((tmp_path / "all/statistics.json").read_text())
    assert report["metrics"] == {"mine": "cross_entropy", "other": "accuracy"}
    assert report["left_out"] == ["gru"] and "no finished run in a dataset: gru." in answer.out
    study = Study.load([tmp_path / "a", tmp_path / "b"])
    scores = [score for task in study.scores.values() for score in task["rim"].values()]
    assert report["interquartile_mean"]["rim"]["value"] == pytest.approx(trim_mean(scores, 0.25))
    better = report["probability_of_improvement"]
    assert better["rim"]["lstm"]["value"] == 1 - better["lstm"]["rim"]["value"]
    assert {path.name for path in (tmp_path / "all/figures").iterdir()} == {"profile.png", "intervals.png"}
    assert "| rim | 4 |" in (tmp_path / "all/statistics.md").read_text()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["a", "a"], "a is given twice"),
        (["a", "nowhere"], "There is no comparison in 'nowhere'"),
        (["a", "--too=x"], "got '--too=x'"),
        (["a", "--to"], "got '--to'"),
        (["--to=x"], "needs the folders of comparisons"),
    ],
)
def test_a_mistake_of_summarize_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Comparison(results()).save(Path("a"))
    answer = running.rimlit("summarize", *words)
    assert answer.code in (2, 3)
    assert part in answer.err and len(answer.err.strip().splitlines()) == 1


def test_a_metric_without_direction_and_single_seeds_have_no_statistics() -> None:
    blind = results(higher_is_better={})
    assert study_of(Comparison(blind)) is None
    with pytest.raises(DataError, match="whether a high or a low cross_entropy is better"):
        Study([Comparison(blind)])
    assert study_of(Comparison(results(models={"rim": model({"cross_entropy": 0.5})}))) is None
    with pytest.raises(DataError, match="No model has finished runs in each of mine"):
        Study([Comparison(results(models={"rim": model()}))])


def test_a_row_has_the_interquartile_mean_of_each_score() -> None:
    row = Comparison(results()).rows[0]
    assert row["span_5/cross_entropy_iqm"] == 1.5
    assert (row["span_5/cross_entropy_iqm_low"], row["span_5/cross_entropy_iqm_high"]) == (1.0, 2.0)


def test_every_seed_is_a_point_of_the_figures() -> None:
    test = Comparison(results()).figures()["accuracy"].axes[1]
    points = [xy for collection in test.collections for xy in getattr(collection, "get_offsets", list)().tolist()]
    assert [5.0, 0.7] in points and [5.0, 0.9] in points
    intervals = Study([Comparison(results())]).figures()["intervals"].axes[0]
    assert [len(collection.get_offsets()) for collection in intervals.collections] == [2, 2]
