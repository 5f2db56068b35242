"""Several processes on the CPU: they leave one run, score what one process scores, and end together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from tests.cli.running import (
    COPYING,
    LANGUAGE,
    QUIET,
    UNTRACKED,
    read_checkpoint,
    read_json,
    scores_of,
    succeed,
    write_novel,
)
from tests.processes import Ended, Warm
from tests.training.test_processes import fake_scontrol

pytestmark = pytest.mark.slow

TWO = ("--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp")
ALONE = ("--trainer.accelerator=cpu",)
WATCH = ("--trainer.callbacks+=ProcessWatch", "--trainer.callbacks.timeout=3")
LOSSES = ("--trust=tests", "--trainer.callbacks+=tests.processes.Losses")
UNTESTED = "--test_after_fit=false"


def fault(kind: str, rank: int, step: int = 3) -> tuple[str, ...]:
    """Options that let something happen to a process."""
    own = (f"--trainer.callbacks.{key}={value}" for key, value in (("kind", kind), ("rank", rank), ("step", step)))
    return ("--trust=tests", "--trainer.callbacks+=tests.processes.Fault", *own)


def program(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "rimlit", *map(str, arguments)]


ROOT = str(Path(__file__).parents[2])  # where processes find tests.processes
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]),
}


def assert_no_orphans(folder: Path) -> None:
    """Nothing that was started in ``folder``, which is this process's too, is left after a few seconds."""
    until = time.monotonic() + 8
    while left := [process for process in psutil.process_iter(["cwd"]) if is_of(process, folder)]:
        assert time.monotonic() < until, left
        time.sleep(0.2)


def is_of(process: psutil.Process, folder: Path) -> bool:
    return process.pid != os.getpid() and process.info["cwd"] == str(folder)


# One run


@pytest.fixture
def scored(folder: Path, warm: Warm) -> Path:
    write_novel(folder)
    return folder


# 7 samples do not divide by two, nor do the characters of the test text by four rows
@pytest.mark.parametrize(
    ("arguments", "dataset"),
    [
        ((*COPYING, "--data.test_size=7", "--data.val_size=7", "--data.min_train_span=1"), "copying"),
        ((*LANGUAGE, "--data.chunk_length=16"), "language"),
    ],
)
def test_two_processes_leave_one_run_whose_scores_one_process_confirms(
    scored: Path, warm: Warm, arguments: tuple[str, ...], dataset: str
) -> None:
    whole = ("--trainer.limit_val_batches=1.0", "--trainer.limit_test_batches=1.0")
    for ended in warm.run(scored, "fit", *arguments, *UNTRACKED, *whole):
        assert ended.code == 0, ended.error
    assert [path.name for path in (scored / "runs" / dataset).iterdir()] == ["rim-seed0"]
    run = scored / "runs" / dataset / "rim-seed0"
    assert (scored / "error-0.txt").read_text().count("Everything about this run") == 1
    assert (scored / "error-1.txt").read_text().count("Everything about this run") == 0
    assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 4
    assert read_json(run / "results.json")["steps"] == 4
    assert (run / "figures/activity.png").is_file()
    wanted = scores_of(run)
    succeed("test", "--ckpt_path", run / "checkpoints/best.ckpt", *QUIET, *UNTRACKED)
    found = scores_of(run)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


# 7 do not divide by two; of a single one the second process has nothing
@pytest.mark.parametrize("size", [7, 1])
def test_two_processes_write_the_predictions_of_one_process_into_one_file(
    copying: Path, warm: Warm, size: int
) -> None:
    file, predictions = copying / "checkpoints/best.ckpt", copying / "predictions.jsonl"
    options = (*QUIET, *UNTRACKED, f"--data.test_size={size}")
    succeed("predict", "--ckpt_path", file, *options, *ALONE)
    wanted = predictions.read_text()
    assert len(wanted.splitlines()) == 2 * size
    predictions.unlink()
    for ended in warm.run(copying.parents[2], "predict", "--ckpt_path", file, *options):
        assert ended.code == 0, ended.error
    assert predictions.read_text() == wanted
    assert [path.name for path in copying.glob("*predictions*")] == ["predictions.jsonl"]


