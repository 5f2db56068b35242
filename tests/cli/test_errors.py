"""A user's mistake: its exit code, and one message that names key, value and what is allowed."""

import gzip
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rimlit.cli import SUBCOMMANDS
from tests.cli.running import COPYING, LANGUAGE, QUIET, SMALL_RIM, UNTRACKED, Answer, read_json, rimlit

BACKBONE = "--model.init_args.backbone"
RIM = f"{BACKBONE}.init_args"
OPTIMIZER = "--model.init_args.optimizer"


def refused(answer: Answer, code: int, *words: str) -> str:
    """Check that an answer is one message with all ``words``, and return it."""
    assert answer.code == code, answer.err
    assert answer.err.startswith("rimlit: error: ")
    assert answer.err.count("\n") == 1 and answer.err.endswith("\n"), "one message, on one line"
    assert "Traceback" not in answer.err and "NestedArg" not in answer.err
    missing = [word for word in words if word not in answer.err]
    assert not missing, f"{missing} not in: {answer.err}"
    return answer.err


def flipped(data: bytes) -> bytes:
    """The data with a bit of its checksum flipped."""
    return data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]


def nothing_is_left(folder: Path) -> bool:
    return not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        # unknown keys
        (f"{RIM}.num_activ=3", ["'num_activ' is not a setting of RIM", "Did you mean num_active"]),
        (f"{BACKBONE}.num_activ=3", ["'num_activ' is not a setting of RIM", "Did you mean num_active"]),
        ("--model.embeding_size=3", ["'embeding_size' is not a setting of CopyingTask", "mean embedding_size?"]),
        ("--data.test_span=[3]", ["'test_span' is not a setting of Copying", "Did you mean test_spans", "It has"]),
        (f"{OPTIMIZER}.init_args.lrr=1", ["'lrr' is not a setting of Adam", "Did you mean lr?"]),
        ("--trainer.max_epoch=3", ["'trainer.max_epoch' is not a setting", "Did you mean trainer.max_epochs"]),
        ("--seed_everythin=3", ["'seed_everythin' is not a setting", "Did you mean seed_everything?"]),
        # unknown classes
        ("--model=CopingTask", ["model: 'CopingTask' is not a known class", "Did you mean CopyingTask?"]),
        ("--model=rimlit.tasks.CopingTask", ["'rimlit.tasks.CopingTask'", "Did you mean CopyingTask?"]),
        ("--model.class_path=rimlit.tasks.CopingTask", ["model: ", "CopingTask'", "Did you mean CopyingTask?"]),
        (f"{BACKBONE}=RIMM", ["model.backbone: 'RIMM'", "Did you mean RIM, BRIM?", "There are "]),
        (f"{BACKBONE}.class_path=rimlit.backbones.RIMM", ["model.backbone: ", "RIMM'", "Did you mean RIM, BRIM?"]),
        (f"{BACKBONE}=torch.nn.LSTM", ["model.backbone: 'torch.nn.LSTM'", "There are "]),
        ("--model.head=SumHed", ["model.head: 'SumHed'", "Did you mean SumHead", "AttentionHead, "]),
        ("--model.head=TiedHead", ["model.head: 'TiedHead'", "AttentionHead, "]),
        ("--model.head={class_path: SumHead, init_args: {hiden_size: 3}}", ["'hiden_size'", "mean hidden_size"]),
        (f"{OPTIMIZER}=Adm", ["model.optimizer: 'Adm'", "Did you mean Adam"]),
        ("--model.scheduler=WarmupCosin", ["model.scheduler: 'WarmupCosin'", "Did you mean WarmupCosine?"]),
        ("--data=Copyin", ["data: 'Copyin'", "Did you mean Copying?", "There are ", "Copying, ", "Text"]),
        ("--data.class_path=rimlit.data.Copyin", ["data: ", "Copyin'", "Did you mean Copying?"]),
        ("--trainer.callbacks+=EarlyStoping", ["'EarlyStoping'", "Did you mean EarlyStopping?"]),
        ("--trainer.logger=TensorBordLogger", ["'TensorBordLogger'", "Did you mean TensorBoardLogger?"]),
        # wrong types
        (f"{RIM}.num_active=four", ["model.backbone.num_active must be int; got four."]),
        (f"{OPTIMIZER}.init_args.lr=fast", ["model.optimizer.lr must be float; got fast."]),
        ("--data.batch_size=lots", ["data.batch_size must be int; got lots."]),
        ("--data.test_spans=5", ["data.test_spans must be list; got 5."]),
        ("--trainer.max_steps=many", ["trainer.max_steps must be int; got many."]),
        ("--seed_everything=abc", ["seed_everything must be", "int; got abc."]),
        # values that are none of a few
        (f"{RIM}.cell=gruu", ["cell must be one of gru, lstm, schemata, or a class path; got cell='gruu'."]),
        (
            f"{RIM}.preset=papr",
            ["model.backbone.preset must be one of 'paper', 'official', 'dynamic', 'sparse'; got papr."],
        ),
        ("--trainer.precision=7", ["trainer.precision must be one of", "'bf16-mixed'", "got 7."]),
        ("--trainer.accelerator=tpuu", ["trainer: ", "accelerator='tpuu'", "cpu"]),
        ("--trainer.accelerator=gpu", ["trainer.accelerator='gpu' needs a GPU", "allowed are auto and cpu"]),
        ("--trainer.accelerator=tpu", ["trainer: ", "torch_xla"]),
        ("--trainer.overfit_batches=2", ["trainer.overfit_batches=2 needs", "set data.train_size."]),
        ("--trainer.limit_train_batches=0.1", ["trainer.limit_train_batches=0.1 needs", "data.train_size."]),
        ("--trainer.devices=0", ["trainer: ", "devices='0'", "cpu"]),
        ("--trainer.log_every_n_steps=-1", ["trainer.log_every_n_steps must be at least 0; got -1."]),
        ("--trainer.gradient_clip_val=-1", ["trainer.gradient_clip_val must be at least 0; got -1"]),
        ("--trainer.val_check_interval=0", ["trainer.val_check_interval must be above 0; got 0."]),
        ("--trainer.check_val_every_n_epoch=0", ["trainer.check_val_every_n_epoch must be at least 1; got 0."]),
        ("--trainer.limit_train_batches=0", ["trainer.limit_train_batches must be above 0; got 0."]),
        ("--trainer.limit_val_batches=2.5", ["trainer: ", "2.5 for limit_val_batches", "[0.0, 1.0] or an int"]),
        ("--name=../mine", ["name must be that of a folder, without a way to it; got name='../mine'."]),
        ("--seed_everything=null", ["seed_everything must be", "got None."]),
        ("--seed_everything=true", ["seed_everything must be between 0 and 2**32 - 1; got seed_everything=True."]),
        ("--trainer.default_root_dir=/", ["trainer.default_root_dir must be a folder below the root; got '/'."]),
        ("--seed_everything=-1", ["seed_everything must be between 0 and 2**32 - 1; got seed_everything=-1."]),
        ("--trainer.strategy=dpp", ["trainer: ", "strategy='dpp'", "ddp"]),
        ("--trainer.precision=16-mixed", ["trainer.precision='16-mixed' needs a GPU", "bf16-mixed"]),
        # values out of range
        (f"{RIM}.num_active=7", ["num_active must be between 1 and num_mechanisms; got num_active=7", "=3."]),
        (f"{RIM}.hidden_size=25", ["hidden_size must be divisible by num_mechanisms; got hidden_size=25"]),
        ("--data.train_span=0", ["train_span must be at least 1; got train_span=0."]),
        ("--data.test_spans=[5,0]", ["test_spans[1] must be at least 1; got test_spans[1]=0."]),
        ("--data.batch_size=0", ["batch_size must be at least 1; got batch_size=0."]),
        ("--trainer.max_steps=-1", ["no end", "trainer.max_steps", "data.train_size", "got max_steps=-1."]),
        # a size that the data knows
        ("--model.vocabulary_size=12", ["model.vocabulary_size comes from the data module", "10", "=12."]),
    ],
)
def test_a_wrong_setting_is_one_message_and_leaves_nothing(folder: Path, option: str, words: list[str]) -> None:
    refused(rimlit("fit", *COPYING, *UNTRACKED, option), 2, *words)
    assert nothing_is_left(folder)


