"""Text: where it comes from, how it is cut, what is refused."""

import gzip
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rimlit.data import Text, text_sources
from rimlit.data import text as text_module
from rimlit.data.text import ContiguousText
from rimlit.data.vocabulary import Vocabulary
from rimlit.errors import ConfigError, DataError
from rimlit.metrics import IGNORED

TRAIN = "the cat sat\non the mat\n"
VALID = "the mat sat\n"
TEST = "on the cat\n"
NAMES = {"train": TRAIN, "valid": VALID, "test": TEST}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in NAMES.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


def make_text(path: Path | None = None, **arguments: Any) -> Text:
    given = {"path": None if path is None else str(path), "batch_size": 2, "chunk_length": 4, **arguments}
    return Text(**given)


def decoded(data: Text, split: Any) -> str:
    return data.vocabulary.decode(data.tokens(split))


# Sources


@pytest.mark.parametrize("level", ["character", "byte", "word"])
def test_a_folder_of_three_files_is_read_at_every_level(folder: Path, level: str) -> None:
    data = make_text(folder, level=level)
    if level == "word":
        assert data.vocabulary.tokens[:2] == ["the", "<eos>"]
        assert set(data.vocabulary.tokens) == {"the", "cat", "sat", "<eos>", "on", "mat"}
        assert decoded(data, "val") == "the mat sat \n"
        assert len(data.tokens("train")) == 8
    else:
        assert [decoded(data, split) for split in ("train", "val", "test")] == [TRAIN, VALID, TEST]
        assert data.vocabulary_size == (256 if level == "byte" else len(set(TRAIN)))


@pytest.mark.parametrize("name", ["valid", "val", "validation", "dev"])
def test_validation_goes_by_any_of_its_names_plain_or_compressed(folder: Path, name: str) -> None:
    (folder / "valid.txt").unlink()
    (folder / f"{name}.txt.gz").write_bytes(gzip.compress(VALID.encode()))
    assert decoded(make_text(folder), "val") == VALID


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
@pytest.mark.parametrize("inside_a_folder", [True, False])
def test_one_text_is_split_without_loss_test_at_the_end(
    tmp_path: Path, suffix: str, inside_a_folder: bool
) -> None:
    text = "".join(chr(97 + index % 26) for index in range(200))
    file = tmp_path / f"novel{suffix}"
    file.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    data = make_text(tmp_path if inside_a_folder else file, val_fraction=0.2, test_fraction=0.1)
    parts = [decoded(data, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [140, 40, 20]
    assert "".join(parts) == text


def test_the_standard_library_is_the_default_and_always_the_same() -> None:
    first, second = (text_sources.read_standard_library(20_000)[""] for _ in range(2))
    assert first == second
    assert len(first) == 20_000
    assert "import" in first
    data = make_text(size_limit=500)
    assert data.source == "the standard library"
    assert [len(data._read()[split]) for split in ("train", "val", "test")] == [500, 500, 500]


def test_a_size_limit_cuts_each_split(folder: Path) -> None:
    data = make_text(folder, size_limit=6)
    assert [decoded(data, split) for split in ("train", "val", "test")] == [TRAIN[:6], VALID[:6], TEST[:6]]


def test_a_local_hugging_face_folder_is_read(folder: Path, hugging_face: Any) -> None:
    (folder / "valid.txt").rename(folder / "validation.txt")
    data = make_text(dataset=str(folder))
    assert [decoded(data, split) for split in ("train", "val", "test")] == [TRAIN, VALID, TEST]


def test_a_hugging_face_folder_without_text_is_refused_with_its_columns(tmp_path: Path, hugging_face: Any) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.csv").write_text("first,second\n1,2\n3,4\n")
    with pytest.raises(DataError, match=r"has no column 'text'; it has first, second\."):
        make_text(dataset=str(folder)).setup("fit")


def test_a_hugging_face_dataset_that_is_not_there_is_refused_by_name(tmp_path: Path, hugging_face: Any) -> None:
    missing = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere' \(name=None\) cannot be loaded: "):
        make_text(dataset=missing).setup("fit")


# Refusals


def test_a_path_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"novel\.txt' does not exist; it must be a \.txt"):
        make_text(tmp_path / "novel.txt").setup("fit")


def test_a_folder_with_other_files_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold train, valid and test, or one text.*; found: none\."):
        make_text(tmp_path).setup("fit")
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("abc")
    with pytest.raises(DataError, match=r"found: one\.txt, two\.txt\."):
        make_text(tmp_path).setup("fit")


def test_what_is_not_text_is_refused_with_its_first_wrong_byte(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"abc\xffdef")
    with pytest.raises(DataError, match=r"train\.txt is not UTF-8 text: byte 3, in line 1, is 0xff\."):
        make_text(tmp_path).setup("fit")


WHOLE = gzip.compress(TRAIN.encode(), mtime=0)


# no archive at all, one cut short, one whose stream is damaged: three kinds of exception inside
@pytest.mark.parametrize(
    "content",
    [b"no archive", WHOLE[:-6], WHOLE[:10] + b"\xff" * 4 + WHOLE[14:]],
    ids=["no_archive", "cut_short", "damaged"],
)
def test_a_broken_archive_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "novel.txt.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"novel\.txt\.gz cannot be read: "):
        make_text(tmp_path / "novel.txt.gz").setup("fit")


@pytest.mark.parametrize(("name", "split"), [("train", "train"), ("valid", "val"), ("test", "test")])
def test_an_empty_split_is_refused_by_name(folder: Path, name: str, split: str) -> None:
    (folder / f"{name}.txt").write_text("")
    with pytest.raises(DataError, match=f"The {split} text of .* is empty"):
        make_text(folder).setup("fit")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("")
    with pytest.raises(DataError, match=r"text of .*novel\.txt is empty"):
        make_text(tmp_path / "novel.txt").setup("fit")


def test_a_text_shorter_than_a_batch_has_rows_is_refused_with_both_numbers(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"train text of .* has 23 tokens, fewer than the 24 rows .* got batch_size=24"
    ):
        make_text(folder, batch_size=24).setup("fit")
    message = r"val text of .* has 12 tokens, fewer than the 13 rows .* got eval_batch_size=13"
    with pytest.raises(DataError, match=message):
        make_text(folder, eval_batch_size=13).setup("fit")


@pytest.mark.parametrize(
    ("level", "extra", "named"),
    [("character", "zoo\n", "character 'z'"), ("word", "a dog\n", "word 'a'")],
)
def test_an_unknown_token_is_refused_by_name(folder: Path, level: str, extra: str, named: str) -> None:
    (folder / "test.txt").write_text(TEST + extra)
    with pytest.raises(
        DataError, match=f"The test text of .* holds the {named}, which is not among the"
    ) as caught:
        make_text(folder, level=level).setup("test")
    assert ("min_count=2" in str(caught.value)) is (level == "word")


def test_rare_words_become_unknown_with_a_least_count(folder: Path) -> None:
    (folder / "test.txt").write_text("the dog sat\n")
    data = make_text(folder, level="word", min_count=2)
    assert data.vocabulary.tokens == ["the", "<eos>", "<unk>"]
    assert decoded(data, "test") == "the <unk> <unk> \n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_length": 0}, "chunk_length must be at least 1; got chunk_length=0."),
        ({"min_count": 0}, "min_count must be at least 1; got min_count=0."),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1; got eval_batch_size=0."),
        ({"size_limit": 0}, "size_limit must be at least 1; got size_limit=0."),
        ({"level": "phoneme"}, "level must be one of character, byte, word; got level='phoneme'."),
        ({"path": "a", "dataset": "b"}, "Give path or dataset, not both; got path='a', dataset='b'."),
        (
            {"val_fraction": 0.5, "test_fraction": 0.5},
            "val_fraction and test_fraction must be above 0 and sum to less than 1; got "
            "val_fraction=0.5, test_fraction=0.5.",
        ),
        (
            {"val_fraction": 0.0},
            "val_fraction and test_fraction must be above 0 and sum to less than 1; got "
            "val_fraction=0.0, test_fraction=0.05.",
        ),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_its_key(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Text(**arguments)
    assert str(caught.value) == message


# Cutting


def chunks_of(tokens: Tensor, **arguments: Any) -> list[Any]:
    text = ContiguousText(tokens, 0, **arguments)
    return [text[index] for index in range(len(text))]


def joined(chunks: list[Any], field: str) -> Tensor:
    return torch.cat([getattr(chunk, field) for chunk in chunks], dim=1)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 23])
