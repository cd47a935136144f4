"""A line between the processes of a run: who is there at the start, who ends early, and why.

jax's own service does not say for whom it waits, breaks down where its port is taken, and ends the
others of a process that died a good while later. So process 0 takes the port first, until all
have reported. Their connections stay: a process that dies, however it dies, breaks its own.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

LOST = 76
"""Exit status of a process that ends because another one is gone, or did not come."""
_GRACE_S = 1.0
"""For a process to end of the same fault by itself, with a message of its own."""


class AbsentError(ValueError):
    """Not all processes came; who starts again may find them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Which of how many processes this one is, and where they meet."""

    coordinator: str
    """`host:port` of process 0; it must be free there."""
    processes: int
    process: int
    """From 0 on."""
    local_devices: tuple[int, ...] | None = None
    """Numbers of this machine's devices that this process uses; None: all of them."""

    def __post_init__(self) -> None:
        faults = []
        host, colon, port = self.coordinator.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            faults.append(f"coordinator {self.coordinator!r} is not HOST:PORT")
        if self.processes < 1:
            faults.append(f"there must be 1 process or more, got {self.processes}")
        if not 0 <= self.process < max(self.processes, 1):
            faults.append(f"there is no process {self.process} among {self.processes}")
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


class Line:
    """This process's end. Process 0 is connected to all others, and these to it alone."""

    def __init__(self, peers: Mapping[int, socket.socket]):
        self._peers = dict(peers)
        self._done = {number: threading.Event() for number in peers}
        self._over = threading.Event()
        """All have done their work: who leaves now is not missed."""
        self._ending = threading.Lock()
        self._threads = [
            threading.Thread(target=self._listen, args=peer, name="line", daemon=True)
            for peer in self._peers.items()
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Return when every process has come here; only then may one of them leave."""
        if 0 in self._peers:
            _tell(self._peers[0], {"done": True})
            self._done[0].wait()
            return
        for done in self._done.values():
            done.wait()
        self._over.set()
        for peer in self._peers.values():
            _tell(peer, {"done": True})
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)

    def fail(self, status: int, message: str) -> None:
        """Tell the others that this process ends, and why: they end too.

        Returns at once. In a few seconds the process ends with this exit status, if it has not
        by then: what else runs at its end may wait for the others for ever.
        """
        if self._ending.acquire(blocking=False):
            for peer in self._peers.values():
                _tell(peer, {"status": status, "message": message})
            threading.Thread(target=self._end, args=(status,), daemon=True).start()

    def _listen(self, number: int, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError), peer.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                said = json.loads(line)
                if "done" not in said:
                    self._heard(number, said)
                    return
                if number == 0:
                    self._over.set()
                self._done[number].set()
        if not self._over.is_set():
            self._heard(number, {"status": LOST, "message": f"process {number} is gone"})

    def _heard(self, number: int, said: dict[str, Any]) -> None:
        """The end of another process is the end of this one."""
        if self._ending.acquire(blocking=False):
            for peer in self._peers.values():
                _tell(peer, said)
            print(f"error: {said['message']}", file=sys.stderr, flush=True)
            self._end(said["status"])

    def _end(self, status: int) -> None:
        if status != LOST:
            time.sleep(_GRACE_S)
        if 0 not in self._peers:  # Without process 0, jax aborts the others before they can speak.
            until = time.monotonic() + 3 * _GRACE_S
            for thread in set(self._threads) - {threading.current_thread()}:
                thread.join(max(0.0, until - time.monotonic()))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def join(place: Place, *, code: str, timeout_s: float, silence_s: float) -> Line:
    """Wait until all processes are there.

    Args:
      code: fingerprint of the program, to be the same everywhere.
      timeout_s: how long to wait for the others.
      silence_s: after which a machine that no longer answers counts as gone.

    Raises:
      AbsentError: on all that came; names those that did not.
      ValueError: on all: they do not belong together. The port of process 0 is taken, or something
        else answers there.
    """
    meet = _gather if place.process == 0 else _report
    peers = meet(place, {"process": place.process, "of": place.processes, "code": code}, timeout_s)
    for peer in peers.values():
        peer.settimeout(None)
        _expect_life(peer, silence_s)
    return Line(peers)


def _gather(place: Place, me: dict[str, Any], timeout_s: float) -> dict[int, socket.socket]:
    """Process 0: connections of all others."""
    until = time.monotonic() + timeout_s
    peers: dict[int, socket.socket] = {}
    faults: list[str] = []
    absent = False
    with _listener(place) as listener:
        while len(peers) + 1 < place.processes and not faults:
            listener.settimeout(max(0.01, until - time.monotonic()))
            try:
                peer = listener.accept()[0]
            except TimeoutError:
                faults, absent = [_missing(place, peers, timeout_s)], True
                break
            said = _hello(peer)
            if said is None:  # Not one of ours: something that tries ports.
                peer.close()
                continue
            faults += _misfit(me, said, peers)
            peers[said["process"] if not faults else -1] = peer
    if not faults:
        for peer in peers.values():
            _tell(peer, {"go": True})
        return peers
    for peer in peers.values():
        _tell(peer, {"error": "; ".join(faults), "absent": absent})
        peer.close()
    raise (AbsentError if absent else ValueError)("; ".join(faults))


def _report(place: Place, me: dict[str, Any], timeout_s: float) -> dict[int, socket.socket]:
    """Any other process: its connection to process 0."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            peer = socket.create_connection(place.address, timeout=5.0)
            break
        except OSError as error:
            if time.monotonic() > until:
                raise AbsentError(
                    f"process {place.process} waited {timeout_s:g} s for process 0 at "
                    f"{place.coordinator}, which did not come: {error}"
                ) from None
            time.sleep(0.1)
    # It may have come later than this process, and waits as long for the others.
    peer.settimeout(timeout_s + 10.0)
    try:
        _tell(peer, me)
        verdict = _read(peer)
    except (OSError, ValueError):
        verdict = None
    if verdict is None:
        peer.close()
        raise ValueError(
            f"what answered process {place.process} at {place.coordinator} is not process 0 of "
            "this run, or it ended at once: choose another port, or see what process 0 says"
        )
    if "error" in verdict:
        peer.close()
        raise (AbsentError if verdict["absent"] else ValueError)(verdict["error"])
    return {0: peer}


def _listener(place: Place) -> socket.socket:
    port = place.address[1]
    v6 = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if v6 else socket.AF_INET
    try:
        return socket.create_server(
            ("", port), family=family, dualstack_ipv6=v6, backlog=max(place.processes, 8)
        )
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen on port {port}: {error.strerror}. Another run may still use "
            "it; wait for its end, or choose another port for --coordinator"
        ) from None


