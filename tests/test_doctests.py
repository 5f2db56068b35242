"""The examples in the docstrings run."""

import doctest
import importlib
from pathlib import Path

import pytest

import rimlit

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")

ROOT = Path(rimlit.__file__).parent
MODULES = sorted(
    ".".join(("rimlit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] not in ("cli", "cli.py", "__main__.py")
)


def examples_of(name: str) -> list[doctest.DocTest]:
    if ".triton." in name:
        pytest.importorskip("triton", reason="an extra, and only on Linux")
    module = importlib.import_module(name)
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runner = doctest.DocTestRunner()
    for test in examples_of(name):
        runner.run(test)
    assert runner.failures == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "rimlit.backbones.rim.RIM",
        "rimlit.backbones.lstm.LSTM",
        "rimlit.backbones.gru.GRU",
        "rimlit.backbones.rnn.RNN",
        "rimlit.backbones.mingru.MinGRU",
        "rimlit.backbones.ntm.NTM",
        "rimlit.backbones.dnc.DNC",
        "rimlit.backbones.rmc.RMC",
        "rimlit.backbones.entnet.EntNet",
        "rimlit.backbones.transformer.Transformer",
        "rimlit.data.blinking_balls.BlinkingBalls",
        "rimlit.data.bouncing_balls.BouncingBalls",
        "rimlit.data.adding.Adding",
        "rimlit.comparison.matching.match_parameters",
        "rimlit.comparison.results.Comparison",
        "rimlit.data.copying.Copying",
        "rimlit.data.images.SequentialImages",
        "rimlit.data.sequences.Sequences",
        "rimlit.data.text.Text",
        "rimlit.encoders.objects.ObjectEncoder",
        "rimlit.heads.attention.AttentionHead",
        "rimlit.heads.sum.SumHead",
        "rimlit.rl.experience.Experience",
        "rimlit.rl.observations.VectorEncoder",
        "rimlit.rl.ppo.PPOTask",
        "rimlit.tasks.classification.ClassificationTask",
        "rimlit.tasks.copying.CopyingTask",
        "rimlit.tasks.frame_classification.FrameClassificationTask",
        "rimlit.tasks.frame_prediction.FramePredictionTask",
        "rimlit.tasks.language_modeling.LanguageModelingTask",
        "rimlit.tasks.regression.RegressionTask",
        "rimlit.training.schedules.LinearDecay",
        "rimlit.training.schedules.WarmupCosine",
    ],
)
def test_a_public_class_has_an_example(name: str) -> None:
    module = name.rpartition(".")[0]
    assert name in [test.name for test in examples_of(module)]
