"""Five steps of training give the losses they gave when the golden curves were written."""

import pytest

from tests.golden.refresh import CURVES, FOLDER, NUM_STEPS, curve, path_of


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", CURVES)
def test_training_follows_its_golden_curve(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIMLIT_BACKEND", backend)
    expected = [float(line) for line in path_of(name).read_text().split()]
    assert len(expected) == NUM_STEPS + 1
    assert expected[-1] < expected[0]
    assert curve(name) == pytest.approx(expected, rel=1e-9)


def test_every_golden_file_has_a_curve_and_no_two_are_equal() -> None:
    files = sorted(FOLDER.glob("rim_*.txt"))
    assert {file.stem for file in files} == set(CURVES)
    assert len({file.read_text() for file in files}) == len(CURVES)
