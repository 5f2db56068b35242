"""The commands of the README and of the first pages of the documentation run, and their code does what it says."""

import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from rimlit.checkpoints import read_checkpoint
from rimlit.cli import main
from tests.cli.stand_ins import write_images, write_sequences

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/install.md", "docs/start.md", "docs/tasks.md", "docs/your_own_task.md")
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)
SMALL = {
    "copying": "--data.test_size 2 --data.val_size 2 --data.batch_size 2 --data.test_spans [50,60]",
    "language": "--data.size_limit 3000 --data.batch_size 4 --model.num_tokens 5",
    "tinyshakespeare": "--data.batch_size 2 --data.eval_batch_size 2",
    "wikitext-2": "--data.batch_size 2 --data.eval_batch_size 2",
    "bouncing_balls": "--data.test_size 2 --data.val_size 2 --data.batch_size 2 --data.frame_size 16",
    "adding": "--data.test_size 2 --data.val_size 2 --data.batch_size 2 --data.test_lengths [50,60]",
    "sequential_mnist": "--data.batch_size 2",
    "mnist": "--data.batch_size 2 --data.image_size 6 --data.test_sizes [6,7]",
    "sequences": "--data.batch_size 2",
    "cartpole": "--data.num_environments 2 --data.batch_size 1 --data.rollout_length 8 --data.val_episodes 2 "
    "--data.test_episodes 2",
}


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = "\n".join(fenced("bash")).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def shrunk(command: str) -> list[str]:
    """The words of a rimlit command, with settings that keep it to a few steps."""
    words = shlex.split(command)[1:]
    found = re.search(r"(?:--config (?:configs/)?|fit )([\w-]+)/|runs/([\w-]+)/", command)
    if words[0] == "compare":
        return [*words, "--seeds", "1", "--config", "trainer/quick", *shlex.split(SMALL["copying"])]
    if words[0] not in ("fit", "test", "predict"):
        return words
    if found is None:  # the parity task
        return [*words, "--config", "trainer/quick", "--trainer.max_steps", "3"]
    words += shlex.split(SMALL[found[1] or found[2]])
    if words[0] == "fit" and "--print_config" not in words:
        steps = "6" if "--ckpt_path" in words else "4"
        words += ["--config", "trainer/quick", "--trainer.max_steps", steps]
    return words


@pytest.mark.slow
def test_every_rimlit_command_runs_in_the_order_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "to be or not to be\n" * 60
    for path in (
        "tinyshakespeare/input.txt",
        *(f"wikitext-2/{split}.txt" for split in ("train", "valid", "test")),
    ):
        file = tmp_path / "data" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    write_images(tmp_path / "data/mnist")
    write_sequences(tmp_path / "recordings.csv")
    (tmp_path / "parity.py").write_text(own_task())
    (tmp_path / "fading.py").write_text(next(block for block in fenced("python") if "class Fading" in block))
    ours = [command for command in dict.fromkeys(commands()) if command.startswith("rimlit ")]
    assert len(ours) >= 14
    for command in ours:
        try:
            main(shrunk(command))
        except SystemExit as stop:
            if stop.code:
                pytest.fail(f"{command} exits {stop.code}: {capsys.readouterr().err}")
    assert (tmp_path / "runs/parity/run-seed0/results.json").is_file()
    assert "def " in (tmp_path / "runs/language/rim-seed0/predictions.jsonl").read_text()


def test_every_other_command_is_one_that_exists() -> None:
    for command in commands():
        words = shlex.split(command.split("  #")[0])
        if words[0] == "make":
            done = subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"
        else:
            assert words[0] in ("rimlit", "pip", "uv", "mlflow"), command


def own_task() -> str:
    return next(block for block in fenced("python") if "class ParityTask" in block)


def test_a_complete_task_of_ones_own_takes_under_30_lines() -> None:
    assert len([line for line in own_task().splitlines() if line.strip()]) < 30


def test_it_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_plain_pytorch_example_runs() -> None:
    namespace: dict[str, object] = {}
    exec(fenced("python")[0], namespace)  # the README's own text
    assert namespace["activities"][0].active.shape == (8, 20, 6)  # type: ignore[index]


def test_its_tables_are_those_of_the_recorded_results() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tables", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_mlflow_command_serves_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(shrunk("rimlit fit --config copying/rim"))
    command = next(command for command in commands() if command.startswith("mlflow ui"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(Path(sys.executable).parent / "mlflow"), *shlex.split(command)[1:], "--port", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    assert page.status == 200
                    break
            except OSError:
                assert server.poll() is None, "mlflow ui has ended"
                time.sleep(0.5)
        else:
            pytest.fail("mlflow ui did not answer within a minute")
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_its_own_task_can_be_given_a_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "parity.py").write_text(own_task())
    command = next(command for command in commands() if "parity.ParityTask" in command)
    options = ["--model.optimizer", "SGD", "--model.optimizer.lr", "0.125", "--test_after_fit", "false"]
    try:
        main([*shrunk(command), *options, "--trainer.logger", "false", "--trainer.max_steps", "1"])
    except SystemExit as stop:
        pytest.fail(f"exits {stop.code}: {capsys.readouterr().err}")
    checkpoint = read_checkpoint(tmp_path / "runs/parity/run-seed0/checkpoints/last.ckpt")
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.125
