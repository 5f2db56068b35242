"""The table of a model's parts before training."""

from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from rich.table import Table

from rimlit.console import say, show


class PartsTable(ModelSummary):
    """Lightning's table of modules, without the FLOPs, which it counts as 0 where a task has no example input.

    The table at the end of a run and ``results.json`` have the FLOPs of a step.
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *_: Any,
        **__: Any,
    ) -> None:
        """Print names, classes and parameters of the parts."""
        columns = {name: values for name, values in summary_data if name in ("Name", "Type", "Params")}
        table = Table()
        for name in columns:
            table.add_column(name.lower(), justify="right" if name == "Params" else "left")
        for row in zip(*columns.values(), strict=True):
            table.add_row(*row)
        show(table)
        say(f"{total_parameters:,} parameters, {trainable_parameters:,} of them trainable")