def _hello(peer: socket.socket) -> dict[str, Any] | None:
    peer.settimeout(5.0)
    try:
        said = _read(peer)
    except (OSError, ValueError):
        return None
    ours = isinstance(said, dict) and {"process", "of", "code"} <= said.keys()
    return said if ours and isinstance(said["process"], int) else None


def _misfit(me: dict[str, Any], said: dict[str, Any], peers: Mapping[int, Any]) -> Iterator[str]:
    """What keeps a process that reports from being one of this run."""
    who = f"process {said['process']}"
    if said["of"] != me["of"]:
        yield f"{who} was started as one of {said['of']} processes, process 0 as one of {me['of']}"
    elif not 0 < said["process"] < me["of"] or said["process"] in peers:
        yield f"there are two processes with the number {said['process']}"
    if said["code"] != me["code"]:
        yield f"{who} runs other code than process 0 ({said['code']}, not {me['code']})"


def _missing(place: Place, peers: Mapping[int, Any], timeout_s: float) -> str:
    absent = [n for n in range(1, place.processes) if n not in peers]
    named = ", ".join(map(str, absent[:20])) + (", ..." if len(absent) > 20 else "")
    return (
        f"{len(absent)} of {place.processes} processes did not come to {place.coordinator} within "
        f"{timeout_s:g} s: process{'es' * (len(absent) > 1)} {named}"
    )


def _tell(peer: socket.socket, said: Mapping[str, Any]) -> None:
    """Send one message; who no longer listens has ended."""
    with contextlib.suppress(OSError):
        peer.sendall(json.dumps(said).encode() + b"\n")


def _read(peer: socket.socket) -> Any:
    """One message, not a byte further; None if the connection is closed before its end."""
    text = b""
    while not text.endswith(b"\n"):
        byte = peer.recv(1)
        if not byte or len(text) > 10_000:
            return None
        text += byte
    return json.loads(text)


def _expect_life(peer: socket.socket, silence_s: float) -> None:
    """Let the system itself ask a silent machine for a sign of life, and break off without one."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Linux
        part = max(1, int(silence_s / 8))
        for option, value in (("IDLE", 3 * part), ("INTVL", part), ("CNT", 3)):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{option}"), value)
