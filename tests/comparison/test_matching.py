"""Widths at which models are equally large."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch

from rimlit.backbones import BRIM, GRU, LSTM, RIM, Backbone
from rimlit.comparison import match_parameters
from rimlit.comparison.matching import Measure, size_of
from rimlit.errors import ConfigError
from rimlit.tasks import CopyingTask
from rimlit.tracking.recording import sizes_of
from tests.laws.backbone_cases import backbone_classes
from tests.tasks.running import SMALL_RIM, make_copying_task

MEASURES: list[Measure] = ["params", "flops", "state"]
SMALL_MECHANISMS = partial(
    RIM,
    num_mechanisms=3,
    num_active=2,
    input_key_size=4,
    communication={"key_size": 4, "value_size": 4},
)


def task_of(backbone: type[Backbone], width: int, **arguments: Any) -> CopyingTask:
    return make_copying_task(backbone=partial(backbone, hidden_size=width, **arguments))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("backbone", [LSTM, GRU])
def test_the_width_is_the_smallest_with_no_less(backbone: type[Backbone], measure: Measure) -> None:
    rim = make_copying_task(backbone=SMALL_RIM)
    found = match_parameters(task_of(backbone, 1), rim, measure=measure, tolerance=1.0)
    assert found.target == size_of(rim, measure)
    assert found.size == size_of(task_of(backbone, found.width), measure) >= found.target
    assert size_of(task_of(backbone, found.width - 1), measure) < found.target
    assert found.difference == (found.size - found.target) / found.target


@pytest.mark.parametrize("measure", MEASURES)
def test_a_model_is_matched_to_itself_exactly(measure: Measure) -> None:
    rim = make_copying_task(backbone=SMALL_RIM)
    found = match_parameters(task_of(LSTM, 40), task_of(LSTM, 17), measure=measure)
    assert (found.width, found.difference) == (17, 0.0)
    assert match_parameters(rim, rim, measure=measure).width == 12


def test_the_width_grows_with_the_target() -> None:
    widths = [match_parameters(LSTM, target, input_size=5, tolerance=1.0).width for target in range(50, 5000, 150)]
    assert widths == sorted(widths)
    assert len(set(widths)) > 15


def test_a_rim_takes_multiples_of_its_mechanisms_only() -> None:
    found = match_parameters(SMALL_MECHANISMS, 20_000, input_size=5, tolerance=0.2)
    assert found.width % 3 == 0
    smaller = SMALL_MECHANISMS(5, found.width - 3)
    assert size_of(smaller, "params") < 20_000 <= found.size == size_of(found.model, "params")


@pytest.mark.parametrize("mechanisms", [65, 100, 300])
def test_a_rim_of_many_mechanisms_is_matched(mechanisms: int) -> None:
    many = partial(SMALL_MECHANISMS, num_mechanisms=mechanisms, input_value_size=4)
    target = size_of(many(5, 3 * mechanisms), "params")
    assert match_parameters(many, target, input_size=5).width == 3 * mechanisms
    assert match_parameters(many, target - 1, input_size=5).width == 3 * mechanisms
    assert match_parameters(many, target + 1, input_size=5, tolerance=1.0).width == 4 * mechanisms
    assert match_parameters(many, 1, input_size=5, tolerance=1e9).width == mechanisms


@pytest.mark.parametrize("backbone", backbone_classes(), ids=lambda cls: cls.__name__)
def test_every_backbone_can_be_matched_in_parameters(backbone: type[Backbone]) -> None:
    target = 240_000 if backbone is BRIM else 60_000  # a BRIM's width goes in larger steps
    found = match_parameters(backbone, target, input_size=16, tolerance=0.25)
    assert target <= found.size == size_of(found.model, "params")
    assert found.model.output_size == found.width


def test_embedding_and_head_count() -> None:
    rim = make_copying_task(backbone=SMALL_RIM)
    alone = match_parameters(LSTM, rim.backbone, input_size=6, tolerance=1.0)
    whole = match_parameters(task_of(LSTM, 1), rim, tolerance=1.0)
    # a wide head of few recurrent weights and a narrow one of many are equal only as a whole
    assert whole.size == sum(parameter.numel() for parameter in whole.model.parameters())
    assert alone.size == sum(parameter.numel() for parameter in alone.model.parameters())
    assert whole.target > alone.target


def test_the_shipped_pair_is_what_the_solver_finds() -> None:
    from rimlit.cli.parser import SettingsReader
    from rimlit.cli.settings import build_data, build_task

    reader = SettingsReader()
    rim, lstm = (reader.read(["--config", f"copying/{name}"])[0] for name in ("rim", "lstm"))
    data = build_data(rim)
    found = match_parameters(build_task(lstm, data), build_task(rim, data))
    assert found.width == lstm["model"]["init_args"]["backbone"]["init_args"]["hidden_size"]
    assert str(found) == "hidden_size=235: 286,410 parameters, 0.51 % more than 284,944"


def test_matching_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    match_parameters(LSTM, 1000, input_size=5, tolerance=1.0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: match_parameters(SMALL_MECHANISMS, 400, input_size=5),
            [
                "does not come within 5 % of 400 parameters",
                "hidden_size=6: 732 parameters, 83.00 % more",
                "match_tolerance=0.83",
            ],
        ),
        (
            lambda: match_parameters(partial(RIM, num_mechanisms=0), 1000, input_size=5),
            ["RIM cannot be built at any hidden_size from 1", "num_mechanisms must be at least 1"],
        ),
        (
            lambda: match_parameters(partial(LSTM, hidden=3), 1000, input_size=5),
            ["LSTM has no argument 'hidden'"],
        ),
        (lambda: match_parameters(LSTM, 1000), ["input_size must be given"]),
        (
            lambda: match_parameters(LSTM, task_of(LSTM, 8), input_size=6),
            ["a backbone to a backbone", "got LSTM and CopyingTask"],
        ),
        (
            lambda: match_parameters(task_of(GRU, 8), LSTM(6, 8)),
            ["A task is matched to a task", "got CopyingTask and LSTM"],
        ),
        (
            lambda: match_parameters(LSTM, 1000, input_size=5, measure="time"),  # type: ignore[arg-type]
            ["match must be one of params, flops, state; got match='time'"],
        ),
        (
            lambda: match_parameters(LSTM, 1000, input_size=5, tolerance=-1),
            ["match_tolerance must be at least 0; got match_tolerance=-1"],
        ),
    ],
)
def test_what_cannot_be_matched_is_said(call: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        call()
    for word in words:
        assert word in str(error.value)


def test_a_size_that_does_not_grow_with_the_width_cannot_be_matched() -> None:
    class Constant(LSTM):
        def state_size(self) -> int:
            return 7

    with pytest.raises(ConfigError, match=r"Constant has 7 state values at any hidden_size; 8 cannot"):
        match_parameters(Constant, 8, input_size=5, measure="state")


def test_a_greater_difference_may_be_allowed() -> None:
    found = match_parameters(SMALL_MECHANISMS, 400, input_size=5, tolerance=10.0)
    assert found.width == 6
    assert found.difference > 0.05


def test_flops_of_an_lstm_and_a_gru_are_two_for_each_weight_of_a_product() -> None:
    assert LSTM(10, 20).flops_per_step() == 2 * 4 * 20 * (10 + 20)
    assert LSTM(10, 20, num_layers=2).flops_per_step() == 2 * 4 * 20 * (10 + 20 + 20 + 20)
    assert GRU(10, 20).flops_per_step() == 2 * 3 * 20 * (10 + 20)


@pytest.mark.parametrize("arguments", [{}, {"preset": "official"}, {"cell": "gru"}, {"communication": "none"}])
def test_flops_of_a_rim_that_is_all_active_are_those_torch_counts(arguments: dict[str, Any]) -> None:
    rim = RIM(10, 24, num_mechanisms=4, num_active=4, backend="eager", **arguments)
    scores = 2 * 4 * 64  # the eager loop folds keys into queries, and its dot products are elementwise
    assert rim.flops_per_step() == Backbone.flops_per_step(rim) + scores


def test_an_inactive_mechanism_costs_its_score_only() -> None:
    counts = [RIM(10, 24, num_mechanisms=4, num_active=active).flops_per_step() for active in (1, 2, 3, 4)]
    steps = {after - before for before, after in itertools.pairwise(counts)}
    d, value, head = 6, 24, 4 * (32 + 32 + 32)
    dynamics = 4 * d * (value + d)
    communication = d * head + 4 * 32 * d + 4 * 4 * (32 + 32)
    assert steps == {2 * (dynamics + communication)}
    candidates = [
        RIM(10, 24, num_mechanisms=4, num_active=active, communication={"inactive": "candidate"}).flops_per_step()
        for active in (1, 4)
    ]
    assert candidates[1] == counts[3]
    assert candidates[0] > counts[0]


def test_a_state_is_counted_once_for_a_sequence() -> None:
    assert LSTM(3, 8, num_layers=2).state_size() == 2 * 2 * 8
    assert GRU(3, 8).state_size() == 8
    assert RIM(3, 12, num_mechanisms=3, num_active=2).state_size() == 2 * 12


def test_a_task_counts_backbone_and_head_but_no_lookup() -> None:
    task = task_of(LSTM, 12)
    assert sizes_of(task) == {
        "parameters": sum(parameter.numel() for parameter in task.parameters()),
        "active_parameters": sum(parameter.numel() for parameter in task.parameters()),
        "flops_per_step": 2 * 4 * 12 * (6 + 12) + 2 * 12 * 10,
        "state_size": 24,
    }


def test_counting_a_backbone_that_reads_something_else_ends_no_run() -> None:
    class Odd(LSTM):
        def flops_per_step(self) -> int:
            raise ValueError("inputs must be slots")

    task = task_of(Odd, 12)
    assert sizes_of(task)["flops_per_step"] is None
    with pytest.raises(ConfigError, match="FLOPs a step of CopyingTask cannot be counted"):
        size_of(task, "flops")
