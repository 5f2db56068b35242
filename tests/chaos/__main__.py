"""Kill training runs at random instants (kill -9), resume them, and compare them with runs never killed.

python -m tests.chaos [--kills 100] [--starts 20] [--seed N] [--json benchmarks/results/chaos.json]

Imports are paid once: every trial is a fork of this process that runs ``rimlit fit``, the same command each time,
saving after every step. What is compared: every loss, the final weights and the optimiser's state, bit by bit.
Then the same run is started twice at the same time, again and again: one process must train, the other be refused.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rimlit.checkpoints import read_checkpoint
from rimlit.cli import main as rimlit
from rimlit.errors import CheckpointError
from rimlit.tracking.recording import git_commit, machine
from rimlit.training.checkpointing import newest_checkpoint
from tests.chaos.probe import NOW, Phase, save_often_and_slowly
from tests.cli.running import SMALL_COPYING, SMALL_TEXT, write_novel

STEPS = 24
COMMON = (
    "--config=trainer/quick",
    f"--trainer.max_steps={STEPS}",
    "--trainer.val_check_interval=5",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.callbacks+=tests.chaos.probe.Probe",
    "--test_after_fit=false",
    "--name=run",
    "--trust=tests",
)
DROPOUT = ("--model.backbone.input_dropout=0.2", "--model.backbone.communication_dropout=0.2")
CASES = {
    "copying, epochs of 5 batches": ("copying/rim", *SMALL_COPYING, *DROPOUT, "--data.train_size=20"),
    "copying, endless, a worker, 2 batches an update": (
        "copying/rim",
        *SMALL_COPYING,
        *DROPOUT,
        "--data.num_workers=1",
        "--trainer.accumulate_grad_batches=2",
        f"--trainer.max_steps={STEPS // 2}",
    ),
    "language, the state carried": ("language/rim", *SMALL_TEXT, *DROPOUT),
}


class Outcome(NamedTuple):
    """How a trial ended."""

    code: int | None  # None where it was killed
    phase: Phase
    seconds: float


def start(case: str, seed: int, folder: Path, *, whole: bool) -> int:
    """Fork a process that runs fit in ``folder``; return its id."""
    NOW[0] = Phase.START
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()  # loader processes are killed with it
        os.chdir(folder)
        out = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        save_often_and_slowly(whole=whole)
        config, *options = CASES[case]
        sys.argv = ["rimlit"]
        rimlit(["fit", f"--config={config}", *COMMON, *options, f"--seed_everything={seed}"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        import traceback

        traceback.print_exception(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Kill(NamedTuple):
    """When to kill: so long after a phase was first reached, then when another begins, then a bit later."""

    after: Phase
    delay: float
    inside: Phase | None
    later: float

    @classmethod
    def drawn(cls, chance: random.Random, seconds: float, *, only_in_saves: bool = False) -> "Kill":
        """Draw an instant of a run that takes ``seconds``: half of them any, the others inside what is short."""
        places = [None, None, None, Phase.SAVE, Phase.SAVE, Phase.VALIDATION]
        inside = Phase.SAVE if only_in_saves else chance.choice(places)
        after = Phase.START if inside is None and chance.random() < 0.5 else Phase.STEP
        return cls(after, chance.uniform(0.0, 0.5 * seconds), inside, chance.uniform(0.0, 0.015))


def trial(case: str, seed: int, folder: Path, kill: Kill | None, *, whole: bool = True) -> Outcome:
    """Run fit until it ends or is killed."""
    process, began = start(case, seed, folder, whole=whole), time.monotonic()
    due: float | None = None
    is_inside = False
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        now = time.monotonic()
        if done:
            return Outcome(os.waitstatus_to_exitcode(status), Phase(NOW[0]), now - began)
        if kill is not None and due is None and NOW[0] >= kill.after:
            due, is_inside = now + kill.delay, kill.inside is None
        if kill is not None and due is not None and now >= due and not is_inside and NOW[0] == kill.inside:
            due, is_inside = now + kill.later, True
        if due is not None and is_inside and now >= due:
            phase = Phase(NOW[0])
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            code = None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
            return Outcome(code, phase, now - began)
        time.sleep(0.0005)


def losses_of(folder: Path) -> tuple[dict[int, str], int]:
    """Return the loss of each batch and how many that were computed twice differ."""
    losses: dict[int, str] = {}
    differing = 0
    path = folder / "losses.txt"
    for line in path.read_text().splitlines() if path.is_file() else ():
        batch, loss = line.split()
        differing += losses.setdefault(int(batch), loss) != loss
    return losses, differing


def bits_between(mine: Any, theirs: Any) -> int:
    """Count the bits in which two nested values differ."""
    if isinstance(mine, Tensor):
        pair = [value.detach().contiguous().reshape(-1).view(torch.uint8).numpy() for value in (mine, theirs)]
        if pair[0].shape != pair[1].shape:
            return 8 * max(pair[0].size, pair[1].size)
        return int(np.unpackbits(pair[0] ^ pair[1]).sum())
    if isinstance(mine, dict):
        return sum(bits_between(mine.get(key), theirs.get(key)) for key in mine.keys() | theirs.keys())
    if isinstance(mine, list | tuple):
        return sum(map(bits_between, mine, theirs)) + 64 * abs(len(mine) - len(theirs))
    return 64 * (mine != theirs)


def checkpoints_of(folder: Path) -> Path:
    """Return where the run keeps its checkpoints; runs that were killed before their first one lie beside it."""
    return next(folder.glob("runs/*/run/checkpoints"), folder)


def differing_bits(folder: Path, expected: Path) -> int:
    """Compare losses, weights, the optimiser's state and schedules of two finished runs."""
    bits = 64 * losses_of(folder)[1]
    mine, theirs = losses_of(folder)[0], losses_of(expected)[0]
    bits += bits_between(mine, theirs)
    for name in ("last", "best"):
        first, second = (read_checkpoint(checkpoints_of(run) / f"{name}.ckpt") for run in (folder, expected))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            bits += bits_between(first[part], second[part])
    return bits