def test_two_processes_continue_each_prompt_once(language: Path, warm: Warm) -> None:
    shutil.rmtree("novel")  # a checkpoint has its vocabulary
    (language / "prompts.txt").write_text("it was\n\nthe age\nof wisdom\n")
    file = language / "checkpoints/best.ckpt"
    options = (*QUIET, *UNTRACKED, f"--data.predict_path={language / 'prompts.txt'}")
    for ended in warm.run(language.parents[2], "predict", "--ckpt_path", file, *options):
        assert ended.code == 0, ended.error
    records = [json.loads(line) for line in (language / "predictions.jsonl").read_text().splitlines()]
    found = [(record["sequence"], record["prompt"]) for record in records]
    assert found == [(1, "it was"), (3, "the age"), (4, "of wisdom")]


# The same run at any number of processes


def losses_of(run: Path) -> dict[int, float]:
    """Losses by batch; what was trained on twice was trained on alike."""
    losses: dict[int, float] = {}
    for line in (run / "losses.txt").read_text().splitlines():
        number, loss = line.split()
        before = losses.setdefault(int(number), float.fromhex(loss))
        assert before == pytest.approx(float.fromhex(loss), rel=1e-5)
    return losses


# 4 + 4 + 3 sequences of spans that differ an epoch: the last batch is of other shares, or too small to be shared
EPOCHS = ("--data.train_size=11", "--data.min_train_span=1", "--data.samples_per_span=1", "--trainer.max_steps=8")
# rows that differ, by a token in length too
ROWS = ("--data.chunk_length=48", "--data.size_limit=397", "--trainer.max_steps=11")


@pytest.mark.parametrize(
    ("arguments", "dataset", "steps"),
    [((*COPYING, *EPOCHS), "copying", 8), ((*LANGUAGE, *ROWS), "language", 11)],
    ids=["copying", "language"],
)
def test_a_run_has_the_same_losses_at_1_2_and_4_processes_and_when_their_number_changes(
    scored: Path, warm: Warm, arguments: tuple[str, ...], dataset: str, steps: int
) -> None:
    common = ("fit", *arguments, *UNTRACKED, *LOSSES, UNTESTED, "--trainer.limit_val_batches=1")
    for count in (1, 2, 4):
        several = ALONE if count == 1 else ()
        ended = warm.run(scored, *common, *several, f"--name={count}", processes=count)
        assert [process.code for process in ended] == [0] * count, ended
    for count, until in ((1, 4), (2, 7), (1, steps)):  # one run, stopped in the middle of epochs
        options = (*common, *(ALONE if count == 1 else ()), "--name=parts", *fault("SIGTERM", 0, until))
        ended = warm.run(scored, *options, processes=count)
        assert {process.code for process in ended} == {143 if until < steps else 0}, ended
    alone = losses_of(scored / "runs" / dataset / "1")
    assert list(alone) == list(range(steps))
    for name in ("2", "4", "parts"):
        others = losses_of(scored / "runs" / dataset / name)
        assert others == pytest.approx(alone, rel=1e-5), name


def test_two_processes_add_up_their_counts_of_who_was_active(scored: Path, warm: Warm) -> None:
    balance = "--model.backbone.balance=[{loss_free_bias: {step: 0.5}}]"
    common = ("fit", *COPYING, *EPOCHS, *UNTRACKED, UNTESTED, "--trainer.limit_val_batches=1", balance)
    biases = []
    for count in (1, 2):
        ended = warm.run(scored, *common, *(ALONE if count == 1 else ()), f"--name={count}", processes=count)
        assert [process.code for process in ended] == [0] * count, ended
        saved = read_checkpoint(scored / f"runs/copying/{count}/checkpoints/last.ckpt")["state_dict"]
        assert not saved["backbone.layers.0.balance.parts.0.counts"].any()
        biases.append(saved["backbone.layers.0.balance.parts.0.bias"].tolist())
    assert any(biases[0]), "it has moved"
    assert biases[1] == pytest.approx(biases[0], abs=1e-5)


