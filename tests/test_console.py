"""Printing: above a progress bar, with escapes where the console lacks a sign, and never an error."""

import io
import logging
import subprocess
import sys

import pytest
from tqdm import tqdm

from rimlit.console import ConsoleHandler, UnfailingStream, guard_streams, say, show


class FullDevice(io.StringIO):
    """What ``> /dev/full`` is."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_sign_that_the_console_lacks_becomes_an_escape() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    say("span 50 · – 1", stream)
    assert raw.getvalue() == b"span 50 \\xb7 \\u2013 1\n"


def test_a_full_device_and_a_closed_stream_are_no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (FullDevice(), closed):
        say("text", stream)
        UnfailingStream(stream).writelines(["text"])
        UnfailingStream(stream).flush()
        monkeypatch.setattr(sys, "stdout", stream)
        show("[b]text[/b]")


def test_a_message_stands_on_a_line_of_its_own_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.StringIO()
    monkeypatch.setattr(sys, "stderr", console)
    monkeypatch.setattr(sys, "stdout", console)
    logger = logging.Logger("apart")
    logger.addHandler(ConsoleHandler())
    with tqdm(total=2, file=console, ascii=True) as bar:
        bar.update()
        bar.refresh()
        logger.warning("a message")
        bar.update()
    lines = console.getvalue().replace("\r", "\n").split("\n")
    assert [line.strip() for line in lines if "a message" in line] == ["a message"]
    assert any("2/2" in line for line in lines)


def test_streams_that_were_closed_take_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    guard_streams()
    print("nowhere")
    sys.stderr.write("nowhere")
    sys.stdout.close()
    sys.stderr.close()


def test_a_process_whose_output_is_not_taken_ends_with_its_own_code() -> None:
    program = "from rimlit.cli import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program, "--version"], stdout=full, stderr=full, timeout=60)
    assert done.returncode == 0
