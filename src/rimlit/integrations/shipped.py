"""The small trained models that the package contains."""

from pathlib import Path

FOLDER = Path(__file__).parent / "models"


def pretrained() -> dict[str, str]:
    """Return the trained models that the package contains: names, and what each is.

    Example:
        >>> "copying" in pretrained()
        True
    """
    cards = sorted(FOLDER.glob("*/README.md"))
    return {card.parent.name: summary_of(card.read_text(encoding="utf-8")) for card in cards}


def summary_of(card: str) -> str:
    r"""Return the first paragraph of a model card, in one line.

    Example:
        >>> summary_of("---\nlicense: mit\n---\n\n# A model\n\nIt copies\nsymbols.\n\nMore.")
        'It copies symbols.'
    """
    paragraphs = [part.strip() for part in card.split("\n\n")]
    return next(" ".join(part.split()) for part in paragraphs if part and part[0] not in "#-|`")
