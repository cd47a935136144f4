import pathlib

import numpy as np
import pytest

from clip_jax.eval import classification, metrics
from clip_jax.eval.zero_shot import classify
from tests.golden import check_eval_metrics

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "eval_metrics.npz"))
"""What clip_benchmark, scikit-learn and fairlearn say; see golden/make_eval_metrics.py."""


@pytest.fixture(scope="module")
def ours():
    given = {k.removeprefix("given/"): v for k, v in GOLDEN.items() if k.startswith("given/")}
    return check_eval_metrics.figures(given)


@pytest.mark.parametrize("name", [key[7:] for key in GOLDEN if key.startswith("answer/")])
def test_figures_equal_the_peers(name, ours):
    np.testing.assert_allclose(ours[name], GOLDEN[f"answer/{name}"], rtol=0, atol=1e-6)


def test_all_our_figures_have_a_peer(ours):
    assert set(ours) == {key[7:] for key in GOLDEN if key.startswith("answer/")}


def drawn(n=200, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    odds = rng.random((n, classes)) ** 3
    return odds / odds.sum(axis=1, keepdims=True), rng.integers(classes, size=n)


def test_predictions_are_right_exactly_where_the_rank_is_zero():
    rng = np.random.default_rng(1)
    axes = np.eye(3)[rng.integers(3, size=54)] * rng.choice([-1, 1], size=(54, 1))
    images, classes = axes[:50].astype("f4"), axes[50:].astype("f4")  # With many ties.
    labels = rng.integers(4, size=50)
    scores = images.astype(np.float64) @ classes.T
    predicted = classification.predict(scores, labels)
    ranks = metrics.class_ranks(images, classes, labels)
    assert 0 < np.sum(ranks == 0) < 50
    np.testing.assert_array_equal(predicted == labels, ranks == 0)
    assert (scores[np.arange(50), predicted] == scores.max(axis=1)).all()
    assert classification.accuracy(scores, labels) == metrics.hit_rate(ranks, 1)


def test_a_model_that_tells_nothing_apart_is_right_about_nothing():
    labels = np.arange(12) % 4
    assert classification.accuracy(np.full((12, 4), 0.25), labels) == 0
    assert classification.accuracy(np.ones((3, 1)), np.zeros(3, int)) == 1  # One class: no rival.


def slow_calibration(probabilities, labels, bins):
    """Guo et al. word for word: bin m holds confidences in ((m - 1) / M, m / M]."""
    rows = [[] for _ in range(bins)]
    for row, label in zip(probabilities, labels, strict=True):
        best = max(row)
        (home,) = [m for m in range(bins) if m / bins < best <= (m + 1) / bins]
        rows[home].append((best, float(np.argmax(row) == label)))
    return rows


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_is_its_definition(bins):
    probabilities, labels = drawn()
    found = classification.calibration(probabilities, labels, bins=bins)
    rows = slow_calibration(probabilities, labels, bins)
    assert found.counts.tolist() == [len(row) for row in rows]
    error = 0.0
    for m, row in enumerate(rows):
        if not row:
            assert np.isnan(found.confidence[m]) and np.isnan(found.accuracy[m])
            continue
        sure, right = np.mean(row, axis=0)
        assert found.confidence[m] == pytest.approx(sure, abs=1e-12)
        assert found.accuracy[m] == pytest.approx(right, abs=1e-12)
        error += abs(sure - right) * len(row) / len(labels)
    assert found.error == pytest.approx(error, abs=1e-12)
    order = np.random.default_rng(0).permutation(len(labels))
    again = classification.calibration(probabilities[order], labels[order], bins=bins)
    assert again.error == pytest.approx(found.error, abs=1e-12)


def test_calibration_at_its_extremes():
    labels = np.arange(10) % 5
    sure = np.eye(5)[labels]
    assert classification.calibration(sure, labels).error == 0
    wrong = classification.calibration(sure, (labels + 1) % 5)
    assert (wrong.error, wrong.counts[-1]) == (1.0, 10)  # A certainty of 1 is in the last bin.
    half = classification.calibration(np.full((4, 2), 0.5), np.array([0, 1, 0, 1]), bins=2)
    assert half.counts.tolist() == [4, 0]  # A bin holds its upper edge.
    assert half.error == 0.5  # All are ties, and so wrong.


def test_float32_probabilities_are_probabilities():
    rng = np.random.default_rng(2)
    probabilities = classify(rng.normal(size=(50, 4)).astype("f4"), np.eye(4, dtype="f4"))
    labels = rng.integers(4, size=50)
    wide = classification.calibration(probabilities, labels)
    narrow = classification.calibration(probabilities.astype("f4"), labels)
    assert narrow.error == pytest.approx(wide.error, abs=1e-6)


def test_confusions_and_what_follows_from_them():
    rng = np.random.default_rng(3)
    labels, predicted = rng.choice([0, 1, 1, 3], size=80), rng.choice([0, 1, 3, 4], size=80)
    confusion = classification.confusion_matrix(predicted, labels, 6)
    for truth in range(6):
        for taken in range(6):
            assert confusion[truth, taken] == np.sum((labels == truth) & (predicted == taken))
    accuracy, f1 = classification.per_class_accuracy(confusion), classification.f1_scores(confusion)
    for k in range(6):
        own, said = labels == k, predicted == k
        hits = np.sum(own & said)
        assert accuracy[k] == pytest.approx(hits / own.sum() if own.any() else np.nan, nan_ok=True)
        if not (own.any() or said.any()):
            assert np.isnan(f1[k])
        elif not hits:
            assert f1[k] == 0
        else:
            precision, recall = hits / said.sum(), hits / own.sum()
            assert f1[k] == pytest.approx(2 * precision * recall / (precision + recall))
    turned = classification.confusion_matrix(labels, predicted, 6)
    np.testing.assert_array_equal(turned, confusion.T)
    assert classification.macro_f1(turned) == pytest.approx(classification.macro_f1(confusion))


def test_average_precision_at_its_extremes():
    targets = np.arange(8)[:, None] < np.array([[3, 8, 1]])
    scores = -np.arange(8.0)[:, None] * np.ones((1, 3))
    np.testing.assert_array_equal(classification.average_precision(scores, targets), 1.0)
    worst = classification.average_precision(-scores, targets)
    np.testing.assert_allclose(worst, [np.mean([1 / 6, 2 / 7, 3 / 8]), 1, 1 / 8])
    same = classification.average_precision(np.zeros((8, 3)), targets)
    np.testing.assert_allclose(same, targets.mean(axis=0))  # All at once: the share of positives.


def test_average_precision_depends_on_order_alone():
    rng = np.random.default_rng(4)
    scores, targets = rng.normal(size=(40, 3)), rng.random((40, 3)) < 0.4
    found = classification.average_precision(scores, targets)
    np.testing.assert_array_equal(classification.average_precision(np.exp(scores), targets), found)
    order = rng.permutation(40)
    again = classification.average_precision(scores[order], targets[order])
    np.testing.assert_allclose(again, found, atol=1e-15)
    assert classification.mean_average_precision(scores, targets) == pytest.approx(found.mean())


def test_a_class_without_a_positive_is_left_out_of_the_mean():
    rng = np.random.default_rng(5)
    scores, targets = rng.normal(size=(30, 4)), rng.random((30, 4)) < 0.4
    targets[:, 2] = False
    found = classification.average_precision(scores, targets)
    assert np.isnan(found).tolist() == [False, False, True, False]
    kept = [0, 1, 3]
    expected = classification.mean_average_precision(scores[:, kept], targets[:, kept])
    assert classification.mean_average_precision(scores, targets) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"^none of 4 classes has a positive sample$"):
        classification.mean_average_precision(scores, np.zeros_like(targets))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda p, y: classification.accuracy(p[:0], y[:0]),
            "scores and labels: no sample, so no figure is defined",
        ),
        (
            lambda p, y: classification.predict(np.where(p > 0.9, np.nan, p), y),
            r"\d+ of 200 rows of scores are not finite; the first is row \d+",
        ),
        (
            lambda p, y: classification.predict(p, np.where(np.arange(200) == 7, 5, y)),
            "1 of 200 labels are not in 0 to 4; the first is 5 of row 7",
        ),
        (
            lambda p, y: classification.calibration(p * (1 + (np.arange(200) == 3)[:, None]), y),
            r"1 of 200 rows are no probabilities \(0 or more, summing to 1\); the first is row 3, "
            "of sum 2",
        ),
        (lambda p, y: classification.calibration(p, y, bins=0), "bins must be at least 1, got 0"),
        (
            lambda p, y: classification.confusion_matrix(y - 1, y, 5),
            r"\d+ of 200 predictions are not in 0 to 4; the first is -1 of row \d+",
        ),
        (
            lambda p, y: classification.macro_f1(np.zeros((3, 3), int)),
            "the confusion matrix counts no sample, so no figure is defined",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(*drawn())
