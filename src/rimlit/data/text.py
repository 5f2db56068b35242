"""Text for language modelling, in contiguous batches."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rimlit.checks import require_at_least, require_fractions, require_known
from rimlit.data.base import DataModule, Split
from rimlit.data.identity import digest_parts, digest_text
from rimlit.data.reading import read_text, shown
from rimlit.data.sampling import index_sampler, rank_and_world_size, share_of
from rimlit.data.text_sources import read_dataset, read_path, read_standard_library
from rimlit.data.vocabulary import Level, Vocabulary
from rimlit.errors import ConfigError, DataError
from rimlit.metrics import IGNORED
from rimlit.types import SequenceBatch


class Prompt(NamedTuple):
    """A text to continue."""

    text: str
    inputs: Tensor  # (1, T)


class ContiguousText(Dataset[SequenceBatch]):
    """A text as rows side by side, cut into chunks; item t is the t-th chunk of every row.

    Every token is a target exactly once, the first one after a line's end. Rows differ in length by at most
    one token, and the last chunk is padded.

    Args:
        tokens: Token ids (n,).
        start: Token before the first one.
        num_rows: Rows over all processes, at least 1 and at most n.
        chunk_length: Steps of a chunk, at least 1.
        rank: This process takes rows rank·(num_rows / world_size) and on.
        world_size: Processes.

    Example:
        >>> text = ContiguousText(torch.arange(1, 6), 0, num_rows=2, chunk_length=2)
        >>> [chunk.targets.tolist() for chunk in (text[0], text[1])]
        [[[1, 2], [4, 5]], [[3], [-100]]]
    """

    def __init__(
        self,
        tokens: Tensor,
        start: int,
        *,
        num_rows: int,
        chunk_length: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        targets = list(tokens.tensor_split(num_rows))
        inputs = list(torch.cat([tokens.new_tensor([start]), tokens[:-1]]).tensor_split(num_rows))
        share = slice(rank * num_rows // world_size, (rank + 1) * num_rows // world_size)
        padding = len(targets[0])
        self.inputs = torch.stack([_pad(row, padding, start) for row in inputs[share]])
        self.targets = torch.stack([_pad(row, padding, IGNORED) for row in targets[share]])
        self.chunk_length = chunk_length

    def __len__(self) -> int:
        """Return the number of chunks."""
        return math.ceil(self.inputs.shape[1] / self.chunk_length)

    def __getitem__(self, index: int) -> SequenceBatch:
        """Return a chunk of all rows: (rows, chunk_length), shorter at the end."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        chunk = slice(index * self.chunk_length, (index + 1) * self.chunk_length)
        targets = self.targets[:, chunk]
        return SequenceBatch(self.inputs[:, chunk], targets, (targets != IGNORED).sum(dim=1))


def _pad(row: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(row, (0, length - len(row)), value=value)


class _Prompts(Dataset[Prompt]):
    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]


