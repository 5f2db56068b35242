"""Metrics of numbers, each counted once per number whatever the batch size. Sums are kept in float64."""

from torch import Tensor

from rimlit.metrics.mean import Mean


class MeanSquaredError(Mean):
    """Mean squared error over every number of every target."""

    higher_is_better = False

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add outputs and targets of one shape."""
        self.add((outputs.float() - targets.float()).square())


class MeanAbsoluteError(Mean):
    """Mean absolute error over every number of every target."""

    higher_is_better = False

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add outputs and targets of one shape."""
        self.add((outputs.float() - targets.float()).abs())
