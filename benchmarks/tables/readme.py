"""The tables of README.md that no other page has."""

import re

from benchmarks.tables.shared import NAMES, Tables, load, published, seeds_of, table

COPYING = {"rim": "RIM", "rim_paper": "RIM, the paper's rule", "gru": "GRU", "lstm": "LSTM"}
PAPER_MNIST = ("RIM 600, 6 mechanisms, 4 active", "LSTM 600", "LSTM 300")  # those shown


def promise() -> str:
    """What `make train` ends with, in a sentence."""
    result = load("copying", "rim")
    if result is None:
        return "(not recorded)"
    runs = seeds_of("copying", "rim")
    worst = [min(run["test"][f"span_{span}/sequence_accuracy"] for run in runs) for span in (50, 100, 200, 400)]
    copied = [f"{100 * share:.1f} %" for share in worst]
    minutes = [run["train_seconds"] / 60 for run in runs]
    steps, parameters = f"{result['steps']:,} steps", f"{result['parameters']:,} parameters"
    return (
        f"**Copied whole in the worst of {len(runs)} seeds: {copied[0]} of the sequences at span 50, {copied[1]} "
        f"at 100, {copied[2]} at 200 and {copied[3]} at 400**, spans beyond 50 being never trained on. "
        f"That is what `make train` reaches in {steps} with {parameters}. "
        f"It took {min(minutes):.0f} to {max(minutes):.0f} minutes on {result['machine']}."
    )


def copying() -> str:
    """A row per model and metric, a column per span."""
    results = {name: result for name in COPYING if (result := load("copying", name))}
    if not results:
        return "(not recorded)"
    spans = sorted(
        {
            int(found[1])
            for result in results.values()
            for key in result["test"]
            if (found := re.match(r"span_(\d+)/", key))
        }
    )
    rows = []
    for metric, digits in (("cross_entropy", 3), ("sequence_accuracy", 3)):
        for name, result in results.items():
            scores = [f"{result['test'][f'span_{span}/{metric}']:.{digits}f}" for span in spans]
            model = f"{COPYING[name]}, {result['parameters']:,} parameters"
            rows.append([model, metric.replace("_", " "), *scores])
        seeds = seeds_of("copying", "rim")
        if len(seeds) > 1:
            names = ", ".join(str(seed["seed"]) for seed in seeds)
            scores = [[seed["test"][f"span_{span}/{metric}"] for seed in seeds] for span in spans]
            cells = [f"{sum(own) / len(own):.3f} ({min(own):.3f} to {max(own):.3f})" for own in scores]
            rows.append([f"RIM, mean of seeds {names}", metric.replace("_", " "), *cells])
        floor = next(iter(results.values()))["floor"][metric]
        rows.append(
            ["floor: format known, symbols guessed", metric.replace("_", " "), *[f"{floor:.3f}"] * len(spans)]
        )
    return table(["copying, last 10 steps", "metric", *(f"span {span}" for span in spans)], rows)


def language() -> str:
    """A row per text and model."""
    rows = []
    for dataset, text in (
        ("tinyshakespeare", "tiny Shakespeare, characters"),
        ("wikitext-2", "WikiText-2, words"),
    ):
        for name, model in NAMES.items():
            if result := load(dataset, name):
                bits = result["test"].get("bits_per_character")
                rows.append(
                    [
                        text,
                        model,
                        f"{result['parameters']:,}",
                        f"{result['steps']:,} steps, {result['train_seconds'] / 60:.0f} min",
                        f"{result['test']['perplexity']:.2f}",
                        "" if bits is None else f"{bits:.3f}",
                        f"{result['floor']['perplexity']:.1f}",
                    ]
                )
    return table(
        [
            "text",
            "model",
            "parameters",
            "budget",
            "test perplexity",
            "bits per character",
            "perplexity of token frequencies",
        ],
        rows,
    )


def by_group(dataset: str, prefix: str, metric: str, digits: int) -> tuple[list[int], list[list[str]]]:
    """Return the sizes or lengths tested, and a row per model, then of the floor, with a column for each."""
    results = {name: result for name in NAMES if (result := load(dataset, name))}
    keys = {key for result in results.values() for key in result["test"]}
    groups = sorted({int(found[1]) for key in keys if (found := re.match(rf"{prefix}_(\d+)/", key))})
    rows = []
    for name, result in results.items():
        scores = [f"{result['test'][f'{prefix}_{group}/{metric}']:.{digits}f}" for group in groups]
        rows.append([NAMES[name], f"{result['parameters']:,}", f"{result['steps']:,} steps", *scores])
    if results:
        floor = next(iter(results.values()))["floor"][metric]
        rows.append(["floor", "", "", *[f"{floor:.{digits}f}"] * len(groups)])
    return groups, rows


def images(dataset: str, paper: tuple[str, ...] = ()) -> str:
    """A row per model, a column per size of the test images."""
    sizes, rows = by_group(dataset, "size", "accuracy", 3)
    if not rows:
        return "(not recorded)"
    for model in paper:
        scores = published(dataset, model)
        cells = [scores.get(f"size_{size}/accuracy", "") for size in sizes]
        rows.append([f"{model} (paper)", "", "100 epochs", *cells])
    return table(["accuracy", "parameters", "budget", *(f"{size} × {size}" for size in sizes)], rows)


def adding() -> str:
    """A row per model, a column per length."""
    lengths, rows = by_group("adding", "length", "mse", 5)
    if not rows:
        return "(not recorded)"
    return table(["mean squared error", "parameters", "budget", *(f"{length} steps" for length in lengths)], rows)


TABLES: Tables = {
    "promise": promise,
    "copying": copying,
    "language": language,
    "digits": lambda: images("sequential_mnist"),
    "mnist": lambda: images("mnist", PAPER_MNIST),
    "adding": adding,
}
