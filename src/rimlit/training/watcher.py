"""The companion of a training process: a separate program, which also works while the process is frozen.

Every process starts a companion and reports its progress to it each second. All companions report to that of
process 0, which decides which process failed first and informs the others, in lines of JSON over TCP.
Run by its path, this file imports neither torch nor rimlit and starts in a tenth of a second.
"""

import contextlib
import hmac
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

TICK = 0.25
"""Seconds between two checks."""

MINUTE = 60.0


@dataclass
class ProcessState:
    """The last reported state of a process."""

    rank: int
    where: str = "it never reported"  # host and process id
    heard: float = 0.0  # when its companion last reported
    silence: float = 0.0  # seconds since its last message to its companion
    is_alive: bool = True
    status: str = "unknown"  # by the operating system: running, stopped, zombie, …
    position: int = 0  # number of steps that all processes take together
    idle: float = 0.0  # seconds since its last step of any kind
    limit: float = MINUTE  # how long it may be idle
    is_waiting: bool = False  # in an operation that needs the other processes
    has_left: bool = False
    failure: str | None = None
    is_lost: bool = False  # the connection to its companion broke


@dataclass(frozen=True)
class Verdict:
    """The processes that failed first, and how."""

    ranks: tuple[int, ...]
    kind: str  # failed, died, lost, frozen, hung
    message: str


def judge(records: list[ProcessState], now: float, timeout: float) -> Verdict | None:
    """Return which processes failed first, None while there is no failure.

    Args:
        records: One for each process.
        now: Time, on the clock of ``heard``.
        timeout: Seconds a process may be silent.
    """
    there = [record for record in records if not record.has_left]
    for record in records:
        if record.failure is not None:
            return _verdict(record, "failed", f"failed: {record.failure}")
    for record in there:
        if not record.is_alive:
            return _verdict(record, "died", "ended without a word: killed, out of memory, or crashed")
    for record in there:
        silence = now - record.heard
        if record.is_lost or silence > timeout:
            return _verdict(record, "lost", "is out of reach: its machine or the network is down, or it is frozen")
    for record in there:
        if record.silence > timeout:
            what = f"is frozen: no sign of life for {record.silence:.0f} s, its state is {record.status!r}"
            return _verdict(record, "frozen", what)
    return _hung(there)


def _verdict(record: ProcessState, kind: str, what: str) -> Verdict:
    return Verdict((record.rank,), kind, f"Process {record.rank} ({record.where}) {what}.")


def _hung(there: list[ProcessState]) -> Verdict | None:
    """Name the processes that are furthest behind and wait for no other, once all are idle for too long."""
    if not there:
        return None
    behind = [record for record in there if record.position == min(record.position for record in there)]
    blamed = [record for record in behind if not record.is_waiting] or behind
    late = [record for record in blamed if record.idle > record.limit]
    if not late or len(late) < len(blamed):  # the others wait for one that still works
        return None
    names = ", ".join(f"{record.rank} ({record.where})" for record in late)
    which = f"Process {names} hangs" if len(late) == 1 else f"Processes {names} hang"
    message = f"{which}: no step for {min(record.idle for record in late):.0f} s."
    return Verdict(tuple(record.rank for record in late), "hung", message)


