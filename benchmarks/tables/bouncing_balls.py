"""The tables of docs/bouncing_balls.md."""

from typing import Any

from benchmarks.tables.shared import NAMES, Tables, load, table

ROLLOUT_FRAMES = (1, 5, 10, 20)

ROLLOUT_METRICS = {"bce": "BCE", "f1": "F1", "position_error": "position error, px"}

PREDICTORS = {"copy": "copy of the last frame", "constant_velocity": "constant velocity (oracle)"}


def rollouts() -> dict[str, dict[str, Any]]:
    """Scores frame by frame of every model and floor, by test set."""
    found: dict[str, dict[str, Any]] = {}
    for name, model in NAMES.items():
        if result := load("bouncing_balls", name):
            for group, predictors in result["rollout"].items():
                for predictor, curves in predictors.items():
                    label = f"{model}, {result['parameters']:,} parameters"
                    found.setdefault(group, {})[PREDICTORS.get(predictor, label)] = curves
    return found


def group_name(group: str) -> str:
    if group == "curtain":
        return "3 balls, curtain"
    count = group.removeprefix("balls_").replace("-", "–")
    return f"{count} ball{'' if count == '1' else 's'}"


def bouncing_balls() -> str:
    """A row per test set and predictor, a column per metric and frame ahead."""
    found = rollouts()
    if not found:
        return "(not recorded)"
    rows = []
    for group in ("balls_4", "balls_6-8", "curtain"):
        for predictor in sorted(found[group], key=lambda name: list(PREDICTORS.values()).count(name)):
            curves = found[group][predictor]
            cells = [
                " · ".join(f"{curves[metric][frame - 1]:.2f}" for frame in ROLLOUT_FRAMES)
                for metric in ROLLOUT_METRICS
            ]
            rows.append([group_name(group), predictor, *cells])
    frames = " · ".join(map(str, ROLLOUT_FRAMES))
    header = [f"{label} at frame {frames}" for label in ROLLOUT_METRICS.values()]
    return table(["rolled out on", "by", *header], rows)


def numbers_of_balls() -> str:
    """A row per number of balls: every model beside the floors, ten frames ahead."""
    found = rollouts()
    if not found:
        return "(not recorded)"
    groups = [f"balls_{count}" for count in range(1, 9)]
    predictors = sorted(found[groups[0]], key=lambda name: list(PREDICTORS.values()).count(name))
    rows = [
        [
            group_name(group),
            *(
                f"{found[group][name]['f1'][9]:.2f} · {found[group][name]['position_error'][9]:.1f}"
                for name in predictors
            ),
        ]
        for group in groups
    ]
    return table(["F1 · position error, px, at frame 10", *predictors], rows)


def ahead(scores: list[float], others: list[float], metric: str) -> list[bool]:
    """Whether a model is better, frame by frame."""
    is_less_better = metric != "f1"
    return [(own < other) == is_less_better and own != other for own, other in zip(scores, others, strict=True)]


def frames_ahead() -> str:
    """A row per model, test set and metric: in which frames it beats the floors."""
    found = rollouts()
    if not found:
        return "(not recorded)"
    rows = []
    for group in ("balls_4", "balls_6-8", "curtain"):
        models = [name for name in found[group] if name not in PREDICTORS.values()]
        for model in models:
            for metric, label in ROLLOUT_METRICS.items():
                cells = []
                for predictor in PREDICTORS.values():
                    is_ahead = ahead(found[group][model][metric], found[group][predictor][metric], metric)
                    cells.append(runs_of(is_ahead))
                rows.append([group_name(group), model, label, *cells])
    return table(
        ["rolled out on", "model", "by", *(f"beats {name} in frames" for name in PREDICTORS.values())], rows
    )


def more_states() -> str:
    """A row per number of states and of balls: F1 and position error at frames 1, 5 and 10."""
    result = load("more_states")
    if result is None:
        return "(not run)"
    frames = ROLLOUT_FRAMES[:3]
    rows = []
    for states, tests in result["tests"].items():
        for group, of in tests.items():
            f1 = [f"{of['f1'][frame - 1]:.4f}" for frame in frames]
            errors = [f"{of['position_error'][frame - 1]:.3f}" for frame in frames]
            rows.append([group_name(group), states, " · ".join(f1), " · ".join(errors)])
    shown = f"at frames {', '.join(map(str, frames[:-1]))} and {frames[-1]}"
    return table(["tested on", "states", f"F1 {shown}", f"position error, px, {shown}"], sorted(rows))


def runs_of(flags: list[bool]) -> str:
    """Write down where flags are set, counted from 1: ``1–10, 12``."""
    parts = []
    for at, flag in enumerate(flags, start=1):
        if flag and at > 1 and flags[at - 2]:
            parts[-1][1] = at
        elif flag:
            parts.append([at, at])
    return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in parts) or "none"


TABLES: Tables = {
    "bouncing_balls": bouncing_balls,
    "numbers_of_balls": numbers_of_balls,
    "frames_ahead": frames_ahead,
    "more_states": more_states,
}
