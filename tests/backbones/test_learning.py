"""Every baseline learns a small task of its kind."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam

from rimlit.backbones import EntNet
from rimlit.training import WarmupCosine
from tests.tasks.running import make_copying, make_copying_task, make_trainer, quiet

pytestmark = [pytest.mark.slow, *quiet]

LEARNED = {"learn_initial_state": True}
MEMORY = {"num_locations": 8, "word_size": 8, "forget_bias": 1.0, **LEARNED}
# arguments, batch size, steps, rate
COPIERS: dict[str, tuple[dict[str, Any], int, int, float]] = {
    "LSTM": ({"hidden_size": 128, "forget_bias": 1.0, **LEARNED}, 32, 1000, 0.005),
    "GRU": ({"hidden_size": 48, **LEARNED}, 32, 800, 0.01),
    "MinGRU": ({"hidden_size": 64, "num_layers": 3, "forget_bias": 2.0, **LEARNED}, 32, 800, 0.005),
    "RNN": ({"hidden_size": 64, **LEARNED}, 32, 600, 0.003),
    "NTM": ({"hidden_size": 48, **MEMORY}, 16, 900, 0.01),
    "DNC": ({"hidden_size": 48, "num_read_heads": 1, **MEMORY}, 16, 1200, 0.01),
    "RMC": ({"hidden_size": 64, "num_slots": 2, "num_heads": 2, **LEARNED}, 32, 900, 0.005),
    "Transformer": ({"hidden_size": 32, "num_layers": 2, "num_heads": 4, "context": 32}, 32, 200, 0.003),
}


def copying_loss(folder: Path, name: str, span: int) -> float:
    """Train a baseline to copy 3 symbols over ``span`` blanks; return its cross-entropy on fresh ones, nats.

    Training ends where it scores well on other fresh ones, and at the latest after the number of steps.
    """
    arguments, batch_size, steps, rate = COPIERS[name]
    L.seed_everything(0, verbose=False)
    data = make_copying(
        train_span=span,
        test_spans=[span],
        recall_length=3,
        train_size=None,
        val_size=256,
        test_size=512,
        batch_size=batch_size,
    )
    task = make_copying_task(
        backbone={"class_path": f"rimlit.backbones.{name}", "init_args": arguments},
        recall_length=3,
        embedding_size=16,
        optimizer=partial(Adam, lr=rate),
        scheduler=partial(WarmupCosine, warmup_steps=50),
    )
    learned = EarlyStopping("val/cross_entropy", stopping_threshold=0.3 * math.log(8), patience=steps)
    trainer = make_trainer(
        folder, max_steps=steps, val_check_interval=50, gradient_clip_val=1.0, callbacks=[learned]
    )
    trainer.fit(task, data)
    (scores,) = trainer.test(task, data, verbose=False)
    return scores[f"test/span_{span}/cross_entropy"]


# guessing scores ln 8; with all steps seed 0 reached LSTM .56, GRU .16, NTM .02, DNC .01, RMC .37,
# Transformer .09; MinGRU .62, where it stopped early
@pytest.mark.parametrize("name", [name for name in COPIERS if name != "RNN"])
def test_a_baseline_learns_to_copy_over_10_blanks(tmp_path: Path, name: str) -> None:
    assert copying_loss(tmp_path, name, span=10) < 0.5 * math.log(8)


def test_a_plain_network_learns_to_copy_over_1_blank(tmp_path: Path) -> None:
    assert copying_loss(tmp_path, "RNN", span=1) < 0.5 * math.log(8)  # seed 0 reached .17


def news_of_entities(generator: torch.Generator, number: int) -> tuple[Tensor, Tensor]:
    """Tokens (number, 9): 8 times "entity e has value v", then "e?"; and the last value of the one asked for."""
    entities = torch.rand(number, 8, 3, generator=generator).argmax(dim=-1)
    entities[:, :3] = torch.rand(number, 3, generator=generator).argsort(dim=-1)  # of each there is news
    values = torch.randint(4, (number, 8), generator=generator)
    asked = torch.randint(3, (number,), generator=generator)
    is_news = entities == asked[:, None]
    last = (is_news * torch.arange(8)).argmax(dim=1)
    tokens = torch.cat([4 * entities + values, 12 + asked[:, None]], dim=1)
    return tokens, values[torch.arange(number), last]


def test_an_entity_network_learns_to_keep_the_last_value_of_every_entity() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    table, net, head = nn.Embedding(15, 16), EntNet(16, 32, num_slots=4), nn.Linear(32, 4)
    parameters = [parameter for part in (table, net, head) for parameter in part.parameters()]
    optimizer = Adam(parameters, lr=0.01)

    def answer(tokens: Tensor) -> Tensor:
        features, _ = net(table(tokens))
        return head(features[:, -1])

    for _ in range(400):
        tokens, target = news_of_entities(generator, 32)
        optimizer.zero_grad()
        functional.cross_entropy(answer(tokens), target).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    tokens, target = news_of_entities(generator, 512)
    accuracy = (answer(tokens).argmax(dim=-1) == target).float().mean()
    assert accuracy > 0.9  # guessing scores .25; seed 0 reached .99
