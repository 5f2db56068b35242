"""A checkpoint as safetensors and JSON, and back; as a program of torch or ONNX, and the page that runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import rimlit as package
from rimlit.errors import CheckpointError, ConfigError
from rimlit.integrations import exporting
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
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "rimlit.load_checkpoint" in (folder / "README.md").read_text()
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
        (["empty", "--to", "out", "--format", "onxx"], 2, ["got 'onxx'. Did you mean onnx?"]),
        (["empty", "--to", "out", "--format", "pt2"], 2, ["got 'pt2'. Did you mean torch?"]),
        (["empty", "--to", "out", "--format", "torch,pickle"], 2, ["one or several of safetensors, torch, onnx"]),
        (["empty", "--to", "out", "--format", "torch"], 4, ["empty is not a run with a checkpoint"]),
        (["empty", "--to", "out", "--format", "torch", "--sequence", "0"], 2, ["at least 1; got sequence=0"]),
        (
            ["empty", "--to", "out", "--format", "torch", "--sequence", "x"],
            2,
            ["--sequence: invalid int value: 'x'"],
        ),
        (["empty", "--to", "out", "--sequence", "5"], 2, ["sequence=5 belongs to --format torch or onnx"]),
    ],
)
def test_what_cannot_be_exported_is_one_message(
    folder: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    (folder / "empty").mkdir()
    answer = rimlit("export", *arguments)
    assert answer.code == code
    assert all(word in answer.err for word in words), answer.err
    assert answer.err.count("\n") == 1
    assert not (folder / "out").exists()


def test_a_folder_that_cannot_be_written_is_exit_code_6(copying: Path, folder: Path) -> None:
    (folder / "file").touch()
    answer = rimlit("export", copying, "--to", "file/out")
    assert answer.code == 6
    assert "file/out/model.safetensors cannot be written" in answer.err


READ = "import sys\nmodules = sorted({name.partition('.')[0] for name in sys.modules})\nprint(*modules)\n"


def run_page(folder: Path, title: str) -> tuple[str, set[str]]:
    """Run the code below a heading of a README.md; return what it prints and the modules it needs."""
    text = (folder / "README.md").read_text()
    found = re.search(rf"^## {title}\n+```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found is not None, text
    assert len([line for line in found[1].splitlines() if line.strip()]) <= 10
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", found[1] + READ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed, modules = done.stdout.strip().splitlines()
    return printed, set(modules.split())


def test_the_readme_says_where_what_the_data_measured_is(language: Path, tmp_path: Path) -> None:
    succeed("export", language, "--to", tmp_path / "out", "--format", "torch")
    text = (tmp_path / "out/README.md").read_text()
    assert "as `Text` passes them to the task. `data_state` in `config.json`" in text
    assert read_json(tmp_path / "out/config.json")["data_state"]


def test_the_code_of_the_readme_runs_a_torch_program_with_torch_alone(copying: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    answer = succeed("export", copying, "--to", folder, "--format", "torch")
    found = re.search(
        r"^torch: the greatest difference from backbone.step over 20 steps is (\S+e-\d+)\.$", answer.out, re.M
    )
    assert found and 0 <= float(found[1]) <= 1e-5
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "initial_state.pt",
        "model.pt2",
    }
    printed, modules = run_page(folder, "Run it with torch alone")
    assert printed == "torch.Size([4, 10])" and "data_state" not in (folder / "README.md").read_text()
    assert "torch" in modules and modules.isdisjoint({"rimlit", "lightning", "onnxruntime"})
    config = read_json(folder / "config.json")
    assert config["program"]["inputs"][0] == {"name": "inputs", "shape": ["batch"], "dtype": "int64"}
    assert config["program"]["steps"] == 1
    with pytest.raises(CheckpointError, match=r"out holds no model\.safetensors, from which a task is loaded"):
        package.load_checkpoint(folder)


def test_the_code_of_the_readme_runs_an_onnx_program_without_torch(copying: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    answer = succeed("export", copying, "--to", folder, "--format", "onnx", "safetensors", "--sequence", "3")
    assert "onnx: the greatest difference from backbone.step over 3 steps is" in answer.out
    printed, modules = run_page(folder, "Run it with ONNX Runtime and NumPy alone")
    assert printed == "(4, 3, 10)"
    assert "onnxruntime" in modules and modules.isdisjoint({"rimlit", "torch", "onnx"})
    table = (folder / "README.md").read_text()
    assert (
        "| input | `inputs` | int64 | (B, 3) |" in table
        and "| output | `outputs` | float32 | (B, 3, 10) |" in table
    )
    assert isinstance(package.load_checkpoint(folder), CopyingTask)


def test_a_folder_with_other_files_is_refused_before_anything_is_written(copying: Path, folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/notes.txt").write_text("mine")
    answer = rimlit("export", copying, "--to", "out")
    assert answer.code == 2
    assert "out must be new, empty or an earlier export in the same formats; it holds notes.txt." in answer.err
    (folder / "out/notes.txt").rename(folder / "out/README.md")
    assert "it holds README.md." in rimlit("export", copying, "--to", "out").err
    assert [path.name for path in (folder / "out").iterdir()] == ["README.md"]
    (folder / "out/README.md").unlink()
    succeed("export", copying, "--to", "out")
    succeed("export", copying, "--to", "out")  # replaced
    (folder / "out/model.onnx").write_text("of another run")
    assert "it holds model.onnx." in rimlit("export", copying, "--to", "out").err


def test_a_missing_extra_is_named_with_the_command_before_anything_is_written(
    copying: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = exporting.importlib.util.find_spec
    monkeypatch.setattr(
        exporting.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    answer = rimlit("export", copying, "--to", "out", "--format", "onnx")
    assert answer.code == 2
    assert answer.err.startswith(
        "rimlit: error: --format onnx needs onnxscript, which the extra 'onnx' installs: pip "
    )
    assert not (folder / "out").exists()


def test_a_backbone_that_cannot_is_refused_before_anything_is_written(
    copying: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("data-dependent\nand more")

    monkeypatch.setattr("torch.export.export", refuse)
    answer = rimlit("export", copying, "--to", "out", "--format", "torch", "safetensors")
    assert answer.code == 2
    assert answer.err == (
        "rimlit: error: torch.export cannot follow CopyingTask with RIM: RuntimeError: data-dependent. "
        "--format safetensors works.\n"
    )
    assert not (folder / "out").exists()
