"""Random RIMs, each run by every loop that can and compared with ``eager`` in float64.

    python -m tests.kernels.fuzz --count 500

prints how many configurations each loop ran and the greatest difference of an output and of a gradient.
"""

import argparse
import random
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rimlit import RIM
from rimlit.kernels import LOOPS, Activity, Where
from rimlit.mechanisms import Balance
from rimlit.types import map_state


class RandomOffset(Balance):
    """An offset that depends on step, mechanism and sample, or on fewer of them, and knocks some out."""

    def __init__(
        self, num_mechanisms: int, num_active: int, per_step: bool, per_sample: bool, knocks: bool
    ) -> None:
        super().__init__(num_mechanisms, num_active)
        self.per_step, self.per_sample, self.knocks = per_step, per_sample, knocks

    def offset(self, num_steps: int, batch_size: int) -> Tensor:
        """See :meth:`Balance.offset`."""
        generator = torch.Generator().manual_seed(1)
        shape = (num_steps if self.per_step else 1, self.num_mechanisms, batch_size if self.per_sample else 1)
        offset = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.knocks:
            offset[:, -1] = -torch.inf
        return offset


class Case(NamedTuple):
    """One configuration."""

    arguments: dict[str, Any]
    batch: int
    steps: int
    slots: int | None
    tokens: bool
    resets: bool
    threads: int


def draw(seed: int) -> Case:
    """Return the configuration of a seed."""
    r = random.Random(seed)
    mechanisms = r.randint(1, 6)
    selection: Any = "across_mechanisms"
    active = r.randint(1, mechanisms)
    if mechanisms == 1 or r.random() < 0.85:
        selection = {
            "margin": r.choice(["none", "scores", "scores", "probabilities"]),
            "width": r.choice([0.05, 0.5, 2.0]),
            "graded": r.random() < 0.3,
            "dynamic": r.random() < 0.3,
        }
    communication: Any = "none"
    if r.random() < 0.85:
        communication = {
            "heads": r.randint(1, 3),
            "key_size": r.choice([2, 3, 16]),
            "value_size": r.choice([2, 5, 16]),
            "output": r.choice(["linear", "tanh", "gated", "cell_gate"]),
            "inactive": r.choice(["preserved", "candidate"]),
        }
    slots = r.choice([None, None, None, 1, 2, 3])
    tokens = slots is None and r.random() < 0.3
    steps, batch = r.randint(1, 6), r.randint(1, 4)
    balance: Any = "none"
    if r.random() < 0.3:
        balance = RandomOffset(
            mechanisms, active, r.random() < 0.5, r.random() < 0.5, mechanisms > active and r.random() < 0.5
        )
    arguments = {
        "hidden_size": mechanisms * r.randint(1, 5),
        "num_mechanisms": mechanisms,
        "num_active": active,
        "cell": r.choice(["lstm", "gru"]),
        "num_layers": r.choice([1, 1, 1, 2]),
        "selection": selection,
        "communication": communication,
        "sharing": r.choice(["independent", "independent", "shared"]),
        "input_sharing": r.choice(["independent", "shared"]),
        "balance": balance,
        "input_heads": r.choice([1, 1, 2, 3]),
        "input_key_size": r.randint(1, 5),
        "input_value_size": r.randint(1, 8),
        "soft_cap": r.choice([None, None, 0.7, 3.0]),
        "score_bias": r.choice([None, None, 0.0, 1.0]),
        "input_dropout": r.choice([0.0, 0.4]),
        "communication_dropout": r.choice([0.0, 0.4]),
        "dropout": r.choice([0.0, 0.3]),
        "learn_initial_state": True,
        "checkpoint_every": r.choice([None, None, 1, 2, 4]),
    }
    return Case(arguments, batch, steps, slots, tokens, r.random() < 0.4, r.choice([1, 2]))


def run(case: Case, loop: str, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], list[Activity]]:
    """Return outputs and gradients by name, and the activity of each layer."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    torch.manual_seed(0)
    rim = RIM(3, backend=loop, **case.arguments).to(dtype).train()
    with torch.no_grad():
        for parameter in rim.parameters():
            parameter.mul_(1.7)
    state = map_state(lambda part: numbers(*part.shape).requires_grad_(), rim.initial_state(case.batch))
    resets = numbers(case.batch, case.steps) > 0.6 if case.resets else None
    if case.tokens:
        inputs = numbers(2, 3).requires_grad_()
        tokens = (numbers(case.batch, case.steps) > 0).long()
    else:
        shape = (case.batch, case.steps, 3) if case.slots is None else (case.batch, case.steps, case.slots, 3)
        inputs = numbers(*shape).requires_grad_()
    torch.manual_seed(1)  # the same dropout factors for all loops
    with rim.record_activity() as activities:
        features, last = (
            rim.forward_tokens(tokens, inputs, state, resets) if case.tokens else rim(inputs, state, resets)
        )
    loss = (features * numbers(*features.shape)).sum()
    loss = loss + sum((part * numbers(*part.shape)).sum() for part in last)
    named = {**dict(rim.named_parameters()), "inputs": inputs}
    named |= {f"state.{name}": part for name, part in state._asdict().items()}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    found = {f"gradient of {name}": tensor for name, tensor in zip(named, gradients, strict=True)}
    found["features"] = features.detach()
    found |= {f"last {name}": part.detach() for name, part in last._asdict().items()}
    return found, activities


def difference(case: Case, loop: str) -> tuple[float, str]:
    """Return the greatest difference between ``loop`` and ``eager``, relative to 1 + size, and of what."""
    (expected, active), (found, also) = run(case, "eager"), run(case, loop)
    worst = 0.0, "nothing"
    for name, tensor in expected.items():
        error = ((found[name] - tensor).abs() / (1 + tensor.abs())).max().item()
        worst = max(worst, (error if error == error else float("inf"), name))
    for layer, (one, two) in enumerate(zip(active, also, strict=True)):
        if not torch.equal(one.active, two.active):
            worst = max(worst, (float("inf"), f"who is active in layer {layer}"))
        for name in ("null_attention", "slot_attention", "communication", "gate"):
            a, b = getattr(one, name), getattr(two, name)
            if (a is None) != (b is None):
                worst = max(worst, (float("inf"), f"{name} of layer {layer} is missing"))
            elif a is not None:
                worst = max(worst, ((a - b).abs().max().item(), f"{name} of layer {layer}"))
    return worst


def able(case: Case) -> list[str]:
    """Return the loops beside ``eager`` that can run a configuration here."""
    rim = RIM(3, **case.arguments)
    where = Where(torch.device("cpu"), torch.float64, case.slots or 1)
    return [
        name
        for name, loop in LOOPS.items()
        if name != "eager" and loop.cannot(rim.layers[0], where) is None  # type: ignore[arg-type]
    ]


def main() -> None:
    """Run a number of configurations and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--loops", nargs="*", default=["cpu", "function", "reference"])
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    worst = dict.fromkeys(options.loops, (0.0, "nothing", -1))
    for seed in range(options.first, options.first + options.count):
        case = draw(seed)
        torch.set_num_threads(case.threads)
        for loop in able(case):
            if loop in worst:
                counts[loop] += 1
                error, what = difference(case, loop)
                worst[loop] = max(worst[loop], (error, what, seed))
                if error > 1e-8:
                    print(f"seed {seed}, {loop}: {what} differs by {error:.3g}: {case}", flush=True)
    for name, (error, what, seed) in worst.items():
        print(
            f"{name}: {counts[name]} of {options.count} configurations, largest difference {error:.2g} "
            f"({what}, seed {seed})"
        )


if __name__ == "__main__":
    main()
