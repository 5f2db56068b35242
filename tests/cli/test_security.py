"""Files that another person wrote: nothing in them is ever imported or run.

Every attack would write a file, and no file is there in the end, whichever way the attack came in.
"""

import copy
import io
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rimlit
from rimlit.checkpoints import write_checkpoint
from rimlit.errors import ConfigError, RimlitError
from rimlit.tasks import CopyingTask
from tests.cli import running
from tests.cli.running import COPYING, QUIET, UNTRACKED

BACKBONE = "--model.init_args.backbone"
EVIL = {"class_path": "evilmod.X", "init_args": {}}

Checkpoint = dict[str, Any]


class Pickled:
    """An object whose unpickling runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that an attack writes; a module that writes it when imported, used or called lies in reach."""
    marker = folder / "MARKER"
    lines = ("from pathlib import Path", f"Path({str(marker)!r}).touch()", "class X:", "    pass", "run = X")
    (folder / "evilmod.py").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # would let torch.load run what a file holds
    return marker


def nothing_ran(marker: Path) -> bool:
    return not marker.exists() and "evilmod" not in sys.modules


def test_the_marker_is_written_where_nothing_is_in_the_way(marker: Path) -> None:
    pickle.loads(pickle.dumps(Pickled(marker)))
    assert marker.exists()
    marker.unlink()
    __import__("evilmod")
    assert marker.exists()
    del sys.modules["evilmod"]


# Checkpoints


def in_task(*keys: str | int, value: Any = EVIL) -> Callable[[Checkpoint], None]:
    """Put a value into the task's spec and the hyper-parameters, at the given way."""

    def edit(checkpoint: Checkpoint) -> None:
        for place in (checkpoint["rimlit"]["task"]["init_args"], checkpoint["hyper_parameters"]):
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = copy.deepcopy(value)

    return edit


def in_place(*keys: str, value: Any) -> Callable[[Checkpoint], None]:
    """Put a value anywhere in the checkpoint."""

    def edit(checkpoint: Checkpoint) -> None:
        place = checkpoint
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return edit


def endless() -> Any:
    """A list that holds itself."""
    loop: list[Any] = []
    loop.append(loop)
    return loop


def bomb() -> Any:
    """A list that grows to 10^30 entries when it is written out."""
    value: Any = "x"
    for _ in range(30):
        value = [value] * 10
    return value


SPECS: dict[str, Callable[[Checkpoint], None]] = {
    "backbone": in_task("backbone"),
    "backbone, system": in_task("backbone", value={"class_path": "os.system", "init_args": {"command": "id"}}),
    "backbone, nested": in_task("backbone", "init_args", "cell", value=EVIL),
    "backbone, in a list": in_task("backbone", "init_args", "cell", value=[[EVIL], {"a": EVIL}]),
    "backbone, no string": in_task("backbone", "class_path", value=["evilmod.X"]),
    "backbone, program": in_task("backbone", "class_path", value="rimlit.__main__.main"),
    "backbone, re-export": in_task("backbone", "class_path", value="torch.os.system"),
    "backbone, loader": in_task(
        "backbone", value={"class_path": "torch.hub.load", "init_args": {"repo_or_dir": ".", "source": "local"}}
    ),
    "backbone, compiler": in_task(
        "backbone", value={"class_path": "torch.utils.cpp_extension.load", "init_args": {"name": "x"}}
    ),
    "backbone, other class": in_task("backbone", "class_path", value="torch.nn.Linear"),
    "optimizer": in_task("optimizer"),
    "scheduler": in_task("scheduler"),
    "head": in_task("head"),
    "argument that is none": in_task("callbacks", value=[EVIL]),
    "task": in_place("rimlit", "task", value=EVIL),
    "task, no spec": in_place("rimlit", "task", value="evilmod.X"),
    "task, none": in_place("rimlit", "task", value=None),
    "data": in_place("rimlit", "data", value=EVIL),
    "data, nested": in_place(
        "rimlit", "data", value={"class_path": "rimlit.data.Copying", "init_args": {"test_spans": [EVIL]}}
    ),
    "data, no spec": in_place("rimlit", "data", value=[1]),
    "rimlit, no mapping": in_place("rimlit", value="evilmod.X"),
    "class path of Lightning's": in_place("hyper_parameters", "_class_path", value="evilmod.X"),
    "instantiator": in_place("hyper_parameters", "_instantiator", value="evilmod.run"),
    "endless": in_task("backbone", "init_args", "cell", value=None),
    "bomb": in_task("backbone", "init_args", "cell", value=None),
    "tensor": in_task("backbone", "init_args", "cell", value=torch.zeros(2)),
    "weights, none": in_place("state_dict", value=None),
    "loops, none": in_place("loops", value=EVIL["class_path"]),
    "step, none": in_place("global_step", value="evilmod.X"),
    "weights, others": in_place("state_dict", value={"evilmod.X": torch.zeros(1)}),
}


