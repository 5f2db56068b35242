"""Golden curves: the loss of five Adam steps on one fixed copying batch, as text.

Refresh them only on purpose, and say why in the commit:  python tests/golden/refresh.py
"""

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from rimlit import RIM
from rimlit.data.copying import copying_sequence

FOLDER = Path(__file__).parent
CURVES = {
    f"rim_{preset}_{cell}": {"preset": preset, "cell": cell}
    for preset in ("paper", "official")
    for cell in ("lstm", "gru")
}
SYMBOLS = ((3, 5, 1), (8, 8, 2), (4, 7, 6), (1, 2, 3))
NUM_STEPS = 5


# in which the parameters of a RIM layer are filled
ORDER = (
    "dynamics.bias.",
    "input_query.",
    "input_key.",
    "input_value.",
    "dynamics.input.",
    "dynamics.hidden.",
    "communication.projection.",
    "communication.output.",
    "communication.output_bias",
)


def in_order(module: nn.Module) -> list[nn.Parameter]:
    """Return all parameters, those of the RIM's layer in the place of its first by ``ORDER``."""
    named = dict(module.named_parameters())
    inside = [name for name in named if ".layers.0." in name]
    by_part = [name for part in ORDER for name in inside if part in name]
    assert sorted(by_part) == sorted(inside)
    names = [name for name in named if name not in inside]
    first = list(named).index(inside[0])
    return [named[name] for name in (*names[:first], *by_part, *names[first:])]


def fill(module: nn.Module) -> None:
    """Set all parameters without a random generator, whose numbers may change with torch."""
    with torch.no_grad():
        for index, parameter in enumerate(in_order(module)):
            places = torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter)
            bound = 1 / math.sqrt(parameter.shape[-1])
            parameter.copy_(bound * torch.sin((places + 1) * (1.3 + index / 10)))


def curve(name: str) -> list[float]:
    """Return the losses before each of five steps of Adam, and after the last."""
    pairs = [copying_sequence(torch.tensor(symbols), span=4, marker=9) for symbols in SYMBOLS]
    inputs, targets = (torch.stack(part) for part in zip(*pairs, strict=True))
    embedding, head = nn.Embedding(10, 6), nn.Linear(16, 10)
    rim = RIM(
        6,
        16,
        num_mechanisms=4,
        num_active=2,
        input_key_size=4,
        communication={"heads": 2, "key_size": 3, "value_size": 4},
        input_dropout=0,
        communication_dropout=0,
        learn_initial_state=True,
        **CURVES[name],
    )
    model = nn.ModuleList([embedding, rim, head]).double()
    fill(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(NUM_STEPS + 1):
        logits = head(rim(embedding(inputs))[0])
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        losses.append(loss.item())
        if step < NUM_STEPS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses


def path_of(name: str) -> Path:
    """Return where the curve ``name`` is kept."""
    return FOLDER / f"{name}.txt"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in CURVES:
        path_of(name).write_text("".join(f"{loss:.15f}\n" for loss in curve(name)))
        print(path_of(name))
