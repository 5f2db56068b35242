"""Tasks on the hub, whose functions a local folder stands in for."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

import rimlit
from rimlit.errors import CheckpointError, ConfigError, MissingExtraError, StorageError
from rimlit.integrations import hub as module
from rimlit.tasks import CopyingTask


class FolderHub:
    """Repositories as folders ``ROOT/OWNER/NAME/BRANCH``: what of the hub is used here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[str] = []
        self.token: str | None = None

    def HfApi(self, token: str | None = None) -> "FolderHub":  # noqa: N802, the hub's name
        self.token = token
        return self

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        self.calls.append(f"create {repo_id} private={private}")
        (self.root / repo_id / "main").mkdir(parents=True, exist_ok=exist_ok)

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        self.calls.append(f"branch {branch}")
        (self.root / repo_id / branch).mkdir(exist_ok=exist_ok)

    def upload_folder(self, *, repo_id: str, folder_path: str, revision: str | None, commit_message: str) -> Any:
        self.calls.append(f"upload {commit_message}")
        shutil.copytree(folder_path, self.root / repo_id / (revision or "main"), dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, token: Any, cache_dir: Any, allow_patterns: list[str]
    ) -> str:
        self.calls.append(f"download {', '.join(allow_patterns)}")
        folder = self.root / repo_id / (revision or "main")
        if not folder.is_dir():
            raise huggingface_hub.errors.RevisionResolutionError(f"no {revision or 'main'}\nof {repo_id}")
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    found = FolderHub(tmp_path / "hub")
    for name in ("HfApi", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(found, name))
    monkeypatch.chdir(tmp_path)
    return found


@pytest.fixture
def task() -> CopyingTask:
    return rimlit.from_pretrained("copying")  # type: ignore[return-value]


def test_a_task_comes_back_from_the_hub_with_the_same_outputs(hub: FolderHub, task: CopyingTask) -> None:
    address = rimlit.push_to_hub(task, "owner/copy", license="mit", about="It copies.", token="secret")
    assert address == "hub/owner/copy/commit/1"
    assert hub.calls == ["create owner/copy private=None", "upload Upload a task of rimlit"]
    assert hub.token == "secret"
    folder = hub.root / "owner/copy/main"
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: rimlit\n")
    assert "It copies." in card and "rimlit.from_pretrained('owner/copy')" in card and "secret" not in card
    loaded = rimlit.from_pretrained("owner/copy")
    assert hub.calls[-1] == "download config.json, model.safetensors"
    tokens = torch.arange(10)[None]
    assert type(loaded) is CopyingTask and not loaded.training
    assert torch.equal(loaded(tokens)[0], task(tokens)[0])


def test_a_folder_keeps_its_data_and_its_scores(hub: FolderHub) -> None:
    source = module.FOLDER / "copying"
    rimlit.push_to_hub(source, "owner/copy", revision="second", private=True)
    assert hub.calls[:2] == ["create owner/copy private=True", "branch second"]
    folder = hub.root / "owner/copy/second"
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["class_path"] == "rimlit.data.Copying"
    scores = json.loads((source / "results.json").read_text())["test"]
    assert (
        f"| span_50/cross_entropy | {scores['span_50/cross_entropy']:.4g} |" in (folder / "README.md").read_text()
    )
    assert isinstance(rimlit.from_pretrained("owner/copy", revision="second"), CopyingTask)


@pytest.mark.parametrize(
    ("repo_id", "revision", "words"),
    [
        ("owner/a/b", None, r"repo_id='owner/a/b': Repo id must be in the form"),
        ("owner/a b", None, r"repo_id='owner/a b': Repo id must use alphanumeric"),
        ("copy", None, r"repo_id must be OWNER/NAME; got repo_id='copy'"),
        (
            "owner/copy",
            "../main",
            r"revision must be the name of a branch or tag, or a commit; got revision='\.\./main'",
        ),
        ("owner/copy", "", r"revision must be the name .* got revision=''"),
    ],
)
def test_what_is_malformed_is_refused_before_anything_is_created(
    hub: FolderHub, task: CopyingTask, repo_id: str, revision: str | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{words}"):
        rimlit.push_to_hub(task, repo_id, revision=revision)
    assert hub.calls == [] and not hub.root.exists()


def test_files_that_do_not_load_are_refused_before_anything_is_created(hub: FolderHub, tmp_path: Path) -> None:
    folder = shutil.copytree(module.FOLDER / "copying", tmp_path / "changed")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        rimlit.push_to_hub(folder, "owner/copy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty is not a run with a checkpoint"):
        rimlit.push_to_hub(tmp_path / "empty", "owner/copy")
    assert hub.calls == []


def test_a_class_outside_the_trusted_packages_is_not_imported(hub: FolderHub, task: CopyingTask) -> None:
    rimlit.push_to_hub(task, "owner/copy")
    config = hub.root / "owner/copy/main/config.json"
    config.write_text(config.read_text().replace("rimlit.tasks.CopyingTask", "mischief.Task"))
    with pytest.raises(ConfigError, match=r"'mischief\.Task' is outside the trusted packages"):
        rimlit.from_pretrained("owner/copy")


def test_a_repository_of_something_else_is_named(hub: FolderHub) -> None:
    (hub.root / "owner/other/main").mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match=r"^owner/other on the hub is not a task .* lacks config\.json and model"
    ):
        rimlit.from_pretrained("owner/other")
    with pytest.raises(CheckpointError, match=r"^owner/none cannot be read from the hub: no v2 of owner/none\.$"):
        rimlit.from_pretrained("owner/none", revision="v2")


def test_a_hub_that_refuses_is_one_line(
    hub: FolderHub, task: CopyingTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("401\nlog in with 'hf auth login'")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(StorageError, match=r"^owner/copy cannot be written on the hub: 401 log in with 'hf auth"):
        rimlit.push_to_hub(task, "owner/copy")


def test_a_missing_extra_is_one_line_with_the_command(task: CopyingTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    for call in (lambda: rimlit.from_pretrained("owner/copy"), lambda: rimlit.push_to_hub(task, "owner/copy")):
        with pytest.raises(MissingExtraError, match=r"^The Hugging Face hub needs huggingface_hub: pip install "):
            call()
    assert isinstance(rimlit.from_pretrained("copying"), CopyingTask)


def test_what_is_nowhere_names_the_nearest_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"^'copyng' is no shipped model \(.*copying.*Did you mean copying\?$"
    ):
        rimlit.from_pretrained("copyng")
    with pytest.raises(CheckpointError, match=r"^'\./none' is no shipped model"):
        rimlit.from_pretrained("./none")
    with pytest.raises(
        ConfigError, match=r"^revision='v1' belongs to a repository on the hub; got the local 'copy"
    ):
        rimlit.from_pretrained("copying", revision="v1")


def test_the_code_of_the_page_shares_a_run(hub: FolderHub) -> None:
    page = (Path(__file__).parents[2] / "docs/export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(rimlit\.push_to_hub.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"rimlit": rimlit}
    exec(code.replace("runs/copying/rim-seed0", str(module.FOLDER / "copying")), names)  # the page's own text
    assert isinstance(names["task"], CopyingTask)
    assert hub.calls[0] == "create OWNER/copying-rim private=None"
