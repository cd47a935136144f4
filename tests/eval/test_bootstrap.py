import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from clip_jax.eval.bootstrap import levels, paired_difference


def right_or_wrong(n=300, seed=0):
    rng = np.random.default_rng(seed)
    easy = rng.random(n)
    return easy < 0.7, easy + 0.2 * rng.normal(size=n) < 0.6


def test_a_model_does_not_differ_from_itself():
    first, _ = right_or_wrong()
    found = paired_difference(first, first, resamples=100)
    assert (found.difference, found.low, found.high, found.decided) == (0, 0, 0, False)


def test_the_difference_is_that_of_the_means_and_changes_sign_when_swapped():
    first, second = right_or_wrong()
    found, swapped = paired_difference(first, second), paired_difference(second, first)
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert found.low < found.difference < found.high
    assert swapped.difference == pytest.approx(-found.difference)
    # Draws are not mirrored with the values, so this holds up to a resampling's noise.
    assert swapped.low == pytest.approx(-found.high, abs=0.01)


@pytest.mark.parametrize("kind", ["few values", "all distinct", "half alike"])
def test_the_interval_is_that_of_the_normal_law_for_many_samples(kind):
    first, second = right_or_wrong(2000)
    if kind != "few values":
        rng = np.random.default_rng(1)
        first, second = first + rng.normal(size=2000), second + rng.normal(size=2000)
    if kind == "half alike":
        first[:1000] = second[:1000]
    found = paired_difference(first, second, resamples=4000)
    differences = first.astype(float) - second
    error = differences.std() / math.sqrt(2000)
    assert found.low == pytest.approx(found.difference - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(found.difference + 1.96 * error, abs=0.15 * error)
    narrow = paired_difference(first, second, resamples=4000, confidence=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_both_ways_of_drawing_follow_one_law():
    first, second = right_or_wrong(400)
    exact = paired_difference(first, second, resamples=20_000)
    # No value twice, though each is almost what it was.
    apart = first + np.linspace(0, 1e-9, 400)
    found = paired_difference(apart, second, resamples=20_000)
    width = exact.high - exact.low
    assert found.low == pytest.approx(exact.low, abs=0.05 * width)
    assert found.high == pytest.approx(exact.high, abs=0.05 * width)


@pytest.mark.parametrize("count", [5, 20, 1000])
def test_few_samples_widen_the_interval_to_that_of_the_t_distribution(count):
    """Of normal means the ends lie where the textbook's interval ends, for any sample of them."""
    values = np.random.default_rng(count).normal(size=count)
    found = paired_difference(values, np.zeros(count), resamples=100_000)
    error = values.std(ddof=1) / math.sqrt(count)
    wide = stats.t.ppf(0.975, count - 1) * error
    # Resampled means of five are not quite normal.
    assert found.high - found.low == pytest.approx(2 * wide, rel=0.15 if count == 5 else 0.03)


def test_levels_are_those_of_the_plain_percentiles_in_the_end():
    for confidence in (0.5, 0.95):
        low, high = levels(10**7, confidence)
        assert (low, high) == pytest.approx(((1 - confidence) / 2, (1 + confidence) / 2), abs=1e-6)
        each = [levels(count, confidence) for count in (1, 2, 3, 20, 200, 10**7)]
        assert [low + high for low, high in each] == pytest.approx([1] * 6)
        lows = [low for low, _ in each]
        assert lows[0] == lows[1] > 0 and lows[1:] == sorted(set(lows[1:]))


def test_small_samples_are_covered_as_often_as_said():
    """1,500 sets of 20 normal differences: the plain percentiles hold the truth too seldom."""
    rng, held, plain = np.random.default_rng(5), 0, 0
    for _ in range(1500):
        values = rng.normal(size=20)
        means = values[rng.integers(20, size=(400, 20))].mean(axis=1)
        for name, ends in (("held", levels(20, 0.95)), ("plain", (0.025, 0.975))):
            low, high = np.quantile(means, ends)
            if name == "held":
                held += low < 0 < high
            else:
                plain += low < 0 < high
    noise = math.sqrt(0.95 * 0.05 / 1500)
    assert abs(held / 1500 - 0.95) < 3 * noise and plain / 1500 < 0.95 - 3 * noise


@pytest.mark.parametrize("kind", ["few values", "all distinct"])
def test_neither_order_nor_blocks_decide_anything_but_the_seed_does(kind):
    rng = np.random.default_rng(2)
    first, second = right_or_wrong(100)
    if kind == "all distinct":
        first = first + rng.random(100)
    found = paired_difference(first, second, resamples=500)
    order = rng.permutation(100)
    assert paired_difference(first[order], second[order], resamples=500) == found
    for block in (1, 777, 10**6):
        assert paired_difference(first, second, resamples=500, block=block) == found
    other = paired_difference(first, second, resamples=500, seed=1)
    assert (other.low, other.high) != (found.low, found.high)


def test_memory_is_bounded_by_the_block():
    rng = np.random.default_rng(3)
    first, second = rng.random(2000), rng.random(2000)
    peaks = []
    for block in (2**14, 2**20):
        tracemalloc.start()
        paired_difference(first, second, resamples=500, block=block)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 2000 * 500 * 8 / 4 < 2000 * 500 * 8 < peaks[1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"first": np.zeros(0), "second": np.zeros(0)}, "first and second: no sample, .*"),
        ({"first": np.array([0, np.nan, 1])}, "1 of 3 rows of first are not finite; .* row 1"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1, .*; got 1.0, 10000, 4194304"),
        ({"resamples": 0}, "confidence must be between 0 and 1, .*; got 0.95, 0, 4194304"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"first": np.ones(3), "second": np.zeros(3)} | change
    with pytest.raises(ValueError, match=f"^{message}$"):
        paired_difference(**given)
