import numpy as np
import pytest

from clip_jax.eval import fairness, shifts


def logit(p):
    return np.log(p / (1 - p))


def test_a_trend_finds_the_line_it_was_given():
    accuracies = np.array([0.3, 0.55, 0.7, 0.82])
    shifted = 1 / (1 + np.exp(-(1.3 * logit(accuracies) - 0.8)))
    trend = shifts.fit_trend(accuracies, shifted)
    assert (trend.slope, trend.intercept) == (pytest.approx(1.3), pytest.approx(-0.8))
    for a, s in zip(accuracies.tolist(), shifted.tolist(), strict=True):
        assert trend.effective_robustness(a, s) == pytest.approx(0, abs=1e-12)
        assert trend.effective_robustness(a, s + 0.1) == pytest.approx(0.1)


def test_a_trend_is_the_least_squares_fit_of_logits():
    rng = np.random.default_rng(0)
    accuracies, shifted = rng.uniform(0.2, 0.9, 12), rng.uniform(0.1, 0.8, 12)
    trend = shifts.fit_trend(accuracies, shifted)
    slope, intercept = np.polyfit(logit(accuracies), logit(shifted), 1)
    assert (trend.slope, trend.intercept) == (pytest.approx(slope), pytest.approx(intercept))
    order = rng.permutation(12)
    again = shifts.fit_trend(accuracies[order], shifted[order])
    assert again.slope == pytest.approx(trend.slope)


@pytest.mark.parametrize(
    "accuracies, shifted, message",
    [
        ([0.5, 1.0], [0.3, 0.4], "accuracies: 1.0 of row 1 has no logit; .* is needed"),
        ([0.5, 0.6], [0.0, 0.4], "shifted: 0.0 of row 0 has no logit; .* is needed"),
        ([0.5, float("nan")], [0.3, 0.4], "accuracies: nan of row 1 has no logit; .* is needed"),
        ([0.5, 0.5], [0.3, 0.4], "a trend needs baselines of at least two different accuracies"),
    ],
)
def test_what_has_no_trend_is_an_error(accuracies, shifted, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        shifts.fit_trend(np.array(accuracies), np.array(shifted))


def test_what_has_no_expectation_is_an_error():
    with pytest.raises(ValueError, match=r"^accuracy: 1.0 of row 0 has no logit; .*$"):
        shifts.Trend(slope=1.0, intercept=0.0).effective_robustness(1.0, 0.5)


NAMES = ("Asia", "Europe", "Other", "Mars")


def test_the_worst_region_leaves_out_what_is_ignored():
    regions = np.array([0] * 10 + [1] * 10 + [2] * 2)
    right = np.array([True] * 8 + [False] * 2 + [True] * 6 + [False] * 4 + [False] * 2)
    assert shifts.worst_region(right, regions, NAMES).worst == ("Other", 0.0)
    found = shifts.worst_region(right, regions, NAMES, ignored=("Other",))
    assert found.worst == ("Europe", pytest.approx(0.6))
    assert (found.names, found.counts.tolist()) == (("Asia", "Europe", "Mars"), [10, 10, 0])
    kept = regions != 2
    alone = fairness.by_group(right[kept], regions[kept], NAMES)
    assert (found.worst, found.gap) == (alone.worst, alone.gap)


def test_regions_that_are_none_are_named():
    right, regions = np.ones(3, bool), np.full(3, 2)
    with pytest.raises(
        ValueError, match=r"^ignored regions \['other'\] are not among \['Asia', .*"
    ):
        shifts.worst_region(right, regions, NAMES, ignored=("other",))
    with pytest.raises(ValueError, match=r"^no sample is left outside the ignored .*\['Other'\]$"):
        shifts.worst_region(right, regions, NAMES, ignored=("Other",))


def test_predictions_of_absent_classes_do_not_count_as_classes():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    # Class 0: precision 1, recall 1 / 2; class 1: both 1; class 2 has no sample.
    expected = np.mean([2 * 1 * 0.5 / 1.5, 1.0])
    assert shifts.present_macro_f1(predicted, labels, 4) == pytest.approx(expected)
    assert shifts.present_macro_f1(labels, labels, 9) == 1