def test_a_setting_that_only_the_optimizer_can_judge_is_one_message_too(folder: Path) -> None:
    answer = rimlit("fit", *COPYING, *UNTRACKED, f"{OPTIMIZER}.init_args.lr=-1")
    refused(answer, 2, "Adam: Invalid learning rate: -1.0; got lr=-1.0.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainer: {max_epoch: 2}", ["'trainer.max_epoch' is not a setting", "Did you mean trainer.max_epochs"]),
        ("modle: {class_path: CopyingTask}", ["'modle' is not a setting", "Did you mean model"]),
        (
            "model: {init_args: {backbone: {init_args: {num_activ: 2}}}}",
            ["'num_activ'", "Did you mean num_active"],
        ),
        ("data: {init_args: {batch_size: lots}}", ["data.batch_size must be int; got lots."]),
        ("seed_everything: null", ["seed_everything must be between 0 and 2**32 - 1; got seed_everything=None."]),
        ("data: {init_args: {batch_size: 0}}", ["batch_size must be at least 1; got batch_size=0."]),
        ("model: {init_args: {recall_length: 12}}", ["model.recall_length comes from the data module", "=12."]),
        ("model: [1, 2\ntrainer: {", ["config='own.yaml' is not valid YAML", "line 2"]),
        ("data: {}\nmodel: {}\ndata: {}\n", ["config='own.yaml'", "the key 'data' occurs twice", "line 3"]),
        (
            "data: {init_args: {batch_size: 2, seed: 1, batch_size: 3}}\n",
            ["config='own.yaml'", "the key 'batch_size' occurs twice", "line 1"],
        ),
        ("- 1\n- 2\n", ["config='own.yaml' must hold keys such as model, data and trainer; got [1, 2]."]),
        ("", ["config='own.yaml' must hold keys", "got None."]),
        ("? [a, b]\n: 1\n", ["config='own.yaml' is not valid YAML", "unhashable key"]),
        ("model: 2020-13-45\n", ["config='own.yaml' is not valid YAML", "month must be in 1..12"]),
    ],
)
def test_a_mistake_in_a_file_is_told_as_one_on_the_command_line(folder: Path, text: str, words: list[str]) -> None:
    (folder / "own.yaml").write_text(text)
    refused(rimlit("fit", *COPYING, "--config=own.yaml"), 2, *words)
    assert nothing_is_left(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["fitt"],
            ["'fitt' is not a command", ", ".join(SUBCOMMANDS), "Did you mean fit?"],
        ),
        (["--verson"], ["'--verson' is not a command"]),
        (["fit"], ["data, model must be given, by --config", "rimlit configs"]),
        (["test"], ["data, model must be given, by --config"]),
        (["fit", "--config"], ["--config", "expected one argument"]),
        (["fit", "--trust"], ["--trust needs the name of a package"]),
        (
            ["fit", "--config=copying/rimm"],
            ["config='copying/rimm'", "shipped config", "Did you mean copying/rim,"],
        ),
        (["fit", "--config", "qqqqqqqq"], ["config='qqqqqqqq'", "'rimlit configs' lists them"]),
        (["configs", "copying/rmi"], ["config='copying/rmi'", "Did you mean copying/", "copying/rim"]),
        (["--print_completion=zsh"], ["--print_completion", "'zsh'", "shtab-zsh"]),
    ],
)
def test_a_wrong_command_is_one_message(folder: Path, arguments: list[str], words: list[str]) -> None:
    refused(rimlit(*arguments), 2, *words)
    assert nothing_is_left(folder)


