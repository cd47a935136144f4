"""Shared memory that worker processes write pictures into, for the process that started them."""

import math
import pathlib
import shutil
import time
import weakref
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

_PAGE = 4096
_ALL = 2**62
_SHM = pathlib.Path("/dev/shm")
"""Where Linux keeps shared memory; a container may have little of it."""


class Slots:
    """A ring of arrays of one shape, numbered for ever: array n lies in slot n mod `count`.

    Any process may fill any of them; one takes all, in their order. Shared memory made anew for
    each array would cost more than filling it: the system clears every page, and maps it twice.
    """

    def __init__(self, shape: tuple[int, ...], count: int, first: int = 0, name: str | None = None):
        """Args:
        count: of slots. Who fills them is at most so many arrays ahead of who takes them.
        first: number of the array that is taken first.
        name: of the memory, where another process made it.

        Raises:
          OSError: there is not so much shared memory.
        """
        self._shape, self._count = shape, count
        size = _PAGE + count * math.prod(shape)
        if name is None and _SHM.is_dir() and (room := shutil.disk_usage(_SHM).free) < size:
            raise OSError(
                f"worker processes need {size / 1e6:,.0f} MB of shared memory, but {_SHM} has "
                f"{room / 1e6:,.0f} MB: enlarge it (in Docker by --shm-size), or choose fewer "
                "workers or less prefetch"
            )
        self._memory = SharedMemory(name, create=name is None, size=size)
        if name is None:
            _taken(self._memory)[0] = first
            self._free = weakref.finalize(self, _free, self._memory)

    def __reduce__(self) -> tuple[Any, ...]:
        return Slots, (self._shape, self._count, 0, self._memory.name)

    def write(self, number: int) -> UInt8[np.ndarray, "..."]:
        """The slot of an array, to be filled; waits until the one before it there was taken."""
        while number - int(_taken(self._memory)[0]) >= self._count:
            time.sleep(0.001)
        return self._slot(number)

    def take(self, number: int, rows: int) -> UInt8[np.ndarray, "..."]:
        """A copy of the first rows of an array that was filled, whose slot is then free."""
        taken = self._slot(number)[:rows].copy()
        _taken(self._memory)[0] = number + 1
        return taken

    def release(self) -> None:
        """Let nobody wait any more: what is filled from now on is not taken."""
        _taken(self._memory)[0] = _ALL

    def close(self) -> None:
        """Give the memory back; for who made it."""
        self._free()

    def _slot(self, number: int) -> UInt8[np.ndarray, "..."]:
        start = _PAGE + number % self._count * math.prod(self._shape)
        return np.ndarray(self._shape, np.uint8, self._memory.buf, start)


def _taken(memory: SharedMemory) -> Int[np.ndarray, "1"]:
    """How many arrays were taken, in the first bytes."""
    return np.ndarray((1,), np.int64, memory.buf)


def _free(memory: SharedMemory) -> None:
    """Nobody waits for a slot of memory that is no more."""
    _taken(memory)[0] = _ALL
    memory.close()
    memory.unlink()
