"""Checkpoints and exports in which a part is missing or another: one line that names the file, exit code 4."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import rimlit as package
from rimlit.errors import RimlitError
from tests.cli.running import COPYING, QUIET, UNTRACKED, read_checkpoint, rimlit

WRONG: list[Any] = [None, 5, "x", [], {}, [1], {"a": 1}, torch.zeros(2), -1, True]
DELETED = object()
PROBED = (
    *("state_dict", "hyper_parameters", "optimizer_states", "lr_schedulers", "loops", "callbacks", "rimlit"),
    *("rimlit_position", "rimlit_sums", "rimlit_run", "global_step", "epoch", "pytorch-lightning_version"),
)


def places(value: Any, way: tuple[Any, ...] = (), depth: int = 3) -> Iterator[tuple[Any, ...]]:
    """The ways to the values inside nested mappings and lists."""
    if way:
        yield way
    if depth and isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*way, key), depth - 1)
    elif depth and isinstance(value, list):
        for index in range(min(2, len(value))):
            yield from places(value[index], (*way, index), depth - 1)


def changed(content: Any, way: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value, or none, at a place."""
    content = copy.deepcopy(content)
    place = content
    for key in way[:-1]:
        place = place[key]
    if value is DELETED:
        del place[way[-1]]
    else:
        place[way[-1]] = copy.deepcopy(value)
    return content


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def is_answered(code: int, error: str, file: str) -> bool:
    last = error.strip().splitlines()[-1] if error.strip() else ""
    return code == 0 or (code == 4 and file in last and "Traceback" not in error and len(last) < 700)


def answers(path: Path) -> Iterator[tuple[str, int, str]]:
    """What every reader of a checkpoint says to a file."""
    try:
        package.load_checkpoint(path)
        yield "load_checkpoint", 0, ""
    except RimlitError as error:
        yield "load_checkpoint", error.exit_code, str(error)
    longer = ("--test_after_fit=false", "--trainer.max_steps=5", "--ckpt_path", path)
    for arguments in (
        ("test", "--ckpt_path", path, *QUIET, *UNTRACKED),
        ("predict", "--ckpt_path", path, *QUIET, *UNTRACKED),
        ("fit", *COPYING, *UNTRACKED, "--name=resumed", *longer),
        ("export", path, "--to", "out"),
    ):
        answer = rimlit(*arguments)
        yield str(arguments[0]), answer.code, answer.err


def probe(run: Path, folder: Path, cases: list[tuple[tuple[Any, ...], Any]]) -> list[str]:
    """The cases that any reader answers in another way than by success or by naming the file."""
    good = read_checkpoint(run / "checkpoints/last.ckpt")
    path, faults = folder / "tampered.ckpt", []
    for way, value in cases:
        torch.save(changed(good, way, value), path)
        faults += [
            f"{command} {way} {'deleted' if value is DELETED else value!r}: {code} {error.strip()[-300:]}"
            for command, code, error in answers(path)
            if not is_answered(code, error, "tampered.ckpt")
        ]
    return faults


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("state_dict", "backbone.initial.hidden"), [1]),
        (("loops", "test_loop"), -1),
        (("loops", "fit_loop", "epoch_progress"), -1),
        (("loops", "predict_loop"), DELETED),
        (("rimlit_run", "trainer"), 5),
        (("rimlit_run", "seed_everything"), torch.zeros(2)),
        (("pytorch-lightning_version",), "x"),
        (("optimizer_states", 0), {}),
        (("lr_schedulers", 0), 5),
        (("global_step",), -1),
    ],
)  # fmt: skip
def test_a_part_of_another_type_is_named_before_anything_is_created(
    copying: Path, folder: Path, way: tuple[Any, ...], value: Any
) -> None:
    path = folder / "tampered.ckpt"
    torch.save(changed(read_checkpoint(copying / "checkpoints/last.ckpt"), way, value), path)
    before = files_below(folder)
    for command, code, error in answers(path):
        assert code == 4, (command, error)
        assert "tampered.ckpt is not a checkpoint that rimlit wrote: " in error and str(way[0]) in error
        assert error.count("\n") <= 1
    assert files_below(folder) == before


def test_some_changes_of_a_checkpoint_drawn_by_a_seed_are_all_answered(copying: Path, folder: Path) -> None:
    drawn = random.Random(3)
    every = list(places(read_checkpoint(copying / "checkpoints/last.ckpt")))
    cases = [(way, drawn.choice([DELETED, *WRONG])) for way in drawn.sample(every, 3)]
    assert not probe(copying, folder, cases)


@pytest.mark.slow
@pytest.mark.parametrize("key", PROBED)
def test_every_part_of_a_checkpoint_may_be_missing_or_another(copying: Path, folder: Path, key: str) -> None:
    drawn = random.Random(key)
    good = read_checkpoint(copying / "checkpoints/last.ckpt")
    every = [(key,), *((key, *way) for way in places(good[key], depth=2))]
    cases = [(way, value) for way in every[:25] for value in (DELETED, drawn.choice(WRONG))]
    faults = probe(copying, folder, cases)
    assert not faults, "\n".join(faults)


def exported_variants(config: dict[str, Any], weights: bytes) -> Iterator[tuple[str, Any, bytes]]:
    """Changed configs and weights of an export, whose SHA-256 agrees where it can."""
    import hashlib

    for way in places(config, depth=3):
        for value in (DELETED, None, 5, [1], "x"):
            yield f"{way} {'deleted' if value is DELETED else value!r}", changed(config, way, value), weights
    for name, other in (
        ("no safetensors", b"garbage"),
        ("empty", b""),
        ("other names", save({"a": torch.zeros(2)})),
        ("a length beyond its end", b"\xff" * 8 + weights[8:]),
    ):
        yield name, {**config, "sha256": hashlib.sha256(other).hexdigest()}, other


def test_a_tampered_export_is_refused_by_name(copying: Path, folder: Path) -> None:
    assert rimlit("export", copying, "--to", "out").code == 0
    config_file, weights_file = folder / "out/config.json", folder / "out/model.safetensors"
    config, weights = json.loads(config_file.read_text()), weights_file.read_bytes()
    faults = []
    for name, content, other in exported_variants(config, weights):
        config_file.write_text(json.dumps(content))
        weights_file.write_bytes(other)
        try:
            package.load_checkpoint(folder / "out")
        except RimlitError as error:
            if not is_answered(error.exit_code, str(error), "out") and "outside the trusted" not in str(error):
                faults.append(f"{name}: {error.exit_code} {error}")
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)
