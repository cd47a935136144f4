import concurrent.futures
import os
import signal
import threading

import jax
import numpy as np
import pytest
from jax._src.lib import _jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_jax.sharding import processes
from clip_jax.sharding.line import Place
from clip_jax.sharding.processes import (
    Highest,
    agree,
    find_place,
    gather_json,
    is_first,
    process_rows,
    stop_asked,
    take_flags,
)

PLACE = {"--coordinator": "host:5", "--processes": "3", "--process": "2"}
VARIABLES = {
    "CLIP_JAX_COORDINATOR": "other:6",
    "CLIP_JAX_PROCESSES": "4",
    "CLIP_JAX_PROCESS": "1",
}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[003-009]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def test_flags_are_taken_wherever_they_stand_and_all_else_is_left():
    argv = ["--steps", "5", "--process", "2", "--seed=1", "--processes=3", "--coordinator=host:5"]
    assert take_flags(argv) == (PLACE, ["--steps", "5", "--seed=1"])
    assert take_flags(["--steps", "5"]) == ({}, ["--steps", "5"])


@pytest.mark.parametrize(
    "argv",
    [["--process"], ["--process="], ["--process", "--steps"], ["--process=1", "--process=2"]],
)
def test_a_flag_has_one_value(argv):
    with pytest.raises(ValueError, match=r"^--process needs one value$"):
        take_flags(argv)


def test_flags_win_over_the_environment():
    assert find_place(PLACE, VARIABLES) == Place(coordinator="host:5", processes=3, process=2)
    assert find_place({}, VARIABLES) == Place(coordinator="other:6", processes=4, process=1)
    mixed = find_place({"--process": "3"}, VARIABLES)
    assert mixed == Place(coordinator="other:6", processes=4, process=3)


def test_one_process_is_alone():
    assert find_place({}, {}) is None
    assert find_place(PLACE | {"--processes": "1", "--process": "0"}, {}) is None


def test_what_is_missing_or_no_number_is_named():
    with pytest.raises(ValueError) as error:
        find_place({"--processes": "2"}, {"CLIP_JAX_PROCESS": "0"})
    assert "missing: ['--coordinator (or CLIP_JAX_COORDINATOR)']" in str(error.value)
    with pytest.raises(ValueError, match="--processes 'two' and --process '2' must be numbers"):
        find_place(PLACE | {"--processes": "two"}, {})
    with pytest.raises(ValueError, match="there is no process 2 among 2"):
        find_place(PLACE | {"--processes": "2"}, {})


def test_slurm_says_which_process_this_is(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1234")
    found = find_place({}, {})
    assert found == Place(coordinator="node003:1234", processes=8, process=5, local_devices=(1,))
    assert find_place(PLACE, {}) == Place(coordinator="host:5", processes=3, process=2)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_place({}, {}) is None


def test_a_process_alone_is_the_first_and_gathers_its_own_value():
    value = {"a": [1, 2.5, "x", None], "b": (1, 2)}
    assert is_first()
    assert gather_json(value) == [{"a": [1, 2.5, "x", None], "b": [1, 2]}]
    agree({"anything": "goes"})


def test_all_differences_are_named_with_their_processes(monkeypatch):
    own = {"seed": "0", "data": "9 samples", "loss": "softmax"}
    everywhere = [own, own | {"seed": "3"}, own | {"seed": "3", "data": "8 samples"}]
    del everywhere[2]["loss"]
    monkeypatch.setattr(processes, "gather_json", lambda value: everywhere)
    with pytest.raises(ValueError) as error:
        agree(own)
    assert str(error.value) == (
        "the processes of this run differ in "
        "seed: 0 on process 0, 3 on processes 1, 2; "
        "data: 9 samples on processes 0, 1, 8 samples on process 2; "
        "loss: softmax on processes 0, 1, absent on process 2"
    )


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


class Rows:
    """A sharding of rows over devices of several processes."""

    def __init__(self, *held):
        self.held = held

    def devices_indices_map(self, shape):
        return {Device(process): (rows,) for process, rows in self.held}


def test_rows_of_a_batch_on_this_process():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    assert process_rows(split, 16) == tuple(range(16))
    interleaved = Rows((1, slice(0, 2)), (0, slice(2, 4)), (1, slice(4, 6)), (0, slice(6, 8)))
    assert process_rows(interleaved, 8) == (2, 3, 6, 7)
    twice = Rows((0, slice(0, 4)), (0, slice(0, 4)), (1, slice(4, 8)))
    assert process_rows(twice, 8) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "sharding",
    [
        Rows((0, slice(None)), (1, slice(None))),
        Rows((0, slice(0, 2)), (1, slice(2, 8))),
    ],
)
def test_processes_that_hold_the_same_rows_or_unequally_many_are_refused(sharding):
    with pytest.raises(ValueError, match="2 processes cannot share the rows of a batch of 8"):
        process_rows(sharding, 8)


