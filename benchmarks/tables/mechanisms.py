"""The tables of docs/mechanisms.md.

What each part of a RIM layer does, its source, the loops that run it; dead mechanisms in recorded runs.
"""

import inspect
import json
import re
import statistics
from pathlib import Path
from typing import Any

import torch
from benchmarks.screen.runs import SEEDS, is_less_better, tasks, variants
from benchmarks.screen.table import PLACES, Score, score_of
from benchmarks.tables.shared import RESULTS, ROOT, Tables, table

from rimlit import RIM
from rimlit.backbones.rim_parts import KINDS
from rimlit.kernels import LOOPS, Where, triton
from rimlit.mechanisms import AttentionCommunication, LeastNull, RIMLayer, known_parts

DECISION_22 = "[decision 22](decisions/0022-mechanisms-are-parts.md)"
DECISION_8 = "[decision 8](decisions/0008-bounded-communication-in-the-copying-config.md)"
AUTHORS = "the authors' code"
ARGUMENTS: list[tuple[str, Any, type, str, str]] = [
    (
        "selection",
        {"margin": "scores"},
        LeastNull,
        "A winner's update fades in with its lead in scores",
        DECISION_22,
    ),
    (
        "selection",
        {"margin": "probabilities"},
        LeastNull,
        "The same with the lead in attention, 1 − P_null",
        DECISION_22,
    ),
    (
        "selection",
        {"margin": "best"},
        LeastNull,
        "The strongest updates in full, those near it by how near they are",
        "this package",
    ),
    ("selection", {"graded": True}, LeastNull, "An active mechanism moves as far as it attends", DECISION_22),
    ("selection", {"dynamic": True}, LeastNull, "Active only where P_null < ½: fewer than K may be", DECISION_22),
    ("soft_cap", 5.0, RIMLayer, "Scores are bounded: c·tanh(score / c)", DECISION_22),
    ("score_bias", 1.0, RIMLayer, "A learned bias of each mechanism's scores", DECISION_22),
    ("normalize_scores", True, RIMLayer, "Queries and keys are scaled to one length", DECISION_22),
    (
        "communication",
        {"output": "tanh"},
        AttentionCommunication,
        "What is read is bounded before it is added",
        DECISION_8,
    ),
    ("communication", {"output": "gated"}, AttentionCommunication, "σ(gate)·tanh(content) is added", AUTHORS),
    (
        "communication",
        {"output": "cell_gate"},
        AttentionCommunication,
        "What is read passes the cell's own gate for new content",
        DECISION_22,
    ),
    (
        "communication",
        {"inactive": "candidate"},
        AttentionCommunication,
        "Others read the state that an inactive mechanism would have had",
        AUTHORS,
    ),
]
"""Notable arguments of parts and of the layer: argument of the RIM, value, class, what it does, source."""


def build(**arguments: Any) -> RIMLayer:
    """Return the layer of a small RIM with the given arguments."""
    rim = RIM(3, 20, num_mechanisms=5, num_active=2, learn_initial_state=True, **arguments)
    layer = rim.layers[0]
    assert isinstance(layer, RIMLayer)
    return layer


def reason(name: str, layer: RIMLayer) -> str | None:
    """Return why the loop ``name`` cannot run ``layer`` where it runs at all, or None."""
    device = torch.device("cuda" if name == "triton" else "cpu")
    found = LOOPS[name].cannot(layer, Where(device, torch.float32))
    if found is not None and found.startswith(
        ("is not there", "is not built")
    ):  # on this machine: no table's matter
        found = triton.cannot(layer) if name == "triton" else None
    return found


def loops(layer: RIMLayer) -> str:
    """Return the loops that run ``layer``, then the others with their reasons."""
    reasons = {name: reason(name, layer) for name in LOOPS}
    able = ", ".join(name for name, why in reasons.items() if why is None)
    whys: dict[str, list[str]] = {}
    for name, why in reasons.items():
        if why is not None:
            whys.setdefault(why, []).append(name)
    cannot = "; ".join(f"{', '.join(names)}: {why}" for why, names in whys.items())
    return f"{able}; not {cannot}" if cannot else "all"


def source_of(cls: type) -> str:
    """Return the source in brackets that the docstring of a class has, or that of its module."""
    module = inspect.getmodule(cls)
    for text in (inspect.getdoc(cls) or "", (module and module.__doc__) or ""):
        if found := re.search(r"\(([^()]*(?:\d{4}|the paper|the authors)[^()]*)\)", text.split("\n\nArgs:")[0]):
            return re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", found[1])
    return "this package"


def first_line(cls: type) -> str:
    """Return what a class does: the first sentence of its docstring, without its source."""
    text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    text = re.sub(r" \([^()]*(?:\d{4}|the paper|the authors)[^()]*\)", "", text)
    return re.sub(r":\w+:`\.?(\w+)`", r"`\1`", text).split(". ")[0].removesuffix(".")