class Line:
    """A connection for lines of JSON that never waits for the other side."""

    def __init__(
        self, read: Callable[[], bytes], write: Callable[[bytes], object], close: Callable[[], None]
    ) -> None:
        self._read, self._write, self.close = read, write, close
        self._rest = b""

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the messages received, None where the connection is closed."""
        try:
            data = self._read()
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("A message is an object.")
        return messages

    def send(self, **message: Any) -> None:
        """Send a message; one that cannot be sent is dropped: :meth:`receive` reports a closed connection."""
        with contextlib.suppress(OSError):
            self._write(json.dumps(message).encode() + b"\n")


def socket_line(connection: socket.socket) -> Line:
    """Return the line over a connection."""
    connection.settimeout(2.0)
    return Line(lambda: connection.recv(1 << 16), connection.sendall, connection.close)


@dataclass
class Peer:
    """A connection from another companion."""

    line: Line
    rank: int | None = None  # None until it has sent the token


@dataclass
class Watcher:
    """The companion of one process; that of process 0 also decides which process failed.

    Args:
        settings: ``rank``, ``world_size``, ``pid``, ``timeout``, ``token``, and ``address`` of the judge.
    """

    settings: dict[str, Any]
    records: list[ProcessState] = field(default_factory=list)
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        """Start listening, or report to the judge."""
        self.rank, self.timeout = self.settings["rank"], self.settings["timeout"]
        self.selector = selectors.DefaultSelector()
        self.process = Line(lambda: os.read(0, 1 << 16), lambda data: os.write(1, data), lambda: os.close(1))
        self.selector.register(0, selectors.EVENT_READ, self._receive_from_process)
        now = time.monotonic()
        self.own = ProcessState(self.rank, f"pid {self.settings['pid']} on {socket.gethostname()}", now)
        self.heard_process = self.heard_judge = self.ended_at = now
        self.judge: Line | None = None
        self.peers: dict[socket.socket, Peer] = {}
        host, port = self.settings["address"]
        if self.rank == 0:
            self.records = [self.own] + [
                ProcessState(rank, heard=now) for rank in range(1, self.settings["world_size"])
            ]
            self.server = _listen(host)
            self.selector.register(self.server, selectors.EVENT_READ, self._accept)
            self.process.send(port=self.server.getsockname()[1])
        else:
            try:
                connection = socket.create_connection((host, port), timeout=self.timeout)
            except OSError:
                self._conclude(self._lost_judge())
                return
            self.judge = socket_line(connection)
            self.selector.register(connection, selectors.EVENT_READ, self._receive_from_judge)
            self.judge.send(token=self.settings["token"], rank=self.rank, where=self.own.where)

    def watch(self) -> None:
        """Check and report until the process or the run has ended."""
        reported = 0.0
        while True:
            for key, _ in self.selector.select(TICK):
                key.data(key.fileobj)
            now = time.monotonic()
            self.own.heard, self.own.silence = now, now - self.heard_process
            self.own.is_alive = os.getppid() == self.settings["pid"]
            if self.own.silence > TICK * 8:
                self.own.status = _status(self.settings["pid"])
            if now - reported > 1.0 or not self.own.is_alive or self.own.has_left or self.own.failure:
                reported = now
                self._report()
            if self.rank == 0 and self.verdict is None:
                self._conclude(judge(self.records, now, self.timeout))
            elif self.judge is not None and self.verdict is None and now - self.heard_judge > self.timeout:
                self._conclude(self._lost_judge())
            if self._is_over(now):
                return

    def _report(self) -> None:
        if self.judge is not None:
            self.judge.send(
                **{name: value for name, value in vars(self.own).items() if name not in ("rank", "heard")}
            )
        for peer in self.peers.values():
            peer.line.send(tick=True)

    def _is_over(self, now: float) -> bool:
        """Return whether the run is over; kill a process that should have ended by now."""
        if self.verdict is None:
            if self.rank != 0:
                return self.own.has_left or not self.own.is_alive
            if not all(record.has_left for record in self.records):
                return False
            self.process.send(over=True)
            return True
        if not self.own.is_alive:
            return True
        if now - self.ended_at > self._grace():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.settings["pid"], signal.SIGKILL)
        return False

    def _grace(self) -> float:
        """Return the seconds that this process has to end by itself."""
        assert self.verdict is not None
        if self.rank in self.verdict.ranks and self.verdict.kind in ("frozen", "lost"):
            return 3.0 if self.own.status != "stopped" else 0.0
        return 20.0

    def _conclude(self, verdict: Verdict | None) -> None:
        if verdict is None:
            return
        self.verdict, self.ended_at = verdict, time.monotonic()
        self.process.send(verdict=vars(verdict))
        for peer in self.peers.values():
            peer.line.send(verdict=vars(verdict))
        if self.rank in verdict.ranks and verdict.kind == "frozen":
            print(f"rimlit: {verdict.message} It is killed.", file=sys.stderr, flush=True)
            if self.own.status != "stopped":  # it may hold Python's lock: its fault handler prints the stacks
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.settings["pid"], signal.SIGABRT)

    def _lost_judge(self) -> Verdict:
        return Verdict(
            (0,), "lost", "Process 0 is out of reach: its machine or the network is down, or it is frozen."
        )

    def _receive_from_process(self, _: Any) -> None:
        messages = self.process.receive()
        if messages is None:
            self.selector.unregister(0)
            return
        self.heard_process = time.monotonic()
        for message in messages:
            vars(self.own).update(message)

    def _receive_from_judge(self, connection: Any) -> None:
        assert self.judge is not None
        messages = self.judge.receive()
        if messages is None:
            self.selector.unregister(connection)
            if self.verdict is None and not self.own.has_left:
                self._conclude(self._lost_judge())
            return
        self.heard_judge = time.monotonic()
        for message in messages:
            if "verdict" in message and self.verdict is None:
                given = message["verdict"]
                self._conclude(Verdict(tuple(given["ranks"]), given["kind"], given["message"]))

    def _accept(self, server: Any) -> None:
        connection, _ = server.accept()
        self.peers[connection] = Peer(socket_line(connection))
        self.selector.register(connection, selectors.EVENT_READ, self._receive_from_peer)

    def _receive_from_peer(self, connection: Any) -> None:
        peer = self.peers[connection]
        try:
            messages = peer.line.receive()
        except (ValueError, RecursionError):  # from another program
            messages = None
        for message in messages or []:
            if peer.rank is None:
                token = str(message.pop("token", ""))
                if not hmac.compare_digest(token.encode(errors="replace"), self.settings["token"].encode()):
                    messages = None
                    break
                peer.rank = message.pop("rank")
            record = self.records[peer.rank]
            vars(record).update(message, heard=time.monotonic())
        if messages is None:
            self.selector.unregister(connection)
            self.peers.pop(connection).line.close()
            if peer.rank is not None:
                self.records[peer.rank].is_lost = True


def _listen(host: str) -> socket.socket:
    """Listen on a free port of ``host``, or of all addresses where ``host`` is not a name of this machine."""
    try:
        return socket.create_server((host, 0))
    except OSError:
        return socket.create_server(("", 0))


def _status(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return "gone"


def main() -> None:
    """Read the settings from the first line of the input and start watching."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # meant for the process, with which this one ends
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return
        line += byte
    Watcher(json.loads(line)).watch()


if __name__ == "__main__":
    main()