def test_sigterm_asks_for_a_stop_while_the_block_runs():
    before = signal.getsignal(signal.SIGTERM)
    with stop_asked() as asked:
        assert not asked(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked(2) and asked(3)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_no_signal_is_caught():
    def body():
        with stop_asked() as asked:
            answers.append(asked(1))

    answers = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert answers == [False]


@pytest.fixture
def side_by_side(monkeypatch):
    """`side_by_side(count, work)`: what `work(number)` gives or raises, in threads that stand in
    for processes."""

    def run(count, work):
        meeting, values, own = threading.Barrier(count), [None] * count, threading.local()

        def gather(value):
            values[own.number] = value
            meeting.wait()
            told = list(values)
            meeting.wait()
            return told

        def one(number):
            own.number = number
            try:
                return work(number)
            except ValueError as error:
                return error

        monkeypatch.setattr(processes, "gather_json", gather)
        monkeypatch.setattr(processes, "is_first", lambda: own.number == 0)
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            return list(pool.map(one, range(count)))

    return run


def test_an_older_run_on_a_disk_of_ones_own_is_not_the_shared_folder(side_by_side, tmp_path):
    folders = [tmp_path / name for name in ("shared", "own", "none")]
    for folder in folders[:2]:
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    def found(*places):
        return side_by_side(
            len(places), lambda number: processes.require_shared(str(folders[places[number]]))
        )

    assert found(0, 0, 0) == [None] * 3
    assert all(
        "of process 0 is not seen by processes 1, 3: it must" in str(error)
        for error in found(0, 1, 0, 2)
    )
    assert "not seen by process 1:" in str(found(0, 2)[0])
    assert [path.name for path in folders[0].iterdir()] == ["config.json"]  # Nothing is left.
    assert found(0) == [None]


@pytest.fixture
def highest(side_by_side, ports, monkeypatch):
    """`highest(count)`: one for each of so many processes, and what jax's service still keeps."""
    services, clients = [], []

    def each(work):
        with concurrent.futures.ThreadPoolExecutor(len(clients)) as pool:
            list(pool.map(work, clients))

    def make(count):
        address = f"127.0.0.1:{ports()}"
        services.append(_jax.get_distributed_runtime_service(address, count))
        clients.extend(_jax.get_distributed_runtime_client(address, n) for n in range(count))
        each(lambda client: client.connect())
        monkeypatch.setattr(jax, "process_count", lambda: count)
        made = side_by_side(count, lambda number: Highest())
        for one, client in zip(made, clients, strict=True):
            one._client = client
        return made, lambda: dict(clients[0].key_value_dir_get(f"{made[0]._name}/"))

    yield make
    each(lambda client: client.shutdown())
    for service in services:
        service.shutdown()


def test_all_get_the_highest_of_each_round_and_only_the_last_is_kept(highest):
    made, kept = highest(3)
    numbers = np.random.default_rng(0).integers(-9, 100, (20, 3)).tolist()

    def ask(number):
        return [made[number](values[number]) for values in numbers]

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, range(3))) == [[max(values) for values in numbers]] * 3
    assert {key.split("/")[3] for key in kept()} == {"19"}


def test_who_waits_for_the_highest_is_freed_when_it_is_closed(highest):
    (first, _), _ = highest(2)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first, 3)
        first.close()
        with pytest.raises(ValueError, match="closed while it waited for the other processes"):
            waiting.result()


def test_the_highest_of_one_process_is_its_own():
    alone = Highest()
    assert [alone(5), alone(3)] == [5, 3]
