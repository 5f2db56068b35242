"""Metrics of sequences: what they count, and that batches do not change it."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rimlit.metrics import IGNORED, BitsPerCharacter, CrossEntropy, Perplexity, SequenceAccuracy, SymbolAccuracy
from rimlit.metrics.sequence import scored_steps
from tests.conftest import random_tensor

TARGETS = torch.tensor(
    [[3, 1, 2, 0], [1, 2, IGNORED, IGNORED], [0, 3, 1, IGNORED], [2, IGNORED, IGNORED, IGNORED]]
)
LOGITS = random_tensor(4, 4, 4, seed=2)


def logits_for(predictions: list[list[int]]) -> Tensor:
    return functional.one_hot(torch.tensor(predictions), 4).float()


def test_the_last_steps_of_each_row_are_counted_from_its_own_end() -> None:
    assert scored_steps(TARGETS, 2).int().tolist() == [[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]]
    assert torch.equal(scored_steps(TARGETS, None), TARGETS != IGNORED)


@pytest.mark.parametrize("last_steps", [None, 1, 2, 9])
def test_cross_entropy_is_the_mean_over_scored_tokens_in_any_batches(last_steps: int | None) -> None:
    scored = scored_steps(TARGETS, last_steps)
    expected = functional.cross_entropy(LOGITS[scored], TARGETS[scored]).item()
    for sizes in ([4], [1, 3], [1, 1, 1, 1]):
        metric = CrossEntropy(last_steps)
        for logits, targets in zip(LOGITS.split(sizes), TARGETS.split(sizes), strict=True):
            metric.update(logits, targets)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-6)
        assert metric.count.item() == scored.sum()


def test_perplexity_and_bits_are_made_of_the_mean_and_not_of_batches() -> None:
    metrics = CrossEntropy(), Perplexity(), BitsPerCharacter()
    for metric in metrics:
        metric.update(LOGITS[:1], TARGETS[:1])
        metric.update(LOGITS[1:], TARGETS[1:])
    nats, perplexity, bits = (metric.compute().item() for metric in metrics)
    assert perplexity == pytest.approx(math.exp(nats))
    assert bits == pytest.approx(nats / math.log(2))


def test_even_guessing_among_eight_scores_the_logarithm_of_eight() -> None:
    metric = CrossEntropy()
    metric.update(torch.zeros(2, 3, 8), torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert metric.compute().item() == pytest.approx(2.0794415)


def test_symbol_accuracy_counts_symbols_and_sequence_accuracy_whole_rows() -> None:
    predictions = logits_for([[3, 1, 2, 1], [1, 2, 0, 0], [3, 3, 1, 2], [1, 2, 2, 2]])
    expected = {  # last steps: symbols right of scored, rows right of 4
        None: (7 / 10, 1 / 4),
        2: (5 / 7, 2 / 4),
        1: (2 / 4, 2 / 4),
    }
    for last_steps, (symbols, sequences) in expected.items():
        symbol, sequence = SymbolAccuracy(last_steps), SequenceAccuracy(last_steps)
        for rows in ([0, 1, 2], [3]):
            symbol.update(predictions[rows], TARGETS[rows])
            sequence.update(predictions[rows], TARGETS[rows])
        assert symbol.compute().item() == pytest.approx(symbols)
        assert sequence.compute().item() == pytest.approx(sequences)


def test_metrics_of_half_precision_scores_are_summed_in_double() -> None:
    metric = CrossEntropy()
    for _ in range(3000):
        metric.update(torch.zeros(1, 1, 8, dtype=torch.bfloat16), torch.tensor([[1]]))
    assert metric.compute().item() == pytest.approx(math.log(8), rel=1e-6)


def test_a_reset_forgets_what_was_added() -> None:
    metric = SymbolAccuracy()
    metric.update(logits_for([[1, 1]]), torch.tensor([[1, 2]]))
    metric.reset()
    metric.update(logits_for([[1, 1]]), torch.tensor([[1, 1]]))
    assert metric.compute().item() == 1
    assert metric.count.item() == 2
