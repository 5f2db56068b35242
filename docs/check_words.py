"""Check that the texts of the repository use the field's words: no private idiom, which cannot be searched.

``make lint`` runs it after codespell, which finds misspellings. To ban another idiom, add a line to ``BANNED``.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BANNED = {
    r"(go|goes|going|gone) on (with|from)": "resume",
    r"(set|sets|setting)( it| them)? aside": "archive",
    r"mend(s|ed|ing)?": "fix",
    r"anew": "again, from scratch",
    r"walk(s|ed|ing)?[ _-](forward|back)s?|WalkBack": "forward pass, backward pass",
    r"holds the (query|cell)": "folded with the query (cell) weights",
    r"laid out": "packed",
    r"lends?|lent|lending": "pool, pooled buffers",
    r"the shortest way": "the fast path",
    r"dealt": "sharded",
    r"learnt from": "trained on",
    r"what was (told|said)": "what was logged",
    r"numbers (of|in the) state": "state size, state values",
    r"spoilt": "non-finite, overwritten",
    r"nobody|somebody": "say which code or which user",
    r"tells? (whether|how|what|which)": "returns, says",
    r"musts and aims": "required and target",
    r"what it makes of": "name the thing",
    r"(go|goes|going|gone) on (by|when|after|where|straight)": "continue",
    r"(?<!there )(is|are) no (array|change|checkpoint|class|command|default|folder|game|key|known|metric|option|"
    r"package|page|part|slot|square|step|task|tensor|token|vector|view|wrapper)(s|es)?": "is not a …",
    r"asleep|(being|stays?|are|is|keeps?) awake": "active, inactive",
    r"what (came|comes) (of it|out|back|in)": "results, true values",
    r"of (yours|ours)": "your own, rimlit's",
    r"likeliest": "most likely",
    r"learnt": "learned",
    r"brought to mean": "standardised to mean",
    r"for want of": "because there is no",
    r"at hand": "available",
    r"stands? (beside|twice|apart|between|behind|inside)": "is next to, occurs twice, is between",
    r"hand(s|ed|ing)? (it |them )?(on|over|around)": "pass",
    r"(take|takes|took|taken) (it |them )?up again": "restore, resume",
    r"(put|puts) (it |them )?back": "restore, requeue",
    r"(loops?|kernels?|models?|parsers?) (does|do) not know": "does not support",
    r"speaks? about|whose word counts": "predict, weigh",
    r"for ever": "forever",
    r"told apart|tells? [a-z]+ apart": "distinguish",
    r"deals? (the )?(samples|sequences|indices)": "shards",
}
"""Patterns of whole words, and what to write instead."""

KINDS = ("*.md", "*.py", "*.yaml", "*.yml", "*.toml", "*.cff", "*.h", "*.cpp", "*.txt", "*.ipynb", "Makefile")
SKIPPED = {"docs/check_words.py", "tests/test_words.py"}
PATTERN = re.compile("|".join(f"(?<![A-Za-z])(?:{idiom})(?![A-Za-z])" for idiom in BANNED), re.IGNORECASE)


def main() -> int:
    """Print each banned idiom with its place and a better word; return 1 if there is one."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *KINDS]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    paths = {name: ROOT / name for name in names if name not in SKIPPED and (ROOT / name).is_file()}
    texts = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    found = [message for name, text in texts.items() for message in check_text(name, text)]
    print(*found, f"{len(texts)} files, {len(found)} banned idioms", sep="\n")
    return bool(found)


def check_text(name: str, text: str) -> list[str]:
    """Return a message for each banned idiom in a text; one that is broken over two lines is found, too."""
    joined = re.sub(r"[\s_]", " ", text)  # the same length; names are words, too
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}; write: {instead_of(match[0])}"
        for match in PATTERN.finditer(joined)
    ]


def instead_of(idiom: str) -> str:
    """Return what to write in place of an idiom."""
    return next(words for pattern, words in BANNED.items() if re.fullmatch(pattern, idiom, re.IGNORECASE))


if __name__ == "__main__":
    sys.exit(main())
