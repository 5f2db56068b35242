"""What the rules of a RIM cost: the time of each over that of the paper's rule, in the C++ loop and step by step.

The layer of ``benchmarks/layer.py``, forward and backward on one thread; all arms of a table take turns in one
process. With ``--before CHECKOUT`` a table compares with another version of the package, loaded beside this one;
its RIM gets the arguments of ``--before-arguments``.

python benchmarks/rules.py [--rounds 7] [--only rules …] [--json benchmarks/results/rules.json]
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from layer import BATCH, PAPER, SIZE, STEPS, compare, compare_layers, rim, show
from origin import origin, write
from torch import nn

from rimlit import RIM

CONTINUOUS = {"selection": {"margin": "scores"}, "learn_initial_state": True}
GATED = {"communication": {**PAPER["communication"], "output": "cell_gate"}}
HARD = {"learn_initial_state": True}
BALANCES = (
    "loss_free_bias",
    "switch",
    "gshard",
    "noisy_top_k",
    "z_loss",
    "usage_floor",
    "random_activation",
    "dead_reset",
    "expected_sparsity",
)


def rules(rounds: int) -> dict[str, Any]:
    """Time every rule over the hard one of the same cell."""
    torch.manual_seed(0)
    inputs = torch.randn(BATCH, STEPS, SIZE)
    variants: dict[str, dict[str, Any]] = {
        "the paper's rule": HARD,
        "continuous (margin of scores)": CONTINUOUS,
        "continuous (margin of probabilities)": {**CONTINUOUS, "selection": {"margin": "probabilities"}},
        "graded": {**HARD, "selection": {"graded": True}},
        "soft cap and score bias": {**HARD, "soft_cap": 5.0, "score_bias": 1.0},
        "communication through the cell's gate": {**HARD, **GATED},
        "continuous, communication through the cell's gate": {**CONTINUOUS, **GATED},
    }
    result = {}
    for cell in ("lstm", "gru"):
        layers = {name: rim(backend="cpu", cell=cell, **options) for name, options in variants.items()}
        result[f"{cell}, C++ loop"] = compare_layers(layers, inputs, "the paper's rule", rounds)
    return result


def sleep(rounds: int) -> dict[str, Any]:
    """Time a dynamic count and top-K over top-K with all mechanisms active, by the mean number of active ones."""
    torch.manual_seed(0)
    inputs = torch.randn(BATCH, STEPS, SIZE)
    layers = {f"top-K, {active} of 6": rim(backend="cpu", num_active=active) for active in (6, 5, 4, 3, 2, 1)}
    mean_active = {f"top-K, {active} of 6": float(active) for active in (6, 5, 4, 3, 2, 1)}
    for bias in (6.0, 0.5, 0.0, -0.5, -1.0):
        layer = rim(
            backend="cpu", num_active=6, selection={"dynamic": True}, score_bias=bias, learn_initial_state=True
        )
        with torch.no_grad():  # scores of about ±1: then the bias decides how many are active
            layer.layers[0].input_query.weight.mul_(20)
            with layer.record_activity() as activities:
                layer(inputs)
        mean = float(activities[0].active.sum(dim=-1).float().mean())
        name = f"dynamic count, score bias {bias:+}"
        layers[name], mean_active[name] = layer, mean
    result = compare_layers(layers, inputs, "top-K, 6 of 6", rounds)
    for name, mean in mean_active.items():
        result["arms"][name]["mechanisms_awake"] = mean
    return result


def parts(rounds: int) -> dict[str, Any]:
    """Time a step with penalty and counts, with each balance and each kind of sharing, over one without either."""
    torch.manual_seed(0)
    inputs = torch.randn(BATCH, STEPS, SIZE)
    options: dict[str, dict[str, Any]] = {"neither": {}}
    options |= {f"balance {name}": {"balance": name} for name in BALANCES}
    options |= {f"sharing {name}": {"sharing": name} for name in ("shared", "embedded", "low_rank")}
    layers = {name: rim(backend="cpu", **given) for name, given in options.items()}
    return compare(
        {name: lambda layer=layer: train_balanced(layer, inputs) for name, layer in layers.items()},
        "neither",
        rounds,
        1,
    )


def train_balanced(layer: RIM, inputs: torch.Tensor) -> None:
    """Take a step without an optimiser, as a task does: loss and penalty, backward, counts."""
    loss, penalty = layer(inputs)[0].square().mean(), layer.penalty()
    (loss if penalty is None else loss + penalty).backward()
    layer.after_step()
    layer.zero_grad()


def since(rounds: int, checkout: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Time this version's loops over those of another checkout."""
    before = other_version(checkout)
    torch.manual_seed(0)
    inputs = torch.randn(BATCH, STEPS, SIZE)
    result = {}
    for loop in ("cpu", "eager", "function"):
        for cell in ("lstm", "gru"):
            pair: dict[str, nn.Module] = {
                "before": before(SIZE, SIZE, backend=loop, cell=cell, **arguments),
                "now": rim(backend=loop, cell=cell),
            }
            result[f"{loop}, {cell}"] = compare_layers(pair, inputs, "before", rounds)
    return result


def other_version(checkout: Path) -> type[nn.Module]:
    """Return the class RIM of another checkout, which keeps modules of its own."""
    own = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "rimlit"}
    for name in own:
        del sys.modules[name]
    sys.path.insert(0, str(checkout / "src"))
    try:
        found: type[nn.Module] = importlib.import_module("rimlit.backbones").RIM
        importlib.import_module("rimlit.kernels")
    finally:
        sys.path.remove(str(checkout / "src"))
        for name in [name for name in sys.modules if name.split(".")[0] == "rimlit"]:
            del sys.modules[name]
        sys.modules.update(own)
    assert found is not RIM
    return found


TABLES = {"rules": rules, "sleep": sleep, "parts": parts}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="undisturbed rounds of each table")
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--before-arguments", type=json.loads, default=PAPER, help="of its RIM, as JSON")
    parser.add_argument("--json", type=Path, help="where to write the result; tables not measured stay")
    arguments = parser.parse_args()
    found = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    tables: dict[str, Any] = {name: TABLES[name] for name in arguments.only}
    if arguments.before:
        tables["since"] = lambda rounds: since(rounds, arguments.before, arguments.before_arguments)
    for name, measure in tables.items():
        whence = origin(rounds=arguments.rounds, only=name)
        result = measure(arguments.rounds)
        show(result, name)
        for arm, values in result.get("arms", {}).items():
            if "mechanisms_awake" in values:
                print(f"          {values['mechanisms_awake']:.2f} active in the mean: {arm}")
        found[name] = {**whence, "result": result}
        write(arguments.json, found)


if __name__ == "__main__":
    main()
