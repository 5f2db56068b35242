"""The copying task: what is scored, what is predicted, that it learns."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim import Adam

from rimlit.metrics import IGNORED
from tests.conftest import random_tensor
from tests.tasks.running import SMALL_LSTM, make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet


def test_the_loss_is_the_mean_over_all_unpadded_steps() -> None:
    data = make_copying(min_train_span=1, samples_per_span=1)
    samples = [data.datasets("train")[""][index] for index in range(4)]
    batch = data.collate(samples)
    outputs = random_tensor(*batch.inputs.shape, 10, seed=1)
    rows = torch.cat([outputs[index, : len(inputs)] for index, (inputs, _) in enumerate(samples)])
    targets = torch.cat([targets for _, targets in samples])
    assert (batch.targets == IGNORED).any()
    expected = torch.nn.functional.cross_entropy(rows, targets)
    torch.testing.assert_close(make_copying_task().loss(outputs, batch), expected)


def test_metrics_score_the_recall_and_all_steps() -> None:
    data = make_copying()
    batch = next(iter(data.val_dataloader()[0]))
    outputs = torch.nn.functional.one_hot(batch.targets, 10).float() * 20
    outputs[0, 0] = torch.nn.functional.one_hot(torch.tensor(5), 10) * 20.0  # wrong before the recall: no matter
    outputs[1, -1] = outputs[1, -1].roll(1)  # wrong in the recall
    scores = {}
    for name, metric in make_copying_task().metrics().items():
        metric.update(outputs, batch.targets)
        scores[name] = metric.compute().item()
    assert scores["symbol_accuracy"] == pytest.approx(15 / 16)
    assert scores["sequence_accuracy"] == pytest.approx(3 / 4)
    assert scores["cross_entropy"] == pytest.approx(20 / 16, rel=1e-3)
    assert scores["cross_entropy_all"] == pytest.approx(40 / 44, rel=1e-3)


def test_prediction_names_span_symbols_and_what_was_emitted(tmp_path: Path) -> None:
    task, data = make_copying_task(), make_copying(test_size=6)
    short, long = make_trainer(tmp_path).predict(task, data)
    records = [record for batch in short for record in batch]
    assert len(records) == 6
    assert {record["span"] for record in records} == {3}
    assert {record["span"] for batch in long for record in batch} == {6}
    dataset = data.datasets("predict")["span_3"]
    task.eval()
    for index, record in enumerate(records):
        inputs, targets = dataset[index]
        assert record["symbols"] == inputs[:4].tolist() == targets[-4:].tolist()
        assert record["emitted"] == task(inputs[None])[0].argmax(dim=-1)[0, -4:].tolist()


def test_the_steps_of_a_sequence_have_names() -> None:
    batch = make_copying().collate([make_copying().datasets("train")[""][0]])
    labels = make_copying_task().step_labels(batch)
    assert labels == ["symbols"] * 4 + ["blank"] * 2 + ["marker"] + ["recall"] * 4
    assert batch.inputs[0, labels.index("marker")] == 9


def test_training_on_one_batch_learns_to_copy_it(tmp_path: Path) -> None:
    task = make_copying_task(
        backbone={**SMALL_LSTM, "init_args": {"hidden_size": 24}}, optimizer=partial(Adam, lr=0.03)
    )
    data = make_copying(train_size=4)
    make_trainer(tmp_path, max_steps=120, limit_val_batches=0).fit(task, data)
    batch = next(iter(data.train_dataloader()))
    outputs, _ = task.eval()(batch.inputs)
    recalled = outputs.argmax(dim=-1)[:, -4:] == batch.targets[:, -4:]
    assert recalled.float().mean() > 0.9


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_training_and_evaluation_work_at_other_precisions(tmp_path: Path, precision: str) -> None:
    task, data = make_copying_task(), make_copying()
    trainer = make_trainer(tmp_path, precision=precision)
    trainer.fit(task, data)
    scores = trainer.test(task, data, verbose=False)
    assert all(torch.isfinite(torch.tensor(value)) for result in scores for value in result.values())
