"""The modules of docs/from_lstm.md run before and after the change, which is what the page shows."""

import re
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rimlit
from rimlit import RIM
from tests.conftest import random_tensor

PAGE = (Path(__file__).parents[1] / "docs/from_lstm.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```diff\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def module_of(name: str, mark: str) -> Any:
    """Return a class of the page from the lines that are common or marked ``-`` (before) or ``+`` (after)."""
    (block,) = (block for block in BLOCKS if f"class {name}(" in block)
    lines = [line[1:] for line in block.splitlines() if line[:1] in ("", " ", mark)]
    namespace: dict[str, Any] = {"__name__": "page"}
    exec("\n".join(lines), namespace)  # the page's own text
    return namespace[name]


both = pytest.mark.parametrize("mark", ["-", "+"], ids=["before", "after"])


def test_every_line_of_a_block_is_common_or_marked() -> None:
    assert len(BLOCKS) == 3
    assert all(line[:1] in ("", " ", "-", "+") for block in BLOCKS for line in block.splitlines())


def kind_of(module: nn.Module) -> str:
    return "-" if any(isinstance(each, nn.LSTM) for each in module.modules()) else "+"


@both
def test_the_tagger_learns_and_padding_changes_no_tag(mark: str) -> None:
    tagger = module_of("Tagger", mark)(num_words=10, num_tags=4)
    assert kind_of(tagger) == mark
    words, lengths = torch.arange(15).view(3, 5) % 10, torch.tensor([3, 5, 2])
    optimizer, losses = torch.optim.Adam(tagger.parameters(), lr=0.03), []
    is_word = torch.arange(5) < lengths[:, None]
    for _ in range(12):
        loss = nn.functional.cross_entropy(tagger(words, lengths)[is_word], (words % 4)[is_word])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    tagger.eval()
    changed = words.masked_fill(~is_word, 9)
    torch.testing.assert_close(tagger(changed, lengths)[is_word], tagger(words, lengths)[is_word])


def test_lengths_give_what_packing_gives() -> None:
    tagger = module_of("Tagger", "+")(num_words=10, num_tags=4).eval()
    words, lengths = torch.arange(15).view(3, 5) % 10, torch.tensor([3, 5, 2])
    features, _ = tagger.recurrent(tagger.embedding(words), lengths=lengths)
    torch.testing.assert_close(tagger.tags(features), tagger(words, lengths))
    assert "features, _ = self.recurrent(self.embedding(words), lengths=lengths)" in PAGE


@both
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_the_classifier_trains_in_lightning(mark: str, tmp_path: Path) -> None:
    classifier = module_of("Classifier", mark)()
    assert kind_of(classifier) == mark
    data = TensorDataset(random_tensor(12, 4, 8), torch.arange(12) % 3)
    before = [parameter.clone() for parameter in classifier.parameters()]
    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with warnings.catch_warnings(action="ignore"):
        trainer.fit(classifier, DataLoader(data, batch_size=6))
    changed = [not torch.equal(*pair) for pair in zip(before, classifier.parameters(), strict=True)]
    assert all(changed)
    assert classifier(random_tensor(5, 4, 8)).shape == (5, 3)


@both
def test_a_rollout_of_the_policy_is_evaluated_as_it_was_played(mark: str) -> None:
    policy = module_of("Policy", mark)(observation_size=4, num_actions=2).eval()
    assert kind_of(policy) == mark
    observations, starts = random_tensor(3, 6, 4), torch.zeros(3, 6, dtype=torch.bool)
    starts[0, 2] = starts[2, 5] = True
    start = state = policy.initial_state(3)
    played: list[Tensor] = []
    for step in range(6):
        logits, state = policy.act(observations[:, step], starts[:, step], state)
        played.append(logits)
    evaluated = policy.evaluate(observations, starts, start)
    torch.testing.assert_close(evaluated, torch.stack(played, dim=1), rtol=1e-4, atol=1e-5)
    again, _ = policy.act(observations[:, 2], starts[:, 2], policy.initial_state(3))
    torch.testing.assert_close(evaluated[0, 2], again[0], rtol=1e-4, atol=1e-5)  # an episode begins there


def test_the_table_says_what_holds() -> None:
    rim = RIM(3, 12, num_mechanisms=4, num_active=2, num_layers=2)
    features, state = rim(torch.ones(5, 7, 3))
    assert state.hidden.shape == state.memory.shape == (5, 2, 4, 3)
    torch.testing.assert_close(state.hidden[:, -1].flatten(1), rim.final_features(features))
    lstm = rimlit.LSTM(3, 12, num_layers=2)
    features, state = lstm(torch.ones(5, 7, 3))
    assert state.hidden.shape == state.memory.shape == (5, 2, 12)
    torch.testing.assert_close(state.hidden[:, -1], lstm.final_features(features))
    assert not hasattr(lstm, "flatten_parameters")
    with pytest.raises(TypeError, match="positional arguments"):
        RIM(3, 12, 2)  # type: ignore[misc]


def test_the_page_names_every_backbone() -> None:
    names = {cls for cls in rimlit.backbones.__all__ if not cls.startswith(("Backbone", "Bidirectional"))}
    assert names <= set(re.findall(r"`(\w+)`", PAGE))
