import itertools
import threading

import jax
import numpy as np
import pytest

from clip_jax.eval.under_way import ahead, answered


class Answer:
    """An array that lies on a device until it is fetched; `wait` is called meanwhile."""

    def __init__(self, number, wait):
        self.number, self.wait = number, wait

    def __array__(self, dtype=None, copy=None):
        self.wait(self.number)
        return np.full((2, 3), self.number)


def calls(count, wait):
    return ((lambda number=number: Answer(number, wait), number) for number in range(count))


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_answers_come_in_the_order_of_the_calls(at_once, count):
    found = list(answered(calls(count, lambda number: None), at_once))
    assert [(rows[0, 0], number) for rows, number in found] == [(n, n) for n in range(count)]


@pytest.mark.parametrize("at_once", [2, 3])
def test_as_many_are_computed_at_once_as_said(at_once):
    together = threading.Barrier(at_once)
    found = list(answered(calls(2 * at_once, lambda number: together.wait(60)), at_once))
    assert len(found) == 2 * at_once


def test_no_two_are_asked_for_at_once_as_both_would_compile():
    asking, overlaps = threading.Lock(), []

    def call():
        overlaps.append(not asking.acquire(blocking=False))
        threading.Event().wait(0.01)
        asking.release()
        return np.zeros(1)

    assert len(list(answered(((call, 1) for _ in range(8)), 4))) == 8
    assert overlaps == [False] * 8


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_error_ends_it_and_the_calls_behind_are_not_made(at_once):
    made = []

    def call(number):
        made.append(number)
        if number == 2:
            raise FloatingPointError("two")
        return np.array([number])

    endless = ((lambda number=number: call(number), 1) for number in itertools.count())
    rows = answered(endless, at_once)
    with pytest.raises(FloatingPointError, match="two"):
        list(rows)
    assert max(made) <= 2 + 2 * at_once


@pytest.mark.parametrize("at_once", [1, 2])
def test_products_are_as_precise_as_the_caller_asks(at_once):
    precisions = []

    def call():
        precisions.append(jax.config.jax_default_matmul_precision)
        return np.zeros(1)

    for precision in ("highest", None):
        with jax.default_matmul_precision(precision):
            assert len(list(answered(((call, 1) for _ in range(3)), at_once))) == 3
    assert precisions == 3 * ["highest"] + 3 * [None]


def test_items_are_read_no_further_ahead_than_said():
    read = []
    numbers = (read.append(number) or number for number in itertools.count())
    found = ahead(lambda number: number * number, numbers, threads=2, most=3)
    assert [next(found) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(read) == 5 + 3
    found.close()
