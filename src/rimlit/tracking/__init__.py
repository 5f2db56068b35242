"""Where a run's metrics go: a CSV file in its folder, and MLflow, which training never waits for."""

from rimlit.tracking.metrics_file import LocalMetrics
from rimlit.tracking.mlflow_tracker import MLflowTracker

__all__ = ["LocalMetrics", "MLflowTracker"]