@pytest.mark.parametrize("chunk_length", [1, 4, 50])
def test_every_token_is_scored_exactly_once_at_any_batch_size(num_rows: int, chunk_length: int) -> None:
    tokens = torch.arange(1, 24)
    chunks = chunks_of(tokens, num_rows=num_rows, chunk_length=chunk_length)
    inputs, targets = joined(chunks, "inputs"), joined(chunks, "targets")
    # rows one after the other are the text; each token is read one step after it was to be predicted
    assert torch.equal(targets[targets != IGNORED], tokens)
    assert torch.equal(inputs[targets != IGNORED], torch.arange(0, 23))
    lengths = (targets != IGNORED).sum(dim=1)
    assert lengths.max() - lengths.min() <= 1
    assert torch.equal(sum(chunk.lengths for chunk in chunks), lengths)
    assert all(chunk.inputs.shape[1] <= chunk_length for chunk in chunks)


def test_a_row_goes_on_in_the_next_chunk() -> None:
    chunks = chunks_of(torch.arange(1, 25), num_rows=3, chunk_length=3)
    assert [chunk.inputs[1].tolist() for chunk in chunks] == [[8, 9, 10], [11, 12, 13], [14, 15]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_processes_rows_together_are_all_rows_once(world_size: int) -> None:
    tokens = torch.arange(1, 47)
    whole = chunks_of(tokens, num_rows=10, chunk_length=2)
    shares = [
        chunks_of(tokens, num_rows=10, chunk_length=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {len(share) for share in shares} == {len(whole)}  # all have the same number of chunks
    assert torch.equal(torch.cat([joined(share, "targets") for share in shares]), joined(whole, "targets"))


def test_the_processes_share_the_rows_of_a_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in range(3):
        monkeypatch.setattr(text_module, "rank_and_world_size", lambda rank=rank: (rank, 3))
        chunks = list(make_text(folder, batch_size=6).train_dataloader())
        assert {len(chunk.inputs) for chunk in chunks} == {2}
        targets = joined(chunks, "targets")
        seen.append(targets[targets != IGNORED])
    assert bytes(torch.cat(seen).tolist()).decode() == TRAIN


def test_an_item_beyond_the_last_chunk_is_an_index_error() -> None:
    text = ContiguousText(torch.arange(1, 6), 0, num_rows=2, chunk_length=2)
    assert len(list(text)) == len(text) == 2
    with pytest.raises(IndexError):
        text[-1]


def test_loaders_walk_the_text_in_order_with_rows_as_asked(folder: Path) -> None:
    data = make_text(folder, batch_size=2, eval_batch_size=1)
    assert next(iter(data.train_dataloader())).inputs.shape == (2, 4)
    evaluation = joined(list(data.val_dataloader()[0]), "targets")
    assert data.vocabulary.decode(evaluation[0]) == VALID
    assert next(iter(data.test_dataloader()[0])).inputs[0, 0] == data.vocabulary.start


def test_a_prompt_stands_after_a_line_s_end(folder: Path) -> None:
    def prompt_of(**arguments: Any) -> list[str]:
        data = make_text(folder, **arguments)
        batch = next(iter(data.predict_dataloader()[0]))
        assert batch.text == arguments["prompt"]
        return [data.vocabulary.decode(token[None]) for token in batch.inputs[0]]

    assert prompt_of(level="character", prompt="cat") == ["\n", "c", "a", "t"]
    assert prompt_of(level="word", prompt="the cat") == ["\n", "the", "cat"]
    assert prompt_of(level="word", prompt="the cat\n") == ["\n", "the", "cat", "\n"]
    assert prompt_of(level="byte", prompt="") == ["\n"]
    with pytest.raises(DataError, match="prompt='zoo' holds the character 'z'"):
        prompt_of(level="character", prompt="zoo")


# Vocabulary


@pytest.mark.parametrize("level", ["character", "byte", "word"])
def test_a_checkpoint_s_vocabulary_survives_another_training_text(folder: Path, level: str) -> None:
    data = make_text(folder, level=level)
    expected, state = data.tokens("test"), data.state_dict()
    (folder / "train.txt").write_text("a new text about cats on mats in the house\n" * 2)
    other = make_text(folder, level=level)
    other.load_state_dict(state)
    assert other.vocabulary_size == data.vocabulary_size
    assert torch.equal(other.tokens("test"), expected)


def test_a_restored_vocabulary_replaces_the_ids_made_before_it(folder: Path) -> None:
    data = make_text(folder, level="character")
    before = data.tokens("test").clone()
    data.load_state_dict({"tokens": list(reversed(data.vocabulary.tokens))})
    assert torch.equal(data.tokens("test"), data.vocabulary_size - 1 - before)


@pytest.mark.parametrize(
    ("level", "text"),
    [("character", "größe 漢字\n\n x"), ("byte", "größe 漢字\n\n x"), ("word", "a b \n \n c d \n")],
)
def test_decoding_gives_back_what_was_encoded(level: Any, text: str) -> None:
    vocabulary = Vocabulary.from_text(level, text)
    ids = vocabulary.encode(text, "the text")
    assert vocabulary.decode(ids) == (text.removesuffix("\n") + "\n" if level == "word" else text)
    assert len(vocabulary) == (256 if level == "byte" else len(set(ids.tolist())))
    assert vocabulary.decode(ids.new_tensor([vocabulary.start])) == "\n"


def test_bytes_that_are_no_text_are_decoded_with_a_mark() -> None:
    assert Vocabulary("byte").decode(torch.tensor([97, 255, 98])) == "a\ufffdb"


# Floors


@pytest.mark.parametrize("level", ["byte", "character", "word"])
def test_the_floor_is_what_token_frequencies_score(folder: Path, level: str) -> None:
    data = make_text(folder, level=level)
    assert data.floors() == {}  # nothing was read yet: a floor is no reason to read
    data.setup("fit")
    train, test = data.tokens("train").tolist(), data.tokens("test").tolist()
    total = len(train) + data.vocabulary_size
    expected = -sum(math.log((train.count(token) + 1) / total) for token in test) / len(test)
    floors = data.floors()
    assert floors["cross_entropy"] == pytest.approx(expected)
    assert floors["perplexity"] == pytest.approx(math.exp(expected))
    assert floors.get("bits_per_character") == (None if level == "word" else pytest.approx(expected / math.log(2)))


# Doubtful texts


def test_a_test_text_that_is_the_training_text_is_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_text(folder, strict=True).setup("fit")
    assert not caplog.records
    (folder / "test.txt").write_text(TRAIN)
    make_text(folder).setup("fit")
    assert "The test text of" in caplog.text
    with pytest.raises(DataError, match=r"The test text of .* is the training text; its scores say nothing new"):
        make_text(folder, strict=True).setup("fit")
