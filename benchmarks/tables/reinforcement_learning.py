"""The tables of docs/reinforcement_learning.md."""

from benchmarks.tables.shared import NAMES, Tables, load, seeds_of, table


def cartpole() -> str:
    """A row per model: its seeds, when they were solved, what they reached."""
    rows = []
    for name, model in NAMES.items():
        runs = seeds_of("cartpole", name)
        if runs:
            returns = [run["test"]["episode_return"] for run in runs]
            seconds = [run["train_seconds"] for run in runs]
            seeds = ", ".join(str(run["seed"]) for run in runs)
            cells = " · ".join(f"{score:.1f}" for score in returns)
            rows.append(
                [
                    model,
                    f"{runs[0]['parameters']:,}",
                    seeds,
                    cells,
                    f"{min(seconds):.0f} to {max(seconds):.0f} s",
                ]
            )
    if not rows:
        return "(not recorded)"
    floors = [run["floor"]["episode_return"] for run in seeds_of("cartpole", "rim")]
    rows.append(["random actions", "", "", " · ".join(f"{floor:.1f}" for floor in floors), ""])
    return table(["model", "parameters", "seeds", "return over 100 episodes, of 500", "training"], rows)


def outside() -> str:
    """What sb3-contrib's agent reached beside ours, and the processor time of each."""
    theirs, speed = load("sb3"), load("sb3_speed")
    if theirs is None or speed is None:
        return "(not recorded)"

    def solved(curve: list[list[float]]) -> str:
        steps = [step for step, score in curve if score >= 475]
        return f"{min(steps):,.0f}" if steps else "never"

    micro = speed["cpu_microseconds_per_env_step"]
    rows = [
        [
            "sb3-contrib, LSTM",
            f"{theirs['runs'][0]['parameters']:,}",
            " · ".join(solved(run["val"]) for run in theirs["runs"]),
            " · ".join(f"{run['test']['episode_return']:.1f}" for run in theirs["runs"]),
            f"{micro['sb3-contrib, LSTM']:.0f} µs",
        ]
    ]
    for name, model in NAMES.items():
        if not (runs := seeds_of("cartpole", name)):
            continue
        rows.append(
            [
                f"rimlit, {model}",
                f"{runs[0]['parameters']:,}",
                " · ".join(solved(run["val_curve"]) for run in runs),
                " · ".join(f"{run['test']['episode_return']:.1f}" for run in runs),
                f"{micro[f'rimlit, {model}']:.0f} µs",
            ]
        )
    header = [
        "agent",
        "parameters",
        "steps to a validation of 475, by seed",
        "return over 100 episodes, by seed",
        "processor time a step",
    ]
    return table(header, rows)


def collecting() -> str:
    """A row per config: the parts of a step, and what the package adds."""
    result, hurried = load("collecting"), load("collecting-shortcuts")
    if result is None or hurried is None:
        return "(not recorded)"
    rows = []
    for name, facts in result["configs"].items():
        micro = facts["microseconds_per_env_step"]
        cells = [f"{micro[part]:.1f} µs" for part in ("network", "environments", "package")]
        shares = facts["overhead"], facts["overhead_of_first_rollouts"], hurried["configs"][name]["overhead"]
        adds = [f"{100 * share:.1f} %" for share in shares]
        rows.append([f"`{name}`", *cells, *adds, f"{micro['learning']:.1f} µs"])
    header = [
        "config",
        "network, a step of one environment",
        "environments",
        "all that collecting takes",
        "the package adds",
        "in the first ten rollouts",
        "beside a loop with its shortcuts",
        "learning, for comparison",
    ]
    return table(header, rows)


TABLES: Tables = {
    "cartpole": cartpole,
    "outside": outside,
    "collecting": collecting,
}
