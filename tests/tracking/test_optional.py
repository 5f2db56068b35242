"""What is only for people never decides how a run ends."""

import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL.ImageFont import FreeTypeFont

from rimlit.errors import StoppedError
from rimlit.pictures import activity
from rimlit.pictures.activity import MechanismActivity, draw_activity
from rimlit.pictures.files import font
from rimlit.tracking import LocalMetrics
from rimlit.tracking.imports import import_lock
from rimlit.tracking.optional import optional, protect
from rimlit.tracking.recording import RunFolder, RunRecorder
from tests.tasks.running import SMALL_RIM, make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet


class BrokenLogger(CSVLogger):
    """A logger of the user's that fails in everything."""

    def log_metrics(self, *arguments: Any, **options: Any) -> None:
        raise ConnectionError("no network")

    log_hyperparams = save = finalize = log_metrics  # type: ignore[assignment]


def fit_and_test(folder: Path, *loggers: Any) -> None:
    recorder = RunRecorder(RunFolder(folder), "rimlit fit", "model: mine\n")
    options = {"val_check_interval": 2, "check_val_every_n_epoch": None, "log_every_n_steps": 1}
    trainer = make_trainer(folder, callbacks=[MechanismActivity(), recorder], logger=list(loggers), **options)
    task, data = make_copying_task(backbone=SMALL_RIM), make_copying()
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)


def test_a_logger_that_fails_costs_no_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit_and_test(tmp_path, LocalMetrics(tmp_path), protect(BrokenLogger(tmp_path / "logs")))
    results = RunFolder(tmp_path).read_results()
    assert results["test"] and RunFolder(tmp_path).read_state()["status"] == "finished"
    assert "train/loss" in (tmp_path / "metrics.csv").read_text()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len([line for line in said if "The logger BrokenLogger fails in log_metrics" in line]) == 1
    assert all("no network" in line for line in said)


@pytest.mark.parametrize("obstacle", ["file", "link"])
def test_a_figure_that_cannot_be_written_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    if obstacle == "file":
        (run / "figures").write_text("in the way")
    else:
        (run / "figures").symlink_to(elsewhere)
    fit_and_test(run)
    assert RunFolder(run).read_results()["test"]
    assert not list(elsewhere.iterdir())
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 4, "two figures after the training and after the test"
    for name in ("activity", "mechanisms"):
        assert sum(f"figures/{name}.png could not be written" in line for line in said) == 2


def test_a_figure_whose_file_is_a_link_replaces_the_link(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "target.png").write_text("theirs")
    (tmp_path / "figures/activity.png").symlink_to(tmp_path / "target.png")
    fit_and_test(tmp_path)
    assert (tmp_path / "target.png").read_text() == "theirs"
    assert (tmp_path / "figures/activity.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_is_not_drawn_while_another_thread_imports_ipython(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Matplotlib asks whatever is called IPython for its version, also where it is imported by half."""
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    holds, may_end = threading.Event(), threading.Event()
    half_imported: list[bool] = []

    def draw(*arguments: Any, **options: Any) -> Any:
        half_imported.append("IPython" in sys.modules)
        return draw_activity(*arguments, **options)

    def import_slowly() -> None:
        with import_lock:
            sys.modules["IPython"] = types.ModuleType("IPython")
            holds.set()
            may_end.wait(30)
            del sys.modules["IPython"]

    monkeypatch.setattr(activity, "draw_activity", draw)
    importing = threading.Thread(target=import_slowly)
    importing.start()
    assert holds.wait(10)
    # whatever takes the lock first: the import ends only once the figure may have been drawn
    threading.Timer(2.0, may_end.set).start()
    fit_and_test(tmp_path)
    importing.join()
    assert half_imported == [False, False]
    assert (tmp_path / "figures/activity.png").is_file()
    assert "could not be written" not in caplog.text


def test_a_signal_to_stop_is_no_warning() -> None:
    with pytest.raises(StoppedError), optional("A figure"):
        raise StoppedError("by SIGTERM", 143)


def test_running_out_of_memory_in_a_picture_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with optional("A figure"):
        raise torch.OutOfMemoryError("no memory")
    assert "A figure could not be written, and the run continues: OutOfMemoryError: no memory" in caplog.text


def test_the_font_of_pictures_is_that_of_the_figures() -> None:
    letters = font(11)
    assert isinstance(letters, FreeTypeFont)
    assert letters.getname() == ("DejaVu Sans", "Book")
