"""What every encoder is: a module that says how many features it gives."""

from torch import nn


class Encoder(nn.Module):
    """Base of the encoders, which turn each step's input into features for the backbone.

    It names the kind in configs: with any module allowed there, the command line would list, and complete, all of
    torch and the tasks themselves inside each other without end.
    """

    output_size: int
    """Features of each step."""
