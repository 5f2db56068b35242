"""MLflow as a server of its own process: killed, frozen, back again."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rimlit.tracking import MLflowTracker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow's own, of SQLAlchemy and others
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Server:
    """``mlflow server`` on a free port, all of its processes in a group of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 180) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        options = ["--workers", "1", "--backend-store-uri", "sqlite:///server.db"]
        self.process = subprocess.Popen(
            [*command, *options, "--artifacts-destination", "artifacts"],
            cwd=self.folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + seconds
        while not self.answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.kill()
                pytest.fail("mlflow server does not start")
            time.sleep(0.5)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, signum: signal.Signals) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self.process.pid, signum)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "5")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def test_a_server_that_does_not_answer_in_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(tmp_path)
    monkeypatch.setattr(server, "answers", lambda: False)
    with pytest.raises(pytest.fail.Exception, match="does not start"):
        server.start(seconds=0)
    assert server.process is not None and server.process.poll() == -signal.SIGKILL


def log_steps(tracker: MLflowTracker, steps: range) -> float:
    """Log a metric for each step; return the seconds of the slowest call."""
    slowest = 0.0
    for step in steps:
        start = time.monotonic()
        tracker.log_metrics({"train/loss": step / 8}, step=step)
        slowest = max(slowest, time.monotonic() - start)
    return slowest


def wait_until_sent(tracker: MLflowTracker) -> None:
    assert tracker.send_rest(60).failure is None


def test_a_server_that_is_killed_frozen_and_back_again_gets_every_step_once_and_training_does_not_wait(
    server: Server, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    figure = run / "figures/activity.png"
    tracker = MLflowTracker("mine", "mine", folder=run, tracking_uri=server.uri)
    tracker.require()
    tracker.log_hyperparams({"lr": 0.1})
    slowest = [log_steps(tracker, range(100))]
    assert tracker.flush()

    server.kill()
    slowest.append(log_steps(tracker, range(100, 200)))
    time.sleep(1.5)  # the thread meets the server that is gone
    slowest.append(log_steps(tracker, range(200, 300)))
    # a whole command without its server, and one that does not start without it
    command = [sys.executable, "-m", "rimlit", "fit", "--config=copying/rim", "--config=trainer/quick"]
    options = ["--data.train_span=3", "--data.test_spans=[3]", "--trainer.enable_progress_bar=false"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri}
    done = run_command([*command, *options], tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert "does not take what is logged" in done.stderr and "Traceback" not in done.stderr
    required = run_command([*command, *options, "--name=second", "--require_tracking=true"], tmp_path, environment)
    assert required.returncode == 1 and "cannot be reached" in required.stderr
    assert [path.name for path in (tmp_path / "runs/copying").iterdir()] == ["rim-seed0"]

    server.start()
    wait_until_sent(tracker)
    client = MlflowClient(server.uri)
    synced = run_command([sys.executable, "-m", "rimlit", "sync"], tmp_path, environment)
    assert synced.returncode == 0
    assert synced.stdout.startswith(f"runs/copying/rim-seed0: sent to {server.uri}: ")
    notes = json.loads((tmp_path / "runs/copying/rim-seed0/tracking.json").read_text())
    found = client.get_run(notes["mlflow_run_id"])
    assert found.info.status == "FINISHED"
    sent = set(found.data.metrics)
    assert {"test/span_3/cross_entropy", "train/loss", "val/loss", "val/mechanisms/dead"} <= sent

    server.signal(signal.SIGSTOP)  # takes connections and never answers
    figure.parent.mkdir()
    figure.write_bytes(b"a figure")
    tracker.log_file(figure, "figures")
    slowest.append(log_steps(tracker, range(300, 400)))
    tracker._patience = 3.0
    start = time.monotonic()
    tracker.finalize("success")
    tracker.finalize("success")
    waited = time.monotonic() - start
    assert waited < 5
    slowest.append(log_steps(tracker, range(400, 500)))
    tracker.finalize("success")
    server.signal(signal.SIGCONT)
    wait_until_sent(tracker)
    print(f"\nslowest call {1000 * max(slowest):.1f} ms, end with a frozen server {waited:.1f} s")
    assert max(slowest) < 2

    found = client.get_run(tracker.run_id)
    history = client.get_metric_history(tracker.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, step / 8) for step in range(500)]
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1"}
    assert [file.path for file in client.list_artifacts(tracker.run_id, "figures")] == ["figures/activity.png"]
    assert json.loads((run / "tracking.json").read_text())["sent"] == (run / "tracking.jsonl").stat().st_size
    print(found.info.status, sorted(found.data.tags), len(history))


def run_command(command: list[str], folder: Path, environment: dict[str, str]) -> Any:
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_under_the_store_costs_a_warning_and_no_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        tracker = MLflowTracker(
            "copying", "mine", folder=tmp_path / "run", tracking_uri=f"sqlite:///{disk}/mlflow.db"
        )
        log_steps(tracker, range(10))
        assert tracker.flush()
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"0" * 4096)
        log_steps(tracker, range(10, 2000))
        assert not tracker.flush()
        assert "does not take what is logged" in caplog.text
        filler.unlink()
        wait_until_sent(tracker)
        history = MlflowClient(tracker.tracking_uri).get_metric_history(tracker.run_id, "train/loss")
        assert sorted(metric.step for metric in history) == list(range(2000))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
