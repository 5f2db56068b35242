"""Random attack: 300 mutated configs, tables, arrays, checkpoints and exports, each answered in one line.

Everything is drawn from the seeds below, so that a case that fails can be repeated by its number.
"""

import copy
import io
import json
import random
import re
import signal
import string
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from rimlit.checkpoints import read_checkpoint
from tests.cli.running import QUIET, UNTRACKED, Answer, rimlit

pytestmark = pytest.mark.slow

CASES = 60
"""Of each of the five kinds."""
SECONDS = 60
"""A case that takes longer counts as hung."""

ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 10**30, -(10**30), 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", " ", "x", "null", "~", "é\u200b\U0001f600", "a" * 5000, "../..", "/dev/null", "s3://a", "rimlit.RIM"),
    *([], [[]], [None], {}, {"a": {}}, {"class_path": "RIM"}, {"class_path": 3, "init_args": []}),
)
CONFIG = """\
seed_everything: 0
model:
  class_path: rimlit.tasks.CopyingTask
  init_args:
    embedding_size: 8
    backbone:
      class_path: rimlit.backbones.RIM
      init_args: {hidden_size: 24, num_mechanisms: 3, num_active: 2, input_value_size: 8, input_dropout: 0.0}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.002}}
    scheduler: {class_path: rimlit.training.WarmupCosine, init_args: {warmup_steps: 1}}
data:
  class_path: rimlit.data.Copying
  init_args: {train_span: 5, min_train_span: 1, test_spans: [5, 9], val_size: 8, test_size: 8, batch_size: 4}
trainer:
  accelerator: cpu
  max_steps: 2
  gradient_clip_val: 1.0
  val_check_interval: 2
  check_val_every_n_epoch: null
  log_every_n_steps: 1
"""
SHORT = ("--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1")
TRACKED = (*QUIET, "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1")
SPEED = (*TRACKED, *UNTRACKED)
OWN = """\
model:
  class_path: rimlit.tasks.ClassificationTask
  init_args: {backbone: {class_path: rimlit.backbones.LSTM, init_args: {hidden_size: 8}}}
data: {class_path: rimlit.data.Sequences, init_args: {path: FILE, batch_size: 4}}
trainer: {accelerator: cpu, max_steps: 2, log_every_n_steps: 1}
"""


