"""The records of a run: its folder, a CSV file of metrics, and MLflow, which never delays training."""

import rimlit._train  # noqa: F401
from rimlit.tracking.metrics_file import LocalMetrics
from rimlit.tracking.mlflow_tracker import MLflowTracker
from rimlit.tracking.recording import RunRecorder

__all__ = ["LocalMetrics", "MLflowTracker", "RunRecorder"]
