"""Jobs of a cluster: submitit's keys, what is submitted, collected, left or cancelled."""

import builtins
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import submitit
from rich.console import Console

from rimlit.comparison import Comparison, cluster, job_queue, runners
from rimlit.comparison import running as loop
from rimlit.comparison.cluster import Submitit
from rimlit.comparison.job_queue import JobQueue, JobRecords, refuse_live_jobs
from rimlit.comparison.job_settings import JobSettings, parameter_names, read_job_settings
from rimlit.comparison.runs import Run, Work
from rimlit.errors import ConfigError, StoppedError
from rimlit.tracking.run_folder import RunFolder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "POLL_SECONDS", 0.0)
    return tmp_path


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> Path:
    """Put programs in front of the path: a stand-in for SLURM."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def write(text: str, name: str = "slurm.yaml") -> str:
    Path(name).write_text(text)
    return name


def runs_in(folder: Path, number: int) -> list[Run]:
    return [
        Run("rim", seed, ["fit", f"--seed={seed}"], RunFolder(folder / f"rim-seed{seed}"), folder / "none.log")
        for seed in range(number)
    ]


def finish(run: Run) -> None:
    run.folder.write_state(status="finished")
    run.folder.write_results(test={"loss": float(run.seed)})


def test_submitit_s_own_keys_are_known_by_their_names_there() -> None:
    """Two of its methods are private: this fails when a version drops them."""
    known = parameter_names(submitit)
    assert {"timeout_min", "cpus_per_task", "slurm_partition", "slurm_array_parallelism"} <= known
    assert {"slurm_setup", "local_setup", "slurm_mem_gb"} <= known


def test_a_job_asks_for_a_task_per_process_for_sigusr1_and_to_be_requeued(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What sbatch is given, read from the script that submitit writes."""
    programs(here, monkeypatch, sbatch='cat "$1" > given; echo Submitted batch job 17', srun="true", squeue="true")
    settings = read_job_settings(write("timeout_min: 30\nslurm_partition: gpu\n"))
    runs = runs_in(here, 3)
    for run in runs:
        run.devices = 4
    Submitit(settings, here).start(runs, "parent")
    given = Path("given").read_text()
    for line in ("--array=0-2%3", "--ntasks-per-node=4", "--signal=USR1@90", "--requeue", "--partition=gpu"):
        assert f"#SBATCH {line}\n" in given
    assert [run.process.job for run in runs if run.process is not None] == ["17_0", "17_1", "17_2"]  # type: ignore[attr-defined]
    assert JobRecords(here).job_of("rim-seed2") == "17_2"
    pickle = submitit.core.utils.DelayedSubmission.load(here / "jobs/17_1_submitted.pkl")
    assert pickle.args[0] == ["fit", "--seed=1"]
    assert pickle.args[1]["RIMLIT_PARENT_RUN"] == "parent" and not hasattr(pickle.function, "checkpoint")