@contextmanager
def limited() -> Iterator[None]:
    """Raise where a case hangs."""

    def hung(*_: Any) -> None:
        raise TimeoutError(f"no answer in {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def require_answer(answer: Answer, codes: set[int], case: str) -> None:
    """Exit codes of their kind; one line where it is an error; never a traceback."""
    assert answer.code in codes, f"{case}: {answer.code}: {answer.err[-2000:]}"
    assert "Traceback" not in answer.err + answer.out, f"{case}: {answer.err[-2000:]}"
    if answer.code:
        lines = [line for line in answer.err.splitlines() if line.startswith("rimlit: error: ")]
        assert len(lines) == 1 and answer.err.endswith(f"{lines[0]}\n"), f"{case}: {answer.err[-2000:]}"
        assert len(lines[0]) < 3000, f"{case}: {lines[0][:300]}"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutate(value: Any, draw: random.Random, odd: Callable[[random.Random], Any]) -> str:
    """Replace, delete, rename or move something inside ``value``; return what was done."""
    place = draw.choice(list(places(value)))
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    kind = draw.choice(["replace", "replace", "replace", "delete", "rename", "swap"])
    if kind == "replace":
        holder[place[-1]] = odd(draw)
        return f"{place} = {holder[place[-1]]!r}"[:200]
    if kind == "delete" or not isinstance(holder, dict):
        del holder[place[-1]]
    elif kind == "rename":
        holder[draw.choice(["x", f"{place[-1]}s", str(place[-1])[:-1], ""])] = holder.pop(place[-1])
    else:
        other = draw.choice(list(holder))
        holder[place[-1]], holder[other] = holder[other], holder[place[-1]]
    return f"{kind} {place}"


def garbled(data: bytes, draw: random.Random, words: tuple[bytes, ...]) -> bytes:
    """Flip, cut, repeat or insert something."""
    at = draw.randrange(len(data))
    kind = draw.choice(["flip", "cut", "drop", "insert", "repeat", "swap"])
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    until = min(len(data), at + draw.randrange(1, 40))
    if kind == "drop":
        return data[:at] + data[until:]
    if kind == "repeat":
        return data[:until] + data[at:until] * draw.randrange(1, 4) + data[until:]
    if kind == "swap":
        other = draw.randrange(len(data))
        first, second = sorted((at, other))
        return data[:first] + data[second : second + 9] + data[first:second] + data[second + 9 :]
    return data[:at] + draw.choice(words) + data[at:]


YAML_WORDS = (
    b"&a ",
    b"*a",
    b"<<: *a\n",
    b"!!python/object:os.system ",
    b"\t",
    b"\0",
    b": ",
    b"- ",
    b"{",
    b"]",
    b"'",
)
YAML_WORDS += (b"%", b"---\n", b"? ", b"|\n", b"\xff\xfe", b"\xef\xbb\xbf", b"1e999", b"#", b"\r", b"\x85")


@pytest.mark.parametrize("number", range(CASES))
def test_a_mutated_config(folder: Path, number: int) -> None:
    draw = random.Random(f"config {number}")
    if number % 3:
        settings = yaml.safe_load(CONFIG)
        case = "; ".join(
            mutate(settings, draw, lambda draw: draw.choice(ODD)) for _ in range(draw.randrange(1, 3))
        )
        text = yaml.safe_dump(settings, sort_keys=False).encode()
    else:
        text = garbled(CONFIG.encode(), draw, YAML_WORDS)
        case = "text"
    (folder / "own.yaml").write_bytes(text)
    with limited():
        answer = rimlit("fit", "--config=own.yaml", *(TRACKED if number % 3 == 1 else SPEED), *SHORT)
    require_answer(answer, {0, 2, 3, 5, 6}, f"{case}\n{text.decode(errors='replace')}")
    if answer.code in (2, 3, 4, 6):
        assert files(folder) == {"own.yaml"}, case


CSV_WORDS = (
    b",",
    b'"',
    b"\n",
    b"\r\n",
    b"\0",
    b";",
    b"nan",
    b"inf",
    b"-",
    b"1e400",
    b"\xff",
    b"\xef\xbb\xbf",
    b" ",
    b"\t",
)
CSV_WORDS += (
    b"sequence",
    b"target",
    b"0x1",
    b"1_000",
    b"=1+1",
    b"None",
    b"\xe2\x80\x8b",
    b"1,5",
    b"01",
    b"true",
    b"2020-01-01",
)


def good_table() -> bytes:
    draw = random.Random(0)
    lines = ["sequence,temperature,pressure,target"]
    for s in range(30):
        label = ("ok", "broken")[s % 2]
        lines += [f"s{s:02d},{draw.gauss(20, 1):.2f},{draw.gauss(1, 0.1):.3f},{label}" for _ in range(8)]
    return "\n".join([*lines, ""]).encode()


def attack_data(folder: Path, name: str, content: bytes, case: str) -> None:
    (folder / name).write_bytes(content)
    (folder / "own.yaml").write_text(OWN.replace("FILE", name))
    with limited():
        answer = rimlit("fit", "--config=own.yaml", *SPEED, *SHORT)
    require_answer(answer, {0, 3}, case)
    if answer.code:
        assert name in answer.err, f"{case}: the file is named: {answer.err}"
        assert files(folder) == {"own.yaml", name}, case


@pytest.mark.parametrize("number", range(CASES))
def test_a_mutated_table(folder: Path, number: int) -> None:
    draw = random.Random(f"table {number}")
    content = good_table()
    if number % 2:  # whole cells, most in the first lines
        lines = [line.split(b",") for line in content.split(b"\n")]
        for _ in range(draw.randrange(1, 4)):
            row = lines[min(int(draw.expovariate(0.3)), len(lines) - 2)]
            row[draw.randrange(len(row))] = draw.choice(CSV_WORDS)
        content = b"\n".join(b",".join(line) for line in lines)
    else:
        content = garbled(content, draw, CSV_WORDS)
    attack_data(folder, "own.csv", content, f"table {number}")


@pytest.mark.parametrize("number", range(CASES))
def test_a_mutated_array_file(folder: Path, number: int) -> None:
    draw = random.Random(f"arrays {number}")
    noise = np.random.default_rng(number)
    arrays: dict[str, Any] = {
        "inputs": noise.normal(size=(30, 8, 2)),
        "targets": np.arange(30) % 2,
        "lengths": noise.integers(1, 9, 30),
    }
    case = "bytes"
    if number % 2:
        key = draw.choice(list(arrays))
        odd: list[Callable[[Any], Any]] = [
            lambda a: a.astype(object),
            lambda a: a.astype(complex),
            lambda a: a.astype("datetime64[s]") if a.dtype.kind == "i" else a.astype("S9"),
            lambda a: a[:0],
            lambda a: a[..., None],
            lambda a: a.ravel()[0],
            lambda a: a[:7],
            lambda a: -a * 10**9,
            lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, np.nan, a),
            lambda a: a.astype(str),
            lambda a: np.zeros(a.shape, dtype=[("a", int)]),
            lambda a: a.astype(bool),
            lambda a: a.astype(np.float16) * np.float16(6e4),
            lambda a: np.asarray([1, 2]),
        ]
        change = draw.choice(odd)
        with np.errstate(all="ignore"):
            arrays[key] = change(arrays[key])
        case = f"{key} {odd.index(change)}"
        if draw.random() < 0.2:
            arrays[draw.choice(["x", "Inputs", "split"])] = arrays.pop(draw.choice(list(arrays)))
    buffer = io.BytesIO()
    (np.savez_compressed if draw.random() < 0.5 else np.savez)(buffer, allow_pickle=True, **arrays)
    content = buffer.getvalue()
    if not number % 2:
        content = garbled(content, draw, (b"PK\x03\x04", b"\x93NUMPY", b"\0" * 8, b"\xff" * 8))
    attack_data(folder, "own.npz", content, f"array file {number}: {case}")