OWN_CONFIG = """\
model:
  class_path: rimlit.tasks.CopyingTask
  init_args:
    backbone:
      class_path: mischief.Own
      init_args: {hidden_size: 8}
data: {class_path: rimlit.data.Copying}
trainer: {max_steps: 2}
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=own.yaml"],
        [*COPYING, f"{BACKBONE}=mischief.Own"],
        [*COPYING, "--model=mischief.Own"],
        [*COPYING, "--data=mischief.Own"],
        [*COPYING, "--trainer.callbacks+=mischief.Own"],
        [*COPYING, f"{OPTIMIZER}=mischief.Own"],
    ],
)
def test_a_class_outside_the_trusted_packages_is_refused_and_never_imported(
    folder: Path, arguments: list[str]
) -> None:
    (folder / "mischief.py").write_text("raise SystemError('imported')\n")
    (folder / "own.yaml").write_text(OWN_CONFIG)
    words = ["class_path='mischief.Own' is outside the trusted packages", "--trust mischief", "RIMLIT_TRUST"]
    refused(rimlit("fit", *arguments), 2, *words)
    assert "mischief" not in sys.modules


def test_a_config_cannot_trust_itself(folder: Path) -> None:
    (folder / "mischief.py").write_text("raise SystemError('imported')\n")
    (folder / "own.yaml").write_text(f"trust: mischief\n{OWN_CONFIG}")
    refused(rimlit("fit", "--config=own.yaml"), 2, "is outside the trusted packages")
    assert "mischief" not in sys.modules


# Data: exit code 3


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        ({}, [], ["path='novel' does not exist", ".txt"]),
        ({"notes.md": "text"}, [], ["path='novel' must hold train, valid and test", "found: none"]),
        ({"a.txt": ""}, [], ["The train text of novel is empty"]),
        (
            {"a.txt": "abc\n" * 9},
            ["--data.batch_size=99"],
            ["has", "tokens, fewer than the 99 rows", "batch_size=99"],
        ),
        (
            {"train.txt": "abc\n" * 9, "valid.txt": "abc\n" * 9, "test.txt": "abz\n" * 9},
            [],
            ["The test text of novel", "the character 'z'", "4 tokens of the training text"],
        ),
        (
            {"train.txt": "a b\n" * 9, "valid.txt": "a b\n" * 9, "test.txt": "a z\n" * 9},
            ["--data.level=word"],
            ["the word 'z'", "min_count=2"],
        ),
        ({"a.txt": b"\xff\xfe\x00\x81" * 40}, [], ["novel/a.txt is not UTF-8 text: it is UTF-16"]),
        ({"a.txt.gz": b"not compressed"}, [], ["novel/a.txt.gz cannot be read"]),
        ({"a.txt.gz": gzip.compress(b"abc\n" * 99)[:-9]}, [], ["novel/a.txt.gz cannot be read", "ended before"]),
        ({"a.txt.gz": flipped(gzip.compress(b"abc\n" * 99))}, [], ["novel/a.txt.gz cannot be read", "CRC"]),
    ],
)
def test_unusable_text_is_one_message_with_exit_code_3(
    folder: Path, texts: dict[str, str | bytes], options: list[str], words: list[str]
) -> None:
    for name, text in texts.items():
        (folder / "novel").mkdir(exist_ok=True)
        (folder / "novel" / name).write_bytes(text.encode() if isinstance(text, str) else text)
    refused(rimlit("fit", *LANGUAGE, *options), 3, *words)
    assert nothing_is_left(folder)


OWN_DATA = """\
import torch
from rimlit.data import Copying