def test_a_run_of_two_processes_that_is_killed_resumes_bit_for_bit(scored: Path, warm: Warm) -> None:
    common = ("fit", *LANGUAGE, *ROWS, *UNTRACKED, *LOSSES, UNTESTED)
    common += ("--trainer.limit_val_batches=1", "--trainer.val_check_interval=2")
    dropout = ("--model.init_args.dropout=0.3",)
    assert [ended.code for ended in warm.run(scored, *common, *dropout, "--name=whole")] == [0, 0]
    cut = (*common, *dropout, "--name=cut")
    for step, kind in ((3, "kill"), (8, "kill")):
        assert [ended.code for ended in warm.run(scored, *cut, *WATCH, *fault(kind, 1, step))] == [7, -9]
    processes = warm.start(scored, *cut)
    while "stopped" not in (state := read_json(scored / "runs/language/cut/run_state.json")["status"]):
        if state == "running":
            break
        time.sleep(0.05)
    for pid in processes:  # all of them, wherever they are
        os.kill(pid, signal.SIGKILL)
    assert [ended.code for ended in warm.wait()] == [-9, -9]
    assert [ended.code for ended in warm.run(scored, *cut)] == [0, 0]
    runs = scored / "runs/language"
    assert losses_of(runs / "cut") == losses_of(runs / "whole")
    assert_same_end(runs)


def assert_same_end(runs: Path) -> None:
    whole, cut = (read_checkpoint(runs / name / "checkpoints/last.ckpt") for name in ("whole", "cut"))
    assert whole["global_step"] == cut["global_step"]
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, cut["state_dict"][name]), name


# Faults


def run_with_fault(warm: Warm, folder: Path, kind: str, rank: int) -> list[Ended]:
    options = (*COPYING, *UNTRACKED, UNTESTED, "--trainer.max_steps=1000", "--trainer.limit_val_batches=0")
    ended = warm.run(folder, "fit", *options, *WATCH, *fault(kind, rank))
    assert_no_orphans(folder)
    assert all(process.seconds < 30 for process in ended)
    state = read_json(folder / "runs/copying/rim-seed0/run_state.json")
    assert state["status"] == "running" if ended[0].code < 0 else f"Process {rank} " in state["reason"]
    return ended


@pytest.mark.parametrize(
    ("kind", "rank", "code", "message"),
    [
        ("kill", 0, -9, "ended without a word: killed"),
        ("kill", 1, -9, "ended without a word: killed"),
        ("stop", 1, -9, "is frozen: no sign of life for"),
        ("hang", 0, 7, "hangs: no step for"),
        ("raise", 1, 1, "failed: RuntimeError: a fault of the task's own"),
    ],
)
def test_when_a_process_fails_the_others_end_with_7_and_name_it(
    folder: Path, warm: Warm, kind: str, rank: int, code: int, message: str
) -> None:
    ended = run_with_fault(warm, folder, kind, rank)
    culprit, survivor = ended[rank], ended[1 - rank]
    assert (culprit.code, survivor.code) == (code, 7), ended
    assert "Traceback" not in survivor.error
    (said,) = [line for line in survivor.error.splitlines() if line.startswith("rimlit: error")]
    assert f"error: Process {rank} (pid " in said
    assert message in said
    if kind == "stop":
        assert "its state is 'stopped'. It is killed." in culprit.error
    if kind == "hang":
        assert "The stacks of process 0:" in culprit.error
        assert "in on_train_batch_start" in culprit.error


# Signals


