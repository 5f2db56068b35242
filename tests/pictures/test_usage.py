"""What the numbers about the use of mechanisms are, against slow counts and cases known by hand."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rimlit.pictures import MechanismActivity
from rimlit.pictures.usage import MOST_LABELS, Usage, UsageCounter, draw_usage, mean_cosine
from tests.conftest import random_tensor
from tests.pictures.test_activity import bools, pattern
from tests.tasks.running import SMALL_RIM, make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet


def usage_of(active: Tensor, mask: Tensor | None = None, **others: object) -> Usage:
    counter = UsageCounter(active.shape[-1], torch.device("cpu"))
    counter.add(active, mask, **others)  # type: ignore[arg-type]
    return counter.usage()


@pytest.mark.parametrize(
    ("rows", "average", "worst", "turnover"),
    [
        (["xxxx", "xxxx"], 0, 0, 0),
        (["xxxx", "...."], 1, 1, 0),
        (["x.x.", ".x.x"], 0, 0, 1),
        (["xxx.", "...x"], 0.5, 0.5, 1 / 3),
        (["xxxx", "..xx"], 1 / 3, 1 / 3, 1 / 6),  # the sets 1, 1, 12, 12: Jaccard 1, ½, 1
        (["....", "...."], 1, 1, 0),  # no set changes; none is used
    ],
)
def test_collapse_and_turnover_of_a_pattern_are_known_by_hand(
    rows: list[str], average: float, worst: float, turnover: float
) -> None:
    usage = usage_of(pattern(rows))
    assert usage.collapse_average == pytest.approx(average)
    assert usage.collapse_worst == pytest.approx(worst)
    assert usage.turnover == pytest.approx(turnover)


def test_turnover_and_similarity_are_the_slow_ones_without_padding() -> None:
    active, hidden = bools(3, 6, 4, seed=3), random_tensor(3, 6, 4, 5)
    mask = torch.arange(6) < torch.tensor([6, 3, 1])[:, None]
    changes, cosines = [], []
    for sample, step in itertools.product(range(3), range(6)):
        if not mask[sample, step]:
            continue
        states = hidden[sample, step]
        for one, other in itertools.combinations(range(4), 2):
            cosines.append(float(states[one] @ states[other] / states[one].norm() / states[other].norm()))
        if step:
            before, after = ({m for m in range(4) if active[sample, at, m]} for at in (step - 1, step))
            changes.append(1 - len(before & after) / len(before | after) if before | after else 0)
    usage = usage_of(active, mask, hidden=hidden)
    assert usage.turnover == pytest.approx(sum(changes) / len(changes))
    assert usage.similarity == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)


def test_states_of_zeros_are_like_no_other() -> None:
    assert mean_cosine(torch.zeros(1, 1, 3, 2)).tolist() == [[0.0]]
    assert usage_of(bools(1, 4, 1, seed=1), hidden=random_tensor(1, 4, 1, 2)).similarity is None


def test_information_says_who_sleeps_through_the_blanks() -> None:
    active = pattern(["xx..xx", "xxxxxx", "x.x.x."])
    labels = ["a", "a", "blank", "blank", "a", "a"]
    usage = usage_of(active.expand(2, -1, -1), labels=labels)
    assert usage.information is not None
    assert usage.by_label is not None
    own = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))  # the first mechanism knows the label
    assert usage.information.tolist() == pytest.approx([own, 0, 0], abs=1e-9)
    assert usage.by_label["blank"].tolist() == [0, 1, 0.5]
    assert usage.numbers()["label_information"] == pytest.approx(own / 3)


def test_labels_are_counted_where_they_are_few_kinds_and_more_than_one() -> None:
    active = bools(1, MOST_LABELS + 1, 2, seed=4)
    assert usage_of(active, labels=[str(step) for step in range(MOST_LABELS + 1)]).information is None
    assert usage_of(active, labels=["same"] * (MOST_LABELS + 1)).information is None
    assert usage_of(active).information is None


def test_the_figure_shows_use_dead_mechanisms_and_kinds_of_steps() -> None:
    active = pattern(["xx..xx", "......", "x.x.x."])
    usage = usage_of(active, labels=["a", "a", "blank", "blank", "a", "a"], hidden=random_tensor(1, 6, 3, 2))
    figure = draw_usage([usage, usage_of(active)], run="rim-seed0")
    assert figure.get_suptitle() == "rim-seed0: use of 3 mechanisms"
    first, second = figure.axes[0], figure.axes[1]
    assert [bar.get_height() for bar in first.patches] == pytest.approx([4 / 6, 0, 3 / 6])
    assert first.patches[1].get_facecolor() != first.patches[0].get_facecolor()
    assert first.get_title(loc="left") == "layer 0: use of each mechanism, 1 dead (dashed: even use)"
    assert "state similarity" in first.get_xlabel()
    assert [label.get_text() for label in second.get_yticklabels()] == ["a", "blank"]
    assert not figure.axes[3].axison
    assert len(draw_usage([usage_of(active)]).axes) == 1


def test_a_run_has_the_numbers_in_its_results_and_the_figure(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[MechanismActivity()])
    trainer.test(make_copying_task(backbone=SMALL_RIM), make_copying(), verbose=False)
    found = json.loads((tmp_path / "mechanisms.json").read_text())
    for name in ("dead_share", "collapse_average", "collapse_worst", "turnover", "switch_rate"):
        assert 0 <= found[f"mechanisms/span_6/{name}"] <= 1
    assert -1 <= found["mechanisms/span_6/state_similarity"] <= 1
    information = [found[f"mechanisms/span_6/label_information_{m}"] for m in range(3)]
    assert all(0 <= value <= math.log(2) + 1e-9 for value in information)
    assert (tmp_path / "figures/mechanisms.png").read_bytes().startswith(b"\x89PNG")