class Text(DataModule):
    """A text in contiguous batches, from local files, from Hugging Face, or from the standard library.

    Args:
        path: A .txt or .txt.gz file, or a folder with one, or a folder with train, valid and test. None, with
            no ``dataset``: the Python sources of the running interpreter's standard library, a demonstration
            that needs no download.
        dataset: Hugging Face id or local folder instead of ``path``; needs the extra ``data``.
        dataset_name: Configuration of ``dataset``, for example ``wikitext-2-raw-v1``.
        level: Unit of a token: ``character``, ``byte`` or ``word``.
        min_count: Words seen less often in the training text become ``<unk>``, at least 1.
        chunk_length: Steps of a chunk, the length of truncated backpropagation, at least 1.
        val_fraction: Share of a single text that is validation, 0 to 1.
        test_fraction: Share of a single text, its end, that is test, 0 to 1.
        size_limit: Characters of each split that are used; None for all.
        prompt: Text that prediction continues.
        predict_path: A .txt or .txt.gz file instead of ``prompt``: each of its lines that is not empty is
            continued. With a checkpoint's vocabulary the training text need not exist.
        strict: Whether a validation or test text that is the training text is an error and not a warning.
        batch_size: Rows of text side by side over all processes, at least 1 and a multiple of their number.
        eval_batch_size: The same in validation and test; None for ``batch_size``. Each row starts from the initial
            state, so fewer rows give slightly better scores; every token is scored at any number.
        num_workers: Loader processes, 0 to load in the training process.
        seed: Not used by a text; None takes the run's ``seed_everything``, or 0.

    Raises:
        ConfigError: A value is out of its range.
        DataError: The text cannot be found or read, is too short, or holds unknown tokens. Raised when the
            text is first needed.

    Example:
        >>> data = Text(size_limit=10_000, chunk_length=32, batch_size=4)
        >>> next(iter(data.train_dataloader())).inputs.shape
        torch.Size([4, 32])
    """

    name = "language"

    def __init__(
        self,
        *,
        path: str | None = None,
        dataset: str | None = None,
        dataset_name: str | None = None,
        level: Level = "byte",
        min_count: int = 1,
        chunk_length: int = 64,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        size_limit: int | None = None,
        prompt: str = "\n",
        predict_path: str | None = None,
        strict: bool = False,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        require_at_least(1, chunk_length=chunk_length, min_count=min_count)
        require_at_least(1, eval_batch_size=eval_batch_size, size_limit=size_limit)
        if path is not None and dataset is not None:
            raise ConfigError(f"Give path or dataset, not both; got path={path!r}, dataset={dataset!r}.")
        require_known(level=(level, ("character", "byte", "word")))
        require_fractions(val_fraction, test_fraction)
        self.path = path
        self.dataset = dataset
        self.dataset_name = dataset_name
        self.level = level
        self.min_count = min_count
        self.chunk_length = chunk_length
        self.fractions = (val_fraction, test_fraction)
        self.size_limit = size_limit
        self.prompt = prompt
        self.predict_path = predict_path
        self.strict = strict
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self._vocabulary: Vocabulary | None = None
        self._texts: dict[str, str] | None = None
        self._tokens: dict[str, Tensor] = {}
        self._digest: str | None = None
        self._prompts: list[tuple[int, Prompt]] | None = None

    @property
    def source(self) -> str:
        """Where the text comes from, in words."""
        return self.dataset or self.path or "the standard library"

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the training text, or of the checkpoint this was restored from."""
        if self._vocabulary is None:
            text = self._read()["train"]
            self._vocabulary = Vocabulary.from_text(self.level, text, min_count=self.min_count)
        return self._vocabulary

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return len(self.vocabulary)

    def state_dict(self) -> dict[str, Any]:
        """Return the vocabulary, for the checkpoint."""
        return {"tokens": self.vocabulary.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the vocabulary of a checkpoint."""
        self._vocabulary = Vocabulary(self.level, state_dict["tokens"])
        self._tokens.clear()
        self._prompts = None

    @property
    def digest(self) -> str:
        """A SHA-256 of the texts and of which split each is; see :attr:`DataModule.digest`."""
        if self._digest is None:
            self._read()
        assert self._digest is not None
        return self._digest

    def tokens(self, split: Split) -> Tensor:
        """Return the token ids (n,) of a split."""
        if split not in self._tokens:
            text = self._read()[split]
            self._tokens[split] = self.vocabulary.encode(text, f"The {split} text of {self.source}")
        return self._tokens[split]

    def _read(self) -> dict[str, str]:
        if self._texts is not None:
            return self._texts
        if self.dataset is not None:
            texts = dict(read_dataset(self.dataset, self.dataset_name))
        elif self.path is not None:
            texts = dict(read_path(Path(self.path)))
        else:
            texts = dict(read_standard_library())
        self._digest = digest_parts({split: digest_text(text) for split, text in texts.items()})
        if "" in texts:
            texts = self._split(texts[""])
        if self.size_limit is not None:
            texts = {split: text[: self.size_limit] for split, text in texts.items()}
        for split, text in texts.items():
            if not text:
                raise DataError(f"The {split} text of {self.source} is empty.")
        self._texts = texts
        return texts

    def _split(self, text: str) -> dict[str, str]:
        val, test = self.fractions
        first, second = round(len(text) * (1 - val - test)), round(len(text) * (1 - test))
        return {"train": text[:first], "val": text[first:second], "test": text[second:]}

    def datasets(self, split: Split) -> Mapping[str, Dataset[Any]]:
        """Return the chunks of a split, or the prompt."""
        if split == "predict":
            return {"": _Prompts([prompt for _, prompt in self.prompts])}
        rank, world_size = rank_and_world_size()
        tokens = self.tokens(split)
        key = "batch_size" if split == "train" else "eval_batch_size"
        rows = getattr(self, key)
        share_of(rows, key=key, world_size=world_size)
        if len(tokens) < rows:
            raise DataError(
                f"The {split} text of {self.source} has {len(tokens)} tokens, fewer than the {rows} rows of a "
                f"batch; got {key}={rows}."
            )
        text = ContiguousText(
            tokens,
            self.vocabulary.start,
            num_rows=rows,
            chunk_length=self.chunk_length,
            rank=rank,
            world_size=world_size,
        )
        return {"": text}

    @property
    def prompts(self) -> list[tuple[int, Prompt]]:
        """What prediction continues, each with the number of its line, from 1."""
        if self._prompts is None:
            if self.predict_path is None:
                self._prompts = [(1, self._prompt(self.prompt, f"prompt={self.prompt!r}"))]
            else:
                path = Path(self.predict_path)
                lines = enumerate(read_text(path).split("\n"), start=1)
                self._prompts = [
                    (number, self._prompt(line, f"{shown(path)}: line {number}"))
                    for number, line in ((number, line.removesuffix("\r")) for number, line in lines)
                    if line.strip()
                ]
                if not self._prompts:
                    raise DataError(f"{shown(path)} has no line with text to continue.")
        return self._prompts

    def _prompt(self, text: str, source: str) -> Prompt:
        ids = self.vocabulary.encode(text, source)
        if self.level == "word" and not text.endswith("\n"):
            ids = ids[:-1]  # the prompt's last line is continued
        start = ids.new_tensor([self.vocabulary.start])
        return Prompt(text, torch.cat([start, ids])[None])

    def sample_name(self, split: Split, group: str, index: int) -> int:
        """Return the number of a prompt's line, from 1."""
        return self.prompts[index][0]

    def group_names(self, split: Split) -> list[str]:
        """Return the one unnamed group."""
        return [""]

    def setup(self, stage: str) -> None:
        """Read and check every text the stage needs before any work is done."""
        needed: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "val", "test"),
            "validate": ("val",),
            "test": ("test",),
            "predict": ("predict",),
        }
        for split in needed[stage]:
            self.datasets(split)
        if stage == "fit":
            texts = self._read()
            for split in ("val", "test"):
                if texts[split] == texts["train"]:
                    self.report_doubt(
                        f"The {split} text of {self.source} is the training text; its scores say nothing new."
                    )

    def example(self, split: Split) -> SequenceBatch:
        """Return the first chunk of a split."""
        chunk: SequenceBatch = self.datasets(split)[""][0]
        return chunk

    def loader(self, dataset: Dataset[Any], split: Split, **options: Any) -> DataLoader[Any]:
        """Return a loader whose items are batches already, in the order of the text."""
        if split == "predict":  # prompts are divided among the processes
            options["sampler"] = index_sampler(self.size_of(dataset))
        # otherwise every process has rows of its own and goes through all chunks
        return DataLoader(dataset, batch_size=None, num_workers=self.num_workers, **options)

    def floors(self) -> dict[str, float]:
        """Return what the training text's token frequencies (plus one each) score on the test text."""
        if self._texts is None:
            return {}
        size = self.vocabulary_size
        counts = torch.bincount(self.tokens("train"), minlength=size).double() + 1
        nats = -(counts / counts.sum()).log()[self.tokens("test")].mean().item()
        floors = {"cross_entropy": nats, "perplexity": math.exp(nats)}
        return floors if self.level == "word" else floors | {"bits_per_character": nats / math.log(2)}
