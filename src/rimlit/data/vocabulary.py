"""Tokens of a text, at character, byte or word level."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from rimlit.errors import DataError

Level = Literal["character", "byte", "word"]

END_OF_LINE = "<eos>"
UNKNOWN = "<unk>"


class Vocabulary:
    r"""Map text to token ids and back.

    Args:
        level: Unit of a token. Words are what white space separates, with ``<eos>`` for each line's end.
        tokens: All tokens; the ids are their places. Bytes are their own ids and need none.

    Example:
        >>> vocabulary = Vocabulary.from_text("character", "hello")
        >>> vocabulary.tokens
        ['\n', 'e', 'h', 'l', 'o']
        >>> vocabulary.decode(vocabulary.encode("hole", "the example"))
        'hole'
    """

    def __init__(self, level: Level, tokens: Iterable[str] = ()) -> None:
        self.level = level
        self.tokens = list(tokens)
        self._index = {token: index for index, token in enumerate(self.tokens)}

    @classmethod
    def from_text(cls, level: Level, text: str, *, min_count: int = 1) -> Self:
        """Collect the tokens of a training text.

        Args:
            level: Unit of a token.
            text: Training text.
            min_count: Words seen less often become ``<unk>``; at the other levels it has no effect.
        """
        if level == "byte":
            return cls(level)
        if level == "character":
            return cls(level, sorted({"\n", *text}))
        counts = Counter(_words(text))
        counts[END_OF_LINE] += 0
        frequent = [word for word, count in counts.most_common() if count >= min_count or word == END_OF_LINE]
        if len(frequent) < len(counts) and UNKNOWN not in frequent:
            frequent.append(UNKNOWN)
        return cls(level, frequent)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return 256 if self.level == "byte" else len(self.tokens)

    @property
    def start(self) -> int:
        """The token a text starts after: a line's end."""
        return 10 if self.level == "byte" else self._index["\n" if self.level == "character" else END_OF_LINE]

    def encode(self, text: str, source: str) -> Tensor:
        """Return the ids (T,) of ``text``.

        Args:
            text: Text.
            source: Where it comes from, for the message.

        Raises:
            DataError: A token is unknown and the vocabulary has no ``<unk>``.
        """
        if self.level == "byte":
            return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64))
        tokens = _words(text) if self.level == "word" else text
        default = self._index.get(UNKNOWN) if self.level == "word" else None
        try:
            if default is not None:
                ids = [self._index.get(token, default) for token in tokens]
            else:
                ids = [self._index[token] for token in tokens]
        except KeyError as error:
            remedy = " Pass min_count=2, which turns rare words into <unk>." if self.level == "word" else ""
            raise DataError(
                f"{source} holds the {self.level} {error.args[0]!r}, which is not among the {len(self)} tokens of "
                f"the training text.{remedy}"
            ) from None
        return torch.tensor(ids, dtype=torch.long)

    def decode(self, ids: Tensor) -> str:
        """Return the text of ids (T,); bytes that are not UTF-8 become �."""
        if self.level == "byte":
            return bytes(ids.tolist()).decode(errors="replace")
        tokens = [self.tokens[index] for index in ids.tolist()]
        if self.level == "character":
            return "".join(tokens)
        return " ".join("\n" if token == END_OF_LINE else token for token in tokens)


def _words(text: str) -> list[str]:
    lines = text.split("\n")
    if lines[-1] == "":  # the text after the last line end is empty and not a line
        lines.pop()
    words: list[str] = []
    for line in lines:
        words.extend(line.split())
        words.append(END_OF_LINE)
    return words
