"""The settings that rimlit adds to those of LightningCLI."""

from typing import Any, Literal

from lightning.pytorch.cli import LightningArgumentParser

from rimlit.comparison.matching import TOLERANCE


def add_options(parser: LightningArgumentParser) -> None:
    """Add them to the parser of a command."""
    parser.add_argument(
        "--name", type=str | None, default=None, help="Name of the run; by default the config's and the seed."
    )
    parser.add_argument(
        "--resume",
        type=str,
        default="auto",
        help="What fit does where there is a run of this name: 'auto' resumes it, 'never' archives it and starts "
        "from scratch; the PATH of a checkpoint, or of a run, resumes from there.",
    )
    parser.add_argument(
        "--init_from",
        type=str | None,
        default=None,
        help="PATH of a checkpoint, a run or an exported folder whose weights a new run of fit starts from: "
        "those that fit by name and shape, and nothing else.",
    )
    parser.add_argument(
        "--allow_changes",
        type=bool,
        default=False,
        help="Whether fit resumes a run whose task, data, seed or batches have changed.",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="Refuse suspicious data, such as one class only or a test set that was trained on.",
    )
    parser.add_argument(
        "--test_after_fit",
        type=bool,
        default=True,
        help="Whether fit ends with a test of the best checkpoint.",
    )
    parser.add_argument(
        "--require_tracking",
        type=bool,
        default=False,
        help="Whether to refuse to start where MLflow cannot be reached; otherwise what it does not take is "
        "kept in the run's folder and sent later.",
    )
    parser.add_argument(
        "--match",
        type=Literal["params", "flops", "state"] | None,
        default=None,
        help="Choose the smallest hidden_size whose parameter count (or FLOPs per step, or state size) is at "
        "least that of match_to.",
    )
    parser.add_argument(
        "--match_to",
        type=str | None,
        default=None,
        help="Config that is matched, with this command's --model and --data options but those of the "
        "backbone; by default the rim.yaml beside the config.",
    )
    parser.add_argument(
        "--match_tolerance",
        type=float,
        default=TOLERANCE,
        help="How much larger the matched model may be, as a share.",
    )
    parser.add_argument(
        "--tune",
        type=dict[str, Any] | None,
        default=None,
        help="In a config: the values that 'rimlit compare' tries for this model, such as {lr: [0.001, 0.003]}. "
        "Other commands ignore it.",
    )