def test_a_signal_to_any_process_saves_and_ends_all_and_slurm_requeues_once(
    folder: Path, warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "fit",
        *COPYING,
        *UNTRACKED,
        UNTESTED,
        "--trainer.limit_val_batches=0",
        "--trainer.max_steps=100000",
    )
    ended = warm.run(folder, *options, *fault("SIGTERM", 1))
    assert [process.code for process in ended] == [143, 143], ended
    run = folder / "runs/copying/rim-seed0"
    assert read_json(run / "run_state.json")["status"] == "stopped"
    assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 3

    calls = fake_scontrol(folder, monkeypatch)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "rim", "SLURM_NTASKS": "2", "PATH": os.environ["PATH"]}
    slurm |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost"}
    processes = warm.start(folder, *options, env=slurm, by_slurm=True)
    while read_json(run / "run_state.json")["status"] != "running":
        time.sleep(0.05)
    for _ in range(3):  # SLURM signals every process, the batch script perhaps as well, and may do so again
        for pid in processes:
            os.kill(pid, signal.SIGUSR1)
        time.sleep(0.02)
    ended = warm.wait()
    assert [process.code for process in ended] == [143, 143], ended
    assert "SLURM puts job 17 back into its queue." in ended[0].error
    assert calls.read_text() == "requeue 17\n"
    state = read_json(run / "run_state.json")
    assert state["status"] == "stopped" and state["step"] >= 3
    ended = warm.run(folder, *options, f"--trainer.max_steps={state['step'] + 2}")  # what SLURM starts next
    assert [process.code for process in ended] == [0, 0], ended


# Launchers


def test_lightnings_launcher_ends_with_its_processes_and_they_with_it(folder: Path) -> None:
    options = (*COPYING, *UNTRACKED, UNTESTED, "--trainer.max_steps=1000", "--trainer.limit_val_batches=0", *TWO)
    for rank, code in ((1, 7), (0, -9)):
        command = program("fit", *options, "--resume=never", *WATCH, *fault("kill", rank))
        done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        assert f"Process {rank} (pid " in done.stderr
        assert "Traceback" not in done.stderr
        assert_no_orphans(folder)
    # the second run set the first one aside, whole
    runs = folder / "runs/copying"
    names = sorted(path.name for path in runs.iterdir())  # of a process that was killed the lock's file is left
    assert [name for name in names if name != ".rim-seed0.lock"] == ["rim-seed0", "rim-seed0.1"]
    assert (runs / "rim-seed0.1/config.yaml").is_file()


PLAIN = """\
import lightning as L
from rimlit.training import ProcessWatch
from tests.processes import Fault
from tests.tasks.running import make_copying, make_copying_task
L.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=-1, logger=False, enable_checkpointing=False,
    use_distributed_sampler=False, callbacks=[Fault("stop", 1, 5), ProcessWatch(timeout=3)],
).fit(make_copying_task(), make_copying())
"""


def test_a_plain_trainer_ends_with_its_processes_too(folder: Path) -> None:
    (folder / "plain.py").write_text(PLAIN)
    command = [sys.executable, "plain.py"]
    here = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([ROOT, *sys.path[1:]])}
    done = subprocess.run(command, cwd=folder, env=here, capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr
    assert "rimlit: error: Process 1 (pid " in done.stderr
    assert "its state is 'stopped'. It is killed." in done.stderr
    assert_no_orphans(folder)


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, "--no-python", *program()]


