"""Fine-tuning: a new run that starts from the weights of another one, and takes nothing else from it."""

import hashlib
from pathlib import Path

import pytest
import torch

from rimlit.tasks import export
from tests.cli.running import COPYING, UNTRACKED, read_checkpoint, read_json, rimlit, succeed

NEW = (
    *COPYING,
    *UNTRACKED,
    "--test_after_fit=false",
    "--trainer.max_steps=1",
    "--model.optimizer.lr=0",
    "--name=new",
)
ANOTHER_HEAD = "--model.head=SumHead"


def sources(run: Path, folder: Path) -> dict[str, Path]:
    export(run, folder / "exported")
    return {"file": run / "checkpoints/best.ckpt", "run": run, "export": folder / "exported"}


@pytest.mark.parametrize("kind", ["file", "run", "export"])
def test_a_new_run_starts_from_the_weights_and_takes_nothing_else(copying: Path, folder: Path, kind: str) -> None:
    source = sources(copying, folder)[kind]
    answer = succeed("fit", *NEW, f"--init_from={source}")
    file = source / "model.safetensors" if kind == "export" else copying / "checkpoints/best.ckpt"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    before, after = (
        read_checkpoint(folder / path)
        for path in (copying / "checkpoints/best.ckpt", "runs/copying/new/checkpoints/last.ckpt")
    )
    count = len(before["state_dict"])
    assert f"Starting from {file} (SHA-256 {digest[:12]}…): {count} of {count} tensors." in answer.err
    for name, value in before["state_dict"].items():
        assert torch.equal(after["state_dict"][name], value), name  # at a rate of 0 one step changes nothing
    assert after["global_step"] == 1
    recorded = {"path": str(file), "sha256": digest, "tensors": count, "of": count}
    assert after["rimlit"]["init_from"] == recorded
    assert read_json(folder / "runs/copying/new/results.json")["init_from"] == recorded


def test_what_does_not_fit_is_named_and_stays_as_initialised(copying: Path, folder: Path) -> None:
    answer = succeed("fit", *NEW, ANOTHER_HEAD, "--model.embedding_size=32", f"--init_from={copying}")
    assert "8 of 13 tensors." in answer.err
    assert "Not in the file, and as initialised: 1 (head.bias)." in answer.err
    assert "In the file only: 1 (head.linear.bias)." in answer.err
    shapes = "Of another shape, and as initialised: 4 (encoder.table.weight (10, 64) there, (10, 32) here; "
    assert shapes in answer.err
    assert "and 1 more)." in answer.err


def test_nothing_that_fits_is_an_error_and_leaves_nothing(copying: Path, folder: Path) -> None:
    foreign = folder / "foreign.ckpt"
    checkpoint = read_checkpoint(copying / "checkpoints/best.ckpt")
    weights = {f"model.{name}": value for name, value in checkpoint["state_dict"].items()}
    torch.save({**checkpoint, "state_dict": weights}, foreign)
    answer = rimlit("fit", *NEW, f"--init_from={foreign}")
    assert answer.code == 4
    assert (
        f"init_from={str(foreign)!r}: none of the {len(weights)} tensors in {foreign} has the name and"
        in answer.err
    )
    assert not (folder / "runs/copying/new").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--init_from=nowhere.ckpt"], 4, "No checkpoint at nowhere.ckpt."),
        (["--init_from=."], 4, "init_from='.' is a folder with neither checkpoints/best.ckpt, as a run has, nor "),
        (["--init_from=a.ckpt", "--resume=b.ckpt"], 2, "init_from='a.ckpt' starts a new run, and resume='b.ckpt'"),
    ],
)
def test_a_wrong_source_is_one_line(folder: Path, options: list[str], code: int, message: str) -> None:
    answer = rimlit("fit", *NEW, *options)
    assert (answer.code, message in answer.err) == (code, True), answer.err
    assert not (folder / "runs").exists()


def test_another_command_than_fit_refuses_it(copying: Path) -> None:
    answer = rimlit("test", *COPYING, f"--init_from={copying}")
    assert answer.code == 2
    assert "is for fit; test takes --ckpt_path." in answer.err


def test_a_resumed_run_keeps_its_own_weights_and_the_record(copying: Path, folder: Path) -> None:
    succeed("fit", *NEW, f"--init_from={copying}")
    answer = succeed("fit", *NEW, "--trainer.max_steps=2", f"--init_from={copying}")
    assert f"init_from={copying} is not loaded again: the run has weights of its own." in answer.err
    assert "Starting from" not in answer.err
    assert read_checkpoint(folder / "runs/copying/new/checkpoints/last.ckpt")["rimlit"]["init_from"]["tensors"] > 1


def test_resuming_with_another_model_names_the_file_and_the_way_to_fine_tune(copying: Path) -> None:
    answer = rimlit("fit", *COPYING, *UNTRACKED, ANOTHER_HEAD, "--allow_changes=true", "--trainer.max_steps=9")
    assert answer.code == 4
    path = "runs/copying/rim-seed0/checkpoints/last.ckpt"
    assert f"{path} is of another model than this one: " in answer.err
    assert f"--init_from {path} starts a new run from those of its weights that fit." in answer.err