class OwnData(Copying):
    name = "own"
    wrong = {wrong}

    def datasets(self, split):
        datasets = super().datasets(split)
        for dataset in datasets.values():
            if split == {split!r}:
                dataset.__class__ = Wrong
        return datasets


class Wrong(type(Copying().datasets("train")[""])):
    def __getitems__(self, indices):
        samples = super().__getitems__(indices)
        return [OwnData.wrong if index == {index} else sample for index, sample in zip(indices, samples)]
"""
TOO_MUCH = "(torch.arange(25) % 12, torch.zeros(25, dtype=torch.long))"
LONG = "(torch.zeros(2, 25, dtype=torch.long), torch.zeros(25, dtype=torch.long))"


@pytest.mark.parametrize(
    ("split", "index", "wrong", "words", "is_seen_at_once"),
    [
        ("train", 0, TOO_MUCH, ["The train data of OwnData: sample 0 has 10", "at step 10", "0 and 9"], True),
        ("test", 0, TOO_MUCH, ["The test data of OwnData: sample 0 has 10", "at step 10", "0 and 9"], True),
        ("train", 6, TOO_MUCH, ["The train data of OwnData: sample 6 has 10", "at step 10", "0 and 9"], False),
        ("val", 3, LONG, ["The val data of OwnData: sample 3 is (int64 (2, 25), int64 (25,))"], False),
    ],
)
def test_a_sample_that_cannot_be_used_is_one_message_with_exit_code_3(
    folder: Path, store: str, split: str, index: int, wrong: str, words: list[str], is_seen_at_once: bool
) -> None:
    module = f"own_{split}_{index}"
    (folder / f"{module}.py").write_text(OWN_DATA.format(wrong=wrong, split=split, index=index))
    own = (f"--trust={module}", f"--data={module}.OwnData", "--test_after_fit=false")
    answer = rimlit("fit", *COPYING[:2], *SMALL_RIM, *own, "--data.train_span=5", "--data.batch_size=4", *QUIET)
    assert answer.code == 3 and "Traceback" not in answer.err
    refused(answer._replace(err=answer.err[answer.err.index("rimlit: error") :]), 3, *words)
    if is_seen_at_once:
        assert nothing_is_left(folder)
    else:
        run = folder / "runs/copying/rim-seed0"
        run_id = read_json(run / "tracking.json")["mlflow_run_id"]
        assert MlflowClient(store).get_run(run_id).info.status == "FAILED"
        assert read_json(run / "run_state.json")["status"] == "failed"


def test_a_prompt_with_an_unknown_character_is_one_message_with_exit_code_3(language: Path) -> None:
    answer = rimlit("predict", "--ckpt_path", language / "checkpoints/best.ckpt", "--data.prompt=Ω")
    refused(answer, 3, "prompt='Ω' holds the character 'Ω'")


# Checkpoints: exit code 4


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_command_without_a_trained_run_is_one_message_with_exit_code_4(folder: Path, command: str) -> None:
    answer = rimlit(command, *COPYING[:1])
    refused(answer, 4, "runs/copying/rim-seed0/checkpoints/best.ckpt", "Train first", "--ckpt_path")
    assert nothing_is_left(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["test", "--ckpt_path=none.ckpt"], ["No checkpoint at none.ckpt."]),
        (["test", "--ckpt_path=garbage.ckpt"], ["garbage.ckpt cannot be read as a checkpoint", "damaged"]),
        (["fit", *COPYING, "--ckpt_path=garbage.ckpt"], ["garbage.ckpt cannot be read as a checkpoint"]),
        (["fit", *COPYING, "--resume=garbage.ckpt"], ["garbage.ckpt cannot be read as a checkpoint"]),
        (["fit", *COPYING, "--resume=none.ckpt"], ["No checkpoint at none.ckpt."]),
        (["fit", *COPYING, "--ckpt_path=last"], ["ckpt_path='last'", "rim-seed0/checkpoints/last.ckpt"]),
        (["test", *COPYING, "--ckpt_path=last"], ["ckpt_path='last'", "rim-seed0/checkpoints/last.ckpt"]),
        (["test", "--ckpt_path=https://example.org/x.ckpt"], ["local files", "https://example.org/x.ckpt"]),
        (["test", "--ckpt_path=other.ckpt"], ["other.ckpt is not a checkpoint that rimlit wrote"]),
    ],
)
def test_an_unusable_checkpoint_is_one_message_with_exit_code_4(
    folder: Path, arguments: list[str], words: list[str]
) -> None:
    import torch

    (folder / "garbage.ckpt").write_text("garbage")
    torch.save({"state_dict": {}}, folder / "other.ckpt")
    refused(rimlit(*arguments), 4, *words)
    assert nothing_is_left(folder)


def test_a_folder_without_a_whole_checkpoint_is_refused_and_what_was_passed_over_named(folder: Path) -> None:
    (folder / "garbage.ckpt").write_text("garbage")
    answer = rimlit("fit", *COPYING, "--resume=.")
    passed_over, error = answer.err.splitlines()
    assert passed_over.startswith("Passed over: garbage.ckpt cannot be read as a checkpoint")
    assert error.startswith("rimlit: error: resume='.': there is no intact checkpoint in .")
    assert answer.code == 4
    assert nothing_is_left(folder)


def test_a_checkpoint_of_another_model_is_one_message_with_exit_code_4(copying: Path) -> None:
    small = COPYING[:2] + COPYING[5:]  # the config's own sizes
    answer = rimlit("test", *small, *UNTRACKED, "--ckpt_path", copying / "checkpoints/best.ckpt")
    refused(answer, 4, "best.ckpt")


def test_the_best_of_a_run_that_was_not_validated_is_told_from_a_run_that_was_not_trained(copying: Path) -> None:
    (copying / "checkpoints/best.ckpt").unlink()
    for given in ([], ["--ckpt_path=best"]):
        refused(rimlit("test", *COPYING, *given), 4, "best.ckpt", "not validated", "--ckpt_path last")


# The traceback


@pytest.mark.parametrize("option", ["--data.batch_size=0", f"{RIM}.num_activ=3"])
def test_the_debug_switch_brings_the_traceback_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("RIMLIT_DEBUG", "1")
    answer = rimlit("fit", *COPYING, option)
    assert answer.code == 2
    assert answer.err.startswith("Traceback") and "ConfigError" in answer.err
    assert answer.err.splitlines()[-1].startswith("rimlit: error: ")


def test_an_interruption_before_the_run_listens_is_one_line_with_exit_code_130(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rimlit.cli._dispatch", interrupt)
    answer = rimlit("fit", *COPYING)
    assert (answer.code, answer.out, answer.err) == (130, "", "rimlit: interrupted\n")
