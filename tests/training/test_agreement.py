"""Processes of a run agree on settings, data and versions."""

import pytest

from rimlit.data import Copying
from rimlit.errors import ConfigError
from rimlit.training.agreement import facts_of, require_agreement
from tests.tasks.running import make_copying

SETTINGS = {"model": {"init_args": {"optimizer": {"init_args": {"lr": 0.1}}}}, "trainer": {"max_steps": 5}}


class Read(Copying):
    """Data with a content."""

    digest = "a"


def test_processes_that_agree_pass_whatever_their_paths_and_workers() -> None:
    facts = [
        facts_of({**SETTINGS, "data": {"init_args": {"path": path, "num_workers": workers}}}, make_copying())
        for path, workers in (("/scratch/0", 0), ("/scratch/1", 2))
    ]
    require_agreement(facts)


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [
        ("model.init_args.optimizer.init_args.lr", "0.1", "0.2"),
        ("trainer.max_steps", "5", "6"),
        ("seed_everything", "None", "3"),
        ("digest of the data", "'a'", "'b'"),
        ("version of torch", "'1'", "'2'"),
    ],
)
def test_the_first_difference_is_named_with_both_values(
    key: str, before: str, now: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Read(train_span=3, test_spans=[3])
    monkeypatch.setattr("torch.__version__", "1")
    first = facts_of(SETTINGS, data)
    second = dict(first)
    if now == "None" or key not in second:
        first[key], second[key] = before, now
    else:
        assert second[key] == before
        second[key] = now
    with pytest.raises(ConfigError, match=rf"{key} is {before} in process 0 and {now} in process 2\."):
        require_agreement([first, first, second])
