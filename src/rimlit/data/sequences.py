"""Your own sequences, from files, for classification, regression and prediction of the next step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rimlit.checks import require_fractions
from rimlit.data.base import DataModule, Split
from rimlit.data.identity import digest_parts
from rimlit.data.reading import shown
from rimlit.data.sequence_layout import Layout, SequenceData, Target
from rimlit.data.sequence_sets import Scale, SequenceSet, digests_of, next_steps, sorted_labels
from rimlit.data.sequence_sources import digest_files, find_files, read_file, read_sequences
from rimlit.errors import DataError
from rimlit.metrics import IGNORED
from rimlit.types import SequenceBatch

MOST_NAMED = 20


class Sequences(DataModule):
    r"""Your own sequences from files; ``docs/your_own_data.md`` describes the layouts.

    Array files (.npy, .npz, .pt) hold ``inputs`` (sequences, steps, features) and, where they are needed,
    ``targets`` and ``lengths``. Tables (.csv, .csv.gz, .parquet) have a row per step, in the order of time, and a
    column that names the sequence. All of it is read into memory and checked before any work.

    Args:
        path: A file, or a folder with a file for each of train, val and test, or for each sequence. Then its name
            is the sequence's, and ``labels.csv`` beside it has the targets and splits.
        target: What is predicted: ``label``, one of some classes (``ClassificationTask``); ``value``, numbers
            (``RegressionTask``); ``next_step``, the inputs of the step after each (``RegressionTask``, with
            ``tokens`` ``ClassificationTask``).
        target_per_step: Whether every step has a label or value of its own, and not the sequence one.
        tokens: Whether a step is one token id, an integer from 0, and not a vector of numbers.
        sequence_column: Column of a table that names the sequence a row belongs to.
        input_columns: Columns of a table that are read; None for all that are nothing else.
        target_columns: Columns of a table that are predicted; with ``label`` one.
        split_column: Column of a table that says train, val or test, the same in all rows of a sequence. None: as
            the files are named, or drawn.
        time_column: Column of a table with the times of the steps, numbers or dates, which must grow within a
            sequence; it is not read as an input.
        delimiter: The character between the cells of a .csv file; ``\t`` for tabs.
        decimal: Decimal mark of the numbers in a .csv file, a point or a comma.
        predict_path: New sequences to predict, a file of the same layout, with or without targets; None for the
            test split. With a checkpoint's scales and classes the files of ``path`` need not exist.
        val_fraction: Share of the sequences drawn for validation, where no split is given, 0 to 1.
        test_fraction: Share of the sequences drawn for the test, where no split is given, 0 to 1.
        standardize: Whether inputs and values are scaled to mean 0 and deviation 1, measured in training. Scores
            are then in deviations; predictions are in the file's own units.
        strict: Whether doubtful data are an error and not a warning: one class only, or a split all of whose
            sequences are in training too.
        batch_size: Sequences in a batch over all processes, at least 1 and a multiple of their number; shorter
            ones are padded, which changes no result.
        num_workers: Loader processes, 0 to load in the training process.
        seed: Seed of the drawn split and of the order; None takes the run's ``seed_everything``, or 0.

    Raises:
        ConfigError: A value is out of its range.
        DataError: A file cannot be read or does not hold what it should; the message names file, row and what is
            expected. Raised when the sequences are first needed.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/waves.npz"
        >>> np.savez(path, inputs=np.random.rand(20, 30, 4), targets=np.arange(20) % 3)
        >>> data = Sequences(path=path, batch_size=5)
        >>> data.input_size, data.output_size, next(iter(data.train_dataloader())).inputs.shape
        (4, 3, torch.Size([5, 30, 4]))
    """

    name = "sequences"

    def __init__(
        self,
        path: str,
        *,
        target: Target = "label",
        target_per_step: bool = False,
        tokens: bool = False,
        sequence_column: str = "sequence",
        input_columns: Sequence[str] | None = None,
        target_columns: Sequence[str] = ("target",),
        split_column: str | None = None,
        time_column: str | None = None,
        delimiter: str = ",",
        decimal: str = ".",
        predict_path: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        standardize: bool = True,
        strict: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        require_fractions(val_fraction, test_fraction)
        self.path = path
        self.predict_path = predict_path
        self.strict = strict
        self.layout = Layout(
            target,
            target_per_step,
            tokens,
            sequence_column,
            None if input_columns is None else tuple(input_columns),
            tuple(target_columns),
            split_column,
            "\t" if delimiter == r"\t" else delimiter,
            decimal,
            time_column,
        )
        self.layout.check()
        self.fractions = (val_fraction, test_fraction)
        self.standardize = standardize
        self._read: dict[str, SequenceData] | None = None
        self._new: SequenceData | None = None
        self._digest: str | None = None
        self._learned: dict[str, Any] | None = None
        self._datasets: dict[str, SequenceSet] = {}

    # Sizes

    @property
    def input_size(self) -> int | None:
        """Features of each step; None where steps are tokens."""
        return None if self.layout.tokens else len(self.learned["inputs"].mean)

    @property
    def vocabulary_size(self) -> int | None:
        """Token ids, one more than the greatest; None where steps are vectors."""
        return self.learned["vocabulary_size"] if self.layout.tokens else None

    @property
    def output_size(self) -> int:
        """Classes, values or features to predict."""
        if self.layout.target == "label":
            return len(self.learned["classes"])
        if self.layout.target == "value":
            return len(self.learned["targets"].mean)
        return self.learned["vocabulary_size"] if self.layout.tokens else len(self.learned["inputs"].mean)

    @property
    def learned(self) -> dict[str, Any]:
        """What was learned from the training data: classes, scales, the number of tokens."""
        if self._learned is None:
            self._learned = self._learn(self.sequences("train"))
        return self._learned

    def _learn(self, train: SequenceData) -> dict[str, Any]:
        learned: dict[str, Any] = {}
        if self.layout.tokens:
            assert self._read is not None
            # of all splits: a rare token need not have been drawn for training
            learned["vocabulary_size"] = 1 + max(int(part.inputs.max()) for part in self._read.values())
        else:
            learned["inputs"] = self._scale(train.inputs)
        if self.layout.target == "label":
            assert self._read is not None and train.targets is not None
            # where the split was drawn a rare class may have missed training; where it was given that is an error
            parts = list(self._read.values()) if self._is_drawn else [train]
            learned["classes"] = sorted_labels(part.targets for part in parts)
        elif self.layout.target == "value":
            learned["targets"] = self._scale(train.targets)
        if train.columns is not None:
            learned["columns"] = list(train.columns)
        return learned

    def _scale(self, values: np.ndarray | None) -> Scale:
        assert values is not None
        size = values.shape[1]
        return Scale.of(values) if self.standardize else Scale([0.0] * size, [1.0] * size)

    def state_dict(self) -> dict[str, Any]:
        """Return classes and scales, for the checkpoint."""
        return {name: list(value) if isinstance(value, Scale) else value for name, value in self.learned.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take classes and scales of a checkpoint."""
        self._learned = {
            name: Scale(*value) if name in ("inputs", "targets") else value for name, value in state_dict.items()
        }
        self._datasets.clear()
        self._new = None
        known = self._layout.known_columns
        if self._read is not None and known and self._read["train"].columns not in (None, known):
            self._read = None  # it was read in another order

    # Reading

    @property
    def _layout(self) -> Layout:
        """What a file is to hold, with the columns that the checkpoint knows."""
        known = (self._learned or {}).get("columns")
        return self.layout._replace(known_columns=tuple(known) if known else None)

    @property
    def digest(self) -> str:
        """A SHA-256 of the content of the files and of which split each is; see :attr:`DataModule.digest`."""
        if self._digest is None:
            files = find_files(Path(self.path))
            self._digest = digest_parts({split: digest_files(file) for split, file in files.items()})
        return self._digest

    def sequences(self, split: Split) -> SequenceData:
        """Return the sequences of a split as they were read."""
        if split == "predict" and self.predict_path is not None:
            if self._new is None:
                self._new = read_file(Path(self.predict_path), self._layout._replace(is_predicted=True))
            return self._new
        if self._read is None:
            read = read_sequences(Path(self.path), self._layout)
            self._digest = digest_parts({split: part.digest for split, part in read.items()})
            self._read = self._divided(read)
        return self._read["test" if split == "predict" else split]

    def _divided(self, read: dict[str, SequenceData]) -> dict[str, SequenceData]:
        self._is_drawn = "" in read and read[""].splits is None
        if "" in read:
            whole = read[""]
            number = len(whole.lengths)
            if whole.splits is None:
                order = np.random.default_rng(self.seed).permutation(number)
                val, test = (round(fraction * number) for fraction in self.fractions)
                parts = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
            else:
                parts = {split: np.flatnonzero(whole.splits == split) for split in ("train", "val", "test")}
            for split, places in parts.items():
                if not len(places):
                    raise DataError(
                        f"{self.path} leaves no sequence for {split}: it has {number}, with "
                        f"val_fraction={self.fractions[0]}, test_fraction={self.fractions[1]}."
                        if self._is_drawn
                        else f"{self.path} names no sequence of the split {split}; it needs train, val and test."
                    )
            read = {split: self._taken(whole, np.sort(places)) for split, places in parts.items()}
        widths = {split: [_width(part.inputs), _width(part.targets)] for split, part in read.items()}
        for split in ("val", "test"):
            if widths[split] != widths["train"]:
                raise DataError(
                    f"{self.path}: {split} has {widths[split][0]} feature(s) and {widths[split][1]} value(s), "
                    f"train {widths['train'][0]} and {widths['train'][1]}; they must be as many."
                )
        if self.layout.target == "next_step":
            for split, part in read.items():
                if part.lengths.max() < 2:
                    raise DataError(f"{self.path}: no sequence of {split} has a next step; all have one step.")
        return read

    def _taken(self, whole: SequenceData, places: np.ndarray) -> SequenceData:
        """Return some of the sequences."""
        ends = np.cumsum(whole.lengths)
        steps = np.concatenate([np.arange(ends[at] - whole.lengths[at], ends[at]) for at in places])
        targets = whole.targets
        if targets is not None:
            targets = targets[steps if self.layout.target_per_step else places]
        return whole._replace(
            inputs=whole.inputs[steps],
            lengths=whole.lengths[places],
            targets=targets,
            splits=None,
            names=whole.names[places],
        )

    def setup(self, stage: str) -> None:
        """Read and check the sequences before any work is done."""
        splits: tuple[Split, ...] = ("predict",) if stage == "predict" else ("train", "val", "test")
        for split in splits:
            self.datasets(split)
        if stage == "fit":
            self._question()

    def _question(self) -> None:
        """Report data that can be used, and from which nothing can be learned or concluded."""
        train = self.sequences("train")
        if self.layout.target == "label" and len(classes := sorted_labels([train.targets])) == 1:
            self.report_doubt(
                f"{self.path}: all of training has the label {classes[0]!r}; there is nothing to classify."
            )
        known = set(digests_of(train, self.layout.target_per_step))
        splits: tuple[Split, ...] = ("val", "test")
        for split in splits:
            if known.issuperset(digests_of(self.sequences(split), self.layout.target_per_step)):
                self.report_doubt(
                    f"{self.path}: every sequence of {split} is also in train; its scores say nothing of others."
                )
        if self.layout.target == "next_step":
            for split in ("train", *splits):
                part = self.sequences(split)
                short = part.names[part.lengths == 1].tolist()
                if short:
                    self.warn_once(
                        f"{self.path}: {_named(short)} of one step have no next one and are left out of {split}."
                    )

    def sample_name(self, split: Split, group: str, index: int) -> str | int:
        """Return the name of a sequence in its table, or its index in its file of arrays."""
        name: str | int = self._used(split).names[index]
        return name if isinstance(name, str) else int(name)

    def _used(self, split: Split) -> SequenceData:
        """Return the sequences that are samples of a split, in their order."""
        part = self.sequences(split)
        if self.layout.target != "next_step" or split == "predict" or part.lengths.min() > 1:
            return part
        return self._taken(part, np.flatnonzero(part.lengths > 1))

    def datasets(self, split: Split) -> Mapping[str, SequenceSet]:
        """Return the one dataset of a split."""
        if split not in self._datasets:
            self._datasets[split] = self._prepared(split)
        return {"": self._datasets[split]}

    def group_names(self, split: Split) -> list[str]:
        """Return the one unnamed group."""
        return [""]

    def _prepared(self, split: Split) -> SequenceSet:
        is_predicted, per_step = split == "predict", self.layout.target_per_step
        part, learned = self._used(split), self.learned
        inputs, targets = part.inputs, part.targets
        if self.layout.tokens:
            if inputs.max() >= learned["vocabulary_size"]:
                raise DataError(
                    f"{self._path(split)}: {split} has the token {inputs.max()}; the greatest one that the model "
                    f"has is {learned['vocabulary_size'] - 1}."
                )
        else:
            self._require_width(inputs, "inputs", split)
            inputs = learned["inputs"].standardized(inputs)
        if self.layout.target == "next_step":
            return next_steps(inputs, part.lengths, is_predicted=is_predicted)
        number = len(inputs) if per_step else len(part.lengths)
        if self.layout.target == "label":
            targets = np.full(number, IGNORED) if targets is None else self._class_numbers(part, split)
        elif targets is None:
            targets = np.full((number, self.output_size), np.nan, np.float32)
        else:
            self._require_width(targets, "targets", split)
            targets = learned["targets"].standardized(targets)
        return SequenceSet(
            torch.from_numpy(inputs), part.lengths.tolist(), torch.from_numpy(targets), per_step=per_step
        )

    def _path(self, split: Split) -> str:
        return self.predict_path if split == "predict" and self.predict_path is not None else self.path

    def _require_width(self, values: np.ndarray, kind: str, split: Split) -> None:
        """Refuse data of another width than that of the checkpoint which the scales are from."""
        width = len(self.learned[kind].mean)
        if values.shape[1] != width:
            raise DataError(
                f"{self._path(split)}: {split} has {values.shape[1]} {kind} per step or sequence; the model "
                f"expects {width}."
            )

    def _class_numbers(self, part: SequenceData, split: Split) -> np.ndarray:
        """Return the number of each label among the classes; 1 in an array and "1" in a table are the same."""
        assert part.targets is not None
        classes, labels = self.learned["classes"], part.targets.tolist()
        number_of = {str(name): number for number, name in enumerate(classes)}
        numbers = np.fromiter((number_of.get(str(label), IGNORED) for label in labels), np.int64, len(labels))
        unknown = np.flatnonzero(numbers == IGNORED)
        if len(unknown):
            place, per_step = int(unknown[0]), self.layout.target_per_step
            where = f"step {place}" if per_step else f"sequence {part.names[place]}"
            known = ", ".join(shown(str(name)) for name in classes[:MOST_NAMED])
            raise DataError(
                f"{self._path(split)}: {where} of {split} has the label {shown(str(labels[place]))}; training has "
                f"{known}{', …' if len(classes) > MOST_NAMED else ''}."
            )
        return numbers

    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> SequenceBatch:
        """Pad sequences of different lengths at the end; padding is not scored."""
        inputs, targets = zip(*samples, strict=True)
        if self.layout.target_per_step or self.layout.target == "next_step":
            padding = 0.0 if targets[0].is_floating_point() else IGNORED
            together = pad_sequence(list(targets), batch_first=True, padding_value=padding)
        else:
            together = torch.stack(targets)
        lengths = torch.tensor([len(sequence) for sequence in inputs])
        return SequenceBatch(pad_sequence(list(inputs), batch_first=True), together, lengths)

    def own_units(self, numbers: Tensor) -> Tensor:
        """Return standardised values, or features of the next step, (…, output_size) in the file's units."""
        scale = self.learned["targets" if self.layout.target == "value" else "inputs"]
        return numbers * numbers.new_tensor(scale.deviation) + numbers.new_tensor(scale.mean)

    def class_names(self, numbers: int | list[int]) -> Any:
        """Return a class's label, or a list of them, as the file has it; tokens are their own, IGNORED is None."""
        if isinstance(numbers, list):
            return [self.class_names(number) for number in numbers]
        if numbers == IGNORED:
            return None
        return self.learned["classes"][numbers] if self.layout.target == "label" else numbers

    def floors(self) -> dict[str, float]:
        """Return the test scores of a model that ignores the inputs, or copies the step before.

        For labels, and for tokens to come, it knows how often each occurs in training; for values it answers their
        mean in training; for vectors to come it repeats the last one.
        """
        train, test = (self.datasets(split)[""] for split in ("train", "test"))
        if self.layout.target == "label" or (self.layout.target == "next_step" and self.layout.tokens):
            counts = torch.bincount(_together(train.targets), minlength=self.output_size).double() + 1
            targets = _together(test.targets)
            nats = -(counts / counts.sum()).log()[targets].mean().item()
            return {"cross_entropy": nats, "accuracy": (targets == counts.argmax()).double().mean().item()}
        targets = _together(test.targets).double()
        guess = (
            _together(test.inputs) if self.layout.target == "next_step" else _together(train.targets).mean(dim=0)
        )
        errors = targets - guess
        return {"mse": errors.square().mean().item(), "mae": errors.abs().mean().item()}


def _named(names: list[Any]) -> str:
    more = ", …" if len(names) > MOST_NAMED else ""
    return f"{len(names)} sequence(s) ({', '.join(map(str, names[:MOST_NAMED]))}{more})"


def _together(parts: Tensor | Sequence[Tensor]) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.cat(list(parts))


def _width(values: np.ndarray | None) -> int:
    return 0 if values is None else int(np.prod(values.shape[1:]))