def lost_and_corrupt(folder: Path) -> tuple[int, int]:
    """Return the batches that a killed run has to train again, and how many of its files are not whole."""
    corrupt = 0
    for path in folder.rglob("*.ckpt"):
        try:
            read_checkpoint(path)
        except CheckpointError:
            corrupt += 1
    for path in folder.rglob("run_state.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            corrupt += 1
    newest, kept = newest_checkpoint(checkpoints_of(folder)), 0
    if newest.path is not None:
        position = read_checkpoint(newest.path)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        kept = position["total"]["completed"]
    return max(losses_of(folder)[0], default=-1) + 1 - kept, corrupt


def chaos(kills: int, seed: int, *, whole: bool = True) -> dict[str, Any]:
    """Kill ``kills`` times; return the outcomes."""
    chance = random.Random(seed)
    counts: collections.Counter[str] = collections.Counter()
    corrupt = lost = bits = runs = done = 0
    expected: dict[str, tuple[Path, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        while done < kills:
            case = list(CASES)[runs % len(CASES)]
            for folder in (root / case, root / "killed"):
                if not folder.is_dir():
                    folder.mkdir()
                    write_novel(folder)
            if case not in expected:
                outcome = trial(case, seed, root / case, None)
                if outcome.code != 0:
                    raise SystemExit((root / case / "output.txt").read_text())
                expected[case] = root / case, outcome.seconds
            reference, seconds = expected[case]
            while True:
                kill = Kill.drawn(chance, seconds, only_in_saves=not whole) if done < kills else None
                outcome = trial(case, seed, root / "killed", kill, whole=whole)
                if outcome.code is not None:
                    break
                done += 1
                counts[outcome.phase.name.lower()] += 1
                this_lost, this_corrupt = lost_and_corrupt(root / "killed")
                lost, corrupt = max(lost, this_lost), corrupt + this_corrupt
                print(f"kill {done:3}: {case}, {outcome.phase.name.lower()}, {this_lost} steps lost", flush=True)
            if outcome.code != 0:
                raise SystemExit((root / "killed" / "output.txt").read_text())
            bits += differing_bits(root / "killed", reference)
            left = [path.name for path in (root / "killed").rglob(".*.tmp")]
            if left:
                raise SystemExit(f"Left behind: {', '.join(left)}")
            shutil.rmtree(root / "killed")
            runs += 1
    return {
        "seed": seed,
        "kills": done,
        "runs": runs,
        "kills_by_phase": dict(counts),
        "corrupt": corrupt,
        "most_steps_lost": lost,
        "differing_bits": bits,
    }


def starts(number: int, seed: int) -> dict[str, int]:
    """Start a run twice at the same time, ``number`` times; return how often one trained and one was refused."""
    as_wanted = 0
    with tempfile.TemporaryDirectory() as name:
        for index in range(number):
            folder = Path(name, str(index))
            folder.mkdir()
            write_novel(folder)
            case = list(CASES)[index % len(CASES)]
            processes = [start(case, seed, folder, whole=True) for _ in range(2)]
            codes = sorted(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes)
            runs = [path.name for path in folder.glob("runs/*/*")]
            as_wanted += codes == [0, 2] and runs == ["run"]
            print(f"start {index + 1:3}: {case}, exit codes {codes}", flush=True)
    return {"starts": number, "one_trained_one_refused": as_wanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--starts", type=int, default=0, help="how often to start a run twice at the same time")
    parser.add_argument("--seed", type=int, default=None, help="of the instants; by default a new one")
    parser.add_argument("--in-place", action="store_true", help="write files in place, to see them break")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    seed = random.randrange(2**31) if arguments.seed is None else arguments.seed
    torch.set_num_threads(1)  # before any operation: threads do not survive a fork
    os.environ.pop("RIMLIT_TRUST", None)
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    result = chaos(arguments.kills, seed, whole=not arguments.in_place) | starts(arguments.starts, seed)
    if arguments.json:
        command = f"python -m tests.chaos --kills {arguments.kills} --starts {arguments.starts} --seed {seed}"
        origin = {"command": command, "commit": git_commit(), "machine": machine()}
        seconds = round(time.monotonic() - began)
        arguments.json.write_text(json.dumps({**origin, **result, "seconds": seconds}, indent=2) + "\n")
    if arguments.starts:
        wanted = result["one_trained_one_refused"]
        print(f"{wanted} of {arguments.starts} times one process trained and one was refused")
    print(", ".join(f"{count} in {phase}" for phase, count in sorted(result["kills_by_phase"].items())))
    print(
        f"{result['kills']} kills, {result['corrupt']} corrupt, at most {result['most_steps_lost']} steps lost, "
        f"{result['differing_bits']} differing bits"
    )


if __name__ == "__main__":
    main()
