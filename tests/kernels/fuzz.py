"""Random RIMs, each run by every loop that can and compared with ``eager`` in float64.

    python -m tests.kernels.fuzz --count 500 [--first 0]

prints how many configurations each loop ran and the largest difference of an output and of a gradient.
"""

import argparse
import itertools
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rimlit import RIM
from rimlit.kernels import LOOPS, Activity, Where
from rimlit.mechanisms import Balance
from rimlit.types import map_state

COMPARED = ("cpu", "function", "reference")
TOLERANCE = 1e-8
CPU = torch.device("cpu")


class RandomOffset(Balance):
    """An offset that depends on step, mechanism and sample, or on fewer of them, and knocks some out."""

    def __init__(
        self, num_mechanisms: int, num_active: int, per_step: bool, per_sample: bool, knocks: bool
    ) -> None:
        super().__init__(num_mechanisms, num_active)
        self.per_step, self.per_sample, self.knocks = per_step, per_sample, knocks
        self.register_buffer("place", torch.empty(0), persistent=False)

    def offset(self, num_steps: int, batch_size: int) -> Tensor:
        """See :meth:`Balance.offset`."""
        generator = torch.Generator().manual_seed(1)
        shape = (num_steps if self.per_step else 1, self.num_mechanisms, batch_size if self.per_sample else 1)
        offset = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.knocks:
            offset[:, -1] = -torch.inf
        return offset.to(self.place.device)


class RandomPenalty(Balance):
    """A penalty that weighs the relevance of each step, mechanism and sample by itself."""

    def penalty(self, relevance: Tensor, active: Tensor) -> Tensor:
        """See :meth:`Balance.penalty`."""
        generator = torch.Generator().manual_seed(2)
        weights = torch.randn(relevance.shape, generator=generator, dtype=torch.float64)
        return (relevance.tanh() * weights.to(relevance)).sum()


class Case(NamedTuple):
    """One configuration."""

    arguments: dict[str, Any]
    input_size: int
    batch: int
    steps: int
    slots: int | None
    vocabulary: int | None  # rows of the table whose tokens are read; None: inputs are numbers
    resets: bool
    threads: int


