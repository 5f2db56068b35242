"""Language modelling: the carried state, exact counts, sampling."""

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from rimlit.backbones import Backbone
from rimlit.checkpoints import read_checkpoint
from rimlit.data import Text
from rimlit.data.text import ContiguousText
from rimlit.errors import CheckpointError, ConfigError
from rimlit.heads import SumHead, TiedHead
from rimlit.metrics import IGNORED
from rimlit.tasks import LanguageModelingTask, Task
from rimlit.tasks import language_modeling as module
from tests.tasks.running import SMALL_LSTM, SMALL_RIM, make_trainer, quiet

pytestmark = quiet

NOVEL = "it was the best of times, it was the worst of times, it was the age of wisdom...\n" * 3
STILL = partial(SGD, lr=0.0)  # training steps that change nothing


class Nothing(NamedTuple):
    """The state of a backbone without memory."""

    nothing: Tensor


class Memoryless(Backbone):
    """Features of a step that depend on its input alone."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.linear = nn.Linear(input_size, hidden_size)

    def initial_state(self, batch_size: int) -> Nothing:
        return Nothing(self.linear.weight.new_zeros(batch_size, 0))

    def forward(self, inputs: Tensor, state: Any = None, resets: Tensor | None = None) -> tuple[Tensor, Nothing]:
        return self.linear(inputs).tanh(), self.initial_state(len(inputs)) if state is None else state


@pytest.fixture
def novel(tmp_path: Path) -> Path:
    (tmp_path / "novel.txt").write_text(NOVEL)
    return tmp_path / "novel.txt"


def make_text(novel: Path, **arguments: Any) -> Text:
    defaults = {"level": "byte", "chunk_length": 7, "batch_size": 3, "val_fraction": 0.2, "test_fraction": 0.2}
    return Text(path=str(novel), **{**defaults, **arguments})


def make_task(backbone: Any = SMALL_RIM, **arguments: Any) -> LanguageModelingTask:
    defaults = {"vocabulary_size": 256, "level": "byte", "embedding_size": 6, "optimizer": STILL, "num_tokens": 12}
    task = LanguageModelingTask(backbone, **{**defaults, **arguments})
    for layer in getattr(task.backbone, "layers", ()):
        layer.input_dropout = layer.communication_dropout = 0.0
    return task


def watch_training(task: LanguageModelingTask, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collect the outputs of training steps."""
    seen: list[Tensor] = []
    log_step = task.log_step

    def watched(outputs: Tensor, batch: Any, stage: Any, group: int = 0) -> Tensor:
        if stage == "train":
            seen.append(outputs.detach())
        return log_step(outputs, batch, stage, group)

    monkeypatch.setattr(task, "log_step", watched)
    return seen


def rows_of(data: Text, split: Any) -> ContiguousText:
    dataset = data.datasets(split)[""]
    assert isinstance(dataset, ContiguousText)
    return dataset


# The carried state