def write(name: str, valid: Path, path: Path) -> Path:
    """Write the malicious checkpoint of that name, with a digest of its own as everybody can."""
    checkpoint = running.read_checkpoint(valid)
    SPECS[name](checkpoint)
    if name in ("endless", "bomb"):
        in_task("backbone", "init_args")(checkpoint)
        for place in (checkpoint["rimlit"]["task"]["init_args"], checkpoint["hyper_parameters"]):
            place["backbone"]["init_args"] = {"cell": endless() if name == "endless" else bomb()}
            place["backbone"]["class_path"] = "rimlit.backbones.RIM"
    if isinstance(checkpoint["state_dict"], dict):
        write_checkpoint(checkpoint, path)
    else:
        torch.save(checkpoint, path)
    return path


@pytest.fixture
def valid(trained_copying: Path) -> Path:
    return trained_copying / "runs/copying/rim-seed0/checkpoints/best.ckpt"


HARMLESS = ("class path of Lightning's", "instantiator")
"""Names that Lightning's own loader would follow, and which nothing here reads."""

FOR_TRAINING = ("optimizer", "scheduler")
"""Names that only a training follows: the weights alone can be used by everybody."""


@pytest.mark.parametrize("name", SPECS)
def test_a_checkpoint_that_names_anything_else_is_refused_by_every_loader(
    marker: Path, valid: Path, tmp_path: Path, name: str
) -> None:
    path = write(name, valid, tmp_path / "evil.ckpt")
    for load in (rimlit.load_checkpoint, CopyingTask.load_from_checkpoint):
        if name in HARMLESS:
            load(path)
        elif name in FOR_TRAINING:
            with pytest.raises(ConfigError, match="outside the trusted packages"):
                load(path).configure_optimizers()
        else:
            with pytest.raises(RimlitError) as caught:
                load(path)
            assert caught.value.exit_code in (2, 4)
    assert nothing_ran(marker)