def odd_part(draw: random.Random) -> Any:
    """What may stand anywhere in a checkpoint that ``weights_only`` reads."""
    tensors = (
        torch.zeros(0),
        torch.tensor(float("nan")),
        torch.ones(3, 3),
        torch.arange(3),
        torch.zeros(2, dtype=bool),
    )
    return draw.choice((*ODD, *tensors))


@pytest.mark.parametrize("number", range(CASES))
def test_a_mutated_checkpoint_without_a_digest(copying: Path, number: int) -> None:
    draw = random.Random(f"checkpoint {number}")
    folder = copying.parents[2]
    checkpoint = copy.deepcopy(read_checkpoint(copying / "checkpoints/best.ckpt"))
    cases = [mutate(checkpoint, draw, odd_part) for _ in range(draw.randrange(1, 3))]
    path = copying / "checkpoints/best.ckpt"
    torch.save(checkpoint, path)
    if number % 6 == 0:
        path.write_bytes(garbled(path.read_bytes(), draw, (b"PK\x03\x04", b"\0" * 8)))
        cases.append("bytes")
    command = ("test", "predict", "fit", "export")[number % 4]
    before = files(folder)
    small = ("--trainer.limit_test_batches=1", "--trainer.limit_predict_batches=1")
    options: dict[str, tuple[str, ...]] = {
        "test": (f"--ckpt_path={path}", *SPEED, small[0]),
        "predict": (f"--ckpt_path={path}", *SPEED, small[1]),
        "fit": (f"--config={folder / 'own.yaml'}", f"--resume={path}", "--name=new", *SPEED, *SHORT),
        "export": (str(path), "--to", str(folder / "exported")),
    }
    if command == "fit":
        (folder / "own.yaml").write_text((copying / "config.yaml").read_text())
        before.add("own.yaml")
    with limited():
        answer = rimlit(command, *options[command])
    require_answer(answer, {0, 2, 4}, f"{command}: {cases}")
    if answer.code == 4:
        assert "best.ckpt" in answer.err, f"{command}: {cases}: the file is named: {answer.err}"
    if answer.code:
        assert files(folder) == before, f"{command}: {cases}"


@pytest.mark.parametrize("number", range(CASES))
def test_a_mutated_export(copying: Path, number: int) -> None:
    draw = random.Random(f"export {number}")
    folder = copying.parents[2] / "exported"
    assert rimlit("export", copying, "--to", folder).code == 0
    config = json.loads((folder / "config.json").read_text())
    case = "bytes"
    if number % 2:
        case = mutate(config, draw, lambda draw: draw.choice(ODD))
        (folder / "config.json").write_text(json.dumps(config))
    else:
        path = folder / draw.choice(["config.json", "model.safetensors"])
        path.write_bytes(garbled(path.read_bytes(), draw, (b"{", b"\0" * 8, b"[" * 99, b"\xff", b'"a":')))
    before = files(folder)
    with limited():
        error = load(folder)
    if error is not None:
        assert re.search(r"exported", error), f"{case}: the folder is named: {error}"
        assert error.isprintable() and len(error) < 3000 and not set(error) & set(string.whitespace[1:]), case
    assert files(folder) == before


def load(folder: Path) -> str | None:
    """Load an export; return the message where it is refused as it should be."""
    from rimlit import load_checkpoint
    from rimlit.errors import CheckpointError, ConfigError

    try:
        load_checkpoint(folder)
    except ConfigError as error:
        if "outside the trusted packages" not in str(error):
            raise
        return f"exported: {error}"
    except CheckpointError as error:
        return str(error)
    return None


def test_an_archive_with_a_file_of_another_name_is_refused(folder: Path) -> None:
    with zipfile.ZipFile(folder / "own.npz", "w") as archive:
        archive.writestr("../../inputs.npy", b"x")
    (folder / "own.yaml").write_text(OWN.replace("FILE", "own.npz"))
    require_answer(rimlit("fit", "--config=own.yaml", *SPEED, *SHORT), {3}, "a way out of the archive")
