"""Reinforcement learning by the command line: the same folder, the same commands, environments at fault."""

import csv
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest

from rimlit.training import Checkpointer
from tests.cli.running import (
    QUIET,
    UNTRACKED,
    Answer,
    read_checkpoint,
    read_json,
    rimlit,
    scores_of,
    succeed,
    terminate,
)
from tests.rl.corridor import CORRIDOR

SMALL = (
    *QUIET,
    "--data.num_environments=4",
    "--data.rollout_length=10",
    "--data.num_passes=1",
    "--data.total_steps=120",
    "--data.val_episodes=2",
    "--data.test_episodes=3",
    "--data.predict_episodes=2",
    "--data.floor_episodes=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
)
POLE = ("--config=cartpole/rim", *SMALL, *UNTRACKED)
RUN = Path("runs/cartpole/rim-seed0")


def corridor(fault: str) -> tuple[str, ...]:
    options = f'--data.options={{"fault":"{fault}","at":47,"length":5}}'
    return ("--trust=tests", f"--data.environment={CORRIDOR}", "--data.observed=null", options)


def refused(code: int, *arguments: str | Path) -> str:
    answer: Answer = rimlit(*arguments)
    assert answer.code == code, answer.err
    errors = [line for line in answer.err.splitlines() if line.startswith("rimlit: error: ")]
    assert len(errors) == 1, answer.err
    assert "Traceback" not in answer.err
    return errors[0]


def test_a_run_trains_its_budget_tests_itself_and_is_then_done(folder: Path) -> None:
    answer = succeed("fit", *POLE, "--trainer.logger=true")
    assert "episode return" in answer.out
    with (folder / RUN / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train/env_steps"]) for row in rows if row["train/env_steps"]] == [40, 80, 120]
    results = read_json(folder / RUN / "results.json")
    assert results["steps"] == 3 * 2
    assert results["floor"]["episode_return"] > 5
    assert results["test"]["episode_return"] > 5
    best = read_checkpoint(folder / RUN / "checkpoints/best.ckpt")
    returns = [float(row["val/episode_return"]) for row in rows if row["val/episode_return"]]
    scores = [state["best_score"] for state in best["callbacks"].values() if "best_score" in state]
    assert scores == [max(returns)]
    assert "is done, 6 steps" in (said := succeed("fit", *POLE, "--trainer.logger=true").out)
    assert "--data.total_steps" in said


def test_a_larger_budget_resumes_a_run(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    succeed("fit", *POLE)
    succeed("fit", *POLE, "--data.total_steps=200")
    assert "data.init_args.total_steps was 120 and is 200 from here on" in caplog.text
    last = read_checkpoint(folder / RUN / "checkpoints/last.ckpt")
    assert last["Experience"] == {"env_steps": 200}
    assert last["global_step"] == 5 * 2


def test_a_run_that_was_stopped_is_resumed_with_its_counts_optimiser_and_scale(folder: Path) -> None:
    terminate(3, "fit", *POLE)
    path = folder / RUN / "checkpoints/last.ckpt"
    stopped = read_checkpoint(path)
    assert (stopped["global_step"], stopped["Experience"]["env_steps"]) == (3, 80)
    assert stopped["state_dict"]["encoder.normalization.count"] == 80
    seen: list[dict[str, Any]] = []

    def look(callback: Checkpointer, trainer: L.Trainer, *_: Any) -> None:
        task, state = trainer.lightning_module, trainer.optimizers[0].state
        steps = {int(moments["step"]) for moments in state.values()}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        seen.append({"step": trainer.global_step, "optimiser": steps, "rate": rate, "task": task})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "on_train_batch_end", look, raising=False)
        succeed("fit", *POLE)
    # the second rollout's other minibatch, from a new rollout, then the third's two
    assert [each["step"] for each in seen] == [4, 5, 6]
    assert [each["optimiser"] for each in seen] == [{4}, {5}, {6}]
    # it falls with the last minibatch of a rollout
    assert [each["rate"] for each in seen] == pytest.approx([0.001 / 3, 0.001 / 3, 0])
    finished = read_checkpoint(path)
    assert finished["Experience"]["env_steps"] == 80 + 40 + 40
    assert finished["state_dict"]["encoder.normalization.count"] == 160


def test_a_checkpoint_is_tested_and_predicts_by_itself(folder: Path) -> None:
    succeed("fit", *POLE)
    best = folder / RUN / "checkpoints/best.ckpt"
    wanted = scores_of(folder / RUN)
    succeed("test", "--ckpt_path", best, *QUIET, *UNTRACKED)
    assert scores_of(folder / RUN) == wanted
    succeed("predict", "--ckpt_path", best, *QUIET, *UNTRACKED)
    lines = (folder / RUN / "predictions.jsonl").read_text().splitlines()
    files = sorted((folder / RUN / "episodes").iterdir())
    assert len(lines) == len(files) == 2
    with np.load(files[0]) as episode:
        assert episode["observations"].shape[1:] == (2,)


def test_other_environments_are_tested_by_name(folder: Path) -> None:
    succeed("fit", *POLE, "--trainer.max_epochs=1", "--test_after_fit=false")
    named = '--data.test_environments=["CartPole-v0","CartPole-v1"]'
    succeed("test", "--ckpt_path", RUN / "checkpoints/best.ckpt", named, *QUIET, *UNTRACKED)
    assert {"CartPole-v0/episode_return", "CartPole-v1/episode_return"} <= scores_of(folder / RUN).keys()


def test_continuous_actions_are_trained_on(folder: Path) -> None:
    pendulum = (
        "--data.environment=Pendulum-v1",
        "--data.observed=[0,1]",
        '--data.options={"max_episode_steps":9}',
    )
    succeed("fit", *POLE, *pendulum, "--trainer.max_epochs=1")
    assert scores_of(folder / RUN)["episode_length"] == 9


def test_an_unknown_environment_is_answered_with_the_nearest(folder: Path) -> None:
    said = refused(2, "fit", *POLE, "--data.environment=CartPol-v1")
    assert "environment='CartPol-v1'" in said
    assert "Did you mean CartPole-v1" in said


def test_a_missing_extra_is_answered_with_the_command_that_installs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert "pip install '.[rl]'" in refused(2, "fit", *POLE)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--data.num_environments=5",), "num_environments=5, batch_size=2"),
        (
            ("--trust=tests", "--data.environment=tests.rl.quadrants.Strange", "--data.observed=null"),
            "actions of a kind that PPOTask does not support",
        ),
        (
            ("--data.observed=[9]",),
            "observed must name places of what CartPole-v1 shows, 0 to 3; got observed=[9]",
        ),
        (('--data.options={"gravity":1}',), "CartPole-v1 with gravity=1"),
        (("--data.environment=os.system",), "outside the trusted packages"),
        (("--data.wrappers=[os.system]",), "outside the trusted packages"),
        (
            ('--data.test_environments=["Pendulum-v1"]', "--data.observed=[0,1]"),
            "of another kind than CartPole-v1",
        ),
        (("--model.backbone.init_args.input_dropout=0.1",), "PPOTask needs input_dropout=0"),
        (("--model.clip=-1",), "clip must be above 0; got clip=-1"),
        (("--trainer.precision=64-true",), "needs trainer.precision 32-true, 16-mixed or bf16-mixed; got 64-true"),
        (("--trainer.overfit_batches=1",), "trainer.overfit_batches=1 needs epochs of known length"),
        (("--trainer.limit_train_batches=0.5",), "trainer.limit_train_batches=0.5 needs epochs of known length"),
    ],
)
def test_a_setting_that_cannot_be_is_one_message(folder: Path, options: tuple[str, ...], says: str) -> None:
    assert says in refused(2, "fit", *POLE, *options)
    assert not (folder / RUN / "checkpoints").exists()


