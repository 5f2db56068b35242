"""How time and memory of a RIM grow with its sizes, what a second process gains, and 200 runs as jobs.

Sizes: a forward and a backward pass of one RIM layer, one size doubled at a time, each point in a process of
its own, whose peak memory is counted above what it had before the first pass. Processes: `rimlit fit copying/rim`
with 1 and 2 processes of one thread each (gloo), seconds per step without start-up: the difference of two lengths.
Runs: a comparison of two models and 100 seeds by submitit's debug executor, whose process is watched.

Parts that are not measured again stay in the file.

python benchmarks/scaling.py [--rounds 5] [--only sizes processes runs] [--json benchmarks/results/scaling.json]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from origin import origin, write

BASE = {"batch": 32, "steps": 64, "mechanisms": 6, "active": 3, "features": 32}
"""B, T, M, K and d: features of each mechanism. The input is as wide as the layer."""

STEPS = (200, 600)
"""Lengths of the runs whose difference is timed."""


def point(sizes: dict[str, int], rounds: int, every: int | None) -> dict[str, float]:
    """Measure one layer in this process: median seconds of forward and backward, and peak memory in MiB."""
    import torch

    from rimlit import RIM

    torch.set_num_threads(1)
    width = sizes["mechanisms"] * sizes["features"]
    layer = RIM(
        width, width, num_mechanisms=sizes["mechanisms"], num_active=sizes["active"], checkpoint_every=every
    )
    inputs = torch.randn(sizes["batch"], sizes["steps"], width)
    before = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        layer(inputs)[0].sum().backward()
        seconds.append(time.perf_counter() - start)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"milliseconds": 1000 * statistics.median(seconds[1:]), "mebibytes": (peak - before) / 2**20}


def measure_sizes(rounds: int) -> list[dict[str, Any]]:
    """Double one size at a time; then checkpoint_every at 8 times the steps."""
    points: list[tuple[str, dict[str, int], int | None]] = [("base", BASE, None)]
    points += [(name, {**BASE, name: factor * BASE[name]}, None) for name in BASE for factor in (2, 4)]
    points = [each for each in points if each[1]["active"] <= each[1]["mechanisms"]]
    long = {**BASE, "steps": 8 * BASE["steps"]}
    points += [("checkpoint_every", long, every) for every in (None, 16, 32, 64, 128)]
    found = []
    for name, sizes, every in points:
        words = [sys.executable, __file__, "--point", json.dumps([sizes, rounds, every])]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found.append({"changed": name, **sizes, "checkpoint_every": every, **json.loads(done.stdout)})
        print(found[-1])
    return found


def measure_processes() -> list[dict[str, Any]]:
    """Train with one process and with two, on twice the sequences."""
    found = []
    for devices in (1, 2):
        seconds = [fit(devices, steps) for steps in STEPS]
        per_step = (seconds[1] - seconds[0]) / (STEPS[1] - STEPS[0])
        found.append({"processes": devices, "batch": 64 * devices, "milliseconds": 1000 * per_step})
        print(found[-1])
    return found


def fit(devices: int, steps: int) -> float:
    """Return the seconds of a training."""
    strategy = "ddp" if devices > 1 else "auto"
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", "copying/rim", f"--trainer.devices={devices}", f"--trainer.strategy={strategy}"]
        words += [f"--trainer.max_steps={steps}", f"--data.batch_size={64 * devices}", "--trainer.accelerator=cpu"]
        words += ["--trainer.logger=false", "--test_after_fit=false", "--trainer.limit_val_batches=0"]
        words += [f"--trainer.default_root_dir={folder}/run", "--trainer.enable_progress_bar=false"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rimlit", *words], check=True, env=environment, capture_output=True)
        return time.perf_counter() - start


def measure_runs(seeds: int) -> dict[str, Any]:
    """Run a comparison of many tiny runs in one process, and watch it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "debug.yaml").write_text("cluster: debug\n")
        words = ["compare", "copying/lstm", "copying/gru", f"--seeds={seeds}", "--on=debug.yaml"]
        words += ["--config=trainer/quick", "--data.train_span=5", "--data.test_spans=[5]", "--data.val_size=8"]
        words += [
            "--data.test_size=8",
            "--data.batch_size=4",
            "--model.embedding_size=8",
            "--trainer.logger=false",
        ]
        words += ["--model.backbone.hidden_size=8", "--trainer.enable_model_summary=false"]
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "rimlit", *words],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        watched, seen = psutil.Process(process.pid), []
        while process.poll() is None:
            ended = len(list(Path(folder).glob("runs/copying/compare/*/results.json")))
            try:
                seen.append({"ended": ended, "files": watched.num_fds(), "bytes": watched.memory_info().rss})
            except psutil.Error:
                break
            time.sleep(0.5)
        process.wait()
        table = json.loads(Path(folder, "runs/copying/compare/results.json").read_text())
    rows = {name: len(model["runs"]) for name, model in table["models"].items()}
    quarter = [each for each in seen if each["ended"] >= seeds // 2]
    return {
        "runs": 2 * seeds,
        "exit_code": process.returncode,
        "in_the_table": rows,
        "seconds": time.perf_counter() - start,
        "files": [quarter[0]["files"], max(each["files"] for each in quarter)],
        "mebibytes": [quarter[0]["bytes"] / 2**20, max(each["bytes"] for each in quarter) / 2**20],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=100, help="seeds of each of the two models of the comparison")
    parser.add_argument("--only", nargs="+", choices=("sizes", "processes", "runs"))
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point is not None:
        print(json.dumps(point(*json.loads(given.point))))
        return
    chosen = given.only or ("sizes", "processes", "runs")
    content = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    if "sizes" in chosen:
        content["sizes"] = {**origin(only="sizes", rounds=given.rounds), "points": measure_sizes(given.rounds)}
    if "processes" in chosen:
        content["processes"] = {**origin(only="processes"), "points": measure_processes()}
    if "runs" in chosen:
        content["runs"] = {**origin(only="runs", seeds=given.seeds), **measure_runs(given.seeds)}
        print(content["runs"])
    write(given.json, content)


if __name__ == "__main__":
    main()
