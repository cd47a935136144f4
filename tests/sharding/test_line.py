import concurrent.futures
import contextlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

from clip_jax.sharding.line import LOST, AbsentError, Line, Place, join

SCRIPT = """
import sys, time
from clip_jax.sharding.line import Place, join

port, number, of, act = sys.argv[1:]
place = Place(coordinator=f"127.0.0.1:{port}", processes=int(of), process=int(number))
line = join(place, code="same", timeout_s=30.0, silence_s=30.0)
print("joined", flush=True)
if act == "fail":
    line.fail(3, f"process {number}: the disk is full")
if act == "finish":
    line.finish()
    sys.exit()
time.sleep(60)
"""


@pytest.fixture
def port(ports):
    return ports()


def place(port, process, processes):
    return Place(coordinator=f"127.0.0.1:{port}", processes=processes, process=process)


def join_all(places, codes=None, timeout_s=5.0):
    """What each of them gets: a line, or an error."""

    def one(place, code):
        try:
            return join(place, code=code, timeout_s=timeout_s, silence_s=30.0)
        except AbsentError as error:
            return f"absent: {error}"
        except ValueError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, places, codes or ["same"] * len(places)))


@pytest.mark.parametrize("processes", [2, 5])
def test_all_join_and_none_leaves_before_the_last_has_finished(port, processes):
    lines = join_all([place(port, number, processes) for number in range(processes)])
    assert all(isinstance(line, Line) for line in lines)
    early = [threading.Thread(target=line.finish, daemon=True) for line in lines[:-1]]
    for thread in early:
        thread.start()
    for thread in early:
        thread.join(0.1)
    assert all(thread.is_alive() for thread in early)
    lines[-1].finish()
    for thread in early:
        thread.join(10)
    assert not any(thread.is_alive() for thread in early)


def test_whoever_is_missing_is_named_to_all_who_came(port):
    said = join_all([place(port, number, 6) for number in (0, 2, 4)], timeout_s=2.0)
    missing = f"3 of 6 processes did not come to 127.0.0.1:{port} within 2 s: processes 1, 3, 5"
    assert said == [f"absent: {missing}"] * 3


def test_without_process_0_the_others_say_so(port):
    (said,) = join_all([place(port, 1, 2)], timeout_s=0.2)
    assert said.startswith(f"absent: process 1 waited 0.2 s for process 0 at 127.0.0.1:{port}, ")


def test_a_port_taken(port):
    with socket.create_server(("", port)):
        (said,) = join_all([place(port, 0, 2)])
    assert f"process 0 cannot listen on port {port}: Address already in use" in said
    assert "--coordinator" in said


def test_something_else_that_answers_is_not_taken_for_process_0(port):
    with socket.create_server(("127.0.0.1", port)) as stranger:

        def answer():
            with contextlib.suppress(OSError):
                peer = stranger.accept()[0]
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                peer.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        (said,) = join_all([place(port, 1, 2)])
        thread.join()
    assert f"what answered process 1 at 127.0.0.1:{port} is not process 0 of this run" in said


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"process": "x"}\n', b""])
def test_strangers_that_try_the_port_disturb_nobody(port, noise):
    def call():
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                with socket.create_connection(("127.0.0.1", port)) as peer:
                    peer.sendall(noise)
                return

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(join_all, [place(port, 0, 2)])
        call()
        (second,) = join_all([place(port, 1, 2)])
    lines = [*first.result(), second]
    assert all(isinstance(line, Line) for line in lines)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(Line.finish, lines))  # Nor this process, later.


@pytest.mark.parametrize(
    "places, codes, message",
    [
        ([(0, 3), (1, 3), (1, 3)], "xxx", "there are two processes with the number 1"),
        (
            [(0, 2), (1, 3)],
            "xx",
            "process 1 was started as one of 3 processes, process 0 as one of 2",
        ),
        ([(0, 2), (1, 2)], "xy", r"process 1 runs other code than process 0 (y, not x)"),
    ],
)
def test_processes_that_do_not_belong_together(port, places, codes, message):
    said = join_all([place(port, number, of) for number, of in places], codes)
    assert said == [message] * len(places)


@pytest.mark.parametrize("dies, act", [(0, "kill"), (1, "kill"), (0, "fail"), (1, "fail")])
def test_the_end_of_one_is_the_end_of_all_with_its_name(port, dies, act):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(port), str(n), "3", act if n == dies else "wait"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    assert [process.stdout.readline() for process in processes] == ["joined\n"] * 3
    if act == "kill":
        processes[dies].kill()
    said = [process.communicate(timeout=30)[1] for process in processes]
    codes = [process.returncode for process in processes]
    others = {0, 1, 2} - {dies}
    if act == "fail":
        assert codes == [3, 3, 3]
        message = f"error: process {dies}: the disk is full\n"
    else:
        assert codes[dies] == -signal.SIGKILL and {codes[n] for n in others} == {LOST}
        message = f"error: process {dies} is gone\n"
    assert all(said[n] == message for n in others)


def test_processes_that_have_finished_are_not_missed(port):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(port), str(n), "3", "finish"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    assert [process.communicate(timeout=30)[1] for process in processes] == [""] * 3
    assert [process.returncode for process in processes] == [0] * 3


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"coordinator": "nine"}, "coordinator 'nine' is not HOST:PORT"),
        ({"coordinator": "a:99999"}, "coordinator 'a:99999' is not HOST:PORT"),
        ({"process": 2}, "there is no process 2 among 2"),
        ({"process": -1}, "there is no process -1 among 2"),
        ({"processes": 0, "process": 0}, "there must be 1 process or more, got 0"),
    ],
)
def test_a_place_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Place(**{"coordinator": "host:1", "processes": 2, "process": 0} | fields)


def test_an_address_of_any_family():
    assert Place(coordinator="[::1]:80", processes=2, process=0).address == ("::1", 80)
    assert Place(coordinator="10.0.0.1:80", processes=2, process=0).address == ("10.0.0.1", 80)
