"""Padding never changes a result: every backbone, every kind of input and target."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rimlit.backbones import Backbone
from rimlit.data import Sequences
from rimlit.spec import path_of
from rimlit.tasks import ClassificationTask, RegressionTask, Task
from rimlit.testing.tasks import check_batch_scores_as_its_sequences
from tests.laws.backbone_cases import HIDDEN_SIZE, INPUT_SIZE, backbone_cases, nested

LENGTHS = np.array([5, 2, 7, 1, 3, 4, 6, 2, 5, 3])
KINDS: dict[str, dict[str, Any]] = {
    "label": {"target": "label"},
    "labels": {"target": "label", "target_per_step": True},
    "value": {"target": "value"},
    "values": {"target": "value", "target_per_step": True},
    "next_step": {"target": "next_step"},
    "token_label": {"target": "label", "tokens": True},
    "next_token": {"target": "next_step", "tokens": True},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays for every kind, with NaN, or a token that exists nowhere else, as padding."""
    folder = tmp_path_factory.mktemp("padding")
    generator = np.random.default_rng(3)
    is_real = np.arange(7) < LENGTHS[:, None]
    for name, options in KINDS.items():
        inputs = generator.normal(size=(10, 7, INPUT_SIZE))
        inputs[~is_real] = np.nan
        if options.get("tokens"):
            inputs = np.where(is_real, generator.integers(0, 4, (10, 7)), 99)
        shape = (10, 7) if options.get("target_per_step") else (10,)
        targets = generator.integers(0, 3, shape) if options["target"] == "label" else generator.normal(size=shape)
        np.savez(folder / f"{name}.npz", inputs=inputs, targets=targets, lengths=LENGTHS)
    return folder


def make_task(cls: type[Backbone], arguments: dict[str, Any], data: Sequences) -> Task:
    """A task for ``data``."""
    is_class = data.layout.target == "label" or data.layout.tokens
    return (ClassificationTask if is_class else RegressionTask)(
        {"class_path": path_of(cls), "init_args": {"hidden_size": HIDDEN_SIZE, **nested(arguments)}},
        output_size=data.output_size,
        input_size=data.input_size,
        vocabulary_size=data.vocabulary_size,
        embedding_size=INPUT_SIZE,
    )


EVERYWHERE = ("label", "next_step")
"""Kinds tried on every backbone; the other kinds differ in the task and are tried on two of them."""

CASES = [
    pytest.param(*case.values, kind, id=f"{case.id}-{kind}")
    for case in backbone_cases()
    for kind in KINDS
    if kind in EVERYWHERE or case.id in ("RIM-default", "LSTM-default")
]


@pytest.mark.parametrize(("cls", "arguments", "kind"), CASES)
def test_a_padded_batch_scores_and_trains_as_its_sequences_one_by_one(
    files: Path, cls: type[Backbone], arguments: dict[str, Any], kind: str
) -> None:
    data = Sequences(str(files / f"{kind}.npz"), **KINDS[kind], batch_size=6, seed=1)
    batch = next(iter(data.train_dataloader()))
    assert len(set(batch.lengths.tolist())) > 1, "nothing is padded"
    check_batch_scores_as_its_sequences(partial(make_task, cls, arguments, data), data, rtol=1e-8)
