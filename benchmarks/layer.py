"""Time of a RIM layer over that of nn.LSTM(600), forward and backward, in one process.

The paper's copying layer: 600 inputs, 6 mechanisms of 100, 4 active, batch 64, 35 steps, no dropout. All layers
are interleaved; rounds in which wall and CPU time of a layer differ by more than 5 % are dropped, because then
something else ran. Beside speed it prints the largest relative difference of all gradients against the float64
reference on a small batch.

python benchmarks/layer.py [--rounds 5] [--threads 1] [--json benchmarks/results/layer.json]
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from rimlit import RIM
from rimlit.training.recording import git_commit, machine

SIZE, BATCH, STEPS = 600, 64, 35
BASE = f"nn.LSTM({SIZE})"


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    dropouts = {"input_dropout": 0.0, "communication_dropout": 0.0}
    return {
        BASE: nn.LSTM(SIZE, SIZE, batch_first=True),
        "nn.LSTM(409), about the RIM's parameters": nn.LSTM(SIZE, 409, batch_first=True),
        "RIM, preset paper, eager": RIM(SIZE, SIZE, backend="eager", **dropouts),
        "RIM, preset official, eager": RIM(SIZE, SIZE, backend="eager", preset="official", **dropouts),
    }


def step(layer: nn.Module, inputs: Tensor) -> tuple[float, float]:
    """Return wall and CPU seconds of a forward and backward."""
    wall, cpu = time.perf_counter(), time.process_time()
    layer(inputs)[0].square().mean().backward()
    elapsed = time.perf_counter() - wall, time.process_time() - cpu
    layer.zero_grad()
    return elapsed


def gradient_error(layer: nn.Module) -> float | None:
    """Return the largest relative difference of a RIM's gradients against the float64 reference."""
    if not isinstance(layer, RIM):
        return None
    reference = copy.deepcopy(layer).double()
    reference.backend = "reference"
    inputs = torch.randn(2, 5, SIZE, generator=torch.Generator().manual_seed(1))
    # random states: zeros tie all scores, and a tie broken otherwise is no error of a gradient
    torch.manual_seed(2)
    state = type(layer.initial_state(2))(*(torch.randn_like(part) for part in layer.initial_state(2)))
    gradients = []
    for model in (layer, reference):
        dtype = next(model.parameters()).dtype
        features, _ = model(inputs.to(dtype), type(state)(*(part.to(dtype) for part in state)))
        features.square().mean().backward()
        gradients.append(
            [parameter.grad.double() for parameter in model.parameters() if parameter.grad is not None]
        )
        model.zero_grad()
    return max(
        ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in zip(*gradients, strict=True)
    )


def measure(rounds: int, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    models = layers()
    inputs = torch.randn(BATCH, STEPS, SIZE)
    for layer in models.values():
        step(layer, inputs)
    ratios: dict[str, list[float]] = {name: [] for name in models}
    dropped = 0
    for _ in range(rounds):
        times = {name: step(layer, inputs) for name, layer in models.items()}
        if any(abs(wall - cpu / threads) > 0.05 * wall for wall, cpu in times.values()) and threads == 1:
            dropped += 1
            continue
        for name, (wall, _) in times.items():
            ratios[name].append(wall / times[BASE][0])
    if not ratios[BASE]:
        raise SystemExit(f"All {rounds} rounds were disturbed by other work on this machine; try again.")
    return {
        "command": f"python benchmarks/layer.py --rounds {rounds} --threads {threads}",
        "commit": git_commit(),
        "machine": machine(),
        "batch": BATCH,
        "steps": STEPS,
        "rounds_kept": len(ratios[BASE]),
        "rounds_dropped": dropped,
        "arms": {
            name: {
                "parameters": sum(parameter.numel() for parameter in layer.parameters()),
                "median_ratio": statistics.median(ratios[name]),
                "least": min(ratios[name]),
                "greatest": max(ratios[name]),
                "gradient_error": gradient_error(layer),
            }
            for name, layer in models.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    result = measure(arguments.rounds, arguments.threads)
    for name, arm in result["arms"].items():
        error = (
            "" if arm["gradient_error"] is None else f"   gradients within {arm['gradient_error']:.1e} of float64"
        )
        print(f"{arm['median_ratio']:6.2f}   {arm['least']:.2f} to {arm['greatest']:.2f}   {name}{error}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
