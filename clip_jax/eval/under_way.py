"""Work that is under way at the same time, whose results come in order."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

Calls = Iterator[tuple[Callable[[], Any], int]]
"""Calls of a tower with a batch, and how many of the rows that each gives are wanted."""


def ahead(
    function: Callable[[Any], Any], items: Iterable[Any], *, threads: int, most: int
) -> Iterator[Any]:
    """`map`, in order, from several threads, of items read at most so many ahead."""
    waiting = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def answered(calls: Calls, at_once: int) -> Iterator[tuple[np.ndarray, int]]:
    """What calls give, on the host.

    Args:
      at_once: how many are computed at the same time, each asked for by a thread of its own,
        where of the caller's JAX contexts only the precision of products holds. With 1, each is
        fetched while the next is computed, so that a device need not wait for the host.
    """
    return _one_by_one(calls) if at_once == 1 else _at_once(calls, at_once)


def _one_by_one(calls: Calls) -> Iterator[tuple[np.ndarray, int]]:
    asked = ((call(), count) for call, count in calls)
    for (rows, count), _ in itertools.pairwise(itertools.chain(asked, [(None, 0)])):
        yield np.asarray(rows), count


def _at_once(calls: Calls, at_once: int) -> Iterator[tuple[np.ndarray, int]]:
    """A CPU computes in turn what one thread asks for, so that each call has its own."""
    config: Any = jax.config  # Its attributes are made as JAX starts.
    asking, precision = threading.Lock(), config.jax_default_matmul_precision

    def fetch(asked: tuple[Callable[[], Any], int]) -> tuple[np.ndarray, int]:
        call, count = asked
        # One at a time, or each would compile the same; as the caller's thread would compile it.
        with asking, jax.default_matmul_precision(precision):
            rows = call()
        return np.asarray(rows), count

    return ahead(fetch, calls, threads=at_once, most=at_once)
