"""A comparison through a real SLURM: an array of four, of which one is preempted and one is killed."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.running import QUIET, SMALL_COPYING, UNTRACKED
from tests.slurm import single_node, why_not

COMPARISON = Path("runs/copying/compare")
NAMES = ("rim-seed0", "lstm-seed0", "rim-seed1", "lstm-seed1")
OPTIONS = (
    *("--seeds=2", "--config=trainer/quick", *SMALL_COPYING[3:], *QUIET[1:], *UNTRACKED),
    *("--model.embedding_size=8", "--model.backbone.hidden_size=24"),
    *("--trainer.max_steps=1200", "--trainer.val_check_interval=600", "--trainer.limit_val_batches=1"),
)
SECONDS = 900
"""The longest wait for anything, on a machine that does other things."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        try:
            variables = stack.enter_context(single_node(tmp_path / "slurm"))
        except RuntimeError as error:
            pytest.skip(str(error))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        for folder in ("cluster", "here"):
            (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / "cluster")
        yield variables


def compare(*words: str, folder: str = ".") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rimlit", "compare", "copying/rim", "copying/lstm", *OPTIONS, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=SECONDS,
        check=False,
    )


def queue() -> list[str]:
    return subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i %T"], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def wait_for(what: Callable[[], Any], words: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    pytest.fail(f"waited in vain for {words}")


def state_of(name: str) -> dict[str, Any]:
    path = COMPARISON / name / "run_state.json"
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except ValueError:
        return {}


def release(job: str) -> None:
    """Let a requeued job start at once: SLURM makes it wait for two minutes."""
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False, capture_output=True)


@pytest.mark.slow
def test_a_comparison_of_jobs_one_pre_empted_and_one_killed_is_the_one_of_processes_here(
    slurm: dict[str, str],
) -> None:
    Path("slurm.yaml").write_text("timeout_min: 60\ncpus_per_task: 1\n")
    submitted = compare("--on=slurm.yaml", "--no-wait")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    jobs = {name: entry["job"] for name, entry in json.loads((COMPARISON / "jobs.json").read_text()).items()}
    (array,) = {job.partition("_")[0] for job in jobs.values()}
    assert sorted(jobs.values()) == [f"{array}_{task}" for task in range(4)]

    # one is preempted, another is killed outright, both in mid-training
    waiting = {"rim-seed0": "preempt", "lstm-seed1": "kill"}

    def disturb() -> bool:
        for name in list(waiting):
            state = state_of(name)
            if state.get("status") == "running" and int(state.get("step") or 0) >= 0 and state.get("process"):
                if waiting.pop(name) == "preempt":
                    subprocess.run(["scancel", "--signal=USR1", jobs[name]], check=True)
                else:
                    os.kill(int(state["process"].split("/")[2]), 9)
        return not waiting

    wait_for(disturb, "two runs to be training")
    stopped = wait_for(
        lambda: state_of("rim-seed0").get("status") == "stopped" and state_of("rim-seed0"), "a stop"
    )
    assert "Stopped by SIGUSR1 after step" in stopped["reason"]
    assert f"SLURM puts job {jobs['rim-seed0']} back into its queue." in stopped["reason"]
    assert 0 < stopped["step"] < 1200
    # once: it is one line of the queue, as before
    wait_for(lambda: f"{jobs['rim-seed0']} PENDING" in queue(), "the job to be requeued")
    pending = compare("--on=slurm.yaml", "--collect")
    assert f"rim-seed0 (job {jobs['rim-seed0']}, pending)" in pending.stdout, pending.stdout + pending.stderr
    refused = compare()
    assert refused.returncode == 2 and "has runs that are jobs of a cluster" in refused.stderr
    release(jobs["rim-seed0"])
    wait_for(lambda: not queue(), "the queue to be empty")

    collected = compare("--on=slurm.yaml", "--collect")
    assert collected.returncode == 1, collected.stdout
    assert f"1 of the runs failed: lstm-seed1 (job {jobs['lstm-seed1']}: " in collected.stderr
    assert state_of("rim-seed0")["status"] == "finished"
    again = compare("--on=slurm.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((COMPARISON / "jobs.json").read_text())["rim-seed1"]["job"] == jobs["rim-seed1"]

    local = compare(folder="../here")
    assert local.returncode == 0, local.stdout + local.stderr
    for name in NAMES:
        theirs, ours = (
            torch.load(folder / COMPARISON / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for folder in (Path("."), Path("../here"))
        )
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in ours), name
        found = [
            json.loads((folder / COMPARISON / name / "results.json").read_text())
            for folder in (Path("."), Path("../here"))
        ]
        assert found[0]["test"] == found[1]["test"] and found[0]["steps"] == found[1]["steps"] == 1200