def test_a_policy_of_choices_is_not_taken_to_an_environment_of_continuous_actions(folder: Path) -> None:
    succeed("fit", *POLE, "--trainer.max_epochs=1", "--test_after_fit=false")
    other = ("--data.environment=Pendulum-v1", "--data.observed=[0,1]")
    said = refused(2, "test", "--ckpt_path", RUN / "checkpoints/last.ckpt", *other, *QUIET, *UNTRACKED)
    assert "environment='Pendulum-v1' has num_actions=None; the model was made for num_actions=2" in said
    other = ("--data.environment=Acrobot-v1", "--data.observed=[0,1]")
    said = refused(2, "test", "--ckpt_path", RUN / "checkpoints/last.ckpt", *other, *QUIET, *UNTRACKED)
    assert "environment='Acrobot-v1' has num_actions=3; the model was made for num_actions=2" in said


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("raises", "raised at step 47: RuntimeError: the motor is hot"),
        pytest.param("nan", "returned an observation of nan at step 47", marks=pytest.mark.slow),
        pytest.param("shape", "returned an observation of shape (3,)", marks=pytest.mark.slow),
    ],
)
def test_an_environment_at_fault_is_named_and_leaves_the_checkpoint_before_it(
    folder: Path, fault: str, says: str
) -> None:
    """In the fifth rollout of ten steps; evaluation ends its episodes before."""
    options = (*POLE, "--data.total_steps=400", *corridor(fault))
    said = refused(3, "fit", *options)
    assert f"{CORRIDOR}: environment 0 {says}" in said
    last = read_checkpoint(folder / RUN / "checkpoints/last.ckpt")
    assert last["Experience"]["env_steps"] == 3 * 40  # the fourth rollout was about to be trained on
    state = read_json(folder / RUN / "run_state.json")
    assert state["status"] == "failed"
    assert says.split(":")[0] in state["reason"]
    succeed("fit", *options[:-1], '--data.options={"fault":"","length":5}', "--allow_changes=true")
    assert read_checkpoint(folder / RUN / "checkpoints/last.ckpt")["Experience"]["env_steps"] == 400