def refused(*arguments: str | Path) -> None:
    """Check that a command ends with one message and an exit code of its kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = running.rimlit(*arguments, *QUIET, *UNTRACKED)
    assert answer.code in (2, 3, 4), (answer.code, answer.err)
    assert "rimlit: error: " in answer.err and "Traceback" not in answer.err


FAST = ("backbone", "backbone, in a list", "backbone, re-export", "endless", "data, nested", "weights, none")


@pytest.mark.parametrize("command", ["test", "fit"])
@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SPECS],
)
def test_a_checkpoint_that_names_anything_else_is_refused_by_every_command(
    marker: Path, valid: Path, folder: Path, name: str, command: str
) -> None:
    path = write(name, valid, folder / "evil.ckpt")
    if name in HARMLESS:
        arguments = COPYING if command == "fit" else QUIET
        running.rimlit(command, *arguments, *UNTRACKED, "--test_after_fit=false", "--ckpt_path", path)
    elif command == "test" and name in FOR_TRAINING:
        running.succeed("test", "--ckpt_path", path, *QUIET, *UNTRACKED, "--trainer.limit_test_batches=1")
    elif command == "test":
        refused("test", "--ckpt_path", path)
    else:
        refused("fit", *COPYING, "--test_after_fit=false", "--ckpt_path", path)
    assert nothing_ran(marker)


PROGRESS: dict[str, tuple[tuple[str, ...], Any]] = {
    "position, no mapping": (("rimlit_position",), [1]),
    "position, no number": (("rimlit_position", "epoch"), "evilmod.X"),
    "callback, no mapping": (("callbacks", "Checkpointer"), [1]),
    "callback, no number": (("callbacks", "RunRecorder"), {"seconds": "evilmod.X"}),
    "carried, no tensors": (("rimlit", "carried"), [["evilmod.X"]]),
    "sums, no list": (("rimlit_sums",), {"a": 1}),
    "sums, others": (("rimlit_sums",), [{"logged": 1}]),
    "sums, reduction": (
        ("rimlit_sums",),
        [{"shown": {}, "metrics": {}, "logged": {"a": {"is_builtin": True, "reduction": "exec"}}}],
    ),
}


@pytest.mark.parametrize("name", PROGRESS)
def test_a_checkpoint_whose_progress_is_something_else_is_refused_by_name(copying: Path, name: str) -> None:
    keys, value = PROGRESS[name]
    path = copying / "checkpoints/last.ckpt"
    checkpoint = running.read_checkpoint(path)
    in_place(*keys, value=value)(checkpoint)
    write_checkpoint(checkpoint, path)
    longer = ("--test_after_fit=false", "--trainer.max_steps=6")
    answer = running.rimlit("fit", *COPYING, *UNTRACKED, *longer, "--ckpt_path", path)
    assert answer.code == 4
    assert f"{path} is not a checkpoint that rimlit wrote" in answer.err
    assert "Traceback" not in answer.err


def as_pickle(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


def as_torch_file(path: Path, content: Any) -> None:
    torch.save(content, path)


def as_old_torch_file(path: Path, content: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_zip_with_digest(path: Path, content: Any) -> None:
    from rimlit.checkpoints import _append_digest

    with path.open("w+b") as file:
        torch.save(content, file)
        _append_digest(file)


def as_old_file_with_digest(path: Path, content: Any) -> None:
    from rimlit.checkpoints import _append_digest

    with path.open("w+b") as file:
        torch.save(content, file, _use_new_zipfile_serialization=False)
        file.write(b"\0\0")
        _append_digest(file)


def as_script_archive(path: Path, content: Any) -> None:
    """A zip that torch takes for TorchScript, with the pickle in its place."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps(content, protocol=2))
        archive.writestr("evil/constants.pkl", pickle.dumps(content, protocol=2))
        archive.writestr("evil/code/__torch__.py", "import evilmod\n")
        archive.writestr("evil/version", "3\n")


def as_zip_that_leaves_its_folder(path: Path, content: Any) -> None:
    saved = io.BytesIO()
    torch.save({}, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, pickle.dumps(content, 2) if name.endswith("data.pkl") else source.read(name))
        archive.writestr("../MARKER", "")


@pytest.mark.parametrize(
    "form",
    [
        as_pickle,
        as_torch_file,
        as_old_torch_file,
        as_zip_with_digest,
        as_old_file_with_digest,
        as_script_archive,
        as_zip_that_leaves_its_folder,
    ],
)
@pytest.mark.parametrize("place", ["top", "state_dict", "rimlit"])
def test_a_checkpoint_that_runs_code_when_it_is_unpickled_is_refused_unread(
    marker: Path, valid: Path, folder: Path, form: Callable[[Path, Any], None], place: str
) -> None:
    checkpoint: Any = running.read_checkpoint(valid)
    path = folder / "evil.ckpt"
    form(path, Pickled(marker) if place == "top" else {**checkpoint, place: Pickled(marker)})
    with pytest.raises(RimlitError) as caught:
        rimlit.load_checkpoint(path)
    assert caught.value.exit_code == 4
    if place == "top":
        refused("test", "--ckpt_path", path)
    assert nothing_ran(marker)


@pytest.mark.parametrize("command", ["test", "fit"])
@pytest.mark.parametrize("scheme", ["http", "https", "file", "s3", "hf"])
def test_a_checkpoint_at_a_url_is_refused_and_not_fetched(
    marker: Path, folder: Path, scheme: str, command: str
) -> None:
    torch.save(Pickled(marker), folder / "evil.ckpt")
    host = "" if scheme == "file" else "127.0.0.1:9"
    answer = running.rimlit(command, *COPYING, *UNTRACKED, f"--ckpt_path={scheme}://{host}{folder}/evil.ckpt")
    assert answer.code == 4 and "local files" in answer.err
    assert nothing_ran(marker)


# Configs and command lines

