"""The probe beside scikit-learn's, which is a requirement (it ships the digits)."""

import functools

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from clip_jax.eval import classification, probe
from clip_jax.eval.logistic import Regression
from clip_jax.eval.neighbours import nearest, neighbour_votes
from clip_jax.eval.probe import Labelled

ROWS, WIDTH = 60, 6


@functools.cache
def drawn(classes, rows=ROWS, seed=0, offset=3.0):
    """Features of very unequal spread, far from the origin, whose classes overlap."""
    rng = np.random.default_rng([seed, classes])
    labels = np.arange(rows) % classes
    centres = np.random.default_rng(classes).normal(size=(classes, WIDTH))
    features = (centres[labels] + rng.normal(size=(rows, WIDTH))) * 10.0 ** -np.arange(WIDTH) * 3
    return Labelled(features=(features + offset).astype(np.float32), labels=labels)


def theirs(train, strength):
    fitted = LogisticRegression(C=1 / strength, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    return fitted.fit(train.features.astype(np.float64), train.labels)


@pytest.fixture(scope="module")
def regressions():
    return {k: Regression(drawn(k).features, drawn(k).labels, k) for k in (2, 3)}


@pytest.mark.parametrize("strength", [1e-3, 1e-2, 1.0, 1e2, 1e6])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_scikit_learns(classes, strength, regressions):
    train, test = drawn(classes), drawn(classes, seed=1)
    ours, peer = regressions[classes].solve(strength), theirs(train, strength)
    expected = peer.predict_proba(test.features.astype(np.float64))
    np.testing.assert_allclose(ours.probabilities(test.features), expected, rtol=0, atol=1e-4)
    accuracy = classification.accuracy(ours.logits(test.features), test.labels)
    assert accuracy == peer.score(test.features.astype(np.float64), test.labels)
    assert ours.strength == strength
    assert ours.decrement < 1e-11
    if classes == 3:
        np.testing.assert_allclose(ours.weights, peer.coef_.T, atol=1e-3 * abs(peer.coef_).max())


def test_the_gradient_is_zero_at_the_solution(regressions):
    train, found = drawn(3), regressions[3].solve(0.1)
    off = found.probabilities(train.features) - np.eye(3)[train.labels]
    gradient = train.features.astype(np.float64).T @ off + 0.1 * found.weights
    assert np.abs(gradient).max() < 1e-4 * np.abs(train.features).sum()
    np.testing.assert_allclose(off.sum(axis=0), 0, atol=1e-4)  # The bias is free.
    np.testing.assert_allclose(found.probabilities(train.features).sum(axis=1), 1)


def test_neither_order_nor_offset_nor_padding_nor_the_mesh_moves_the_solution(regressions):
    train, test = drawn(3), drawn(3, seed=1)
    expected = regressions[3].solve(0.1).probabilities(test.features)
    order = np.random.default_rng(0).permutation(ROWS)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    near = drawn(3, offset=0.0)
    others = {
        "order": (Regression(train.features[order], train.labels[order], 3), test),
        "offset": (Regression(near.features, near.labels, 3), drawn(3, seed=1, offset=0.0)),
        # 60 rows on 8 devices are 64, of which 4 weigh nothing.
        "mesh": (Regression(train.features, train.labels, 3, mesh=mesh), test),
        "padding": (Regression(train.features[:40], train.labels[:40], 3, rows=ROWS), test),
    }
    part = theirs(train.rows(np.arange(40)), 0.1).predict_proba(test.features.astype(np.float64))
    for name, (regression, samples) in others.items():
        found = regression.solve(0.1).probabilities(samples.features)
        wanted = part if name == "padding" else expected
        np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=name)
    assert np.abs(part - expected).max() > 0.01


def test_equal_problems_have_equal_solutions_bit_for_bit(regressions):
    regressions[3].solve(10.0)
    first, second = regressions[3].solve(0.1), regressions[3].solve(0.1)
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(first.bias, second.bias)