def test_what_the_cluster_still_knows_has_not_ended(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A requeued job is pending, whatever submitit wrote about its first end."""
    programs(here, monkeypatch, squeue='echo "17_0 PENDING"; echo "17_1 RUNNING"; echo "17_2 COMPLETING"')
    queue = JobQueue("slurm")
    assert [queue.state(f"17_{task}") for task in range(4)] == ["pending", "running", "running", None]
    programs(here, monkeypatch, squeue="exit 1")
    monkeypatch.setattr(job_queue, "SECONDS_BETWEEN_QUESTIONS", -1.0)
    assert queue.state("17_0") == "pending"  # it does not answer: nothing has ended
    with pytest.raises(ConfigError, match="SLURM does not answer"):
        JobQueue("slurm").state("17_0")


def test_collecting_reads_what_is_done_and_names_the_rest(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(here, monkeypatch, sbatch="echo job 5", srun="true", squeue='echo "5_2 PENDING"')
    settings = JobSettings("slurm", {"timeout_min": 5})
    runs = runs_in(here, 5)
    Submitit(settings, here).start(runs[:3], None)
    finish(runs[0])
    (here / "jobs/5_1_0_log.out").write_text("Seed set to 1\nrimlit: error: no space.\n")
    later = runs_in(here, 5)
    later[0].status = "finished"
    runner = Submitit(settings, here)
    runner.attach(later)
    runner.name_ended(later)
    assert [run.status for run in later] == ["finished", "failed", "running", "waiting", "waiting"]
    assert later[1].reason == "job 5_1: no space."
    assert later[1].log == here / "jobs/5_1_0_log.out"
    assert runner.words_of(later[2]) == "rim-seed2 (job 5_2, pending)"
    with pytest.raises(ConfigError, match=r"jobs of a cluster: rim-seed2 \(job 5_2\)"):
        refuse_live_jobs(here)


def test_a_run_that_is_a_job_is_not_submitted_twice(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(here, monkeypatch, sbatch="echo job 5", srun="true", squeue='echo "5 RUNNING"')
    settings = JobSettings("slurm", {"timeout_min": 5})
    Submitit(settings, here).start(runs_in(here, 1), None)
    (run,) = runs_in(here, 1)
    runner = Submitit(settings, here)
    runner.attach([run])
    assert loop.start_waiting(Work([run]), runner, None) == []
    finish(run)
    programs(here, monkeypatch, squeue="true")
    runner.queue.forget()
    loop.run_all(Work([run]), runner, console=Console(quiet=True))
    assert run.status == "finished"


@pytest.mark.parametrize(("answer", "is_cancelled"), [("cancel", True), ("leave", False), ("", False)])
def test_ctrl_c_asks_whether_the_jobs_are_cancelled(
    here: Path, monkeypatch: pytest.MonkeyPatch, answer: str, is_cancelled: bool
) -> None:
    scripts = {"sbatch": "echo job 5", "srun": "true", "squeue": 'echo "5_0 RUNNING"; echo "5_1 PENDING"'}
    programs(here, monkeypatch, **scripts, scancel='echo "$@" > cancelled')

    class Terminal:
        def isatty(self) -> bool:
            os.kill(os.getpid(), 0)
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(builtins, "input", lambda: answer)
    runner = Submitit(JobSettings("slurm", {"timeout_min": 5}), here)

    class Interrupted(Work):
        def is_hopeless(self, run: Run) -> bool:
            os.kill(os.getpid(), signal.SIGINT)
            return False

    with pytest.raises(StoppedError) as stopped:
        loop.run_all(Interrupted(runs_in(here, 2)), runner, console=Console(quiet=True))
    assert stopped.value.exit_code == 130
    assert Path("cancelled").exists() is is_cancelled
    words = "Cancelled 2 jobs, which save first: 5_0, 5_1." if is_cancelled else "2 jobs keep running: 5_0, 5_1."
    assert words in str(stopped.value)
    assert is_cancelled or ("--collect" in str(stopped.value) and "scancel 5_0 5_1" in str(stopped.value))


def test_without_a_terminal_the_jobs_are_left(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(
        here, monkeypatch, sbatch="echo job 5", srun="true", squeue='echo "5 RUNNING"', scancel="touch cancelled"
    )
    runner = Submitit(JobSettings("slurm", {"timeout_min": 5}), here)
    runs = runs_in(here, 1)
    runner.start(runs, None)
    assert "1 jobs keep running: 5." in runner.stop(runs, signal.SIGTERM)
    assert not Path("cancelled").exists()


def test_two_hundred_runs_of_the_debug_executor_hold_no_files_and_no_memory(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings are replaced, submitit is not; see benchmarks/scaling.py for real ones."""

    def train(arguments: list[str], environment: Any, *, is_own_process: bool) -> int:
        assert not is_own_process
        finish(run_of[arguments[1]])
        return 0

    monkeypatch.setattr(cluster, "train", train)
    runs = runs_in(here, 200)
    run_of = {run.arguments[1]: run for run in runs}
    runner = Submitit(JobSettings("debug", {}), here)
    process = psutil.Process()
    counts: list[tuple[int, int]] = []

    class Counting(Work):
        def note_end(self, run: Run) -> None:
            counts.append((process.num_fds(), process.memory_info().rss))

    loop.run_all(Counting(runs), runner, console=Console(quiet=True))
    assert [run.status for run in runs] == ["finished"] * 200
    assert all(run.process is None for run in runs)
    files, memory = zip(*counts, strict=True)
    assert max(files[10:]) <= files[10] + 2
    assert memory[-1] - memory[20] < 30 * 2**20


@contextlib.contextmanager
def variables_kept() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_the_debug_executor_leaves_the_environment_as_it_was(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(arguments: list[str], environment: dict[str, str], *, is_own_process: bool) -> int:
        os.environ.update(environment)
        finish(run)
        return 0

    monkeypatch.setattr(cluster, "train", train)
    (run,) = runs_in(here, 1)
    before = {name: value for name, value in os.environ.items() if not name.startswith("SUBMITIT")}
    loop.run_all(Work([run]), Submitit(JobSettings("debug", {}), here), console=Console(quiet=True), parent="p")
    assert {name: value for name, value in os.environ.items() if not name.startswith("SUBMITIT")} == before
    assert not (here / "jobs.json").exists()


def test_the_local_executor_runs_a_command_in_a_process_that_outlives_this_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that fails at once: what it prints is the end of the log."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    settings = read_job_settings(write("cluster: local\ntimeout_min: 5\n"))
    runner = Submitit(settings, here)
    (run,) = runs_in(here, 1)
    run.arguments = ["fitt"]
    runner.start([run], None)
    job = JobRecords(here).job_of(run.name)
    assert job is not None and run.process is not None
    deadline = time.monotonic() + 300
    while run.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert run.process.poll() == 1
    (later,) = runs_in(here, 1)
    runner = Submitit(settings, here)
    runner.attach([later])
    runner.name_ended([later])
    assert later.status == "failed"
    assert "Did you mean fit?" in later.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "must hold submitit's keys, such as timeout_min"),
        ("timeout_min: [", "is not valid YAML"),
        ("cluster: slrm\ntimeout_min: 1", "cluster must be one of slurm, local, debug; got 'slrm'"),
        ("timout_min: 1", "'timout_min' is not a key of submitit. Did you mean timeout_min?"),
        ("timeout_min: 1\nslurm_partitoin: gpu", "Did you mean slurm_partition?"),
        ("cluster: local", "must hold timeout_min"),
        ("timeout_min: long\ncluster: local", "timeout_min must be a whole number; got 'long'"),
        ("timeout_min: true\ncluster: local", "timeout_min must be a whole number; got True"),
        ("timeout_min: 1\ncpus_per_task: -2\ncluster: local", "cpus_per_task must be at least 0; got -2"),
        ("timeout_min: 1\nmem_gb: much\ncluster: local", "mem_gb must be a number; got 'much'"),
    ],
)
def test_a_file_that_cannot_be_used_names_key_value_and_what_is_allowed(here: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"^on='slurm.yaml'") as raised:
        read_job_settings(write(text))
    assert words in str(raised.value)


