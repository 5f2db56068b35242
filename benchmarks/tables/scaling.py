"""The measured part of docs/scaling.md; nothing where nothing was measured."""

from typing import Any

from benchmarks.tables.shared import Tables, load, table

SIZES = {"batch": "B", "steps": "T", "mechanisms": "M", "active": "K", "features": "d"}


def scaling() -> str:
    """Return the measured tables, each with the sentence that says what it shows."""
    result = load("scaling")
    if result is None:
        return ""
    parts = []
    if "sizes" in result:
        points = result["sizes"]["points"]
        base = points[0]
        rows = [
            [
                "base"
                if each["changed"] == "base"
                else SIZES.get(each["changed"], each["changed"].replace("_", " ")),
                *(str(each[size]) for size in SIZES),
                str(each["checkpoint_every"] or "–"),
                f"{each['milliseconds']:.1f} ({each['milliseconds'] / base['milliseconds']:.2f})",
                f"{each['mebibytes']:.0f}",
            ]
            for each in points
        ]
        header = ["changed", *SIZES.values(), "checkpoint_every", "ms, forward and backward (of base)", "MiB"]
        parts.append("One size changed at a time. " + measured(result["sizes"]) + "\n\n" + table(header, rows))
    if "processes" in result:
        rows = [
            [str(each["processes"]), str(each["batch"]), f"{each['milliseconds']:.1f}"]
            for each in result["processes"]["points"]
        ]
        head = "Processes (gloo), 64 sequences each. " + measured(result["processes"])
        parts.append(head + "\n\n" + table(["processes", "batch", "ms a step"], rows))
    if "runs" in result:
        runs = result["runs"]
        counted = ", ".join(f"{name} {count}" for name, count in runs["in_the_table"].items())
        files, memory = runs["files"], runs["mebibytes"]
        parts.append(
            f"{runs['runs']} runs in one process ended after {runs['seconds']:.0f} s with exit code "
            f"{runs['exit_code']}; the table has {counted} runs. From a quarter of them on, open files went from "
            f"{files[0]} to at most {files[1]}, memory from {memory[0]:.0f} to at most {memory[1]:.0f} MiB. "
            + measured(runs)
        )
    return "## Measured\n\n" + "\n\n".join(parts)


def measured(part: dict[str, Any]) -> str:
    """Return the sentence that says how, on what commit and on what machine a part was measured."""
    return f"Measured with `{part['command']}` at commit {part['commit'][:8]} on {part['machine']}."


TABLES: Tables = {"scaling": scaling}
