"""Whole training steps of the shipped configs, and what of a step is not the model.

Each config is trained by the command line with everything it includes: bar, logs, MLflow, checkpoints,
activity. After each step a copy of the task, with the same weights, takes a bare step on the same batch:
forward, backward, clipping and optimiser. What the first takes longer than the second is the share of all else.
Both are added up over rounds of as many steps as lie between two logs, so that logging and the bar have their
part in each. The median of the rounds is taken: what else the machine does meets both loops alike. The same is
done with the processor time of the thread that trains, which a busy machine disturbs less. Validation is left
out. In reinforcement learning the moves of the agent count as what is not the model.

The configs of a folder train in turns, a round each, every one in a process that sleeps in the others' rounds:
the time of a RIM's step over that of the LSTM beside it is then of the same minute. It is the median over the
rounds of the ratio of two that follow each other. A RIM with the dynamic rule gets faster while it learns, as its
mechanisms sleep: take more rounds there. Configs that are not measured again stay in the file.

python benchmarks/training.py [CONFIG …] [--rounds 8] [--data data] [--json benchmarks/results/training.json]
"""

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loops import training_epoch_loop
from origin import origin, write

from rimlit.cli import main as rimlit
from rimlit.spec import build
from rimlit.tasks import Task

CONFIGS = Path(__file__).parents[1] / "configs"
ROUND = 50
"""Steps of a round: what Lightning, and every config here, has between two logs."""
PATIENCE = 1800
"""Seconds to wait for the other configs of a folder."""


def twin_of(task: Task) -> Task:
    """Return a copy of a task that logs nothing and has no schedule."""
    spec = task.spec
    spec["init_args"].pop("scheduler", None)
    twin = cast(Task, build(spec, Task)).train()
    twin.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return twin


def bare_step(twin: Task, clip: float | None) -> Callable[[Any], None]:
    """Return a function that only trains on a batch."""
    optimizer = twin.configure_optimizers()

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        twin.training_step(batch, 0).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), clip)
        optimizer.step()

    return step


class Clock(NamedTuple):
    """Seconds: of the wall, and of the processor in the thread that trains."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Self:
        return cls(time.perf_counter(), time.thread_time())

    def since(self, start: "Clock") -> "Clock":
        return Clock(self.wall - start.wall, self.cpu - start.cpu)


class Ring(NamedTuple):
    """Processes that work one at a time, each after the one before it: a semaphore for each."""

    semaphores: list[Semaphore]
    place: int

    def wait(self) -> None:
        """Sleep until it is this process's turn."""
        if not self.semaphores[self.place].acquire(timeout=PATIENCE):
            raise SystemExit("Another config of the folder has failed or takes too long.")

    def pass_on(self) -> None:
        """Let the next process work."""
        self.semaphores[(self.place + 1) % len(self.semaphores)].release()


class Turns:
    """The steps of a fit, each followed by a bare one: ``whole`` and ``bare`` hold what each took."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.whole: list[Clock] = []
        self.bare: list[Clock] = []
        self.task: Task | None = None
        self._batch: Any = None
        self._step: Callable[[Any], None]
        self._twin: Task
        self._began: Clock

    def between(self, trainer: L.Trainer) -> None:
        """End the step that was, take the bare one, and begin the next."""
        end = Clock.now()
        if self.task is None:
            self._watch(trainer)
        else:
            self.whole.append(end.since(self._began))
            self._twin.load_state_dict(cast(Task, self.task).state_dict())  # as many mechanisms are active in both
            start = Clock.now()
            self._step(self._batch)
            self.bare.append(Clock.now().since(start))
            if len(self.bare) % ROUND == 0:
                self._ring.pass_on()
                self._ring.wait()
        self._began = Clock.now()

    def _watch(self, trainer: L.Trainer) -> None:
        self._ring.wait()
        self.task = task = cast(Task, trainer.lightning_module)
        self._twin = twin_of(task)
        self._step = bare_step(self._twin, cast(float | None, trainer.gradient_clip_val))
        training_step = task.training_step

        def noting(batch: Any, *args: Any) -> Any:
            self._batch = batch
            return training_step(batch, *args)

        task.training_step = noting  # type: ignore[method-assign]


def fit(config: str, steps: int, ring: Ring) -> Turns:
    """Train for ``steps``, each followed by a bare one."""
    turns = Turns(ring)
    advance = training_epoch_loop._TrainingEpochLoop.advance

    def timed(loop: Any, *args: Any) -> None:
        turns.between(loop.trainer)
        advance(loop, *args)

    options = ("--trainer.limit_val_batches", "0", "--test_after_fit", "false", "--resume", "never")
    training_epoch_loop._TrainingEpochLoop.advance = timed  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            failure = rimlit(["fit", "--config", config, *options, "--trainer.max_steps", str(steps)])
    finally:
        training_epoch_loop._TrainingEpochLoop.advance = advance  # type: ignore[method-assign]
    if failure:
        raise SystemExit(said.getvalue())
    ring.pass_on()
    return turns


_ring: list[Ring] = []


def join_ring(semaphores: list[Semaphore], places: Any) -> None:
    """Give a new process its place."""
    _ring.append(Ring(semaphores, places.get()))


def measure(config: str, rounds: int) -> dict[str, Any]:
    """Train ``config`` in this process's turns."""
    turns = fit(config, (rounds + 1) * ROUND + 1, _ring[0])  # the first round warms up, the last step sees no end
    whole, bare = in_rounds(turns.whole), in_rounds(turns.bare)
    shares = sorted(1 - model.wall / step.wall for step, model in zip(whole, bare, strict=True))
    cpu_shares = [1 - model.cpu / step.cpu for step, model in zip(whole, bare, strict=True)]
    step, model = (statistics.median(clock.wall for clock in clocks) / ROUND for clocks in (whole, bare))
    backbone: Any = cast(Task, turns.task).backbone
    return {
        "steps": rounds * ROUND,
        "steps_per_second": 1 / step,
        "milliseconds": 1000 * step,
        "rounds": [[clock.wall for clock in clocks] for clocks in (whole, bare)],
        "bare_milliseconds": 1000 * model,
        "share_outside_the_model": statistics.median(shares),
        "least_and_greatest_share": [shares[0], shares[-1]],
        "share_of_cpu_outside_the_model": statistics.median(cpu_shares),
        "backend": getattr(backbone, "backend", None) and backbone.resolve_backend()[0],
    }