def test_a_file_that_is_not_there_no_sbatch_and_no_submitit_are_said_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"on='nowhere.yaml': there is no such file"):
        read_job_settings("nowhere.yaml")
    path = write("timeout_min: 5\n")
    monkeypatch.setenv("PATH", str(here))
    with pytest.raises(ConfigError, match=r"there is no sbatch on this machine.*cluster: local"):
        read_job_settings(path)
    programs(here, monkeypatch, sbatch="true")
    with pytest.raises(ConfigError, match="no srun"):
        read_job_settings(path)
    given = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("submitit"):
            raise ImportError(name)
        return given(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="Jobs on a cluster need submitit: pip install"):
        read_job_settings(path)


@pytest.mark.parametrize(
    ("parameters", "devices", "nodes", "words"),
    [
        ({"tasks_per_node": 2}, 4, 1, "tasks_per_node must be trainer.devices.*got tasks_per_node=2"),
        ({"slurm_ntasks_per_node": 2}, 1, 1, "must be trainer.devices"),
        ({"nodes": 1}, 1, 2, "nodes must be trainer.num_nodes.*got nodes=1 and trainer.num_nodes=2"),
    ],
)
def test_tasks_that_are_not_the_trainer_s_processes_are_refused(
    parameters: dict[str, Any], devices: int, nodes: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        JobSettings("slurm", parameters).parameters_of(nodes, devices)
    with pytest.raises(ConfigError, match="'debug' has one process"):
        JobSettings("debug", {}).parameters_of(1, 2)


def test_what_sbatch_says_is_the_message(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(
        here, monkeypatch, sbatch="echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1", srun="true"
    )
    with pytest.raises(ConfigError, match=r"slurm takes no job: .*invalid partition specified: gpu"):
        Submitit(JobSettings("slurm", {"timeout_min": 5}), here).start(runs_in(here, 1), None)
    runs = runs_in(here, 2)
    with pytest.raises(ConfigError, match="invalid partition"):
        loop.run_all(
            Work(runs), Submitit(JobSettings("slurm", {"timeout_min": 5}), here), console=Console(quiet=True)
        )
    assert [run.status for run in runs] == ["waiting", "waiting"]
    assert runners.LocalProcesses(3).places == 3


def test_pending_and_missing_runs_are_part_of_what_was_found() -> None:
    comparison = Comparison({"pending": ["rim-seed0 (job 5, pending)"], "missing": ["rim-seed1"]})
    assert comparison.pending == ["rim-seed0 (job 5, pending)"]
    assert comparison.missing == ["rim-seed1"]
