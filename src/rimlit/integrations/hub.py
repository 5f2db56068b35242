"""Share trained tasks on the Hugging Face hub, and load them: safetensors and JSON, never code."""

import hashlib
import re
import tempfile
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rimlit.errors import CheckpointError, ConfigError, MissingExtraError, StorageError, install_command
from rimlit.files import read_json, write_file
from rimlit.integrations.cards import model_card
from rimlit.integrations.readme import README
from rimlit.integrations.shipped import FOLDER, pretrained
from rimlit.tasks import Task, load_checkpoint
from rimlit.tasks.exporting import (
    CONFIG,
    FORMAT,
    WEIGHTS,
    config_file,
    describe_checkpoint,
    load_exported,
    read_config,
    read_task,
    versions,
    weights_file,
)


def from_pretrained(
    name: str | Path, *, revision: str | None = None, token: str | None = None, cache: str | Path | None = None
) -> Task:
    """Load a trained task in evaluation mode.

    Class paths in its files are imported from trusted packages only, as for a checkpoint;
    :func:`rimlit.spec.trust` adds one.

    Args:
        name: A model that :func:`pretrained` lists, which needs no network; a folder that ``rimlit export`` wrote,
            a run or a checkpoint; or the id ``OWNER/NAME`` of a repository on the hub. A listed model comes first:
            ``./copying`` is the folder of that name.
        revision: Branch, tag or commit of the repository; by default its main branch.
        token: The hub's access token for a private repository; by default the one that ``hf auth login`` saved.
        cache: Where downloaded files are kept; by default the hub's own cache.

    Raises:
        CheckpointError: There is no such model, or its files are missing, damaged or of another kind.
        ConfigError: The id or the revision is malformed, or a class is outside the trusted packages.
        MissingExtraError: The name is an id, and the extra ``hub`` is not installed.

    Example:
        >>> from_pretrained("copying").backbone.num_mechanisms
        6
    """
    shipped = pretrained()
    is_local = str(name) in shipped or Path(name).exists()
    if is_local and revision is not None:
        raise ConfigError(
            f"revision={revision!r} belongs to a repository on the hub; got the local {str(name)!r}."
        )
    if str(name) in shipped:
        return load_exported(FOLDER / str(name))
    if is_local:
        return load_checkpoint(name)
    if isinstance(name, Path) or str(name).count("/") != 1 or str(name)[0] in "./~":
        near = get_close_matches(str(name), shipped, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise CheckpointError(
            f"{str(name)!r} is no shipped model ({', '.join(shipped)}), no file or folder, and no id OWNER/NAME "
            f"of a repository on the hub.{hint}"
        )
    hub = _import_hub()
    _check_id(hub, str(name), revision)
    try:
        folder = Path(
            hub.snapshot_download(
                str(name), revision=revision, token=token, cache_dir=cache, allow_patterns=[CONFIG, WEIGHTS]
            )
        )
    except Exception as error:  # no network, no such repository, no access: they have no common base
        raise CheckpointError(f"{name} cannot be read from the hub: {_reason(error)}") from error
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{name} on the hub is not a task of rimlit: it lacks {' and '.join(missing)}, "
            "which push_to_hub writes."
        )
    return load_exported(folder)


def push_to_hub(
    source: Task | str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    license: str | None = None,
    about: str | None = None,
    message: str = "Upload a task of rimlit",
    token: str | None = None,
) -> str:
    """Upload a trained task: its weights, its config and a model card with the test scores of its run.

    Everything is checked before the repository is created, which is made if it is missing: the id, the revision,
    and that the files load again here.

    Args:
        source: A task, a run's folder, a checkpoint, or a folder that ``rimlit export`` wrote.
        repo_id: ``OWNER/NAME`` of a repository on the hub.
        revision: A branch, created if it is missing; by default the main one.
        private: Whether a new repository is private; None: what the owner has chosen.
        license: Identifier of the licence for the card, such as ``mit``.
        about: A sentence on what the model is, for the card.
        message: The commit's message.
        token: An access token; by default the one that ``hf auth login`` saved.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: There is no checkpoint, or it cannot be loaded.
        ConfigError: The id or the revision is malformed, or a class is outside the trusted packages.
        MissingExtraError: The extra ``hub`` is not installed.
        StorageError: The hub did not take the files.
    """
    hub = _import_hub()
    _check_id(hub, repo_id, revision)
    if "/" not in repo_id:
        raise ConfigError(f"repo_id must be OWNER/NAME; got repo_id={repo_id!r}.")
    files = hub_files(source, repo_id, license=license, about=about)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            write_file(Path(folder) / name, content)
        load_exported(folder)
        try:
            api = hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message
            )
        except Exception as error:  # no network, no token, no access: they have no common base
            raise StorageError(f"{repo_id} cannot be written on the hub: {_reason(error)}") from error
    return str(commit.commit_url)


def hub_files(
    source: Task | str | Path, repo_id: str, *, license: str | None = None, about: str | None = None
) -> dict[str, bytes]:
    """Return the files that a shared task consists of, by name; see :func:`push_to_hub`.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged or holds no task.
    """
    results: Mapping[str, Any] = {}
    if isinstance(source, Task):
        weights = weights_file(source.state_dict())
        config: dict[str, Any] = {"format": FORMAT, "task": source.spec, "data": None, "versions": versions()}
    elif (Path(source) / CONFIG).is_file():
        load_exported(source)
        weights = (Path(source) / WEIGHTS).read_bytes()
        config, results = read_config(source), read_json(Path(source) / "results.json")
        config.pop("program", None)  # of files that are not uploaded
    else:
        path, checkpoint = read_task(source)
        weights, config = weights_file(checkpoint["state_dict"]), describe_checkpoint(checkpoint)
        results = read_json(path.parents[1] / "results.json") if path.parent.name == "checkpoints" else {}
    config["sha256"] = hashlib.sha256(weights).hexdigest()
    card = model_card(
        config,
        results,
        title=repo_id.rpartition("/")[2],
        about=about,
        license=license,
        load=f"import rimlit\n\ntask = rimlit.from_pretrained({repo_id!r})",
    )
    where = source if isinstance(source, str | Path) else type(source).__name__
    return {WEIGHTS: weights, CONFIG: config_file(config, str(where)), README: card.encode()}


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError(
            f"The Hugging Face hub needs huggingface_hub: {install_command('hub')}."
        ) from error
    return huggingface_hub


def _check_id(hub: Any, repo_id: str, revision: str | None) -> None:
    """Raise a ConfigError unless the id and the revision may exist."""
    try:
        hub.utils.validate_repo_id(repo_id)
    except ValueError as error:
        raise ConfigError(f"repo_id={repo_id!r}: {_reason(error)}") from error
    if revision is not None and not re.fullmatch(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)*", revision, re.ASCII):
        raise ConfigError(f"revision must be the name of a branch or tag, or a commit; got revision={revision!r}.")


def _reason(error: Exception) -> str:
    """Return what an error says, as one sentence."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    return f"{text or type(error).__name__}."
