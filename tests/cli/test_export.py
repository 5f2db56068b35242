"""A checkpoint as safetensors and JSON, and back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import rimlit as package
from rimlit.errors import CheckpointError, ConfigError
from rimlit.tasks import CopyingTask, LanguageModelingTask
from tests.cli.running import read_checkpoint, read_json, rimlit, succeed


@pytest.mark.parametrize(("fixture", "task"), [("copying", CopyingTask), ("language", LanguageModelingTask)])
def test_an_exported_task_loads_back_with_the_same_outputs(
    request: pytest.FixtureRequest, fixture: str, task: type, tmp_path: Path
) -> None:
    run: Path = request.getfixturevalue(fixture)
    folder = tmp_path / "exported"
    answer = succeed("export", run, "--to", folder)
    assert "best.ckpt" in answer.out and str(folder) in answer.out
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded, expected = package.load_checkpoint(folder), package.load_checkpoint(run / "checkpoints/best.ckpt")
    assert type(loaded) is task and not loaded.training
    tokens = torch.arange(10)[None]
    assert torch.equal(loaded(tokens)[0], expected(tokens)[0])
    assert loaded.spec == expected.spec


def test_the_files_say_without_this_package_what_they_hold(language: Path, tmp_path: Path) -> None:
    succeed("export", language / "checkpoints/last.ckpt", "--to", tmp_path / "exported")
    checkpoint = read_checkpoint(language / "checkpoints/last.ckpt")
    with safe_open(tmp_path / "exported/model.safetensors", "pt") as file:
        assert set(file.keys()) == set(checkpoint["state_dict"])
        for name, tensor in checkpoint["state_dict"].items():
            assert torch.equal(file.get_tensor(name), tensor)
    config = read_json(tmp_path / "exported/config.json")
    assert config["task"]["class_path"] == "rimlit.tasks.LanguageModelingTask"
    assert config["data"]["init_args"]["path"] == "novel"
    assert config["sizes"]["vocabulary_size"] == len(config["data_state"]["tokens"])
    assert config["step"] == 4
    assert config["versions"]["rimlit"] == package.__version__


def test_weights_that_share_memory_are_exported_each(tmp_path: Path, language: Path) -> None:
    path = language / "checkpoints/best.ckpt"
    checkpoint = read_checkpoint(path)
    first, *_ = checkpoint["state_dict"].values()
    checkpoint["state_dict"]["again"] = first.T
    torch.save(checkpoint, path)
    succeed("export", path, "--to", tmp_path / "exported")
    with safe_open(tmp_path / "exported/model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("again"), first.T)


def test_a_changed_export_is_refused(copying: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    succeed("export", copying, "--to", folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    text, content = config.read_text(), bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its SHA-256"):
        package.load_checkpoint(folder)
    config.write_text(text.replace("rimlit.tasks.CopyingTask", "mischief.Own"))
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match=r"mischief\.Own' is outside the trusted packages"):
        package.load_checkpoint(folder)
    for other in ("[]", json.dumps({"format": 2}), "{"):
        config.write_text(other)
        with pytest.raises(CheckpointError, match="is not what rimlit export wrote"):
            package.load_checkpoint(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="is not what rimlit export wrote"):
        package.load_checkpoint(folder)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none.ckpt", "--to", "out"], 4, ["No checkpoint at none.ckpt"]),
        (["empty", "--to", "out"], 4, ["empty is not a run with a checkpoint", "empty/checkpoints/best.ckpt"]),
        (["https://example.org/a.ckpt", "--to", "out"], 4, ["local files"]),
        (["empty"], 2, ["--to"]),
        (["empty", "--too", "out"], 2, ["--to"]),
    ],
)
def test_what_cannot_be_exported_is_one_message(
    folder: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    (folder / "empty").mkdir()
    answer = rimlit("export", *arguments)
    assert answer.code == code
    assert all(word in answer.err for word in words), answer.err
    assert not (folder / "out").exists()


def test_a_folder_that_cannot_be_written_is_exit_code_6(copying: Path, folder: Path) -> None:
    (folder / "file").touch()
    answer = rimlit("export", copying, "--to", "file/out")
    assert answer.code == 6
    assert "file/out/model.safetensors cannot be written" in answer.err
