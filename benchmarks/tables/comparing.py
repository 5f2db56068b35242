"""The tables of docs/comparing.md, of which README.md has one in short."""

from functools import partial

from benchmarks.tables.shared import Tables, load, published, table

from rimlit.comparison import Comparison
from rimlit.comparison.results import SIZES, floor_of, number, title, written

MODELS = {
    "rim": "RIM",
    "lstm": "LSTM",
    "gru": "GRU",
    "rnn": "RNN",
    "mingru": "MinGRU",
    "ntm": "NTM",
    "dnc": "DNC",
    "rmc": "RMC",
    "entnet": "EntNet",
    "transformer": "Transformer",
    "ablations-rim_without_communication": "RIM without communication",
    "ablations-rim_without_input_attention": "RIM without input attention",
}

PAPER_COPYING = {  # table 1: trained at span 50, not at equal size
    "rim": "RIM 600, 6 mechanisms, 2 to 4 active",
    "lstm": "LSTM 600",
    "ntm": "NTM",
    "rmc": "RMC",
    "transformer": "Transformer",
    "ablations-rim_without_communication": "RIM without communication, 6 mechanisms, 4 active",
    "ablations-rim_without_input_attention": "RIM without input attention, 6 mechanisms",
}

PAPER_SIZE = {
    "rim": ("RIM, span 50 only", "rim"),
    "rim-without-dropout": ("RIM, span 50 only, no dropout, learned initial state, forget bias 1", "rim"),
    "rim-spans-1-to-50": (
        "RIM, spans 1 to 50, cosine decay, no dropout, learned initial state, forget bias 1",
        "rim",
    ),
    "lstm": ("LSTM, span 50 only", "lstm"),
    "lstm-spans-1-to-50": ("LSTM, spans 1 to 50, cosine decay, learned initial state, forget bias 1", "lstm"),
}

"""Runs at the paper's size → what they are called, and the paper's scores to show next to them."""


def paper_copying(model: str) -> str:
    """Return the paper's cross-entropies at spans 50 and 200, empty where it has none."""
    if model not in PAPER_COPYING:
        return ""
    scores = published("copying", PAPER_COPYING[model])
    width = " (600 wide)" if model == "lstm" else ""
    return ", ".join(scores[f"span_{span}/cross_entropy"] for span in (50, 200)) + width


def comparison(shown_sizes: tuple[str, ...] = tuple(SIZES)) -> str:
    """A row per model: sizes, mean ± standard deviation over seeds, the best in bold; the paper's figures."""
    result = load("comparison", "copying-small")
    if result is None:
        return "(not recorded)"
    found = Comparison(result)
    best = {name: found.best(name, digits=2) for name in found.score_names}
    rows = []
    for model, facts in found.models.items():
        cells = {name: written(found.score(model, name), digits=2) for name in best}
        scores = [f"**{cell}**" if model in best[name] else cell for name, cell in cells.items()]
        sizes = [f"{facts[size]:,}" for size in shown_sizes]
        seeds = ", ".join(str(run["seed"]) for run in facts["runs"]) or "none"
        rows.append([MODELS[model], seeds, *sizes, *scores, paper_copying(model)])
    floors = [number(floor_of(result["floors"], name), 2) for name in best]
    rows.append(["floor: format known, symbols guessed", "", *([""] * len(shown_sizes)), *floors, ""])
    columns = [title(name).replace(",", "") for name in best]
    header = ["model", "seeds", *(SIZES[size] for size in shown_sizes), *columns, "paper, spans 50, 200"]
    return table(header, rows)


def paper_size() -> str:
    """A row per run at the paper's size: how far it went, what it reached, the paper's figures."""
    rows = []
    for name, (label, model) in PAPER_SIZE.items():
        result = load("paper", f"copying-{name}")
        if result is None:
            continue
        test = result["test"]
        scores = [f"{test[f'span_{span}/cross_entropy']:.3f}" for span in (50, 100, 200)]
        copied = [f"{test[f'span_{span}/sequence_accuracy']:.3f}" for span in (50, 100, 200)]
        best = 1 + min(result["val_curve"], key=lambda entry: entry[1])[0]
        sizes = [f"{number:,}" for number in (result["parameters"], result["steps"], best)]
        rows.append([label, *sizes, *scores, *copied, paper_copying(model)])
    header = ["model", "parameters", "steps trained", "step tested, the best in validation"]
    header += [f"{metric} span {span}" for metric in ("cross entropy", "copied whole") for span in (50, 100, 200)]
    return table([*header, "paper, 150 epochs, spans 50, 200"], rows)


TABLES: Tables = {
    "comparison": comparison,
    "paper_size": paper_size,
    "comparison_in_short": partial(comparison, ("parameters",)),
}
