"""Laws over every shipped config."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rimlit.checkpoints import read_checkpoint
from rimlit.cli.configs import config_names, configs_folder
from rimlit.cli.settings import with_sizes
from rimlit.data import DataModule
from rimlit.spec import build, find_class, to_spec
from rimlit.tasks import Task
from tests.cli.running import QUIET, UNTRACKED, read_json, succeed, terminate
from tests.cli.stand_ins import STAND_INS

NAMES = [name for name in config_names() if not name.startswith("trainer/")]
PAIRS = sorted(
    (f"{dataset}/rim", name)
    for name in NAMES
    for dataset, _, stem in [name.rpartition("/")]
    if stem not in ("rim", "rim_objects", "schemata")
    and f"{dataset}/rim" in NAMES  # these have other encoders and heads
)
BACKBONES = ("MinGRU", "NTM", "DNC", "RMC", "EntNet", "Transformer")
SMALL = {
    "BouncingBalls": (
        "--data.batch_size=2",
        "--data.val_size=2",
        "--data.test_size=2",
        "--data.frame_size=16",
        "--data.num_workers=0",
    ),
    "BlinkingBalls": (
        "--data.batch_size=2",
        "--data.val_size=2",
        "--data.test_size=2",
        "--data.frame_size=16",
        "--data.train_length=4",
        "--data.test_lengths=[4,6]",
    ),
    "Adding": (
        "--data.batch_size=2",
        "--data.val_size=2",
        "--data.test_size=2",
        "--data.train_length=8",
        "--data.test_lengths=[8,12]",
    ),
    "SequentialImages": ("--data.batch_size=2", "--data.image_size=4", "--data.test_sizes=[4,6]"),
    "Copying": ("--data.batch_size=2", "--data.samples_per_span=2", "--data.val_size=2", "--data.test_size=2"),
    "Experience": (
        "--data.num_environments=2",
        "--data.batch_size=1",
        "--data.rollout_length=8",
        "--data.val_episodes=2",
        "--data.test_episodes=2",
        "--data.floor_episodes=1",
        '--data.options={"max_episode_steps":6}',
    ),
    "Frames": ("--data.batch_size=2",),
    "Sequences": ("--data.batch_size=2",),
    "Series": ("--data.batch_size=2", "--data.window=8", "--data.horizon=3", "--model.num_paths=2"),
    "Text": ("--data.batch_size=2", "--data.eval_batch_size=2", "--data.chunk_length=8", "--data.size_limit=400"),
}


# all backbones where states are carried or reset; elsewhere each twice, and each kind of data at least twice
BASELINES = [
    *((backbone, dataset) for dataset in ("language", "cartpole") for backbone in BACKBONES),
    *(("NTM", "adding"), ("DNC", "bouncing_balls"), ("RMC", "sequences"), ("EntNet", "sequential_mnist")),
    *(("Transformer", "adding"), ("NTM", "bouncing_balls"), ("DNC", "sequences"), ("RMC", "sequential_mnist")),
    *(("EntNet", "adding"), ("Transformer", "bouncing_balls"), ("MinGRU", "sequences"), ("MinGRU", "adding")),
]


def content_of(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((configs_folder() / f"{name}.yaml").read_text())
    return content


def class_name(name: str) -> str:
    """The data module of a config."""
    found: str = content_of(name)["data"]["class_path"].split(".")[-1]
    return found


def small(name: str) -> tuple[str, ...]:
    return SMALL[class_name(name)]


@pytest.fixture
def texts(folder: Path) -> Path:
    """The working directory, with small data wherever a config looks for some."""
    for name in NAMES:
        given = content_of(name)["data"].get("init_args", {}).get("path")
        if given is not None and not (folder / given).exists():
            assert given.startswith("data/"), "a path of one machine"
            STAND_INS[class_name(name)](folder / given)
    return folder


@pytest.mark.parametrize("name", config_names())
def test_a_config_begins_with_what_it_is_and_how_to_run_it(name: str) -> None:
    lines = (configs_folder() / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ") and len(lines[0]) > 10
    header = [line for line in lines[:6] if line.startswith("#")]
    if name.startswith("trainer/"):
        assert "--config" in " ".join(header)
        assert list(content_of(name)) == ["trainer"]
    else:
        assert any(f"rimlit fit --config configs/{name}.yaml" in line for line in header)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_takes_a_gpu_where_there_is_one(name: str) -> None:
    assert content_of(name).get("trainer", {}).get("accelerator", "auto") == "auto"


@pytest.mark.parametrize("name", NAMES)
def test_a_config_parsed_and_printed_parses_to_the_same(texts: Path, name: str) -> None:
    first = succeed("fit", "--config", name, "--print_config").out
    (texts / "printed.yaml").write_text(first)
    assert succeed("fit", "--config=printed.yaml", "--print_config").out == first
    printed = yaml.safe_load(first)
    given = content_of(name)
    assert printed["trainer"]["max_steps"] == given["trainer"].get("max_steps", -1)
    for part in ("model", "data"):
        for key, value in given[part].get("init_args", {}).items():
            if not isinstance(value, dict):
                assert printed[part]["init_args"][key] == value


@pytest.mark.parametrize("name", [name for name in config_names() if name.startswith("trainer/")])
def test_a_trainer_config_parses_behind_another(folder: Path, name: str) -> None:
    printed = yaml.safe_load(succeed("fit", "--config=copying/rim", "--config", name, "--print_config").out)
    for key, value in content_of(name)["trainer"].items():
        assert printed["trainer"][key] == value


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_config_runs_a_few_steps(texts: Path, name: str) -> None:
    succeed(
        "fit",
        "--config",
        name,
        "--config=trainer/quick",
        "--trainer.max_steps=2",
        *small(name),
        *QUIET,
        *UNTRACKED,
    )
    dataset, stem = name.split("/")[-2:]
    prefix = "-".join([*name.split("/")[:-2], ""])
    results = read_json(texts / "runs" / dataset / f"{prefix}{stem}-seed0" / "results.json")
    assert results["steps"] == 2
    assert results["test"]


def one_config_per_task() -> list[str]:
    tasks = {content_of(name)["model"]["class_path"]: name for name in reversed(NAMES)}
    return sorted(tasks.values())


@pytest.mark.parametrize(
    ("precision", "accelerator"),
    [
        pytest.param("bf16-mixed", "cpu", marks=pytest.mark.slow),
        pytest.param("bf16-mixed", "gpu", marks=pytest.mark.gpu),
        pytest.param("16-mixed", "gpu", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("name", one_config_per_task())
def test_every_task_trains_in_mixed_precision(texts: Path, name: str, precision: str, accelerator: str) -> None:
    command = ("fit", "--config", name, "--config=trainer/quick", "--trainer.max_steps=2", *small(name), *QUIET)
    mixed = (f"--trainer.precision={precision}", f"--trainer.accelerator={accelerator}", "--trainer.devices=1")
    succeed(*command, *UNTRACKED, *mixed)
    (results,) = texts.rglob("results.json")
    scores = read_json(results)["test"]
    assert scores and all(torch.tensor(value).isfinite() for value in scores.values())


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "dataset"), BASELINES)
def test_a_baseline_stands_where_the_rim_stood(texts: Path, backbone: str, dataset: str) -> None:
    chosen = (f"--model.backbone={backbone}", "--model.backbone.hidden_size=12")
    if (backbone, dataset) == ("Transformer", "cartpole"):  # an agent takes no dropout
        chosen = (*chosen, "--model.backbone.dropout=0")
    given = (*small(f"{dataset}/rim"), *QUIET, *UNTRACKED, "--trainer.max_steps=2", "--name=run")
    succeed("fit", "--config", f"{dataset}/rim", "--config=trainer/quick", *chosen, *given)
    results = read_json(texts / "runs" / dataset / "run" / "results.json")
    assert results["steps"] == 2
    assert results["test"]


def traits(name: str) -> set[Any]:
    """Return what a config is an example of: its settings, and its data with each part of the model."""
    content = content_of(name)
    data, model = content["data"]["class_path"], content["model"]["init_args"]
    parts = {key: value["class_path"] for key, value in model.items() if isinstance(value, dict)}
    rules = model["backbone"].get("init_args", {})
    return {
        *((data, key, path) for key, path in parts.items()),
        *((data, key) for key in content["data"].get("init_args", {})),
        *(("model", key) for key in model),
        *(("trainer", key) for key in content["trainer"]),
        *((parts["backbone"], key) for key in rules),
        (parts["backbone"], rules.get("communication") == "none"),
    }


def resumed_configs() -> list[str]:
    """Return the configs that are needed to try every trait; environments begin new episodes when resumed."""
    left = {name: traits(name) for name in NAMES if class_name(name) != "Experience"}
    found = []
    while any(left.values()):
        best = max(left, key=lambda name: len(left[name]))
        found.append(best)
        covered = left[best]
        left = {name: rest - covered for name, rest in left.items()}
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", resumed_configs())
def test_a_config_s_run_goes_on_exactly_where_it_was_stopped(texts: Path, name: str) -> None:
    command = ("fit", "--config", name, "--config=trainer/quick", "--trainer.max_steps=4", *small(name), *QUIET)
    options = (*UNTRACKED, "--trainer.log_every_n_steps=1", "--test_after_fit=false")
    succeed(*command, *options, "--name=whole")
    terminate(2, *command, *options, "--name=parts")
    succeed(*command, *options, "--name=parts")
    runs = texts / "runs" / name.split("/")[-2]
    whole, parts = (read_checkpoint(runs / run / "checkpoints/last.ckpt") for run in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 4
    for key, tensor in whole["state_dict"].items():
        assert torch.equal(parts["state_dict"][key], tensor), key


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_pair_differs_in_the_backbone_only(pair: tuple[str, str]) -> None:
    rim, other = map(content_of, pair)
    first, second = (config["model"]["init_args"].pop("backbone") for config in (rim, other))
    assert first["class_path"] == "rimlit.backbones.RIM"
    name = second["class_path"].removeprefix("rimlit.backbones.")
    assert name.lower() == pair[1].rpartition("/")[2].removesuffix("_paper")
    assert rim == other


# the paper's own pairs are not of equal size, and a BRIM's width goes in steps of its mechanisms
@pytest.mark.parametrize(
    "pair",
    [pair for pair in PAIRS if not pair[0].startswith("paper/") and not pair[1].endswith("/brim")],
    ids="-".join,
)
def test_a_pair_has_parameters_equal_within_2_percent(texts: Path, pair: tuple[str, str]) -> None:
    counts = []
    for name in pair:
        content = content_of(name)
        data = build(to_spec(content["data"], "data"), DataModule)
        task = to_spec(content["model"], "model")
        task["init_args"] = with_sizes(find_class(task["class_path"], Task), task["init_args"], data)
        if class_name(name) == "Text":
            task["init_args"]["vocabulary_size"] = 10  # a text's many tokens, which both have, would hide much
        counts.append(sum(parameter.numel() for parameter in build(task, Task).parameters()))
    assert counts[1] == pytest.approx(counts[0], rel=0.02)


def test_there_are_pairs_to_compare() -> None:
    baselines = {name.partition("/")[2] for _, name in PAIRS if name.startswith("copying/")}
    assert baselines >= {"lstm", "gru", "rnn", "mingru", "ntm", "dnc", "rmc", "entnet", "transformer"}
    datasets = {name.partition("/")[0] for _, name in PAIRS if name.endswith("/lstm")}
    assert datasets >= {
        "adding",
        "bouncing_balls",
        "language",
        "mnist",
        "sequential_mnist",
        "tinyshakespeare",
        "wikitext-2",
    }
