"""Imports of large libraries, one at a time.

Matplotlib looks at what others have imported. While another thread is in the middle of importing IPython, which
MLflow does, drawing a figure fails. Code that imports MLflow or draws a figure therefore holds ``import_lock``.
"""

import importlib.util
import logging
import os
import threading

import_lock = threading.RLock()


def prepare_mlflow() -> None:
    """Set MLflow's defaults, before it is imported; settings of the user are kept."""
    # since 3.2 MLflow sends usage data, in 3.17 the names of imported packages too, to its makers
    if "DO_NOT_TRACK" not in os.environ:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # a request to a server that is down fails in seconds, not after the four minutes of MLflow's own retries
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("alembic", "mlflow.store"):
        # their messages about a store that is new or cannot be opened; our own warning gives the reason
        logging.getLogger(name).setLevel(logging.CRITICAL)


def import_mlflow() -> None:
    """Import MLflow, and the modules that it would import later by itself."""
    with import_lock:
        import mlflow.tracking.context.registry  # noqa: F401

        if importlib.util.find_spec("IPython") is not None:
            import IPython  # noqa: F401
