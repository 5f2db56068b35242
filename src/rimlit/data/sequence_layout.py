"""What a file of sequences is to hold, what is read of it, and what tables and arrays are both checked for."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rimlit.checks import require_known
from rimlit.data.reading import shown
from rimlit.errors import ConfigError, DataError

Target = Literal["label", "value", "next_step"]
TARGETS = ("label", "value", "next_step")

MAX_TOKEN = 10_000_000
"""The greatest token id: every one has a row in the embedding and an output."""
MAX_NUMBER = float(np.finfo(np.float32).max)
"""The greatest size of a number: models compute in 32 bits."""
MAX_LABEL = 2**63 - 1
FILE_NAMES = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}


class Layout(NamedTuple):
    """What a file is to hold, and where."""

    target: Target
    target_per_step: bool
    tokens: bool
    sequence_column: str | None  # None: a file is one sequence
    input_columns: tuple[str, ...] | None
    target_columns: tuple[str, ...]
    split_column: str | None
    delimiter: str = ","
    decimal: str = "."
    time_column: str | None = None
    known_columns: tuple[str, ...] | None = None  # the inputs of the training file, in their order
    is_predicted: bool = False  # targets and split may be missing
    may_be_empty: tuple[str, ...] | None = ()  # inputs whose cells may be empty, NaN; None: all of them
    options: tuple[str, ...] = (
        "sequence_column",
        "input_columns",
        "target_columns",
        "split_column",
        "time_column",
    )
    """What messages call the arguments that name columns: that of sequences first, that of inputs second."""

    def check(self) -> None:
        """Raise a ConfigError for a value that is out of its range, and for a column with two roles."""
        require_known(target=(self.target, TARGETS))
        if self.target == "next_step" and self.target_per_step:
            raise ConfigError("target='next_step' is one of every step already; remove target_per_step=True.")
        too_few = self.target != "next_step" and not self.target_columns
        if too_few or (self.target == "label" and len(self.target_columns) > 1):
            raise ConfigError(
                "target_columns must name one column for target='label' and at least one for target='value'; got "
                f"target={self.target!r}, target_columns={list(self.target_columns)}."
            )
        targets = () if self.target == "next_step" else self.target_columns  # which it does not read
        roles: dict[str, str] = {}
        for role, names in (
            (self.options[0], [] if self.sequence_column is None else [self.sequence_column]),
            ("split_column", [] if self.split_column is None else [self.split_column]),
            ("time_column", [] if self.time_column is None else [self.time_column]),
            ("target_columns", targets),
            (self.options[1], self.input_columns or ()),
        ):
            for name in names:
                if name in roles:
                    raise ConfigError(
                        f"{role} names {name!r}, which {roles[name]} names already; a column has one use."
                    )
                roles[name] = role
        if (
            len(self.delimiter) != 1
            or not self.delimiter.isascii()
            or self.delimiter.isalnum()
            or self.delimiter in '\r\n"+-'
        ):
            raise ConfigError(
                f"delimiter must be one character such as , ; | or \\t; got delimiter={self.delimiter!r}."
            )
        if self.decimal not in (".", ",") or self.decimal == self.delimiter:
            raise ConfigError(
                "decimal must be a point or a comma, and another than delimiter; got "
                f"decimal={self.decimal!r}, delimiter={self.delimiter!r}."
            )


class SequenceData(NamedTuple):
    """Sequences end to end, without padding."""

    inputs: np.ndarray  # (steps, D) finite numbers, or (steps,) token ids
    lengths: np.ndarray  # (N,), each at least 1
    targets: np.ndarray | None  # (N or steps,) labels, (N or steps, O) finite numbers, or None: there are none
    splits: np.ndarray | None  # (N,) of train, val, test; None where they are not given
    names: np.ndarray  # (N,): what a table calls them, or their index in the file
    columns: tuple[str, ...] | None = None  # of the inputs; None for arrays
    digest: str = ""  # of the file's content
    times: np.ndarray | None = None  # (steps,) numbers or datetime64; None: they have none


def require_tokens(values: np.ndarray, is_real: np.ndarray, describe: Callable[[Any], str]) -> None:
    """Refuse what is not a token id: an integer from 0 to ``MAX_TOKEN``."""
    wanted = f"must be a token id, an integer from 0 to {MAX_TOKEN:,}"
    if values.dtype.kind not in "fiu":
        raise DataError(f"{describe((0, 0))} {wanted}; got {values.dtype}.")
    wrong = np.argwhere(~((values >= 0) & (values <= MAX_TOKEN) & (values % 1 == 0)) & is_real)
    if len(wrong):
        raise DataError(f"{describe(wrong[0])} {wanted}; got {values[tuple(wrong[0])]}.")


def to_splits(values: np.ndarray, describe: Callable[[int], str]) -> np.ndarray:
    """Return train, val or test for each of their names; refuse any other."""
    ours = {name: split for split, names in FILE_NAMES.items() for name in names}
    for index, value in enumerate(values.tolist()):
        if value not in ours:
            raise DataError(f"{describe(index)} must be train, val or test; got {value!r}.")
    return np.array([ours[value] for value in values.tolist()])


def require_distinct(path: Path, what: str, texts: Iterable[str], describe: Callable[[str], str]) -> None:
    """Refuse names that differ by white space alone: readers see one, and they would count as two.

    Args:
        path: The file.
        what: What they name, for the message.
        texts: Different names.
        describe: Says where a name is.
    """
    seen: dict[str, str] = {}
    for text in texts:
        other = seen.setdefault(" ".join(text.split()), text)
        if other != text:
            raise DataError(
                f"{shown(path)}: the {what} {other!r} ({describe(other)}) and {text!r} ({describe(text)}) differ "
                "only by white space. Write them alike."
            )