@pytest.mark.parametrize("backbone", [SMALL_RIM, SMALL_LSTM], ids=["RIM", "LSTM"])
def test_training_over_chunks_equals_one_long_forward_and_each_epoch_starts_afresh(
    novel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: Any
) -> None:
    task, data = make_task(backbone), make_text(novel)
    seen = watch_training(task, monkeypatch)
    make_trainer(tmp_path, max_steps=-1, max_epochs=2).fit(task, data)
    whole, _ = task(rows_of(data, "train").inputs)
    chunks = len(rows_of(data, "train"))
    assert chunks > 3
    assert len(seen) == 2 * chunks
    torch.testing.assert_close(torch.cat(seen[:chunks], dim=1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(seen[chunks:], dim=1), whole, rtol=1e-4, atol=1e-5)


def test_without_carrying_every_chunk_starts_from_the_initial_state(
    novel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data = make_task(carry_state=False), make_text(novel)
    seen = watch_training(task, monkeypatch)
    make_trainer(tmp_path, max_steps=3).fit(task, data)
    expected, _ = task(rows_of(data, "train")[2].inputs)
    torch.testing.assert_close(seen[2], expected, rtol=1e-4, atol=1e-5)


def test_the_carried_state_is_cut_from_its_graph(novel: Path, tmp_path: Path) -> None:
    task = make_task()
    make_trainer(tmp_path).fit(task, make_text(novel))
    assert task._carried is not None
    assert not any(tensor.requires_grad for tensor in task._carried)
    assert not any("carried" in name for name in task.state_dict())


def test_validation_in_the_middle_does_not_disturb_training(
    novel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    seen = watch_training(task, monkeypatch)
    data = make_text(novel, eval_batch_size=2)  # another number of rows, too
    trainer = make_trainer(tmp_path, max_steps=4, val_check_interval=1, num_sanity_val_steps=1)
    trainer.fit(task, data)
    expected, _ = task(rows_of(data, "train").inputs[:, : 4 * 7])
    torch.testing.assert_close(torch.cat(seen, dim=1), expected, rtol=1e-4, atol=1e-5)


# Counts and scores


def scores_of(task: LanguageModelingTask, data: Text, folder: Path) -> dict[str, float]:
    (scores,) = make_trainer(folder).test(task, data, verbose=False)
    return dict(scores)


@pytest.mark.parametrize("level", ["byte", "word"])
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_every_token_of_the_test_counts_once(novel: Path, tmp_path: Path, rows: int, level: str) -> None:
    data = make_text(novel, level=level, eval_batch_size=rows, chunk_length=4, min_count=2)
    task = make_task(vocabulary_size=data.vocabulary_size, level=level)
    scores_of(task, data, tmp_path)
    metrics = task._metrics["test"]
    assert metrics["cross_entropy"].update_called
    assert metrics["cross_entropy"].count.item() == len(data.tokens("test"))


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("backbone", [SMALL_RIM, partial(Memoryless, hidden_size=8)], ids=["RIM", "memoryless"])
def test_the_test_scores_each_row_as_one_sequence(novel: Path, tmp_path: Path, rows: int, backbone: Any) -> None:
    data, task = make_text(novel, eval_batch_size=rows), make_task(backbone).eval()
    scores = scores_of(task, data, tmp_path)
    text = rows_of(data, "test")
    outputs, _ = task(text.inputs)
    nats = nn.functional.cross_entropy(outputs.flatten(0, 1), text.targets.flatten(), ignore_index=IGNORED).item()
    assert scores["test/cross_entropy"] == pytest.approx(nats, rel=1e-5)
    assert scores["test/perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
    assert scores["test/bits_per_character"] == pytest.approx(nats / math.log(2), rel=1e-5)


def test_without_memory_the_perplexity_is_the_same_at_any_batch_and_chunk_size(
    novel: Path, tmp_path: Path
) -> None:
    task = make_task(partial(Memoryless, hidden_size=8))
    perplexities = [
        scores_of(task, make_text(novel, eval_batch_size=rows, chunk_length=length), tmp_path)["test/perplexity"]
        for rows, length in ((1, 7), (2, 50), (5, 3), (13, 7))
    ]
    assert perplexities == pytest.approx([perplexities[0]] * 4, rel=1e-6)
    assert perplexities[0] > 2


def test_words_have_no_bits_per_character() -> None:
    assert set(make_task(level="word").metrics()) == {"cross_entropy", "perplexity"}


def test_a_chunk_of_nothing_but_padding_has_a_loss_of_zero_and_no_gradient() -> None:
    # with two processes and five tokens in two rows the second one's last chunk is such a chunk
    text = ContiguousText(torch.arange(1, 6), 0, num_rows=2, chunk_length=2, rank=1, world_size=2)
    task = make_task()
    last = text[1]
    assert (last.targets == IGNORED).all()
    loss = task.loss(task(last.inputs)[0], last)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in task.parameters())
    full = text[0]
    outputs, _ = task(full.inputs)
    expected = nn.functional.cross_entropy(outputs.flatten(0, 1), full.targets.flatten())
    torch.testing.assert_close(task.loss(outputs, full), expected)


# Checkpoints


def test_tied_embeddings_are_tied_after_loading(novel: Path, tmp_path: Path) -> None:
    task = make_task(tie_embeddings=True, dropout=0.3, optimizer=partial(SGD, lr=0.5))
    trainer = make_trainer(tmp_path)
    trainer.fit(task, make_text(novel))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Task.load_from_checkpoint(tmp_path / "last.ckpt")
    assert isinstance(loaded.head, TiedHead)
    assert loaded.head.table is loaded.encoder.table


# Heads


def test_tied_embeddings_leave_no_head_to_choose() -> None:
    with pytest.raises(
        ConfigError, match=r"got tie_embeddings=True and head=rimlit\.heads\.SumHead\. Remove one\."
    ):
        make_task(tie_embeddings=True, head=SumHead)
    assert isinstance(make_task(head=SumHead).head, SumHead)


def test_a_checkpoint_deals_the_carried_state_to_any_number_of_processes(
    novel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    trainer = make_trainer(tmp_path)
    trainer.fit(task, make_text(novel, batch_size=4))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    whole = task._carried
    assert whole is not None

    def sharded(world_size: int) -> list[list[Tensor]]:
        states = []
        for rank in range(world_size):
            monkeypatch.setattr(module, "rank_and_world_size", lambda: (rank, world_size))  # noqa: B023
            fresh = make_task()
            fresh.on_load_checkpoint(checkpoint)
            states.append(list(fresh._carried))  # type: ignore[arg-type]
        return states

    for world_size in (1, 2, 4):
        states = sharded(world_size)
        assert {len(part) for state in states for part in state} == {4 // world_size}
        for part, parts in zip(whole, zip(*states, strict=True), strict=True):
            assert torch.equal(torch.cat(parts), part)
    checkpoint["rimlit"]["carried"] = sharded(4)  # as four processes write it
    for part, parts in zip(whole, sharded(1)[0], strict=True):
        assert torch.equal(parts, part)
    (state, *rest) = checkpoint["rimlit"]["carried"]
    damaged = ([], state[:-1], [state[0][:, :-1], *state[1:]], [state[0][:0], *state[1:]])
    for other in damaged:
        checkpoint["rimlit"]["carried"] = [other, *rest]
        with pytest.raises(CheckpointError, match="carried in the checkpoint is of another model, or damaged"):
            sharded(1)


# Sampling

PROMPT = torch.tensor([[105, 116, 32], [119, 97, 115]])


def continued(**arguments: Any) -> Tensor:
    torch.manual_seed(3)  # the same weights
    return make_task(**arguments).eval().continue_tokens(PROMPT)


def test_the_greedy_continuation_is_what_a_whole_forward_finds_most_likely() -> None:
    torch.manual_seed(3)
    task = make_task(temperature=0).eval()
    tokens = task.continue_tokens(PROMPT)
    assert tokens.shape == (2, 12)
    logits, _ = task(torch.cat([PROMPT, tokens], dim=1))
    assert torch.equal(logits[:, 2:-1].argmax(dim=-1), tokens)


BASELINES: dict[str, dict[str, Any]] = {
    "LSTM": {},
    "GRU": {},
    "RNN": {},
    "MinGRU": {"num_layers": 2},
    "NTM": {"num_locations": 5, "word_size": 3},
    "DNC": {"num_locations": 5, "word_size": 3},
    "RMC": {},
    "EntNet": {"num_slots": 3},
    "Transformer": {"num_layers": 2, "num_heads": 2, "context": 6},
}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_continues_token_by_token_what_a_whole_forward_finds_most_likely(name: str) -> None:
    torch.manual_seed(3)
    backbone = {"class_path": f"rimlit.backbones.{name}", "init_args": {"hidden_size": 12, **BASELINES[name]}}
    task = make_task(backbone, temperature=0).eval()
    tokens = task.continue_tokens(PROMPT)
    logits, _ = task(torch.cat([PROMPT, tokens], dim=1))
    assert torch.equal(logits[:, 2:-1].argmax(dim=-1), tokens)


def test_one_candidate_is_the_greedy_continuation() -> None:
    assert torch.equal(continued(top_k=1, temperature=5.0), continued(temperature=0))


def test_the_same_seed_repeats_and_another_differs() -> None:
    first = continued(sample_seed=1)
    torch.rand(3)
    assert torch.equal(continued(sample_seed=1), first)
    assert not torch.equal(continued(sample_seed=2), first)


def test_only_the_top_k_are_sampled() -> None:
    torch.manual_seed(3)
    task = make_task(top_k=2, temperature=100.0, num_tokens=60).eval()
    tokens = task.continue_tokens(PROMPT)
    logits, _ = task(torch.cat([PROMPT, tokens], dim=1))
    best = logits[:, 2:-1].topk(2).indices
    assert (best == tokens[..., None]).any(dim=-1).all()
    assert 0 < (best[..., 0] == tokens).float().mean() < 1


def test_a_low_temperature_comes_near_the_greedy_continuation() -> None:
    assert torch.equal(continued(temperature=1e-5), continued(temperature=0))
    assert not torch.equal(continued(temperature=3.0), continued(temperature=0))


@pytest.mark.parametrize("level", ["byte", "word"])
def test_prediction_continues_the_prompt_in_text(novel: Path, tmp_path: Path, level: str) -> None:
    data = make_text(novel, level=level, prompt="it was", min_count=2)
    task = make_task(vocabulary_size=data.vocabulary_size, level=level, temperature=0)
    ((record,),) = make_trainer(tmp_path).predict(task, data)
    assert record["prompt"] == "it was"
    start = next(iter(data.predict_dataloader()[0])).inputs
    assert record["text"] == data.vocabulary.decode(task.eval().continue_tokens(start)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 0}, "num_tokens must be at least 1; got num_tokens=0."),
        ({"temperature": -0.5}, "temperature must be at least 0; got temperature=-0.5."),
        ({"top_k": 0}, "top_k must be at least 1 or null; got top_k=0."),
        ({"level": None}, "LanguageModelingTask needs level, which the data module does not declare."),
    ],
)
def test_a_setting_out_of_its_range_is_refused_with_its_key(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_task(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout": 1.5}, r"^dropout must be at least 0 and below 1; got dropout=1\.5\."),
        ({"embedding_size": 0}, r"^embedding_size must be at least 1; got embedding_size=0\."),
        ({"vocabulary_size": 0}, r"^vocabulary_size must be at least 1; got vocabulary_size=0\."),
    ],
)
def test_a_size_or_dropout_out_of_its_range_is_refused_with_its_key(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


def test_equal_tokens_share_their_projection_unless_there_is_dropout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = LanguageModelingTask(SMALL_RIM, vocabulary_size=5, level="byte", embedding_size=8, dropout=0.5)
    ways = []
    monkeypatch.setattr(
        task.backbone,
        "_run",
        lambda sequence, tokens, *rest: ways.append(tokens is not None) or run(sequence, tokens, *rest),
    )
    run = type(task.backbone)._run.__get__(task.backbone)
    tokens = torch.zeros(2, 6, dtype=torch.long)
    task.train()(tokens)
    task.eval()(tokens)
    assert ways == [False, True]