def test_the_limit_of_steps_is_kept_and_told(regressions):
    found = regressions[3].solve(1e-2, steps=2)
    assert (found.steps, found.decrement > 1e-11) == (2, True)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": np.arange(ROWS) % 2}, r"no sample to learn classes \[2\] from"),
        ({"labels": np.arange(ROWS) % 4}, "15 of 60 labels are not in 0 to 2; .* 3 of row 3"),
        ({"features": np.full((ROWS, 2), np.inf)}, "60 of 60 rows of features are not finite; .*"),
        ({"labels": np.zeros(ROWS, int), "classes": 1}, "at least 2 classes are needed, got 1"),
    ],
)
def test_what_nothing_can_be_learned_from_is_named(change, message):
    given = {"features": drawn(3).features, "labels": drawn(3).labels, "classes": 3} | change
    with pytest.raises(ValueError, match=f"^{message}$"):
        Regression(**given)


def test_a_strength_is_above_zero(regressions):
    with pytest.raises(ValueError, match=r"^strength must be above 0, got 0.0$"):
        regressions[3].solve(0.0)


def test_strengths_are_the_papers():
    assert (len(probe.STRENGTHS), probe.STRENGTHS[0], probe.STRENGTHS[-1]) == (97, 1e-6, 1e6)
    assert np.diff(np.log10(probe.STRENGTHS)) == pytest.approx(1 / 8)


@pytest.mark.parametrize("slopes", [(1, 1), (1, 7), (5, 1)])
def test_the_search_finds_every_single_peak(slopes):
    for peak in range(97):
        asked = []

        def measure(step, peak=peak, asked=asked):
            asked.append(step)
            return -float(slopes[step > peak] * abs(step - peak))

        best, tried = probe.binary_search(measure)
        assert best == peak
        assert len(asked) == len(set(asked)) <= 15
        assert tried == {step: -float(slopes[step > peak] * abs(step - peak)) for step in asked}


def test_of_equal_strengths_the_strongest_wins():
    assert probe.binary_search(lambda step: 0.5)[0] == 96
    assert probe.binary_search(lambda step: float(step < 50))[0] == 49


def test_a_probe_is_swept_and_refitted_on_both_splits():
    both, test = drawn(3), drawn(3, seed=1)
    train, validation = both.rows(np.arange(40)), both.rows(np.arange(40, 60))
    swept = probe.linear_probe(train, validation, 3)
    measured = {
        strength: theirs(train, strength).score(validation.features, validation.labels)
        for strength in swept.tried
    }
    assert swept.tried == pytest.approx(measured)
    best = max(swept.tried.values())
    assert swept.probe.strength == max(s for s, value in swept.tried.items() if value == best)
    assert list(swept.tried) == sorted(swept.tried)
    peer = theirs(both, swept.probe.strength).predict_proba(test.features.astype(np.float64))
    np.testing.assert_allclose(swept.probe.probabilities(test.features), peer, atol=1e-4)


def test_few_shots_are_k_of_each_class_by_the_seed_alone():
    labels = np.random.default_rng(0).choice([0, 1, 1, 3], size=80)
    rows = probe.few_shot_rows(labels, 4, seed=5)
    assert np.bincount(labels[rows]).tolist() == [4, 4, 0, 4]
    assert rows.tolist() == sorted(set(rows.tolist()))
    np.testing.assert_array_equal(rows, probe.few_shot_rows(labels, 4, seed=5))
    assert rows.tolist() != probe.few_shot_rows(labels, 4, seed=6).tolist()
    # What other classes there are changes no class's draw.
    fewer = probe.few_shot_rows(np.where(labels == 3, 1000, labels), 4, seed=5)
    np.testing.assert_array_equal(rows[labels[rows] < 2], fewer[labels[fewer] < 2])


def test_too_few_shots_are_named():
    labels = np.array([0, 0, 0, 1, 2, 2])
    message = r"^3 samples of each class are needed, but these have fewer: \{1: 1, 2: 2\}$"
    with pytest.raises(ValueError, match=message):
        probe.few_shot_rows(labels, 3, seed=0)
    with pytest.raises(ValueError, match=r"^k must be at least 1, got 0$"):
        probe.few_shot_rows(labels, 0, seed=0)