def test_torchrun_starts_the_processes_again_and_the_run_resumes(folder: Path, warm: Warm) -> None:
    options = (*COPYING, *UNTRACKED, UNTESTED, "--trainer.max_steps=7", "--trainer.limit_val_batches=1")
    options += ("--trainer.val_check_interval=1",)  # and a checkpoint
    start = torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=1")
    command = [*start, "fit", *options, *TWO, *WATCH, *fault("kill", 1), "--name=cut"]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ended without a word: killed") == 1
    assert_no_orphans(folder)
    assert [ended.code for ended in warm.run(folder, "fit", *options, "--name=whole")] == [0, 0]
    assert_same_end(folder / "runs/copying")


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them, as two machines have."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip (iproute2)")
    names = f"rimlit{os.getpid()}a", f"rimlit{os.getpid()}b"

    def ip(command: str) -> None:
        done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"network namespaces are not allowed here: {done.stderr.strip()}")

    try:
        for name in names:
            ip(f"netns add {name}")
        ip(f"link add cable0 netns {names[0]} type veth peer name cable1 netns {names[1]}")
        for number, name in enumerate(names):
            ip(f"-n {name} addr add 10.77.0.{number + 1}/24 dev cable{number}")
            ip(f"-n {name} link set cable{number} up")
            ip(f"-n {name} link set lo up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_nodes_train_one_run_and_end_together_when_one_of_them_freezes(
    folder: Path, nodes: tuple[str, str]
) -> None:
    def start(*extra: str) -> list[subprocess.Popen[str]]:
        options = (*COPYING, *UNTRACKED, UNTESTED, "--trainer.limit_val_batches=0", *WATCH, *extra)
        several = (
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--trainer.num_nodes=2",
            "--trainer.strategy=ddp",
        )
        launched = []
        for number, node in enumerate(nodes):
            meet = ("--nnodes=2", f"--node-rank={number}", "--master-addr=10.77.0.1", "--master-port=29400")
            command = [*torchrun("--nproc-per-node=1", *meet), "fit", *options, *several]
            network = {"GLOO_SOCKET_IFNAME": f"cable{number}"}
            launched.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", node, *command],
                    cwd=folder,
                    env={**ENVIRONMENT, **network},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return launched

    both = start("--trainer.max_steps=3")
    errors = [node.communicate(timeout=120)[1] for node in both]
    assert [node.returncode for node in both] == [0, 0], errors
    assert read_checkpoint(folder / "runs/copying/rim-seed0/checkpoints/last.ckpt")["global_step"] == 3
    frozen = start("--trainer.max_steps=1000", *fault("stop", 1, 5))
    errors = [node.communicate(timeout=120)[1] for node in frozen]
    assert all(node.returncode not in (0, None) for node in frozen), errors
    assert "rimlit: error: Process 1 (pid " in errors[0] and "is frozen: no sign of life for" in errors[0]
    assert "its state is 'stopped'. It is killed." in errors[1]  # said on the machine where it is
    assert_no_orphans(folder)


# Reinforcement learning

POLE = (
    "--config=cartpole/rim",
    *QUIET,
    "--data.num_environments=4",
    "--data.rollout_length=10",
    "--data.num_passes=2",
    "--data.total_steps=160",
    "--data.val_episodes=1",  # one process plays, the other does not
    "--data.test_episodes=5",
    "--trainer.check_val_every_n_epoch=1",
)


def test_each_process_plays_in_environments_of_its_own_and_steps_are_added_up(folder: Path, warm: Warm) -> None:
    seeing = ("--trust=tests", "--trainer.callbacks+=tests.processes.FirstObservations")
    # their optimiser steps are one another's: a divergence that stops one stops both
    stopping = ("--model.max_kl=0.001", "--model.optimizer.init_args.lr=0.02")
    for ended in warm.run(folder, "fit", *POLE, *UNTRACKED, *seeing, *stopping):
        assert ended.code == 0, ended.error
    run = folder / "runs/cartpole/rim-seed0"
    firsts = [set((run / f"first-{rank}.txt").read_text().split()) for rank in (0, 1)]
    assert [len(each) for each in firsts] == [2, 2]
    assert firsts[0].isdisjoint(firsts[1])
    last = read_checkpoint(run / "checkpoints/last.ckpt")
    assert last["global_step"] < 4 * 2 * 2
    assert last["Experience"]["env_steps"] == 160
    assert last["state_dict"]["encoder.normalization.count"] == 160
    wanted = scores_of(run)
    succeed("test", "--ckpt_path", run / "checkpoints/best.ckpt", *QUIET, *UNTRACKED)
    assert scores_of(run).keys() == wanted.keys()
