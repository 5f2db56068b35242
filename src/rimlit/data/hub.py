"""Datasets in the format of Hugging Face, from the hub or a local folder. The package is the extra ``data``."""

from typing import Any

from rimlit.data.reading import one_line
from rimlit.errors import DataError, install_command


def load_hub_dataset(dataset: str, name: str | None) -> Any:
    """Return the splits of a dataset, by its id or from a local folder.

    Args:
        dataset: Id or folder.
        name: Configuration of the dataset, where it has several.

    Raises:
        DataError: The package ``datasets`` is missing, or the dataset cannot be read.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"dataset=… needs the package datasets: {install_command('data')}.") from error
    try:
        return load_dataset(dataset, name)
    except Exception as error:  # the hub, the network and the readers raise their own kinds
        raise DataError(f"dataset={dataset!r} (name={name!r}) cannot be loaded: {one_line(error)}") from error