def link(cls: type) -> str:
    """Return a link to the file of a class, as docs/mechanisms.md reads it."""
    path = Path(inspect.getfile(cls)).relative_to(ROOT)
    return f"[`{cls.__name__}`](../{path})"


def in_yaml(name: str, value: Any) -> str:
    """Return an argument of the RIM as YAML has it."""
    if isinstance(value, dict):
        value = "{" + ", ".join(in_yaml(key, inner).strip("`") for key, inner in value.items()) + "}"
    elif isinstance(value, bool):
        value = str(value).lower()
    return f"`{name}: {value}`"


def parts() -> str:
    """A row per part that the package has, and per notable argument."""
    rows = []
    for name, base in KINDS.items():
        found = {short: cls for short, cls in known_parts(base).items() if cls.__module__.startswith("rimlit.")}
        for short, cls in found.items():
            if name == "input_sharing":
                what, source = f"{first_line(cls)} (keys and values of the input)", input_source(short)
            else:
                what, source = first_line(cls), source_of(cls)
            rows.append([in_yaml(name, short), what, source, link(cls), loops(build(**{name: short}))])
    for name, value, cls, what, source in ARGUMENTS:
        rows.append([in_yaml(name, value), what, source, link(cls), loops(build(**{name: value}))])
    return table(["in YAML", "what it does", "source", "file", "time loops that run it"], rows)


def input_source(short: str) -> str:
    """Return where the paper has this sharing of the input's keys and values."""
    paper = {"shared": "Goyal et al. 2021, sec. 2.1", "independent": "Goyal et al. 2021, app. C.1"}
    return paper.get(short, "this package")


def dead() -> str:
    """A row per config: the most dead mechanisms over runs and groups of a test, and the mean turnover."""
    found: dict[str, list[dict[str, float]]] = {}
    for path in sorted(RESULTS.rglob("*.json")):
        result = json.loads(path.read_text())
        if isinstance(result, dict) and "mechanisms" in result and "command" in result:
            found.setdefault(_name_of(path), []).append(result["mechanisms"])
    if not found:
        return "(not recorded)"
    rows = []
    for name, runs in found.items():
        dead_shares, turnovers = (
            [value for run in runs for key, value in run.items() if key.endswith(f"/{measure}")]
            for measure in ("dead_share", "turnover")
        )
        rows.append([f"`{name}`", str(len(runs)), f"{max(dead_shares):.2f}", f"{statistics.mean(turnovers):.2f}"])
    return table(["config", "runs", "dead, at most", "turnover, mean"], rows)


def measured() -> str:
    """A row per option that the screen has tried: the tasks on which all seeds were better, or worse."""
    rows = []
    for name, variant in variants().items():
        if "shows" not in variant:
            continue
        option, against = variant["shows"]["option"], variant["shows"]["against"]
        cells = []
        for place in PLACES:
            effects: dict[str, list[str]] = {"better": [], "worse": [], "level": []}
            for task in tasks():
                own, other = score_of(name, task, place), score_of(against, task, place)
                if own is not None and other is not None:
                    sign = 1 if is_less_better(task) else -1
                    seeds = min(len(own.by_seed), len(other.by_seed))
                    few = "" if seeds == len(SEEDS) else f" ({seeds} seed{'s'[: seeds - 1]})"
                    effects[effect(own, other, sign)].append(task.replace("_", " ") + few)
            cells += [", ".join(effects[kind]) for kind in ("better", "worse")]
            tried = [task for found in effects.values() for task in found]
        if tried:
            rows.append(
                [
                    f"`{option}`",
                    f"`{name}`, `{against}`",
                    *cells,
                    "all" if len(tried) == len(tasks()) else ", ".join(tried),
                ]
            )
    head = [
        "option",
        "with and without it",
        "better in distribution",
        "worse in distribution",
        "better out of it",
        "worse out of it",
        "tried on",
    ]
    return table(head, rows) if rows else "(not measured)"


def effect(own: Score, other: Score, sign: int) -> str:
    """Return whether all seeds are better or worse than all of another model; sign is 1 where less is better."""
    ours, theirs = ([sign * value for value in score.by_seed.values()] for score in (own, other))
    if max(ours) < min(theirs):
        return "better"
    return "worse" if min(ours) > max(theirs) else "level"


def _name_of(path: Path) -> str:
    *folders, name = path.relative_to(RESULTS).with_suffix("").parts
    if folders[-1] in ("seeds", "two_threads"):  # of the configs of the folder above
        return "/".join((*folders[:-1], name.rpartition("-")[0]))
    folders = [folder for folder in folders if folder != "queue"]
    # the runs of an entry of the queue lie in a folder of its name
    return "/".join(folders if re.search(r"(^|-)seed\d+$", name) else (*folders, name))


TABLES: Tables = {"parts": parts, "dead": dead, "measured": measured}
