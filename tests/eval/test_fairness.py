import itertools
import math

import numpy as np
import pytest

from clip_jax.eval import fairness

NAMES = ("north", "south", "west", "nowhere")


def drawn(n=90, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random(n) < 0.6, rng.random(n) < 0.5, rng.integers(3, size=n)


def test_means_by_group_and_what_they_tell():
    right, _, groups = drawn()
    found = fairness.by_group(right, groups, NAMES)
    means = [right[groups == g].mean() for g in range(3)]
    np.testing.assert_allclose(found.means[:3], means)
    assert np.isnan(found.means[3]) and found.counts.tolist() == [*np.bincount(groups), 0]
    assert found.worst == (NAMES[int(np.argmin(means))], pytest.approx(min(means)))
    assert found.gap == pytest.approx(max(means) - min(means))
    assert np.nansum(found.means * found.counts) / 90 == pytest.approx(right.mean())


def test_one_group_has_no_gap():
    found = fairness.by_group(np.array([0.5, 1.0]), np.array([1, 1]), NAMES)
    assert (found.worst, found.gap) == (("south", 0.75), 0.0)


def test_crossed_groups_are_those_of_both():
    rng = np.random.default_rng(1)
    first, second = rng.integers(2, size=50), rng.integers(3, size=50)
    groups, names = fairness.cross(first, ("a", "b"), second, ("x", "y", "z"))
    assert names == ("a, x", "a, y", "a, z", "b, x", "b, y", "b, z")
    told = [names[g] for g in groups]
    assert told == [f"{'ab'[i]}, {'xyz'[j]}" for i, j in zip(first, second, strict=True)]


def test_equalised_odds_are_their_definition():
    predicted, truth, groups = drawn()
    found = fairness.equalized_odds_difference(predicted, truth, groups, NAMES)
    gaps = []
    for wanted in (True, False):
        rates = [predicted[(groups == g) & (truth == wanted)].mean() for g in range(3)]
        gaps.append(max(abs(a - b) for a, b in itertools.combinations(rates, 2)))
    assert found == pytest.approx(max(gaps))
    # Both rates are of the same samples when the meaning of yes and no is swapped.
    swapped = fairness.equalized_odds_difference(~predicted, ~truth, groups, NAMES)
    assert swapped == pytest.approx(found)


def test_equalised_odds_at_their_extremes():
    _, truth, groups = drawn()
    assert fairness.equalized_odds_difference(truth, truth, groups, NAMES) == 0
    favoured = fairness.equalized_odds_difference(groups == 0, truth, groups, NAMES)
    assert favoured == 1


def test_a_rate_of_nothing_is_an_error_that_names_the_groups():
    predicted, truth, groups = drawn()
    truth = np.where(groups == 1, False, np.where(groups == 2, True, truth))
    message = (
        r"^equalised odds are not defined for groups without a positive sample: south; "
        r"groups without a negative sample: west$"
    )
    with pytest.raises(ValueError, match=message):
        fairness.equalized_odds_difference(predicted, truth, groups, NAMES)


def test_association_is_the_share_of_best_prompts():
    rng = np.random.default_rng(2)
    scores, groups = rng.normal(size=(60, 6)), rng.integers(3, size=60)
    concepts = [None, None, "crime", "animal", "crime", "animal"]
    found = fairness.concept_association(scores, concepts, groups, NAMES)
    assert list(found) == ["crime", "animal"]
    best = [concepts[p] for p in scores.argmax(axis=1)]
    for concept, table in found.items():
        for g in range(3):
            mine = [b for b, own in zip(best, groups, strict=True) if own == g]
            assert table.means[g] == pytest.approx(mine.count(concept) / len(mine))


def test_a_tie_between_prompts_is_shared_whatever_their_order():
    scores = np.array([[1.0, 1.0, 1.0, 0.0], [0.0, 0.5, 0.5, 0.1]])
    concepts, groups = [None, "crime", "crime", "animal"], np.array([0, 1])
    found = fairness.concept_association(scores, concepts, groups, NAMES)
    np.testing.assert_allclose(found["crime"].means[:2], [2 / 3, 1])
    np.testing.assert_allclose(found["animal"].means[:2], [0, 0])
    turned = fairness.concept_association(scores[:, ::-1], concepts[::-1], groups, NAMES)
    np.testing.assert_allclose(turned["crime"].means, found["crime"].means)


def slow_skew(order, desired, k):
    return max(
        math.log(share / desired[g])
        for g in range(len(desired))
        if (share := sum(x == g for x in order[:k]) / k)
    )


def slow_ndkl(order, desired):
    total = weight = 0.0
    for i in range(1, len(order) + 1):
        shares = [sum(x == g for x in order[:i]) / i for g in range(len(desired))]
        divergence = sum(s * math.log(s / d) for s, d in zip(shares, desired, strict=True) if s)
        total += divergence / math.log2(i + 1)
        weight += 1 / math.log2(i + 1)
    return total / weight


@pytest.mark.parametrize("desired", [None, [0.5, 0.25, 0.25]])
def test_ranking_measures_are_their_definitions(desired):
    rng = np.random.default_rng(3)
    scores, groups = rng.permutation(40) / 40, rng.integers(3, size=40)
    given = None if desired is None else np.array(desired)
    expected = desired or (np.bincount(groups) / 40).tolist()
    order = groups[np.argsort(-scores)].tolist()
    for k in (1, 5, 17, 40):
        skew = fairness.max_skew(scores, groups, k, given)
        assert skew == pytest.approx(slow_skew(order, expected, k))
        divergence = fairness.ndkl(scores, groups, given, k=k)
        assert divergence == pytest.approx(slow_ndkl(order[:k], expected))
    assert fairness.ndkl(scores, groups, given) == fairness.ndkl(scores, groups, given, k=40)


def test_ranking_measures_at_their_extremes():
    groups, scores = np.arange(40) % 2, -np.arange(40.0)
    assert fairness.max_skew(scores, groups, 10) == 0  # Perfectly mixed.
    sorted_groups = np.sort(groups)
    assert fairness.max_skew(scores, sorted_groups, 20) == pytest.approx(math.log(2))
    assert fairness.ndkl(scores, sorted_groups, k=20) == pytest.approx(math.log(2))
    assert fairness.ndkl(scores, sorted_groups) > fairness.ndkl(scores, groups) > 0


def test_ties_are_the_mean_over_all_orders_and_no_order_of_samples_matters():
    groups, scores = np.array([0, 1, 1, 2]), np.array([1.0, 0.5, 0.5, 0.5])
    shares = np.zeros(3)
    for rest in itertools.permutations([1, 1, 2]):
        shares += np.bincount([0, *rest][:2], minlength=3) / 2 / 6
    expected = max(math.log(s / d) for s, d in zip(shares, [0.25, 0.5, 0.25], strict=True))
    assert fairness.max_skew(scores, groups, 2) == pytest.approx(expected)
    rng = np.random.default_rng(4)
    scores, groups = rng.integers(4, size=30) / 4, rng.integers(3, size=30)
    order = rng.permutation(30)
    for measure in (lambda s, g: fairness.max_skew(s, g, 7), fairness.ndkl):
        assert measure(scores, groups) == pytest.approx(measure(scores[order], groups[order]))
    same = fairness.ndkl(np.zeros(30), groups)
    assert same == pytest.approx(0, abs=1e-12)  # A model without a preference prefers nobody.


def test_a_group_that_nobody_has_and_nobody_wants_is_none():
    scores, groups = np.arange(6.0), np.array([0, 2, 0, 2, 2, 0])
    wanted = np.array([0.5, 0.0, 0.5])
    assert fairness.ndkl(scores, groups) == pytest.approx(fairness.ndkl(scores, groups, wanted))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda right, groups: fairness.by_group(right, groups, NAMES[:2]),
            r"\d+ of 90 groups are not in 0 to 1; the first is 2 of row \d+",
        ),
        (
            lambda right, groups: fairness.concept_association(
                np.ones((90, 2)), ["crime"], groups, NAMES
            ),
            "2 prompts are scored, but 1 have a concept",
        ),
        (
            lambda right, groups: fairness.concept_association(
                np.ones((90, 2)), [None, None], groups, NAMES
            ),
            "no prompt belongs to a concept, so there is no association to measure",
        ),
        (
            lambda right, groups: fairness.max_skew(np.ones(90), groups, 91),
            "k must be in 1 to 90, the number of candidates; got 91",
        ),
        (
            lambda right, groups: fairness.ndkl(np.ones(90), groups, np.array([0.5, 0.4, 0.0])),
            r"desired shares are 0 or more and sum to 1, got \[0.5, 0.4, 0.0\]",
        ),
        (
            lambda right, groups: fairness.ndkl(np.ones(90), groups, np.array([0.0, 1.0, 0.0])),
            r"groups \[0, 2\] have candidates but a desired share of 0",
        ),
        (
            lambda right, groups: fairness.ndkl(np.full(90, np.nan), groups),
            "90 of 90 rows of scores are not finite; the first is row 0",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    right, _, groups = drawn()
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(right, groups)
