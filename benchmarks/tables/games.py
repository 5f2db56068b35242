"""The tables of docs/games.md."""

import json
import statistics

import yaml
from benchmarks.tables.shared import NAMES, RESULTS, ROOT, Result, Tables, load, published, seeds_of, table

POPGYM = {
    "repeat_previous": "RepeatPrevious",
    "autoencode": "Autoencode",
    "count_recall": "CountRecall",
    "position_cartpole": "PositionOnlyCartPole",
    "noisy_cartpole": "NoisyPositionOnlyCartPole",
}
MEMORIES = {
    "rim": "RIM",
    "lstm": "LSTM",
    "gru": "GRU",
    "mingru": "minGRU",
    "rmc": "RMC",
    "transformer": "Transformer",
}
REPORTED_DOORKEY = {
    "RIM, reported by users": (0.90, 0.68, 0.38, 0.18),
    "LSTM, reported by users": (0.90, 0.63, 0.35, 0.12),
}


def env_steps(dataset: str, name: str, run: Result) -> int:
    """Return the steps of all environments that a run of reinforcement learning was trained on."""
    settings = yaml.safe_load((ROOT / "configs" / dataset / f"{name}.yaml").read_text())["data"]["init_args"]
    return int(run["steps"] * settings["rollout_length"] * settings["batch_size"] / settings["num_passes"])


def spread(scores: list[float], digits: int) -> str:
    """Return the mean of scores, and the least and the greatest where they differ."""
    mean, least, greatest = (
        f"{score:.{digits}f}" for score in (statistics.fmean(scores), min(scores), max(scores))
    )
    return mean if least == greatest else f"{mean} ({least} to {greatest})"


def agents(dataset: str, scores: dict[str, str], others: dict[str, list[str]], digits: int = 2) -> str:
    """A row per model, then random actions, then what others reached; a column per score."""
    rows = []
    for name, model in NAMES.items():
        runs = seeds_of(dataset, name)
        if runs:
            seeds = ", ".join(str(run["seed"]) for run in runs)
            budget = f"{env_steps(dataset, name, runs[0]):,} steps, {minutes(runs)} min"
            cells = [spread([run["test"][key] for run in runs], digits) for key in scores]
            rows.append([model, f"{runs[0]['parameters']:,}", seeds, budget, *cells])
    if not rows:
        return "(not recorded)"
    floors = [run["floor"] for name in NAMES for run in seeds_of(dataset, name)]
    rows.append(
        ["random actions", "", "", "", *[spread([floor[key] for floor in floors], digits) for key in scores]]
    )
    rows += [[model, "", "", "", *cells] for model, cells in others.items()]
    return table(["mean return", "parameters", "seeds", "budget", *scores.values()], rows)


def repeat_previous() -> str:
    return agents("repeat_previous", {"episode_return": "100 episodes"}, {})


def popgym() -> str:
    """A row per memory, a column per task, where there are runs: the mean return, the least and the greatest."""
    runs = {(memory, task): popgym_runs(task, memory) for memory in MEMORIES for task in POPGYM}
    if not any(runs.values()):
        return "(not recorded)"
    tasks = [task for task in POPGYM if any(runs[memory, task] for memory in MEMORIES)]
    memories = [memory for memory in MEMORIES if any(runs[memory, task] for task in tasks)]
    rows = [
        [
            MEMORIES[memory],
            *[returns(runs[memory, task], "test") for task in tasks],
            minutes([run for task in tasks for run in runs[memory, task]]),
        ]
        for memory in memories
    ]
    floors = [returns([run for memory in memories for run in runs[memory, task]], "floor") for task in tasks]
    return table(
        ["mean return", *[POPGYM[task] for task in tasks], "minutes a run"],
        [*rows, ["random actions", *floors, ""]],
    )


def minutes(runs: list[Result]) -> str:
    """The least and the most minutes of runs, one number where all took as long."""
    found = [round(run["train_seconds"] / 60) for run in runs]
    return f"{min(found)} to {max(found)}" if min(found) != max(found) else f"{found[0]}"


def returns(runs: list[Result], key: str) -> str:
    """The mean return, the least and the greatest; in brackets the number of seeds where these are not three."""
    if not runs:
        return ""
    seeds = len({run["seed"] for run in runs})
    return spread([run[key]["episode_return"] for run in runs], 2) + ("" if seeds == 3 else f" [{seeds}]")


def popgym_runs(task: str, memory: str) -> list[Result]:
    """Return the recorded runs of a memory on a task, all seeds."""
    if task == "repeat_previous" and memory in ("rim", "lstm"):
        return seeds_of(task, memory)
    return [
        json.loads(path.read_text()) for path in sorted((RESULTS / "popgym" / f"{task}-{memory}").glob("*.json"))
    ]


def doorkey() -> str:
    sizes = (5, 6, 8, 16)
    reported = {model: [f"{score:.2f}" for score in scores] for model, scores in REPORTED_DOORKEY.items()}
    scores = {f"MiniGrid-DoorKey-{n}x{n}-v0/episode_return": f"{n} × {n}" for n in sizes}
    return agents("doorkey", scores, reported)


def atari() -> str:
    cleanrl = "PPO with an LSTM, CleanRL, 10 M steps"
    others = {cleanrl: [published("atari", cleanrl)["episode_return"]]}
    return agents("atari", {"episode_return": "Pong, 30 episodes"}, others, digits=1)


def atari_speed() -> str:
    """A row per config: how much longer than the emulator alone."""
    result = load("atari_speed")
    if result is None:
        return "(not measured)"
    rows = []
    for name, facts in result["configs"].items():
        over, rate = facts["time_over_emulator"], facts["steps_per_second"]
        parts = [f"{over[part]:.1f}" for part in ("environments", "collecting", "training")]
        rows.append(
            [f"`{name}`", f"{facts['parameters']:,}", *parts, f"{rate['emulator']:,.0f}, {rate['training']:,.0f}"]
        )
    header = [
        "time over the emulator's",
        "parameters",
        "rimlit's environments",
        "collecting",
        "collecting and learning",
        "steps a second: emulator, training",
    ]
    return table(header, rows)


TABLES: Tables = {
    "repeat_previous": repeat_previous,
    "popgym": popgym,
    "doorkey": doorkey,
    "atari": atari,
    "atari_speed": atari_speed,
}
