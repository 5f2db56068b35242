"""The measured part of docs/scaling.md; nothing where nothing was measured."""

from benchmarks.tables.shared import Tables, load, table

SIZES = {"batch": "B", "steps": "T", "mechanisms": "M", "active": "K", "features": "d"}


def scaling() -> str:
    """Return the measured tables, each with the sentence that says what it shows."""
    result = load("scaling")
    if result is None:
        return ""
    parts = [f"Measured with `{result['command']}` at commit {result['commit'][:8]} on {result['machine']}."]
    if "sizes" in result:
        base = result["sizes"][0]
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
            for each in result["sizes"]
        ]
        header = ["changed", *SIZES.values(), "checkpoint_every", "ms, forward and backward (of base)", "MiB"]
        parts.append("One size changed at a time:\n\n" + table(header, rows))
    if "processes" in result:
        rows = [
            [str(each["processes"]), str(each["batch"]), f"{each['milliseconds']:.1f}"]
            for each in result["processes"]
        ]
        parts.append("Processes (gloo), 64 sequences each:\n\n" + table(["processes", "batch", "ms a step"], rows))
    if "runs" in result:
        runs = result["runs"]
        counted = ", ".join(f"{name} {count}" for name, count in runs["in_the_table"].items())
        files, memory = runs["files"], runs["mebibytes"]
        parts.append(
            f"{runs['runs']} runs in one process ended after {runs['seconds']:.0f} s with exit code "
            f"{runs['exit_code']}; the table has {counted} runs. From a quarter of them on, open files went from "
            f"{files[0]} to at most {files[1]}, memory from {memory[0]:.0f} to at most {memory[1]:.0f} MiB."
        )
    return "## Measured\n\n" + "\n\n".join(parts)


TABLES: Tables = {"scaling": scaling}
