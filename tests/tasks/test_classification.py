"""Classification: one label after the last step or one per step, metrics, predictions, that it learns."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam

from rimlit.data import SequentialImages
from rimlit.errors import ConfigError
from rimlit.metrics import IGNORED
from rimlit.tasks import ClassificationTask
from rimlit.types import SequenceBatch
from tests.conftest import random_tensor
from tests.tasks.running import SMALL_LSTM, SMALL_RIM, make_trainer, quiet

pytestmark = quiet


def make_task(**arguments: Any) -> ClassificationTask:
    sizes: dict[str, Any] = {"output_size": 10, "vocabulary_size": 2, "embedding_size": 6}
    return ClassificationTask(**{"backbone": SMALL_RIM, **sizes, **arguments})


def make_digits(**arguments: Any) -> SequentialImages:
    return SequentialImages(
        **{"image_size": 4, "test_sizes": [4, 6], "train_size": 16, "batch_size": 8, "seed": 1, **arguments}
    )


LABELLED = SequenceBatch(torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0]]), torch.tensor([3, 7]), torch.tensor([4, 2]))


def test_the_label_is_scored_at_the_last_step_that_is_no_padding() -> None:
    task, outputs = make_task(), random_tensor(2, 4, 10)
    expected = nn.functional.cross_entropy(torch.stack([outputs[0, 3], outputs[1, 1]]), torch.tensor([3, 7]))
    torch.testing.assert_close(task.loss(outputs, LABELLED), expected)
    for name, metric in task.metrics().items():
        metric.update(*task.scored(outputs, LABELLED))
        is_right = [outputs[0, 3].argmax() == 3, outputs[1, 1].argmax() == 7]
        wanted = expected.item() if name == "cross_entropy" else sum(map(int, is_right)) / 2
        assert metric.compute().item() == pytest.approx(wanted), name


def test_labels_of_every_step_are_scored_where_they_are_not_ignored() -> None:
    task, outputs = make_task(), random_tensor(2, 4, 10)
    targets = torch.tensor([[1, 2, 3, 4], [5, 6, IGNORED, IGNORED]])
    batch = LABELLED._replace(targets=targets)
    expected = nn.functional.cross_entropy(
        torch.cat([outputs[0], outputs[1, :2]]), torch.tensor([1, 2, 3, 4, 5, 6])
    )
    torch.testing.assert_close(task.loss(outputs, batch), expected)
    metric = task.metrics()["accuracy"]
    metric.update(*task.scored(outputs, batch))
    assert metric.count.item() == 6


@pytest.mark.parametrize("sizes", [{}, {"vocabulary_size": 2, "input_size": 3}])
def test_inputs_are_tokens_or_vectors_and_one_of_the_two_is_asked_for(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"need vocabulary_size, or vectors, and need input_size; got"):
        ClassificationTask(SMALL_LSTM, 10, **sizes)
    logits, _ = ClassificationTask(SMALL_LSTM, 10, input_size=3)(torch.ones(2, 5, 3))
    assert logits.shape == (2, 5, 10)


def test_a_size_that_a_task_can_do_without_is_no_error_and_one_that_it_cannot_is() -> None:
    assert make_task(input_size=None).encoder.table.num_embeddings == 2
    with pytest.raises(ConfigError, match="ClassificationTask needs output_size, which the data module does not"):
        make_task(output_size=None)


def test_prediction_gives_label_and_probabilities_for_every_sequence(tmp_path: Path) -> None:
    task, data = make_task(), make_digits()
    small, large = make_trainer(tmp_path).predict(task, data)
    records = [record for batch in small for record in batch]
    assert len(records) == sum(map(len, large)) == 360
    assert [record["target"] for record in records] == data.images("test").labels.tolist()
    task.eval()
    pixels, _ = data.datasets("predict")["size_4"][5]
    probabilities = task(pixels[None])[0][0, -1].softmax(dim=-1)
    assert records[5]["probabilities"] == pytest.approx(probabilities.tolist(), rel=1e-4)
    assert records[5]["predicted"] == probabilities.argmax().item()


def test_prediction_of_every_step_gives_lists_without_the_padding() -> None:
    task = make_task().eval()
    batch = LABELLED._replace(targets=torch.tensor([[1, 2, 3, 4], [5, 6, IGNORED, IGNORED]]))
    first, second = task.predict_step(batch, 0)
    assert (first["target"], second["target"]) == ([1, 2, 3, 4], [5, 6])
    assert (len(first["predicted"]), len(second["predicted"])) == (4, 2)
    assert [len(row) for row in second["probabilities"]] == [10, 10]


def test_a_test_scores_every_size_and_every_image_once(tmp_path: Path) -> None:
    task, data = make_task(), make_digits()
    scores = {}
    for result in make_trainer(tmp_path).test(task, data, verbose=False):
        scores.update(result)
    quantities = ("loss", "cross_entropy", "accuracy")
    assert set(scores) == {f"test/size_{size}/{name}" for size in (4, 6) for name in quantities}
    for metrics in task._metrics.values():
        assert metrics["accuracy"].count.item() == 360


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "options"), [("RIM", {"preset": "dynamic"}), ("LSTM", {})])
def test_training_on_a_few_images_learns_their_labels(
    tmp_path: Path, backbone: str, options: dict[str, str]
) -> None:
    wide = {"class_path": f"rimlit.backbones.{backbone}", "init_args": {"hidden_size": 120, **options}}
    task = make_task(backbone=wide, optimizer=partial(Adam, lr=0.003))
    data = make_digits(train_size=8, image_size=6)
    make_trainer(tmp_path, max_steps=300, limit_val_batches=0).fit(task, data)
    batch = next(iter(data.train_dataloader()))
    logits, targets = task.eval().scored(task(batch.inputs)[0], batch)
    assert (logits.argmax(dim=-1) == targets).float().mean() > 0.8  # by chance: .1
