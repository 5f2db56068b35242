"""How mechanisms are used, counted, logged and drawn."""

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from rimlit.backbones import LSTM
from rimlit.pictures.activity import MechanismActivity, Usage, UsageCounter, draw_activity
from rimlit.tasks import CopyingTask
from rimlit.types import Watched
from tests.tasks.running import SMALL_LSTM, SMALL_RIM, make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet


def bools(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.6


def slow_usage(batches: list[tuple[Tensor, Tensor]]) -> Usage:
    """The same by loops over sequences, steps and mechanisms."""
    num_mechanisms = batches[0][0].shape[-1]
    used, steps, switches, transitions = [0] * num_mechanisms, 0, 0, 0
    for active, mask in batches:
        for sequence, kept in zip(active.tolist(), mask.tolist(), strict=True):
            for step in range(len(kept)):
                if not kept[step]:
                    continue
                steps += 1
                for m in range(num_mechanisms):
                    used[m] += sequence[step][m]
                if step > 0 and kept[step - 1]:
                    for m in range(num_mechanisms):
                        transitions += 1
                        switches += sequence[step][m] != sequence[step - 1][m]
    share = [count / steps for count in used]
    parts = [count / sum(used) for count in used]
    entropy = -sum(part * math.log(part) for part in parts if part) / math.log(num_mechanisms)
    dead = sum(part < 0.01 for part in share)
    return Usage(torch.tensor(share, dtype=torch.float64), entropy, dead, switches / transitions)


def usage_of(*batches: tuple[Tensor, Tensor | None]) -> Usage:
    counter = UsageCounter(batches[0][0].shape[-1], torch.device("cpu"))
    for active, mask in batches:
        counter.add(active, mask)
    return counter.usage()


# Counting


@pytest.mark.parametrize("seed", range(3))
def test_the_count_is_the_slow_one_over_batches_and_padding(seed: int) -> None:
    batches = []
    for index, (size, length) in enumerate([(3, 7), (2, 5)]):
        lengths = torch.tensor([length, *range(1, size)])
        batches.append((bools(size, length, 4, seed=10 * seed + index), torch.arange(length) < lengths[:, None]))
    found, wanted = usage_of(*batches), slow_usage(batches)
    assert found.share.tolist() == pytest.approx(wanted.share.tolist())
    assert found.entropy == pytest.approx(wanted.entropy)
    assert found.dead == wanted.dead
    assert found.switch_rate == pytest.approx(wanted.switch_rate)


def test_without_a_mask_every_step_counts() -> None:
    active = bools(2, 6, 3, seed=1)
    everything = torch.ones(2, 6, dtype=torch.bool)
    first, second = usage_of((active, None)), usage_of((active, everything))
    assert torch.equal(first.share, second.share)
    assert first[1:] == second[1:]


def pattern(rows: list[str]) -> Tensor:
    """One sequence from a row per mechanism: ``x`` active, ``.`` not."""
    return torch.tensor([[mark == "x" for mark in row] for row in rows]).T[None]


@pytest.mark.parametrize(
    ("rows", "share", "entropy", "dead", "switch_rate"),
    [
        (["xxxx", "xxxx"], [1, 1], 1, 0, 0),  # always both
        (["xxxx", "...."], [1, 0], 0, 1, 0),  # always the same one
        (["x.x.", ".x.x"], [0.5, 0.5], 1, 0, 1),  # taking turns
        (["xx..", "..xx"], [0.5, 0.5], 1, 0, 1 / 3),  # one change in three steps
        (["xxx.", "...x"], [0.75, 0.25], 0.8112781, 0, 1 / 3),
        (["....", "...."], [0, 0], 0, 2, 0),
    ],
)
def test_usage_of_a_pattern_is_known_by_hand(
    rows: list[str], share: list[float], entropy: float, dead: int, switch_rate: float
) -> None:
    usage = usage_of((pattern(rows), None))
    assert usage.share.tolist() == pytest.approx(share)
    assert usage.entropy == pytest.approx(entropy, abs=1e-6)
    assert usage.dead == dead
    assert usage.switch_rate == pytest.approx(switch_rate)


def test_a_mechanism_is_dead_below_one_percent_of_steps() -> None:
    active = torch.ones(1, 200, 3, dtype=torch.bool)
    active[0, 2:, 1] = False  # 1 %
    active[0, 1:, 2] = False  # half a percent
    assert usage_of((active, None)).dead == 1


def test_padding_between_two_steps_is_no_switch() -> None:
    active = pattern(["x.x", ".x."])
    assert usage_of((active, torch.tensor([[True, False, True]]))).switch_rate == 0


def test_a_single_mechanism_has_an_entropy_of_zero() -> None:
    assert usage_of((torch.ones(2, 3, 1, dtype=torch.bool), None)).entropy == 0


# Drawing

PHASES = ["symbols"] * 3 + ["blank"] * 4 + ["recall"] * 3
LETTERS = list("abcdefghij")


@pytest.mark.parametrize(
    ("num_layers", "has_average", "labels", "num_panels"),
    [
        (1, True, PHASES, 3),  # strip, sequence, average
        (1, False, PHASES, 2),
        (2, True, PHASES, 5),
        (1, True, LETTERS, 2),  # letters are written below instead
        (1, True, None, 2),
        (3, False, None, 3),
    ],
)
def test_the_figure_has_a_panel_for_each_layer_and_view(
    num_layers: int, has_average: bool, labels: list[str] | None, num_panels: int
) -> None:
    active = bools(num_layers, 10, 4, seed=2).float()
    average = list(active / 2) if has_average else None
    figure = draw_activity(active, average, labels)
    panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    assert len(panels) == num_panels
    colour_bars = len(figure.axes) - len(panels)
    assert colour_bars == (num_layers if has_average else 0)
    titles = " ".join(axis.get_title(loc="left") for axis in panels)
    assert ("layer 1:" in titles) == (num_layers > 1)
    assert ("average" in titles) == has_average


def test_the_figure_names_the_run_k_of_m_and_how_many_sequences_are_averaged() -> None:
    active = torch.zeros(1, 10, 4)
    active[..., :2] = 1
    figure = draw_activity(active, [active[0]], PHASES, run="rim-seed0", num_averaged=12)
    assert figure.get_suptitle() == "rim-seed0: 2 of 4 mechanisms active per step"
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert "active mechanisms, average over 12 sequences" in titles


@pytest.mark.parametrize(("size", "shown"), [(1, 1), (2, 2), (20, 8)])
def test_steps_without_labels_have_a_strip_of_the_input(size: int, shown: int) -> None:
    inputs = torch.arange(10.0)[:, None].expand(10, size)
    figure = draw_activity(bools(1, 10, 4, seed=2).float(), inputs=inputs)
    strip = figure.axes[0].images[0].get_array()
    assert strip is not None and strip.shape == (shown, 10)
    assert (strip[0, 0], strip[0, -1]) == (0, 1), "from the least value to the greatest"
    assert figure.axes[0].get_title(loc="left").startswith("input")
    assert ("of 20" in figure.axes[0].get_title(loc="left")) == (size > shown)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_strip_of_any_input_can_be_drawn(value: float) -> None:
    draw_activity(bools(1, 10, 4, seed=2).float(), inputs=torch.full((10, 2), value)).savefig(io.BytesIO())


def test_phases_are_a_strip_with_a_legend_of_each() -> None:
    figure = draw_activity(bools(1, 10, 4, seed=2).float(), None, PHASES)
    strip = figure.axes[0].images[0].get_array()
    assert strip is not None
    assert strip.tolist() == [[0] * 3 + [1] * 4 + [2] * 3]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["symbols", "blank", "recall"]


def test_letters_are_written_under_their_steps_and_spaces_as_dots() -> None:
    figure = draw_activity(bools(1, 10, 4, seed=2).float(), None, [*"ab c", "\n", *"defgh"])
    written = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert written == list("ab·c·defgh")


def test_a_panel_shows_the_activity_itself() -> None:
    active = bools(1, 6, 3, seed=5).float()
    shown = draw_activity(active).axes[0].images[0].get_array()
    assert shown is not None
    assert shown.tolist() == active[0].T.tolist()


# The callback


def metrics_of(folder: Path, task: CopyingTask, callback: MechanismActivity, **options: Any) -> dict[str, float]:
    logger = CSVLogger(folder / "logs", name="", version="")
    trainer = make_trainer(
        folder,
        callbacks=[callback],
        logger=logger,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(task, make_copying())
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_the_callback_logs_usage_of_each_mechanism_and_draws_the_figure(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, make_copying_task(backbone=SMALL_RIM), MechanismActivity())
    usage = [metrics[f"mechanisms/usage_{m}"] for m in range(3)]
    assert sum(usage) == pytest.approx(2)  # two of three are active in every step
    assert 0 <= metrics["mechanisms/usage_entropy"] <= 1
    assert metrics["mechanisms/dead"] == sum(share < 0.01 for share in usage)
    assert 0 <= metrics["mechanisms/switch_rate"] <= 1
    header = (tmp_path / "logs/metrics.csv").read_text().splitlines()[0]
    for name in ("usage_0", "usage_entropy", "dead", "switch_rate"):
        assert f"mechanisms/{name}" in header
    assert (tmp_path / "figures/activity.png").read_bytes().startswith(b"\x89PNG")


def test_a_test_writes_the_use_of_each_mechanism_as_a_file(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[MechanismActivity()])
    trainer.test(make_copying_task(backbone=SMALL_RIM), make_copying(), verbose=False)
    usage = json.loads((tmp_path / "mechanisms.json").read_text())
    for m in range(3):
        name = f"mechanisms/span_6/usage_{m}"
        assert usage[name] == pytest.approx(trainer.callback_metrics[name].item())


def test_layers_are_logged_by_their_number(tmp_path: Path) -> None:
    deep = {**SMALL_RIM, "init_args": {**SMALL_RIM["init_args"], "num_layers": 2}}
    metrics = metrics_of(tmp_path, make_copying_task(backbone=deep), MechanismActivity(figure=False))
    assert {f"mechanisms/layer_{layer}/dead" for layer in range(2)} <= set(metrics)
    assert "mechanisms/dead" not in metrics
    assert not (tmp_path / "figures").exists()


def test_a_backbone_without_mechanisms_logs_and_draws_nothing(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, make_copying_task(backbone=SMALL_LSTM), MechanismActivity())
    assert not [name for name in metrics if name.startswith("mechanisms")]
    assert not (tmp_path / "figures").exists()


class Report(NamedTuple):
    """The activity of a layer, in a class of its own."""

    active: Tensor


class Alternating(LSTM):
    """A backbone of another kind whose two mechanisms take turns."""

    num_mechanisms = 2

    def __init__(self, input_size: int, hidden_size: int = 12) -> None:
        super().__init__(input_size, hidden_size)
        self.hooks: list[Any] = []

    def forward(self, inputs: Tensor, state: Any = None, resets: Tensor | None = None) -> tuple[Tensor, Any]:
        is_even = torch.arange(inputs.shape[1]) % 2 == 0
        active = torch.stack([is_even, ~is_even], dim=-1).expand(len(inputs), -1, -1)
        for hook in self.hooks:
            hook((Report(active),))
        return super().forward(inputs, state, resets)

    @property
    def is_watched(self) -> bool:
        return bool(self.hooks)

    @contextmanager
    def watch(self, hook: Any) -> Iterator[None]:
        self.hooks.append(hook)
        yield
        self.hooks.remove(hook)

    @contextmanager
    def record_activity(self) -> Iterator[list[Any]]:
        activities: list[Any] = []
        with self.watch(activities.extend):
            yield activities

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        hooks, self.hooks = self.hooks, []
        yield
        self.hooks = hooks


def test_any_backbone_that_can_be_watched_is(tmp_path: Path) -> None:
    assert isinstance(Alternating(3), Watched) and not isinstance(LSTM(3, 4), Watched)
    callback = MechanismActivity()
    make_trainer(tmp_path, callbacks=[callback]).test(
        make_copying_task(backbone=Alternating), make_copying(), verbose=False
    )
    usage = json.loads((tmp_path / "mechanisms.json").read_text())
    assert usage["mechanisms/span_6/switch_rate"] == 1 and usage["mechanisms/span_6/dead"] == 0
    assert (tmp_path / "figures/activity.png").is_file()


def test_the_counts_are_those_of_the_backbone_s_activity(tmp_path: Path) -> None:
    """The callback's shares are those of the activity that ordinary forwards report."""
    task = make_copying_task(backbone=SMALL_RIM)
    data = make_copying()
    trainer = make_trainer(tmp_path, callbacks=[MechanismActivity(figure=False)])
    trainer.validate(task, data, verbose=False)
    counter = UsageCounter(3, torch.device("cpu"))
    with torch.no_grad(), task.backbone.watch(lambda activities: counter.add(activities[0].active)):
        for batch in data.val_dataloader()[0]:
            task.eval()(batch.inputs)
    for m, share in enumerate(counter.usage().share.tolist()):
        assert trainer.callback_metrics[f"mechanisms/usage_{m}"].item() == pytest.approx(share)
