"""``rimlit compare --on slurm.yaml``: jobs are submitted once, and collected later from the same command line."""

import os
from pathlib import Path

import pytest

from rimlit.comparison import planning
from rimlit.comparison import running as loop
from rimlit.comparison.job_queue import JobRecords
from tests.cli import running
from tests.cli.running import read_json
from tests.cli.test_compare import COMPARISON, FAST, FakeFit, reader

ON = ("--on=slurm.yaml",)


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for SLURM's programs; ``queue`` is what squeue prints."""
    (folder / "slurm.yaml").write_text("timeout_min: 5\n")
    (folder / "queue").write_text("")
    scripts = {
        "sbatch": "echo submitted >> submissions; echo Submitted batch job 7",
        "srun": "true",
        "squeue": "cat queue",
    }
    (folder / "bin").mkdir()
    for name, script in scripts.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(planning, "SettingsReader", reader)
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)
    return folder


def end(name: str, code: int) -> None:
    """Write what a job leaves behind."""
    from rimlit.comparison.runs import Run
    from rimlit.tracking.run_folder import RunFolder

    pickle = COMPARISON / "jobs" / f"{JobRecords(COMPARISON).job_of(name)}_submitted.pkl"
    import submitit

    arguments = submitit.core.utils.DelayedSubmission.load(pickle).args[0]
    config, _, seed = name.rpartition("-seed")
    log = Path(JobRecords(COMPARISON).log_of(name))
    FakeFit(Run(config, int(seed), arguments, RunFolder(COMPARISON / name), log), code)


def test_jobs_are_submitted_once_and_collected_from_the_same_command_line(slurm: Path) -> None:
    answer = running.rimlit("compare", *FAST, *ON, "--collect")
    assert answer.code == 0, answer.err
    assert "Not submitted: rim-seed0, lstm-seed0, rim-seed1, lstm-seed1." in answer.out
    assert not Path("submissions").exists()

    answer = running.rimlit("compare", *FAST, *ON, "--no-wait")
    assert answer.code == 0, answer.err
    jobs = {name: entry["job"] for name, entry in read_json(COMPARISON / "jobs.json").items()}
    assert jobs == {"rim-seed0": "7_0", "lstm-seed0": "7_1", "rim-seed1": "7_2", "lstm-seed1": "7_3"}
    Path("queue").write_text("".join(f"7_{task} PENDING\n" for task in range(4)))
    for words in ("--collect", "--no-wait"):
        answer = running.rimlit("compare", *FAST, *ON, words)
        assert answer.code == 0, answer.err
        assert "Pending: rim-seed0 (job 7_0, pending), lstm-seed0 (job 7_1, pending)" in answer.out
    assert Path("submissions").read_text() == "submitted\n"
    answer = running.rimlit("compare", *FAST)
    assert answer.code == 2
    assert "has runs that are jobs of a cluster: rim-seed0 (job 7_0)" in answer.err

    end("rim-seed0", 0)
    end("lstm-seed0", 5)
    Path("queue").write_text("7_2 RUNNING\n7_3 PENDING\n")
    answer = running.rimlit("compare", *FAST, *ON, "--collect")
    assert answer.code == 1
    assert "1 of the runs failed: lstm-seed0 (job 7_1: the loss is not finite." in answer.err
    assert "Pending: rim-seed1 (job 7_2, running), lstm-seed1 (job 7_3, pending)." in answer.out
    results = read_json(COMPARISON / "results.json")
    assert [len(model["runs"]) for model in results["models"].values()] == [1, 0]
    assert len(results["pending"]) == 2

    for name in ("rim-seed1", "lstm-seed1"):
        end(name, 0)
    Path("queue").write_text("")
    assert running.rimlit("compare", *FAST, *ON, "--no-wait").code == 0
    assert JobRecords(COMPARISON).job_of("lstm-seed0") == "7"  # what failed is submitted again, alone
    end("lstm-seed0", 0)
    answer = running.rimlit("compare", *FAST, *ON)
    assert answer.code == 0, answer.err
    assert [len(model["runs"]) for model in read_json(COMPARISON / "results.json")["models"].values()] == [2, 2]
    assert Path("submissions").read_text() == "submitted\n" * 2


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--no-wait"], "give --on slurm.yaml as well"),
        (["--collect"], "give --on slurm.yaml as well"),
        ([*ON, "--collect", "--no-wait"], "give one of the two"),
        ([*ON, "--collect=yes"], "--collect takes no value; got 'yes'"),
        (["--on=debug.yaml", "--no-wait"], "leave out --no-wait"),
        ([*ON, "--trainer.devices=2", "--trainer.strategy=ddp"], "tasks_per_node must be trainer.devices"),
    ],
)
def test_a_mistake_is_one_message(slurm: Path, words: list[str], part: str) -> None:
    Path("debug.yaml").write_text("cluster: debug\n")
    Path("slurm.yaml").write_text("timeout_min: 5\ntasks_per_node: 1\n")
    answer = running.rimlit("compare", *FAST, *words)
    assert answer.code == 2, answer.out
    assert part in answer.err and len(answer.err.strip().splitlines()) == 1
