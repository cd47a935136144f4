import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.optim.schedule import Constant, Cosine, Rsqrt

SCHEDULES = [
    Cosine(warmup=10),
    Cosine(warmup=0.25, end=0.1),
    Cosine(warmup=0),
    Rsqrt(warmup=10, timescale=15, cooldown=0.3),
    Rsqrt(warmup=0.05, timescale=0.5, cooldown=0),
    Constant(warmup=4, cooldown=0.5),
    Constant(warmup=0),
]


def curve(schedule, steps=100, peak=3e-3):
    rate = schedule.build(peak, steps)
    return np.asarray(rate(np.arange(steps + 1)))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_curve_has_no_jump_and_stays_between_zero_and_the_peak(schedule):
    share = curve(schedule, steps=10_000, peak=3e-3) / 3e-3
    steepest = 0.25 if 4 in vars(schedule).values() else 0.1  # A warm-up of 4 steps, or of 10.
    assert np.abs(np.diff(share)).max() < steepest * 1.001
    assert share.max() == pytest.approx(1.0, rel=1e-6)
    assert share.min() >= 0


def test_cosine_equals_a_hand_written_one():
    t = np.arange(2000, 20_001)
    half_wave = np.cos(np.pi * (t - 2000) / 18_000)
    expected = 5e-4 * (0.1 + 0.9 * 0.5 * (1 + half_wave))
    rate = Cosine(warmup=2000, end=0.1).build(5e-4, 20_000)
    np.testing.assert_allclose(rate(t), expected, rtol=1e-5)
    np.testing.assert_allclose(rate(np.arange(2001)), 5e-4 * np.arange(2001) / 2000, rtol=1e-6)


def test_rsqrt_equals_a_hand_written_one():
    ours = curve(Rsqrt(warmup=10, timescale=20, cooldown=30), steps=100, peak=1.0)
    expected = [t / 10 for t in range(10)]
    expected += [1 / np.sqrt(1 + (t - 10) / 20) for t in range(10, 70)]
    expected += [1 / np.sqrt(1 + 60 / 20) * (100 - t) / 30 for t in range(70, 101)]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
    assert ours[30] == pytest.approx(1 / np.sqrt(2), rel=1e-6)


def test_constant_is_a_trapezium():
    expected = np.interp(np.arange(101), [0, 10, 80, 100], [0, 2, 2, 0])
    ours = curve(Constant(warmup=0.1, cooldown=20), peak=2.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)


def test_the_first_update_rests_and_the_last_one_moves():
    ours = curve(Constant(warmup=2, cooldown=2), steps=10, peak=1.0)
    np.testing.assert_allclose(ours, [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 0.5, 0])


def test_without_warmup_the_first_update_has_the_peak():
    assert Cosine(warmup=0).build(0.25, 7)(0) == 0.25
    assert Constant(warmup=0.0).build(0.25, 1)(0) == 0.25


def test_shares_and_steps_say_the_same():
    np.testing.assert_array_equal(curve(Cosine(warmup=0.07)), curve(Cosine(warmup=7)))
    np.testing.assert_array_equal(curve(Cosine(warmup=7.0)), curve(Cosine(warmup=7)))


def test_long_runs_keep_single_steps_apart():
    rate = Constant(warmup=1_000_000, cooldown=0).build(1.0, 2_000_000)
    assert rate(999_999) < rate(1_000_000)


def test_the_rate_is_float32_under_jit_and_for_every_kind_of_step():
    rate = Rsqrt(timescale=5).build(1e-3, 50)
    for step in (7, np.int64(7), jnp.int32(7)):
        assert rate(step) == jax.jit(rate)(7)
        assert jnp.asarray(rate(step)).dtype == jnp.float32


def test_a_run_too_short_for_its_warmup_is_refused():
    message = r"warm-up \(2000 steps\) and cool-down \(0\) do not fit into a run of 100 steps"
    with pytest.raises(ValueError, match=message):
        Cosine(warmup=2000).build(1e-3, 100)
    with pytest.raises(ValueError, match=r"\(6 steps\) and cool-down \(5\) do not fit"):
        Constant(warmup=6, cooldown=0.5).build(1e-3, 10)
    with pytest.raises(ValueError, match="run of 0 steps"):
        Constant(warmup=0).build(1e-3, 0)


def test_warmup_and_cooldown_may_fill_the_run():
    np.testing.assert_allclose(
        curve(Constant(warmup=0.5, cooldown=0.5), steps=4, peak=1.0), [0, 0.5, 1, 0.5, 0]
    )
    np.testing.assert_allclose(curve(Cosine(warmup=4), steps=4, peak=1.0), [0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("span", [-1, -0.1, 1.5, float("nan"), float("inf")])
def test_spans_must_be_steps_or_shares(span):
    with pytest.raises(ValueError, match=r"Constant.cooldown must be whole steps .* got"):
        Constant(cooldown=span)


def test_all_wrong_fields_are_reported_at_once():
    with pytest.raises(ValueError) as error:
        Cosine(warmup=-2, end=1.5)
    assert str(error.value) == (
        "Cosine.warmup must be whole steps (1 or more) or a share of the run (0 up to 1), got -2; "
        "Cosine.end must be from 0 to 1, got 1.5"
    )
    with pytest.raises(ValueError, match=r"Rsqrt.timescale must be above 0, got 0"):
        Rsqrt(timescale=0)
