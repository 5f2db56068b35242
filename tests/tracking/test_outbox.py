"""What is to be sent: kept first, sent in order, nothing lost and nothing waited for."""

import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rimlit.tracking.outbox import WAITING_LIMIT, Entry, Outbox, Refused


def metric(number: int) -> Entry:
    return {"kind": "metrics", "values": {"loss": number / 10}, "step": number, "time": 0}


class Receiver:
    """What the outbox sends to: up, down, or hanging."""

    def __init__(self) -> None:
        self.batches: list[list[Entry]] = []
        self.tries = 0
        self.is_down = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, entries: list[Entry]) -> None:
        self.tries += 1
        self.may_go_on.wait(30)
        if self.is_down:
            raise ConnectionError("no server")
        self.batches.append(entries)

    @property
    def steps(self) -> list[int]:
        return [entry["step"] for batch in self.batches for entry in batch if entry["kind"] == "metrics"]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


opened: list[Outbox] = []


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """What a thread of one test would still log is not logged by another test."""
    yield
    while opened:
        opened.pop().close()


def make(folder: Path, send: Callable[[list[Entry]], None], **options: Any) -> Outbox:
    opened.append(Outbox(folder, send, **{"interval": 0.01, "retry": 0.01, **options}))
    return opened[-1]


def test_entries_arrive_in_order_in_batches_of_one_kind(tmp_path: Path, receiver: Receiver) -> None:
    receiver.may_go_on.clear()
    outbox = make(tmp_path, receiver)
    entries = [metric(1), metric(2), {"kind": "tags", "values": {"a": "b"}}, metric(3), metric(4)]
    for entry in entries:
        outbox.append(entry)
    receiver.may_go_on.set()
    assert outbox.flush(10)
    assert [entry for batch in receiver.batches for entry in batch] == entries
    assert all(len({entry["kind"] for entry in batch}) == 1 for batch in receiver.batches)
    assert list(outbox.entries()) == entries


def test_a_batch_holds_as_many_values_as_the_receiver_takes(tmp_path: Path, receiver: Receiver) -> None:
    receiver.may_go_on.clear()
    outbox = make(tmp_path, receiver)
    for number in range(2500):
        outbox.append(metric(number))
    receiver.may_go_on.set()
    assert outbox.flush(10)
    assert receiver.steps == list(range(2500))
    assert max(len(batch) for batch in receiver.batches) == 1000


def test_what_a_receiver_that_is_down_misses_arrives_when_it_is_back(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make(tmp_path, receiver, name="MLflow")
    with caplog.at_level(logging.INFO, logger="rimlit"):
        outbox.append(metric(0))
        assert outbox.flush(10)
        receiver.is_down = True
        for number in range(1, 5):
            outbox.append(metric(number))
        assert not outbox.flush(10)
        receiver.is_down = False
        outbox.append(metric(5))
        assert outbox.flush(10)
        outbox.append(metric(6))
        assert outbox.flush(10)
    assert receiver.steps == list(range(7))
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if "does not take" in message] == [
        "MLflow does not take what is logged (ConnectionError: no server). The run is not affected: everything "
        f"is kept in {tmp_path / 'tracking.jsonl'} and sent later, or by 'rimlit sync {tmp_path}'."
    ]
    assert len([message for message in messages if "answers again" in message]) == 1


def test_training_does_not_wait_for_a_receiver_that_hangs_and_the_end_waits_as_long_as_it_is_told(
    tmp_path: Path, receiver: Receiver
) -> None:
    receiver.may_go_on.clear()
    outbox = make(tmp_path, receiver)
    start = time.monotonic()
    for number in range(100):
        outbox.append(metric(number))
    assert time.monotonic() - start < 1
    start = time.monotonic()
    assert not outbox.flush(0.2)
    assert 0.2 <= time.monotonic() - start < 1
    receiver.may_go_on.set()
    assert outbox.flush(10)
    assert receiver.steps == list(range(100))


def test_a_receiver_that_is_down_is_tried_once_more_at_the_end_and_not_waited_for(
    tmp_path: Path, receiver: Receiver
) -> None:
    receiver.is_down = True
    outbox = make(tmp_path, receiver, retry=1000)
    outbox.append(metric(0))
    assert not outbox.flush(10)
    before, start = receiver.tries, time.monotonic()
    assert not outbox.flush(10)
    assert time.monotonic() - start < 1
    assert receiver.tries > before


def test_a_next_process_sends_the_rest_and_drops_a_line_that_was_cut_short(
    tmp_path: Path, receiver: Receiver
) -> None:
    def down(entries: list[Entry]) -> None:
        raise ConnectionError

    killed = make(tmp_path, down)
    for number in range(3):
        killed.append(metric(number))
    assert not killed.flush(10)
    with killed.path.open("a") as file:
        file.write('{"kind": "metrics", "values": {"a name that is longer than all of the next line will be": 1')
    outbox = make(tmp_path, receiver)
    outbox.append(metric(3))
    assert outbox.flush(10)
    assert receiver.steps == [0, 1, 2, 3]
    assert [entry["step"] for entry in outbox.entries()] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "tracking.json").read_text())["sent"] == outbox.path.stat().st_size