RIM = "class_path: rimlit.backbones.RIM"
CONFIGS = {
    "tag": "model: !!python/object/apply:os.system ['touch MARKER']\n",
    "tag, new": "model: !!python/object/new:evilmod.X []\n",
    "tag, module": "model: !!python/module:evilmod\n",
    "tag, name": "model: !!python/name:evilmod.X\n",
    "task": "model: {class_path: evilmod.X}\n",
    "data": "data: {class_path: evilmod.X}\n",
    "data, argument": "data: {init_args: {seed: {class_path: evilmod.X}}}\n",
    "backbone": "model: {init_args: {backbone: {class_path: evilmod.X}}}\n",
    "backbone, string": "model: {init_args: {backbone: evilmod.X}}\n",
    "backbone, argument": "model: {init_args: {backbone: {init_args: {cell: {class_path: evilmod.X}}}}}\n",
    "backbone, system": "model: {init_args: {backbone: {class_path: os.system, init_args: {command: id}}}}\n",
    "backbone, re-export": "model: {init_args: {backbone: torch.os.system}}\n",
    "backbone, deep re-export": "model: {init_args: {backbone: torch.serialization.os.system}}\n",
    "backbone, loader": "model: {init_args: {backbone: {class_path: torch.hub.load, init_args: {model: x}}}}\n",
    "backbone, torch.load": "model: {init_args: {backbone: {class_path: torch.load, init_args: {f: e.ckpt}}}}\n",
    "backbone, compiler": "model: {init_args: {backbone: torch.utils.cpp_extension.load}}\n",
    "backbone, library": "model: {init_args: {backbone: torch.ops.load_library}}\n",
    "backbone, program": "model: {init_args: {backbone: {class_path: rimlit.__main__.main}}}\n",
    "optimizer": "model: {init_args: {optimizer: {class_path: evilmod.X}}}\n",
    "optimizer, other class": "model: {init_args: {optimizer: {class_path: torch.package.PackageImporter}}}\n",
    "scheduler": "model: {init_args: {scheduler: {class_path: evilmod.X}}}\n",
    "callback": "trainer: {callbacks: [{class_path: evilmod.X}]}\n",
    "callback, function": (
        "trainer: {callbacks: {class_path: lightning.pytorch.callbacks.LambdaCallback, "
        "init_args: {setup: evilmod.run}}}\n"
    ),
    "callback, trusted function": (
        "trainer: {callbacks: {class_path: lightning.pytorch.callbacks.LambdaCallback, "
        "init_args: {setup: torch.hub.load}}}\n"
    ),
    "callback, re-exported class": (
        "trainer: {callbacks: {class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {setup: "
        "{class_path: torch.utils.cpp_extension.subprocess.Popen, init_args: {args: [touch, MARKER]}}}}}\n"
    ),
    "logger": "trainer: {logger: {class_path: evilmod.X}}\n",
    "plugin": "trainer: {plugins: [{class_path: evilmod.X}]}\n",
    "profiler": "trainer: {profiler: {class_path: evilmod.X}}\n",
    "strategy": "trainer: {strategy: {class_path: evilmod.X}}\n",
    "accelerator": "trainer: {accelerator: {class_path: evilmod.X}}\n",
    "trust": "trust: evilmod\nmodel: {init_args: {backbone: evilmod.X}}\n",
    "another file": "config: other.yaml\n",
    "another file for a part": "model: {init_args: {backbone: other.yaml}}\n",
    "endless": "model: &model {init_args: {backbone: *model}}\n",
    "checkpoint": "ckpt_path: file:///evil.ckpt\n",
    "checkpoint, pickle": "ckpt_path: evil.ckpt\n",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_names_anything_else_is_refused(marker: Path, folder: Path, name: str) -> None:
    torch.save(Pickled(marker), folder / "evil.ckpt")
    (folder / "other.yaml").write_text("class_path: evilmod.X\nmodel: {class_path: evilmod.X}\n")
    (folder / "evil.yaml").write_text(CONFIGS[name])
    refused("fit", *COPYING, "--config=evil.yaml", "--test_after_fit=false")
    assert nothing_ran(marker)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", *COPYING, f"{BACKBONE}=evilmod.X"],
        ["fit", *COPYING, f"{BACKBONE}=!!python/name:evilmod.X"],
        ["fit", *COPYING, "--trainer.callbacks+=evilmod.X"],
        ["fit", *COPYING, "--trainer.plugins+=evilmod.X"],
        ["fit", "--model.help=evilmod.X"],
        ["fit", "--data.help=evilmod.X"],
        ["fit", "--trainer.logger.help=evilmod.X"],
        ["fit", "--config={model: {class_path: evilmod.X}}"],
    ],
)
def test_an_option_that_names_anything_else_is_refused(marker: Path, arguments: list[str]) -> None:
    refused(*arguments)
    assert nothing_ran(marker)