def measure_folder(configs: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Measure the configs of one folder in turns."""
    context = multiprocessing.get_context("spawn")
    semaphores = [context.Semaphore(int(place == 0)) for place in range(len(configs))]
    places = context.Queue()
    for place in range(len(configs)):
        places.put(place)
    with ProcessPoolExecutor(len(configs), context, join_ring, (semaphores, places)) as pool:
        results = list(pool.map(measure, configs, itertools.repeat(rounds)))
    return dict(zip(configs, results, strict=True))


def in_rounds(steps: list[Clock]) -> list[Clock]:
    """Add up the steps of each round but the first."""
    starts = range(ROUND, len(steps) - ROUND + 1, ROUND)
    return [Clock(*map(sum, zip(*steps[start : start + ROUND], strict=True))) for start in starts]


def pairs() -> list[str]:
    """Return the shipped configs of a RIM, each followed by that of the LSTM beside it."""
    folders = sorted(path.parent.name for path in CONFIGS.glob("*/rim.yaml"))
    return [f"{folder}/{model}" for folder in folders for model in ("rim", "lstm")]


def lay_out(folder: Path, data: Path) -> None:
    """Put what the configs read into ``folder``: what is in ``data``, and files for the configs of own data."""
    (folder / "data").mkdir()
    for source in data.resolve().glob("*"):
        (folder / "data" / source.name).symlink_to(source)
    generator = torch.Generator().manual_seed(0)
    frames, series, table = (folder / "data" / name for name in ("frames.npy", "series.csv", "sequences.csv"))
    if not frames.exists():
        np.save(frames, torch.randint(0, 256, (64, 20, 32, 32), generator=generator, dtype=torch.uint8).numpy())
    if not series.exists():
        values = torch.sin(torch.arange(4000) / 12) + 0.1 * torch.randn(4000, generator=generator)
        series.write_text("\n".join(["value", *(f"{value:.4f}" for value in values.tolist())]) + "\n")
    if not table.exists():
        rows = torch.randn(200, 30, 3, generator=generator)
        lines = ["sequence,x,y,z,target"]
        for number, sequence in enumerate(rows.tolist()):
            lines += [f"{number},{x:.4f},{y:.4f},{z:.4f},{number % 3}" for x, y, z in sequence]
        table.write_text("\n".join(lines) + "\n")


def add_ratios(results: dict[str, dict[str, Any]]) -> None:
    """Add the time over that of the LSTM of the same folder, measured in turns with it; drop the rounds."""
    for config, result in results.items():
        twin = results.get(config.replace("/rim", "/lstm"))
        for place, name in enumerate(("time", "bare_time")):
            if twin is not None:
                rounds = zip(result["rounds"][place], twin["rounds"][place], strict=True)
                ratios = [ours / theirs for ours, theirs in rounds]
                result[f"{name}_over_lstm"] = statistics.median(ratios)
                result[f"least_and_greatest_{name}_over_lstm"] = [min(ratios), max(ratios)]
    for result in results.values():
        del result["rounds"]


def in_pairs(item: tuple[str, Any]) -> tuple[str, bool]:
    """Order configs by folder, the RIM's before the LSTM's."""
    folder, _, model = item[0].rpartition("/")
    return folder, model != "rim"


def report(config: str, result: dict[str, Any]) -> None:
    least, greatest = result["least_and_greatest_share"]
    ratio = f"; {result['time_over_lstm']:.2f} times the LSTM's" if "time_over_lstm" in result else ""
    print(
        f"{config:<20}{result['steps_per_second']:8.2f} steps a second, "
        f"{100 * result['share_outside_the_model']:5.1f} % of a step outside the model "
        f"({100 * least:.1f} to {100 * greatest:.1f}), "
        f"{100 * result['share_of_cpu_outside_the_model']:.1f} % of its processor time{ratio}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=pairs(), help="configs to measure; without any, all pairs")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of mnist, tinyshakespeare, …")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    here, path = Path.cwd(), arguments.json and arguments.json.resolve()
    kept = json.loads(path.read_text())["configs"] if path and path.exists() else {}
    source, results = origin(rounds=arguments.rounds), {}
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder), arguments.data)
        os.chdir(folder)
        # the first run of a folder has MLflow make its database beside the training
        measure_folder(["copying/rim"], 1)
        for _, configs in itertools.groupby(arguments.configs, lambda config: config.rpartition("/")[0]):
            measured = measure_folder(list(configs), arguments.rounds)
            add_ratios(measured)
            for config, result in measured.items():
                report(config, result)
                results[config] = {**source, **result}
            write(path, {"configs": dict(sorted({**kept, **results}.items(), key=in_pairs))})
        os.chdir(here)


if __name__ == "__main__":
    main()
