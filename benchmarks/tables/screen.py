"""The tables of docs/research/screen.md."""

import json
import statistics
from functools import partial

from benchmarks.screen.pools import SEEDS, best_score, best_setting, pools
from benchmarks.screen.runs import best_of, is_less_better, runs_at, settings_of, tasks, variants
from benchmarks.screen.table import rows
from benchmarks.screen.trial import read_trials
from benchmarks.tables.shared import Tables, mean_and_deviation, plain, table


def screen(place: str) -> str:
    """Return scores and mean ranks of all models that have any."""
    head, *body = rows(list(variants()), list(tasks()), place)
    return table(head, [[f"`{row[0]}`", *row[1:]] for row in body])


def usage() -> str:
    """Return how evenly mechanisms were used at the best rate: the share of dead ones and the turnover."""
    body = []
    for name in variants():
        cells = []
        for task_name in tasks():
            best = best_of(settings_of(name, task_name), task_name)
            runs = {} if best is None else runs_at(best, task_name)
            noted = [run["mechanisms"] for run in runs.values() if "mechanisms" in run]
            numbers = [statistics.mean(each[key] for each in noted) for key in ("dead_share", "turnover") if noted]
            cells.append(" · ".join(f"{number:.2f}" for number in numbers))
        if any(cells):
            body.append([f"`{name}`", *cells])
    return _by_task(body)


def tuned(place: str) -> str:
    """Return mean ± standard deviation of each best setting, and in how many seeds it is ahead of the GRU."""
    body = []
    for name, pool in pools().items():
        cells = [_tuned_cell(name, task_name, place) for task_name in tasks()]
        if any(cells):
            body.append([pool["is"], *cells])
    return _by_task(body)


def _tuned_cell(pool: str, task_name: str, place: str) -> str:
    score, gru = (best_score(name, task_name, place) for name in (pool, "gru"))
    if score is None or len(score.by_seed) < 2:
        return ""
    own, grus = score.by_seed, {} if gru is None else gru.by_seed
    seeds = "" if len(own) == len(SEEDS) else f" [{len(own)}]"
    paired = own.keys() & grus.keys()
    sign = 1 if is_less_better(task_name) else -1
    ahead = sum(sign * own[seed] < sign * grus[seed] for seed in paired)
    ahead_of_gru = f" ({ahead} of {len(paired)})" if paired and pool != "gru" else ""
    return f"{mean_and_deviation(score.mean, statistics.stdev(own.values()))}{seeds}{ahead_of_gru}"


def chosen() -> str:
    """Return the setting of each pool that was best in validation, by task."""
    body = []
    for name, pool in pools().items():
        found = [best_setting(name, task_name) for task_name in tasks()]
        if any(found):
            cells = ["" if each is None else f"`{each.variant}`, {each.rate:g}" for each in found]
            body.append([pool["is"], *cells])
    return _by_task(body)


def _by_task(body: list[list[str]]) -> str:
    return table(["model", *(name.replace("_", " ") for name in tasks())], body) if body else "(not measured)"


def what_ran() -> str:
    """Return what each model is."""
    done = {row[0] for row in rows(list(variants()), list(tasks()), "inside")[1:]}
    body = [[f"`{name}`", variant["is"]] for name, variant in variants().items() if name in done]
    return table(["model", "what it is"], body)


def what_tasks() -> str:
    """Return the tasks: what is learned, for how long, at which rates, and how it is scored."""
    body = []
    for name, task in tasks().items():
        length = f"{task['trainer']['max_steps']:,} steps" if "max_steps" in task["trainer"] else "250,000 moves"
        scored = ", ".join(key.removeprefix("test/") for key in (*task["inside"], *task["outside"]))
        better = "less" if is_less_better(name) else "more"
        rates = " · ".join(f"{rate:g}" for rate in task["rates"])
        body.append([name.replace("_", " "), task["about"], length, rates, f"{scored} ({better} is better)"])
    return table(["task", "what is learned", "training", "learning rates", "scores in, out"], body)


def what_was_tried() -> str:
    """Return a row per trial: a variation of a variant, one task, one seed."""
    body = []
    for trial in read_trials():
        task = tasks()[trial["task"]]
        change = ", ".join(f"{key}: {json.dumps(value)}" for key, value in trial["change"].items())
        scores = [
            "diverged" if None in values else plain(statistics.mean(values), 3)
            for values in ([trial["scores"].get(key) for key in task[place]] for place in ("inside", "outside"))
        ]
        what = f"`{change}`".replace('"', "") if change else ""
        name = trial["task"].replace("_", " ")
        body.append([f"`{trial['variant']}`", what, name, f"{trial['rate']:g}", str(trial["seed"]), *scores])
    return table(["variant", "changed", "task", "learning rate", "seed", "in", "out"], body)


TABLES: Tables = {
    "screen-trials": what_was_tried,
    "screen-inside": partial(screen, "inside"),
    "screen-outside": partial(screen, "outside"),
    "screen-models": what_ran,
    "screen-tuned-inside": partial(tuned, "inside"),
    "screen-tuned-outside": partial(tuned, "outside"),
    "screen-chosen": chosen,
    "screen-usage": usage,
    "screen-tasks": what_tasks,
}