def test_what_a_loss_of_power_has_damaged_is_left_out_and_said(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(tmp_path, receiver)
    first.append(metric(0))
    assert first.flush(10)
    with first.path.open("ab") as file:
        file.write(b"\0\0\0\n")
    with caplog.at_level(logging.WARNING, logger="rimlit"):
        second = make(tmp_path, receiver)
        second.start()
        assert second.flush(10), "there is nothing else to send"
        second.append(metric(1))
        assert second.flush(10)
    assert receiver.steps == [0, 1]
    assert [entry["step"] for entry in second.entries()] == [0, 1]
    assert "a line before byte" in caplog.text
    (tmp_path / "tracking.json").write_bytes(b"\0\0")
    assert make(tmp_path, receiver).notes == {}
    assert f"{tmp_path / 'tracking.json'} is damaged" in caplog.text


def test_an_entry_that_is_refused_is_left_out_alone_and_said(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    def send(entries: list[Entry]) -> None:
        if any(entry["step"] == 1 for entry in entries):
            receiver.may_go_on.wait(30)
            raise Refused("no such step")
        receiver(entries)

    receiver.may_go_on.clear()
    outbox = make(tmp_path, send, name="MLflow")
    for number in range(4):
        outbox.append(metric(number))
    receiver.may_go_on.set()
    with caplog.at_level(logging.WARNING, logger="rimlit"):
        assert outbox.flush(10)
    assert receiver.steps == [0, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "MLflow can never take the metric 'loss' (no such step): left out."
    ]


def test_a_full_disk_keeps_entries_in_memory_until_there_is_room(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if is_full and len(data) < 20:
                raise OSError(28, "No space left on device")
            return super().write(data[:17] if is_full else data)  # half a line still fits

    is_full = False
    outbox = make(tmp_path, receiver)
    outbox._open = lambda: Full(outbox.path, "r+")  # type: ignore[method-assign]
    outbox.append(metric(0))
    is_full = True
    with caplog.at_level(logging.WARNING, logger="rimlit"):
        for number in range(1, 4):
            outbox.append(metric(number))
    assert caplog.text.count("No space left on device") == 1
    is_full = False
    outbox.append(metric(4))
    assert outbox.flush(10)
    assert receiver.steps == [0, 1, 2, 3, 4]
    assert [entry["step"] for entry in outbox.entries()] == [0, 1, 2, 3, 4]


def test_what_waits_in_memory_is_bounded(tmp_path: Path, receiver: Receiver) -> None:
    assert make(tmp_path, receiver)._waiting.maxlen == WAITING_LIMIT


def test_everything_is_sent_once_more_where_the_receiver_asks_for_it(tmp_path: Path, receiver: Receiver) -> None:
    first = make(tmp_path, receiver)
    first.append(metric(0))
    assert first.flush(10)
    is_new = [True]

    def send(entries: list[Entry]) -> None:
        if is_new.pop() if is_new else False:
            outbox.start_again()
            return
        receiver(entries)

    outbox = make(tmp_path, send)
    outbox.append(metric(1))
    assert outbox.flush(10)
    assert receiver.steps == [0, 0, 1]


def test_nothing_is_written_through_a_link_in_the_folder(tmp_path: Path, receiver: Receiver) -> None:
    run, target = tmp_path / "run", tmp_path / "target"
    run.mkdir()
    target.write_text("theirs")
    for name in ("tracking.jsonl", "tracking.json"):
        (run / name).symlink_to(target)
    outbox = make(run, receiver)
    outbox.append(metric(1))
    assert outbox.flush(10)
    assert target.read_text() == "theirs"
    assert receiver.steps == [1]
    assert not any(path.is_symlink() for path in run.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "metrics"},
        {"kind": "metrics", "values": {"loss": "low"}, "step": 1, "time": 0},
        {"kind": "metrics", "values": {"loss": 1.0}, "step": 10**30, "time": 0},
        {"kind": "params", "values": ["lr"]},
        {"kind": "file", "path": 5, "folder": ""},
        {"kind": "status", "status": "DANCING"},
        {"kind": "unknown"},
        ["kind"],
    ],
)
def test_a_line_that_is_no_entry_is_left_out_and_does_not_stop_the_rest(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture, line: Any
) -> None:
    (tmp_path / "tracking.jsonl").write_text("\n".join(map(json.dumps, [metric(0), line, metric(1), ""])))
    (tmp_path / "tracking.json").write_text(json.dumps({"sent": "all", "key": 5, "process": ["x"]}))
    outbox = make(tmp_path, receiver)
    outbox.start()
    assert outbox.flush(10)
    assert receiver.steps == [0, 1]
    assert caplog.text.count("is damaged and left out") == 1


def test_of_an_entry_that_is_refused_only_the_value_at_fault_is_left_out(
    tmp_path: Path, receiver: Receiver
) -> None:
    def send(entries: list[Entry]) -> None:
        if any("bad" in entry["values"] for entry in entries):
            raise Refused("no such name")
        receiver(entries)

    outbox = make(tmp_path, send)
    outbox.append({"kind": "metrics", "values": {"loss": 0.5, "bad": 1.0}, "step": 1, "time": 0})
    assert outbox.flush(10)
    assert [entry["values"] for batch in receiver.batches for entry in batch] == [{"loss": 0.5}]
    assert outbox.left_out == {("metrics", "bad"): "no such name"}
    assert outbox.sent == {"metrics": 1}


def test_an_outbox_that_is_closed_tries_and_says_nothing_more(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.is_down = True
    outbox = make(tmp_path, receiver)
    outbox.append(metric(0))
    assert not outbox.flush(10)
    outbox.close()
    assert outbox._thread is not None
    outbox._thread.join(10)
    assert not outbox._thread.is_alive()
    assert len(caplog.records) == 1
