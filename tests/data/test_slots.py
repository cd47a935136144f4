import collections
import multiprocessing
import pickle
import re
import threading
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

from clip_jax.data import slots
from clip_jax.data.slots import Slots

SHAPE = (3, 2, 2, 3)


@pytest.fixture
def ring():
    made = Slots(SHAPE, 4)
    yield made
    made.close()


def fill(ring, number):
    ring.write(number)[:] = number % 256


def test_arrays_come_back_in_their_order_whatever_the_order_of_filling(ring):
    for round_ in range(3):
        for number in (2, 0, 3, 1):
            fill(ring, 4 * round_ + number)
        for number in range(4 * round_, 4 * round_ + 4):
            np.testing.assert_array_equal(ring.take(number, 3), np.full(SHAPE, number))


def test_only_the_first_rows_are_taken_and_none_is_possible(ring):
    fill(ring, 0)
    assert ring.take(0, 2).shape == (2, *SHAPE[1:])
    assert ring.take(1, 0).shape == (0, *SHAPE[1:])


def test_what_was_taken_is_kept_when_its_slot_is_filled_again(ring):
    fill(ring, 0)
    kept = ring.take(0, 3)
    fill(ring, 4)
    assert (kept == 0).all() and (ring.take(4, 3) == 4).all()


def test_a_slot_is_not_filled_again_before_it_was_taken(ring):
    for number in range(4):
        fill(ring, number)
    waiting = threading.Thread(target=fill, args=(ring, 5))
    waiting.start()
    for number in (0, 1):  # Number 5 lies where number 1 does.
        assert waiting.is_alive()
        assert (ring.take(number, 3) == number).all()
    waiting.join(timeout=30)
    assert [(ring.take(number, 3) == number).all() for number in (2, 3)] == [True, True]
    assert (ring.take(5, 3) == 5).all()


def test_numbers_may_begin_anywhere():
    ring = Slots(SHAPE, 2, first=10**9)
    for number in range(10**9, 10**9 + 5):
        fill(ring, number)
        assert (ring.take(number, 3) == number % 256).all()
    ring.close()


def test_nobody_waits_after_a_release(ring):
    ring.release()
    for number in (0, 4, 8, 1000):
        fill(ring, number)


def test_a_copy_in_another_process_is_the_same_memory(ring):
    for number in range(4):
        fill(ring, number)
    process = multiprocessing.get_context("spawn").Process(target=ring.release)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0
    fill(ring, 4)
    assert ring.take(0, 3).max() == 4  # Overwritten, for nobody waits any more.


def test_a_pickled_copy_does_not_give_the_memory_back(ring):
    copy = pickle.loads(pickle.dumps(ring))
    fill(copy, 1)
    del copy
    assert (ring.take(1, 3) == 1).all()


@pytest.mark.parametrize("drop", [False, True])
def test_the_memory_is_given_back(drop):
    ring = Slots(SHAPE, 2)
    name = ring._memory.name
    SharedMemory(name).close()
    if drop:
        del ring
    else:
        ring.close()
        ring.close()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


def test_too_little_shared_memory_is_told_before_it_is_used(monkeypatch, tmp_path):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(slots, "_SHM", tmp_path)
    monkeypatch.setattr(slots.shutil, "disk_usage", lambda place: usage(64e6, 0, 64_000_000))
    message = (
        f"worker processes need 100 MB of shared memory, but {tmp_path} has 64 MB: enlarge it "
        "(in Docker by --shm-size), or choose fewer workers or less prefetch"
    )
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        Slots((10**6,), 100)