def test_few_shot_figures_are_those_of_single_probes():
    train, validation, test = drawn(3), drawn(3, seed=2), drawn(3, seed=1)
    # All 20 of each class: every draw is the whole set.
    found = probe.few_shot(train, validation, test, 3, k=20, seeds=[0, 1])
    whole = probe.linear_probe(train, validation, 3, refit=False).probe
    expected = theirs(train, whole.strength).predict_proba(test.features.astype(np.float64))
    np.testing.assert_allclose(whole.probabilities(test.features), expected, rtol=0, atol=1e-4)
    accuracy = classification.accuracy(whole.logits(test.features), test.labels)
    assert (found.values, found.mean, found.std) == ((accuracy, accuracy), accuracy, 0.0)
    with pytest.raises(ValueError, match=r"^at least one seed is needed$"):
        probe.few_shot(train, validation, test, 3, k=20, seeds=[])


def test_a_spread_has_the_mean_and_deviation_of_its_values():
    spread = probe.Spread(values=(0.5, 0.7, 0.9))
    assert (spread.mean, spread.std) == (pytest.approx(0.7), pytest.approx(0.2 * (2 / 3) ** 0.5))


def unit(rng, rows, width=5):
    found = rng.normal(size=(rows, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    "n, m, k, tile", [(7, 13, 1, 4), (12, 30, 9, 7), (5, 6, 6, 1), (9, 9, 3, 64)]
)
def test_nearest_is_sorting_everything(n, m, k, tile):
    rng = np.random.default_rng(n)
    for queries, keys in (
        (unit(rng, n), unit(rng, m)),
        (np.eye(3)[rng.integers(3, size=n)], np.eye(3)[rng.integers(3, size=m)]),
    ):
        rows, cosines = nearest(queries.astype("f4"), keys.astype("f4"), k, tile=tile)
        scores = np.round(queries.astype(np.float64) @ keys.astype(np.float64).T, 8)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # Earlier rows before equals.
        np.testing.assert_array_equal(rows, order)
        np.testing.assert_allclose(cosines, np.take_along_axis(scores, order, 1), atol=1e-8)


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_votes_are_scikit_learns(temperature):
    rng = np.random.default_rng(3)
    train, test, labels = unit(rng, 60), unit(rng, 25), rng.integers(4, size=60)
    peer = KNeighborsClassifier(
        9,
        metric="cosine",
        algorithm="brute",
        weights="uniform" if temperature is None else lambda far: np.exp((1 - far) / temperature),
    ).fit(train.astype(np.float64), labels)
    votes = neighbour_votes(train, labels, test, 4, k=9, temperature=temperature, tile=16)
    shares = votes / votes.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, peer.predict_proba(test.astype(np.float64)), atol=1e-6)


def test_a_sharp_temperature_leaves_the_nearest_to_decide():
    rng = np.random.default_rng(4)
    train, test, labels = unit(rng, 40), unit(rng, 20), rng.integers(4, size=40)
    sharp = neighbour_votes(train, labels, test, 4, k=40, temperature=1e-5)
    single = neighbour_votes(train, labels, test, 4, k=1)
    np.testing.assert_array_equal(sharp.argmax(axis=1), single.argmax(axis=1))
    every = neighbour_votes(train, labels, test, 4, k=40)
    np.testing.assert_array_equal(every, np.tile(np.bincount(labels), (20, 1)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 0}, "k must be in 1 to 10, the number of keys; got 0"),
        ({"k": 11}, "k must be in 1 to 10, the number of keys; got 11"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"labels": np.full(10, 4)}, "10 of 10 labels are not in 0 to 3; the first is 4 of row 0"),
        ({"test": np.full((2, 5), np.nan)}, "2 of 2 rows of queries are not finite; .* row 0"),
    ],
)
def test_what_has_no_neighbours_is_named(change, message):
    rng = np.random.default_rng(5)
    given = {
        "train": unit(rng, 10),
        "labels": np.zeros(10, int),
        "test": unit(rng, 3),
        "classes": 4,
        "k": 3,
    } | change
    with pytest.raises(ValueError, match=f"^{message}$"):
        neighbour_votes(**given)
