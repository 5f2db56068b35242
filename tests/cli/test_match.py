"""``--match``: the width that makes a model as large as another, solved when the settings are read."""

import shutil
from pathlib import Path

import pytest
import yaml

from rimlit.cli.configs import configs_folder
from tests.cli.running import QUIET, SMALL_COPYING, UNTRACKED, read_json, rimlit, succeed

TARGET_ARGUMENTS = {"hidden_size": 24, "num_mechanisms": 3, "num_active": 2, "input_value_size": 8}
LSTM = ("--config=copying/lstm", "--config=trainer/quick", *SMALL_COPYING[3:], *QUIET, *UNTRACKED)


def backbone_of(config: Path) -> dict[str, int]:
    arguments: dict[str, int] = yaml.safe_load(config.read_text())["model"]["init_args"]["backbone"]["init_args"]
    return arguments


@pytest.fixture
def target(folder: Path) -> Path:
    """A config of a small RIM in the working directory."""
    content = yaml.safe_load((configs_folder() / "copying/rim.yaml").read_text())
    content["model"]["init_args"]["backbone"]["init_args"] = TARGET_ARGUMENTS
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return folder / "small.yaml"


def test_the_solved_width_is_in_the_run_s_config_and_the_run_goes_on_and_is_tested(target: Path) -> None:
    command = ("fit", *LSTM, "--match=params", "--match_to=small.yaml")
    answer = succeed(*command)
    run = target.parent / "runs/copying/lstm-seed0"
    width = backbone_of(run / "config.yaml")["hidden_size"]
    assert f"Matched to small.yaml: hidden_size={width}: " in answer.err
    lstm = read_json(run / "results.json")
    rim = succeed("fit", "--config=small.yaml", *LSTM[1:], "--trainer.max_steps=1", "--name=rim")
    assert f"{read_json(target.parent / 'runs/copying/rim/results.json')['parameters']:,} parameters" in rim.out
    count = read_json(target.parent / "runs/copying/rim/results.json")["parameters"]
    assert count <= lstm["parameters"] < 1.05 * count
    assert {"flops_per_step", "state_size", "active_parameters"} <= lstm.keys()
    assert "is done" in succeed(*command).out
    succeed("test", f"--ckpt_path={run}/checkpoints/best.ckpt", *UNTRACKED, *QUIET)
    succeed("test", *command[1:], "--ckpt_path=best")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], "hidden_size=235: 286,410 parameters, 0.51 % more than 284,944."),
        (  # an embedding of 8 is the target's too, a forget bias is not
            ["--model.embedding_size=8", "--model.backbone.forget_bias=0.5"],
            "hidden_size=257: 277,650 parameters, 0.16 % more than 277,216.",
        ),
    ],
)
def test_the_target_takes_the_options_of_the_command_but_those_of_the_backbone(
    folder: Path, options: list[str], found: str
) -> None:
    answer = succeed("fit", *LSTM, "--match=params", *options, "--trainer.fast_dev_run=true")
    assert found in answer.err


def test_a_config_may_ask_for_it_and_the_one_beside_is_the_default(target: Path) -> None:
    folder = target.parent
    shutil.copy(target, folder / "rim.yaml")
    content = yaml.safe_load((configs_folder() / "copying/lstm.yaml").read_text())
    (folder / "mine.yaml").write_text(yaml.safe_dump({**content, "match": "state"}))
    answer = succeed("fit", "--config=mine.yaml", *LSTM[1:], "--trainer.fast_dev_run=true")
    assert "hidden_size=24: 48 state values, 0.00 % more than 48." in answer.err


@pytest.mark.parametrize("chosen", ["--model.backbone=GRU", "--model.backbone.num_active=5"])
def test_another_backbone_in_the_target_s_own_config_is_matched_to_it(folder: Path, chosen: str) -> None:
    rim = ("--config=copying/rim", *LSTM[1:], "--match=flops", "--trainer.fast_dev_run=true")
    assert "FLOPs a step, " in succeed("fit", *rim, chosen).err
    answer = rimlit("fit", *rim)
    assert answer.code == 2
    assert "rim.yaml' is the config itself" in answer.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--match=parms"], ["match must be one of 'params', 'flops', 'state'; got parms"]),
        (["--match=params", "--match_to=copying/rimm"], ["config='copying/rimm'", "Did you mean copying/rim"]),
        (["--match=params", "--match_to=copying/lstm"], ["lstm.yaml' is the config itself"]),
        (["--match=params", "--match_to=language/rim"], ["match_to: 'train_span' is not a setting of Text"]),
        (["--match=params", "--model.backbone.hidden_size=20"], ["hidden_size is what match solves"]),
        (["--match=params", "--match_tolerance=-1"], ["match_tolerance must be at least 0"]),
        (["--match=state", "--match_tolerance=0.01", "--match_to=odd.yaml"], ["LSTM does not come within 1 %"]),
        (["--match=params", "--match_to=odd.yaml", "--config=mine.yaml"], ["config='mine.yaml'"]),
    ],
)
def test_a_mistake_is_one_message(target: Path, options: list[str], words: list[str]) -> None:
    content = yaml.safe_load(target.read_text())
    content["model"]["init_args"]["backbone"] = {
        "class_path": "rimlit.backbones.GRU",
        "init_args": {"hidden_size": 3},
    }
    (target.parent / "odd.yaml").write_text(yaml.safe_dump(content))
    answer = rimlit("fit", *LSTM, *options)
    assert answer.code == 2, answer.err
    for word in words:
        assert word in answer.err
    assert not (target.parent / "runs").exists()


def test_without_a_rim_beside_the_target_must_be_named(target: Path) -> None:
    answer = rimlit("fit", "--config=small.yaml", *LSTM[1:], "--match=params")
    assert answer.code == 2
    assert "There is no" in answer.err and "give --match_to CONFIG" in answer.err
