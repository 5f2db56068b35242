"""A task loaded with another number of mechanisms than it was trained with."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace

from rimlit.backbones import RIM
from rimlit.cli.mechanisms import keep_size_of_mechanisms
from rimlit.errors import ConfigError
from rimlit.heads import AttentionHead, DenseHead, MixtureHead, SlotMixtureHead
from rimlit.tasks import Task
from tests.tasks.running import make_trainer, quiet
from tests.tasks.test_frame_prediction import make_data, make_task

pytestmark = quiet

SHARED = {
    "class_path": "rimlit.backbones.RIM",
    "init_args": {
        "hidden_size": 12,
        "num_mechanisms": 3,
        "num_active": 3,
        "sharing": "embedded",
        "cell": "schemata",
        "score_bias": 1.0,
        "learn_initial_state": True,
    },
}


def with_arguments(**arguments: Any) -> dict[str, Any]:
    return {**SHARED, "init_args": {**SHARED["init_args"], **arguments}}


MORE = with_arguments(num_mechanisms=5, num_active=5, hidden_size=20)


def save(folder: Path, task: Task) -> Path:
    trainer = make_trainer(folder, max_steps=1)
    trainer.fit(task, make_data())
    trainer.save_checkpoint(folder / "task.ckpt")
    return folder / "task.ckpt"


@pytest.mark.parametrize(
    "head",
    [AttentionHead, partial(MixtureHead, place_size=16), partial(SlotMixtureHead, channels=[4, 2])],
    ids=["AttentionHead", "MixtureHead", "SlotMixtureHead"],
)
def test_weights_fit_more_mechanisms_and_what_is_new_is_drawn(tmp_path: Path, head: Any) -> None:
    task = make_task(backbone=SHARED, head=head)
    path = save(tmp_path, task)
    loaded = Task.load_from_checkpoint(path, backbone=MORE)
    before, after = task.state_dict(), loaded.state_dict()
    rows = [key for key in before if before[key].shape != after[key].shape]
    own = {"backbone.initial.hidden", "backbone.layers.0.score_bias", "backbone.layers.0.dynamics.bias.embedding"}
    assert set(rows) <= own | {"head.names"}
    assert {"backbone.initial.hidden", "backbone.layers.0.score_bias"} <= set(rows)
    for key in before:
        dim = 1 if key.endswith("initial.hidden") else 0
        kept = after[key].narrow(dim, 0, 3) if key in rows else after[key]
        assert torch.equal(kept, before[key].to(kept.device)), key
    frames = torch.zeros(2, 4, 16, 16)
    assert loaded.rollout(frames).logits.shape[0] == 2


def test_a_python_copy_and_a_loaded_task_have_the_same_parameters(tmp_path: Path) -> None:
    rim = RIM(4, **SHARED["init_args"])
    shapes = {name: value.shape for name, value in rim.with_mechanisms(5).state_dict().items()}
    assert shapes == {name: value.shape for name, value in RIM(4, **MORE["init_args"]).state_dict().items()}


@pytest.mark.parametrize(
    ("trained", "now", "head", "message"),
    [
        (SHARED, MORE, DenseHead, r"num_mechanisms=5 needs a head that reads any number .* got DenseHead, whose"),
        (
            with_arguments(sharing="independent"),
            {**MORE, "init_args": {**MORE["init_args"], "sharing": "independent"}},
            AttentionHead,
            r"needs weights that all mechanisms share, .* input_query is IndependentSharing\.",
        ),
    ],
    ids=["head", "sharing"],
)
def test_what_cannot_be_resized_is_refused_in_one_line(
    tmp_path: Path, trained: Any, now: Any, head: Any, message: str
) -> None:
    path = save(tmp_path, make_task(backbone=trained, head=head))
    with pytest.raises(ConfigError, match=message):
        Task.load_from_checkpoint(path, backbone=now)


def config(**arguments: Any) -> Namespace:
    backbone = Namespace(class_path="rimlit.backbones.RIM", init_args=Namespace(**arguments))
    return Namespace(model=Namespace(init_args=Namespace(backbone=backbone)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_mechanisms": 8}, (8, 32, 8)),
        ({"num_mechanisms": 2}, (2, 8, 2)),
        ({"num_mechanisms": 8, "num_active": 2}, (8, 32, 2)),
        ({"num_mechanisms": 8, "hidden_size": 64}, (8, 64, 8)),
        ({}, (3, 12, 3)),
    ],
)
def test_mechanisms_keep_their_size(given: dict[str, Any], expected: tuple[int, int, int]) -> None:
    saved = {"rimlit": {"task": {"class_path": "T", "init_args": {"backbone": copy.deepcopy(SHARED)}}}}
    own = {name: SHARED["init_args"][name] for name in ("num_mechanisms", "hidden_size", "num_active")}
    settings = config(**{**own, **given})
    keep_size_of_mechanisms(settings, saved)
    found = settings.model.init_args.backbone.init_args
    assert (found.num_mechanisms, found.hidden_size, found.num_active) == expected


def test_backbones_without_a_number_of_mechanisms_are_left_alone() -> None:
    for backbone in ({"class_path": "rimlit.backbones.LSTM", "init_args": {"hidden_size": 12}}, None):
        saved = {"rimlit": {"task": {"class_path": "T", "init_args": {"backbone": backbone}}}}
        settings = config(hidden_size=12)
        keep_size_of_mechanisms(settings, saved)
        assert settings.model.init_args.backbone.init_args.hidden_size == 12