def draw(seed: int) -> Case:
    """Return the configuration of a seed."""
    r = random.Random(seed)
    mechanisms = r.choice([1, 2, 3, 4, 4, 5, 6])
    attends = r.random() < 0.9
    active = r.randint(1, mechanisms) if attends else mechanisms
    selection: Any = "across_mechanisms" if attends else "least_null"
    if attends and (mechanisms == 1 or r.random() < 0.8):
        selection = {
            "margin": r.choice(["none", "scores", "probabilities", "best"]),
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
    slots = r.choice([None, None, None, 1, 2, 3]) if attends else None
    vocabulary = r.choice([2, 5, 30]) if slots is None and r.random() < 0.4 else None
    balance: Any = "none"
    if r.random() < 0.3:
        knocks = mechanisms > active and r.random() < 0.5
        balance = RandomOffset(mechanisms, active, r.random() < 0.5, r.random() < 0.5, knocks)
    if selection != "across_mechanisms" and random.Random(f"penalty {seed}").random() < 0.4:
        balance = [balance, RandomPenalty(mechanisms, active)]
    # with initial states of zeros all scores tie, which a margin and a dynamic count refuse
    may_tie = isinstance(selection, str) or not (selection["margin"] != "none" or selection["dynamic"])
    arguments = {
        "hidden_size": mechanisms * r.choice([1, 2, 3, 4, 5, 9]),
        "num_mechanisms": mechanisms,
        "num_active": active,
        "cell": r.choice(["lstm", "gru"]),
        "num_layers": r.choice([1, 1, 1, 2]),
        "selection": selection,
        "communication": communication,
        "sharing": r.choice(["independent", "independent", "shared"]),
        "input_sharing": r.choice(["independent", "shared"]),
        "balance": balance,
        "input_attention": attends,
        "input_heads": r.choice([1, 1, 2, 3]),
        "input_key_size": r.randint(1, 5),
        "input_value_size": r.choice([1, 2, 3, 5, 8, 40]),  # 40: products are folded in the other order
        "soft_cap": r.choice([None, None, 0.7, 3.0]),
        "score_bias": r.choice([None, None, 0.0, 1.0]),
        "input_dropout": r.choice([0.0, 0.4]),
        "communication_dropout": r.choice([0.0, 0.4]),
        "dropout": r.choice([0.0, 0.3]),
        "learn_initial_state": not may_tie or r.random() < 0.7,
        "checkpoint_every": r.choice([None, None, 1, 2, 4]),
    }
    of_sharing = random.Random(f"sharing {seed}")  # apart, so that the other draws stay as they were
    for name in ("sharing", "input_sharing"):
        if arguments[name] == "shared":
            arguments[name] = of_sharing.choice(["shared", "embedded", "low_rank"])
    steps, batch = r.choice([1, 2, 3, 4, 5]), r.choice([1, 2, 3, 4])
    resets, threads = r.random() < 0.4, r.choice([1, 2])
    return Case(arguments, r.choice([1, 3, 7]), batch, steps, slots, vocabulary, resets, threads)


def kinds(case: Case) -> dict[str, Any]:
    """Return what a configuration is an example of: a value for each choice that a loop has to make."""
    found = {
        name: value
        for name, value in case.arguments.items()
        if name not in ("hidden_size", "num_mechanisms", "num_active", "selection", "communication", "balance")
    }
    for name in ("input_key_size", "input_value_size"):
        found[name] = "many" if found[name] == 40 else "one" if found[name] == 1 else "few"
    for name in ("soft_cap", "score_bias", "checkpoint_every"):
        found[name] = found[name] is not None
    mechanisms, active = case.arguments["num_mechanisms"], case.arguments["num_active"]
    found["active"] = "all" if active == mechanisms else "one" if active == 1 else "some"
    found["mechanisms"], found["size"] = (number == 1 for number in (mechanisms, case.arguments["hidden_size"]))
    for name, part in (("selection", "margin"), ("communication", "output")):
        given = case.arguments[name]
        found[name] = given if isinstance(given, str) else given[part]
        if isinstance(given, dict):
            found |= {f"{name}.{key}": value for key, value in given.items() if isinstance(value, bool | str)}
            found |= {f"{name}.{key}": min(value, 3) for key, value in given.items() if key == "heads"}
    balance = case.arguments["balance"]
    found["penalty"] = isinstance(balance, list)
    balance = balance[0] if isinstance(balance, list) else balance
    found["balance"] = balance != "none"
    if isinstance(balance, RandomOffset):
        found |= {f"balance.{name}": getattr(balance, name) for name in ("per_step", "per_sample", "knocks")}
    found |= {"one sample": case.batch == 1, "one step": case.steps == 1, "resets": case.resets}
    tokens = None if case.vocabulary is None else case.vocabulary < case.batch * case.steps
    return found | {"slots": case.slots, "table is projected": tokens, "threads": case.threads}


def pairs(case: Case) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Return every pair of values that a configuration tries together."""
    return set(itertools.combinations(sorted(kinds(case).items(), key=lambda item: item[0]), 2))


def covering(number: int) -> list[int]:
    """Return the first seeds whose configurations try every pair of values that the first ``number`` try."""
    wanted: dict[int, set[Any]] = {seed: pairs(draw(seed)) for seed in range(number)}
    found = []
    while any(wanted.values()):
        best = max(wanted, key=lambda seed: len(wanted[seed]))
        found.append(best)
        covered = set(wanted[best])
        wanted = {seed: rest for seed, all_of in wanted.items() if (rest := all_of - covered)}
    return found


def run(
    case: Case, loop: str, dtype: torch.dtype = torch.float64, device: torch.device = CPU
) -> tuple[dict[str, Tensor], list[Activity]]:
    """Return outputs and gradients by name, and the activity of each layer."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    torch.manual_seed(0)
    rim = RIM(case.input_size, backend=loop, **case.arguments).to(device, dtype).train()
    with torch.no_grad():
        for parameter in rim.parameters():
            parameter.mul_(1.7)
    state = map_state(lambda part: numbers(*part.shape).requires_grad_(), rim.initial_state(case.batch))
    resets = numbers(case.batch, case.steps) > 0.6 if case.resets else None
    if case.vocabulary is not None:
        inputs = numbers(case.vocabulary, case.input_size).requires_grad_()
        tokens = (100 * numbers(case.batch, case.steps)).long() % case.vocabulary
    else:
        slots = () if case.slots is None else (case.slots,)
        inputs = numbers(case.batch, case.steps, *slots, case.input_size).requires_grad_()
    torch.manual_seed(1)  # the same dropout factors for all loops
    with rim.record_activity() as activities:
        if case.vocabulary is not None:
            features, last = rim.forward_tokens(tokens, inputs, state, resets)
        else:
            features, last = rim(inputs, state, resets)
    loss = (features * numbers(*features.shape)).sum()
    loss = loss + sum((part * numbers(*part.shape)).sum() for part in last)
    penalty = rim.penalty()
    loss = loss if penalty is None else loss + penalty
    named = {**dict(rim.named_parameters()), "inputs": inputs}
    named |= {f"state.{name}": part for name, part in state._asdict().items()}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    found = {f"gradient of {name}": tensor for name, tensor in zip(named, gradients, strict=True)}
    found["features"] = features.detach()
    if penalty is not None:
        found["penalty"] = penalty.detach()
    found |= {f"last {name}": part.detach() for name, part in last._asdict().items()}
    return found, activities


def differences(case: Case, loops: Sequence[str], device: torch.device = CPU) -> Iterator[tuple[str, float, str]]:
    """Yield each loop, its greatest difference from ``eager``, relative to 1 + size, and of what."""
    expected, active = run(case, "eager", device=device)
    for loop in loops:
        found, also = run(case, loop, device=device)
        worst = 0.0, "nothing"
        for name, tensor in expected.items():
            error = ((found[name] - tensor).abs() / (1 + tensor.abs())).max().item()
            worst = max(worst, (error if error == error else float("inf"), name))
        for layer, (one, two) in enumerate(zip(active, also, strict=True)):
            if not torch.equal(one.active, two.active):
                worst = max(worst, (float("inf"), f"which mechanisms are active in layer {layer}"))
            for name in ("null_attention", "slot_attention", "communication", "gate"):
                a, b = getattr(one, name), getattr(two, name)
                if (a is None) != (b is None):
                    worst = max(worst, (float("inf"), f"{name} of layer {layer} is missing"))
                elif a is not None:
                    worst = max(worst, ((a - b).abs().max().item(), f"{name} of layer {layer}"))
        yield loop, *worst


def able(case: Case) -> list[str]:
    """Return the loops beside ``eager`` that can run a configuration here."""
    rim = RIM(case.input_size, **case.arguments)
    where = Where(CPU, torch.float64, case.slots or 1)
    return [
        name
        for name, loop in LOOPS.items()
        if name != "eager" and loop.cannot(rim.layers[0], where) is None  # type: ignore[arg-type]
    ]


def main() -> None:
    """Run a number of configurations and print what was found; the exit code is 1 where a loop differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="configurations to run")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one, to run them in parts")
    parser.add_argument("--loops", nargs="*", default=list(COMPARED), help="loops to compare with eager")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    worst = dict.fromkeys(options.loops, (0.0, "nothing", -1))
    for seed in range(options.first, options.first + options.count):
        case = draw(seed)
        torch.set_num_threads(case.threads)
        for loop, error, what in differences(case, [loop for loop in able(case) if loop in worst]):
            counts[loop] += 1
            worst[loop] = max(worst[loop], (error, what, seed))
            if error > TOLERANCE:
                print(f"seed {seed}, {loop}: {what} differs by {error:.3g}: {case}", flush=True)
    for name, (error, what, seed) in worst.items():
        print(
            f"{name}: {counts[name]} of {options.count} configurations, largest difference {error:.2g} "
            f"({what}, seed {seed})"
        )
    sys.exit(int(any(error > TOLERANCE for error, _, _ in worst.values())))


if __name__ == "__main__":
    main()
