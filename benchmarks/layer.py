"""Time of a RIM layer over that of nn.LSTM(600), forward and backward, and how it grows.

The paper's copying layer: 600 inputs, 6 mechanisms of 100, 4 active, values of 400, communication 4 × 16, batch
64, 35 steps, no dropout. All arms of a table are interleaved in one process, so that a disturbance hits all; a
round in which an arm on one thread takes over 5 % more wall than CPU time is dropped: then something else ran.
The tables also have the largest relative difference of all gradients from the float64 reference.

python benchmarks/layer.py [--rounds 7] [--only speed …] [--json benchmarks/results/layer.json]
"""

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from origin import origin, write
from torch import Tensor, nn

from rimlit import RIM, MinGRU

SIZE, BATCH, STEPS = 600, 64, 35
BASE = f"nn.LSTM({SIZE})"
NO_DROPOUT = {"input_dropout": 0.0, "communication_dropout": 0.0}
PAPER = {
    "input_value_size": 400,
    "communication": {"key_size": 16, "value_size": 16},
    **NO_DROPOUT,
}


class CellLoop(nn.Module):
    """nn.LSTMCell, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(SIZE, SIZE)

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        state, features = None, []
        for step in inputs.unbind(dim=1):
            state = self.cell(step, state)
            features.append(state[0])
        return torch.stack(features, dim=1), None


class Recreated(nn.Module):
    """What the authors' released code does in a step, written again from a description of it.

    One dense LSTM cell whose weights are masked to blocks in every step, projections of the input step by step, a
    null slot in memory, and a host synchronisation to read the mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mechanisms, self.active, self.size, self.heads, self.head = 6, 4, SIZE // 6, 4, 16
        self.key, self.value = nn.Linear(SIZE, 64), nn.Linear(SIZE, 400)
        self.query = nn.Parameter(torch.randn(self.mechanisms, self.size, 64) / 10)
        self.cell = nn.LSTMCell(self.mechanisms * 400, SIZE)
        width = self.heads * self.head
        self.talk = nn.Parameter(torch.randn(3, self.mechanisms, self.size, width) / 10)
        self.gate, self.out = nn.Linear(width, self.size), nn.Linear(width, self.size)
        blocks = torch.eye(self.mechanisms)
        self.register_buffer("input_mask", torch.kron(blocks, torch.ones(self.size, 400)).repeat(4, 1))
        self.register_buffer("hidden_mask", torch.kron(blocks, torch.ones(self.size, self.size)).repeat(4, 1))

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        hidden = memory = inputs.new_zeros(len(inputs), SIZE)
        features = []
        for step in inputs.unbind(dim=1):
            hidden, memory = self.step(step, hidden, memory)
            features.append(hidden)
        return torch.stack(features, dim=1), None

    def step(self, step: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        batch = len(step)
        slots = torch.stack([torch.zeros_like(step), step], dim=1)
        blocks = hidden.view(batch, self.mechanisms, self.size)
        query = torch.einsum("bmd,mdk->bmk", blocks, self.query)
        attention = (query @ self.key(slots).mT / 8).softmax(dim=-1)
        chosen = attention[..., 1].topk(self.active, dim=-1).indices
        mask = torch.zeros_like(attention[..., 0]).scatter_(1, chosen, 1)
        assert mask.sum().item() == batch * self.active  # the host waits
        read = (attention @ self.value(slots)).flatten(1)
        # past autograd's count of versions: the weights are the same numbers after the first step
        self.cell.weight_ih.data *= self.input_mask
        self.cell.weight_hh.data *= self.hidden_mask
        new_hidden, new_memory = self.cell(read, (hidden, memory))
        blocks = new_hidden.view(batch, self.mechanisms, self.size)
        query, key, value = (
            torch.einsum("bmd,mde->bme", blocks, weight).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for weight in self.talk
        )
        heard = ((query @ key.mT / 4).softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        blocks = blocks + self.gate(heard).sigmoid() * self.out(heard).tanh()
        keep = mask.repeat_interleave(self.size, dim=1)
        return keep * blocks.flatten(1) + (1 - keep) * hidden, keep * new_memory + (1 - keep) * memory


class FromTokens(nn.Module):
    """An embedding of 10 tokens before a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(10, SIZE), layer

    def forward(self, tokens: Tensor) -> tuple[Tensor, Any]:
        if isinstance(self.layer, RIM):
            return self.layer.forward_tokens(tokens, self.table.weight)
        return self.layer(self.table(tokens))


def rim(**options: Any) -> RIM:
    return RIM(SIZE, SIZE, **{**PAPER, **options})


def train(layer: nn.Module, inputs: Tensor) -> None:
    layer(inputs)[0].square().mean().backward()
    layer.zero_grad()


def gradient_error(layer: nn.Module) -> float | None:
    """Return the largest relative difference of a RIM's gradients against the float64 reference."""
    if not isinstance(layer, RIM):
        return None
    reference = copy.deepcopy(layer).double()
    reference.backend = "reference"
    inputs = torch.randn(2, 5, SIZE, generator=torch.Generator().manual_seed(1))
    # random states: zeros tie all scores, and a tie broken otherwise is not a gradient error
    torch.manual_seed(2)
    state = type(layer.initial_state(2))(*(torch.randn_like(part) for part in layer.initial_state(2)))
    gradients = []
    for model in (layer, reference):
        dtype = next(model.parameters()).dtype
        features, _ = model(inputs.to(dtype), type(state)(*(part.to(dtype) for part in state)))
        features.square().mean().backward()
        gradients.append([p.grad.double() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    return max(
        ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in zip(*gradients, strict=True)
    )


def compare(arms: dict[str, Callable[[], object]], base: str, rounds: int, threads: int) -> dict[str, Any]:
    """Time all arms in turn; return for each the median of its time over the base's in the same round."""
    torch.set_num_threads(threads)
    for run in arms.values():
        run()
    ratios: dict[str, list[float]] = {name: [] for name in arms}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    dropped = 0
    while len(ratios[base]) < rounds and dropped < 5 * rounds:
        times = {}
        for name, run in arms.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name] = time.perf_counter() - wall, time.process_time() - cpu
        if threads == 1 and any(wall - cpu > 0.05 * wall for wall, cpu in times.values()):
            dropped += 1
            continue
        for name, (wall, _) in times.items():
            ratios[name].append(wall / times[base][0])
            seconds[name].append(wall)
    if not ratios[base]:
        raise SystemExit(f"All {dropped} rounds were disturbed by other work on this machine; try again.")
    return {
        "threads": threads,
        "rounds_kept": len(ratios[base]),
        "rounds_dropped": dropped,
        "arms": {
            name: {
                "ratio": statistics.median(ratios[name]),
                "least": min(ratios[name]),
                "greatest": max(ratios[name]),
                "milliseconds": 1000 * statistics.median(seconds[name]),
            }
            for name in arms
        },
    }


def compare_layers(
    layers: dict[str, Any], inputs: Tensor, base: str, rounds: int, threads: int = 1
) -> dict[str, Any]:
    """Time forward and backward of all layers in turn; see :func:`compare`."""
    arms = {name: lambda layer=layer: train(layer, inputs) for name, layer in layers.items()}
    return compare(arms, base, rounds, threads)


def speed(rounds: int) -> list[dict[str, Any]]:
    """Time every loop beside LSTMs, on one thread and on two."""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        BASE: nn.LSTM(SIZE, SIZE, batch_first=True),
        "nn.LSTM(407), about the RIM's parameters": nn.LSTM(SIZE, 407, batch_first=True),
        "nn.LSTMCell in a loop": CellLoop(),
        "MinGRU(600), all steps at once": MinGRU(SIZE, SIZE),
        "2 layers of MinGRU(662), about the RIM's parameters": MinGRU(SIZE, 662, num_layers=2),
        "the authors' code, re-created": Recreated(),
        "RIM, eager": rim(backend="eager"),
        "RIM, function": rim(backend="function"),
        "RIM, cpu": rim(backend="cpu"),
        "RIM, cpu, preset official": rim(backend="cpu", preset="official"),
        "RIM, cpu, GRU": rim(backend="cpu", cell="gru"),
        "RIM(600, 600), cpu, its default sizes": RIM(SIZE, SIZE, backend="cpu", **NO_DROPOUT),
        "RIM(600, 600), cpu, preset dynamic": RIM(SIZE, SIZE, backend="cpu", preset="dynamic"),
    }
    inputs = torch.randn(BATCH, STEPS, SIZE)
    results = [compare_layers(layers, inputs, BASE, rounds, threads) for threads in (1, 2)]
    for result in results:
        for name, layer in layers.items():
            result["arms"][name]["parameters"] = sum(weight.numel() for weight in layer.parameters())
            result["arms"][name]["gradient_error"] = gradient_error(layer)
    return results


def tokens(rounds: int) -> list[dict[str, Any]]:
    """Time layers behind an embedding of 10 tokens, the embedding included."""
    base = f"embedding + {BASE}"
    layers = {
        base: FromTokens(nn.LSTM(SIZE, SIZE, batch_first=True)),
        "embedding + RIM, cpu": FromTokens(rim(backend="cpu")),
        "embedding + RIM, function": FromTokens(rim(backend="function")),
    }
    inputs = torch.randint(0, 10, (BATCH, STEPS))
    return [compare_layers(layers, inputs, base, rounds, threads) for threads in (1, 2)]


def growth(rounds: int) -> dict[str, dict[str, Any]]:
    """Time the C++ loop over mechanisms, active mechanisms, steps and batch."""

    def sizes(values: list[int], make: Callable[[int], tuple[RIM, Tensor]]) -> dict[str, Any]:
        made = {str(value): make(value) for value in values}
        arms = {name: lambda pair=pair: train(*pair) for name, pair in made.items()}
        return compare(arms, str(values[0]), rounds, 1)

    def of_mechanisms(mechanisms: int, active: int) -> RIM:
        return RIM(SIZE, 100 * mechanisms, num_mechanisms=mechanisms, num_active=active, backend="cpu", **PAPER)

    inputs = torch.randn(BATCH, STEPS, SIZE)
    return {
        "mechanisms, 4 active": sizes([4, 8, 16, 32], lambda m: (of_mechanisms(m, 4), inputs)),
        "active of 6": sizes([1, 2, 4, 5, 6], lambda k: (of_mechanisms(6, k), inputs)),
        "active of 6, batch 4": sizes([1, 2, 4, 5, 6], lambda k: (of_mechanisms(6, k), inputs[:4])),
        "steps": sizes([35, 70, 140, 280], lambda t: (rim(backend="cpu"), torch.randn(BATCH, t, SIZE))),
        "batch": sizes([16, 32, 64, 128], lambda b: (rim(backend="cpu"), torch.randn(b, STEPS, SIZE))),
    }


def memory(rounds: int) -> dict[str, Any]:
    """Time and count what 220 steps keep for the backward, with and without recomputation."""
    inputs = torch.randn(BATCH, 220, SIZE)
    layers = {
        f"{name}, {text}": rim(backend=name, checkpoint_every=every)
        for name in ("cpu", "function")
        for every, text in ((None, "everything kept"), (20, "checkpoint_every=20"))
    }
    result = {}
    for name in ("cpu", "function"):
        chosen = {key: layer for key, layer in layers.items() if key.startswith(name)}
        compared = compare_layers(chosen, inputs, next(iter(chosen)), rounds)
        for key, layer in chosen.items():
            compared["arms"][key]["saved_bytes"] = saved_bytes(layer, inputs)
        result[name] = compared
    return result


def saved_bytes(layer: nn.Module, inputs: Tensor) -> int:
    """Return the bytes that are kept for the backward, beside weights, inputs and features."""
    sizes: dict[int, int] = {}
    gc.collect()
    before = {id(tensor) for tensor in gc.get_objects() if isinstance(tensor, Tensor)}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = layer(inputs)[0]
    for tensor in gc.get_objects():  # what recomputation starts from is held by Python, not by the graph
        if isinstance(tensor, Tensor) and id(tensor) not in before:
            pack(tensor)
    for tensor in (*layer.parameters(), inputs, features):
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def narrow(rounds: int) -> list[dict[str, Any]]:
    """Time narrow RIMs of about the parameters of an LSTM over it, by the sizes of their attention.

    3 inputs, 30 steps, values of 32, the shipped regularisation: dropout .1 on both attentions.
    """
    torch.manual_seed(0)
    inputs = torch.randn(BATCH, 30, 3)
    layers: dict[str, nn.Module] = {"nn.LSTM(198)": nn.LSTM(3, 198, batch_first=True)}
    for mechanisms, active, heads, key, size in (
        (6, 4, 4, 32, 192),
        (6, 4, 4, 8, 300),
        (6, 4, 2, 16, 300),
        (4, 3, 4, 32, 176),
        (4, 3, 2, 16, 272),
    ):
        layers[f"RIM({size}), {active} of {mechanisms} active, {heads} heads of {key}"] = RIM(
            3,
            size,
            num_mechanisms=mechanisms,
            num_active=active,
            input_value_size=32,
            communication={"heads": heads, "key_size": key, "value_size": key, "output": "tanh"},
        )
    results = [compare_layers(layers, inputs, "nn.LSTM(198)", rounds, threads) for threads in (1, 2)]
    for result in results:
        for name, layer in layers.items():
            result["arms"][name]["parameters"] = sum(weight.numel() for weight in layer.parameters())
    return results


@torch.no_grad()
def streaming(rounds: int, steps: int = 100) -> dict[str, Any]:
    """Time single steps of one sample, a hundred at a time."""
    cell, layer, eager = nn.LSTMCell(SIZE, SIZE), rim().eval(), rim(backend="eager").eval()
    minimal = MinGRU(SIZE, SIZE).eval()
    stepper, inputs = layer.stepper(), torch.randn(1, SIZE)

    def walk(step: Callable[[Tensor, Any], Any], state: Any) -> None:
        for _ in range(steps):
            _, state = step(inputs, state)

    def cell_step(inputs: Tensor, state: Any) -> Any:
        state = cell(inputs, state)
        return state[0], state

    zeros = torch.zeros(1, SIZE)
    start = layer.initial_state(1)
    arms = {
        "nn.LSTMCell(600)": lambda: walk(cell_step, (zeros, zeros)),
        "MinGRU(600)": lambda: walk(minimal.step, minimal.initial_state(1)),
        "RIM, rim.stepper()": lambda: walk(stepper, start),
        "RIM, rim.step": lambda: walk(layer.step, start),
        "RIM, rim.step, eager": lambda: walk(eager.step, start),
    }
    result = compare(arms, "nn.LSTMCell(600)", rounds, 1)
    for arm in result["arms"].values():
        arm["microseconds_a_step"] = 1000 * arm.pop("milliseconds") / steps
    return result


PARTS: dict[str, Callable[[int], Any]] = {
    "speed": speed,
    "tokens": tokens,
    "growth": growth,
    "memory": memory,
    "narrow": narrow,
    "streaming": streaming,
}


def show(result: Any, title: str = "") -> None:
    if isinstance(result, list):
        for part in result:
            show(part, f"{title}, {part['threads']} thread(s)")
    elif "arms" not in result:
        for name, part in result.items():
            show(part, f"{title}: {name}")
    else:
        print(f"\n{title} ({result['rounds_kept']} rounds kept, {result['rounds_dropped']} dropped)")
        for name, arm in result["arms"].items():
            error = arm.get("gradient_error")
            notes = "" if error is None else f"   gradients within {error:.0e} of float64"
            notes += f"   {arm['saved_bytes'] / 2**20:.0f} MiB kept" if "saved_bytes" in arm else ""
            print(f"{arm['ratio']:7.3f}   {arm['least']:.2f} to {arm['greatest']:.2f}   {name}{notes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="undisturbed rounds of each table")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="tables to measure")
    parser.add_argument("--json", type=Path, help="where to write the result; tables not measured stay")
    arguments = parser.parse_args()
    old = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    for name in arguments.only:
        whence = origin(rounds=arguments.rounds, only=name)
        result = PARTS[name](arguments.rounds)
        show(result, name)
        old[name] = {**whence, "result": result}
        write(arguments.json, old)


if __name__ == "__main__":
    main()
