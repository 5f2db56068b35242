"""Training in bfloat16 reaches what training in float32 reaches, within what seeds differ by."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
from torch.optim import Adam

from rimlit.tasks import CopyingTask
from tests.tasks.running import make_copying, make_trainer, quiet

pytestmark = [*quiet, pytest.mark.slow]

RIM = {
    "class_path": "rimlit.backbones.RIM",
    "init_args": {
        "hidden_size": 60,
        "num_mechanisms": 3,
        "num_active": 2,
        "input_key_size": 16,
        "communication": {"key_size": 16, "value_size": 16, "output": "tanh"},
        "learn_initial_state": True,
    },
}


def score(folder: Path, seed: int, precision: str) -> float:
    """Train on copying 3 symbols; return the cross-entropy of the recall on validation data, in float32."""
    L.seed_everything(seed, verbose=False)
    data = make_copying(
        min_train_span=1, test_spans=[3], recall_length=3, batch_size=32, train_size=None, val_size=256, seed=seed
    )
    task = CopyingTask(RIM, 10, 3, embedding_size=16, optimizer=partial(Adam, lr=5e-3))
    options = {"gradient_clip_val": 1.0, "limit_val_batches": 0, "use_distributed_sampler": False}
    make_trainer(folder, max_steps=200, precision=precision, **options).fit(task, data)
    (scores,) = make_trainer(folder).validate(task, data, verbose=False)
    return scores["val/cross_entropy"]


def test_bf16_mixed_learns_what_float32_learns_within_the_noise_of_seeds(tmp_path: Path) -> None:
    seeds = (0, 1, 2)
    full, mixed = ([score(tmp_path, seed, kind) for seed in seeds] for kind in ("32-true", "bf16-mixed"))
    print(full, mixed)
    floor = 2.079  # ln 8: symbols guessed
    assert max(*full, *mixed) < 0.75 * floor, "all have learned"
    assert full != mixed, "another precision"
    assert abs(sum(full) - sum(mixed)) / len(seeds) < max(full) - min(full)
