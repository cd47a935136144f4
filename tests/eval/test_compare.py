import dataclasses
import functools
import statistics

import numpy as np
import pytest

from clip_jax.eval import compare as module
from clip_jax.eval.bootstrap import levels, paired_difference
from clip_jax.eval.classification import reliability
from clip_jax.eval.compare import compare
from clip_jax.eval.fairness import max_skew, ndkl
from clip_jax.eval.metrics import median_rank
from clip_jax.eval.outcome import Outcome
from tests.eval import outcomes

NAMES = [f"class {i}" for i in range(7)]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 60)


def pair(make, **fields):
    return make(seed=1, **fields), make(seed=2, skill=3.0, **fields)


def classified(**fields):
    return outcomes.classification("cifar10", "CIFAR-10", NAMES, n=200, **fields)


def searched(**fields):
    captions = [f"caption {i}" for i in range(60)]
    return outcomes.retrieval("flickr", "Flickr", captions, **fields)


def only(pairings, metric=None):
    (pairing,) = pairings
    if metric is None:
        return pairing
    (one,) = [m for m in pairing.metrics if m.metric == metric]
    return one


def changed(one, **arrays):
    """A copy with other arrays; those that are None are left out."""
    kept = {k: a for k, a in {**one.arrays, **arrays}.items() if a is not None}
    return dataclasses.replace(one, arrays=kept)


def test_a_mean_over_samples_gets_the_paired_bootstrap_of_second_less_first():
    a, b = pair(classified)
    for metric in ("acc1", "acc5"):
        got = only(compare([a], [b]), metric)
        credit = f"credit/{metric}"
        assert got.interval == paired_difference(b.arrays[credit], a.arrays[credit])
        assert (got.first, got.second) == (a.figures[metric], b.figures[metric])
        assert got.difference == pytest.approx(got.second - got.first)
    assert only(compare([a], [b])).main_metric.metric == "acc1"


def test_the_order_of_samples_decides_nothing():
    a, b = pair(classified)
    order = np.random.default_rng(0).permutation(200)
    rows = {
        k: v[order]
        for k, v in b.arrays.items()
        if k in ("keys", "labels", "top", "confidence") or k.startswith("credit/")
    }
    assert compare([a], [changed(b, **rows)]) == compare([a], [b])


def test_who_is_first_decides_the_sign_alone():
    a, b = pair(classified)
    there, back = only(compare([a], [b])), only(compare([b], [a]))
    assert (there.gained, there.lost) == (back.lost, back.gained)
    for one, other in zip(there.metrics, back.metrics, strict=True):
        assert one.difference == pytest.approx(-other.difference)
    mean = next(m for m in there.metrics if m.metric == "mean_per_class_recall")
    reverse = only(compare([b], [a]), "mean_per_class_recall")
    assert mean.interval.low == pytest.approx(-reverse.interval.high)


def test_a_model_against_itself_is_not_decided():
    for make in (classified, outcomes.grouped, searched):
        one = make(seed=1)
        for metric in only(compare([one], [one])).metrics:
            if metric.interval is not None:
                assert (metric.interval.low, metric.interval.high) == (0, 0)
                assert not metric.interval.decided


def drawn(count, low_high, figure_of):
    """The interval by another road: the same draws, each figure from scratch in plain Python."""
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(module.RESAMPLES):
        rows = rng.integers(count, size=count).tolist()
        differences.append(figure_of(1, rows) - figure_of(0, rows))
    wanted = np.quantile(differences, levels(count, 0.95))
    np.testing.assert_allclose((low_high.low, low_high.high), wanted, atol=1e-12)
    assert wanted[0] < wanted[1]


def mean(values):
    return sum(values) / len(values)


def test_mean_per_class_recall_is_recomputed_for_each_draw():
    sides = pair(classified)
    labels = sides[0].arrays["labels"].tolist()

    def recall(side, rows):
        right = sides[side].arrays["credit/acc1"].tolist()
        by_class = {k: [right[r] for r in rows if labels[r] == k] for k in range(7)}
        return mean([mean(own) for own in by_class.values() if own])

    got = only(compare([sides[0]], [sides[1]]), "mean_per_class_recall")
    drawn(200, got.interval, recall)
    assert got.interval.difference == pytest.approx(got.second - got.first)


def test_macro_f1_is_recomputed_for_each_draw():
    sides = []
    for one in pair(classified):
        figure = f1(one, range(200))
        sides.append(
            dataclasses.replace(one, figures={"F1-macro_all": figure}, main="F1-macro_all")
        )
    got = only(compare([sides[0]], [sides[1]]), "F1-macro_all")
    drawn(200, got.interval, lambda side, rows: f1(sides[side], rows))


def f1(one, rows):
    labels, given = one.arrays["labels"].tolist(), one.arrays["top"][:, 0].tolist()
    scores = []
    for k in {labels[r] for r in rows}:
        hits = sum(labels[r] == given[r] == k for r in rows)
        scores.append(2 * hits / sum((labels[r] == k) + (given[r] == k) for r in rows))
    return mean(scores)


def test_captions_are_drawn_with_their_picture():
    sides = [uneven(one) for one in pair(searched)]
    owner = sides[0].arrays["image_of_text"].tolist()

    def by_text(side, rows):
        credit = sides[side].arrays["credit/image_retrieval_recall@1"].tolist()
        return mean([c for r in rows for c, o in zip(credit, owner, strict=True) if o == r])

    def both(side, rows):
        by_image = sides[side].arrays["credit/text_retrieval_recall@1"].tolist()
        return (by_text(side, rows) + mean([by_image[r] for r in rows])) / 2

    found = compare([sides[0]], [sides[1]])
    drawn(30, only(found, "image_retrieval_recall@1").interval, by_text)
    drawn(30, only(found, "mean_recall@1").interval, both)


def test_median_ranks_are_found_anew_for_each_draw():
    sides = [uneven(one) for one in pair(searched)]
    owner = sides[0].arrays["image_of_text"].tolist()

    def by_text(side, rows):
        ranks = sides[side].arrays["rank/image_retrieval"].tolist()
        return statistics.median(
            [k + 1 for r in rows for k, o in zip(ranks, owner, strict=True) if o == r]
        )

    def by_image(side, rows):
        ranks = sides[side].arrays["rank/text_retrieval"].tolist()
        return statistics.median([ranks[r] + 1 for r in rows])

    found = compare([sides[0]], [sides[1]])
    for metric, figure in (
        ("image_retrieval_median_rank", by_text),
        ("text_retrieval_median_rank", by_image),
    ):
        got = only(found, metric)
        assert got.interval.difference == got.second - got.first
        drawn(30, got.interval, figure)


@pytest.mark.parametrize("seed", range(8))
def test_a_median_rank_over_all_pictures_is_the_reported_one(seed):
    """Whatever the numbers of pictures and captions, odd or even, the order, and the ties."""
    rng = np.random.default_rng(seed)
    pictures = 20 + seed
    owner = rng.permutation(np.repeat(np.arange(pictures), rng.integers(1, 5, size=pictures)))
    arrays = {
        "keys": np.arange(pictures).astype(str),
        "captions": np.array([f"caption {number}" for number in range(len(owner))]),
        "image_of_text": owner,
        "rank/image_retrieval": rng.integers(300, size=len(owner)).astype(np.uint16),
        "rank/text_retrieval": rng.integers(6, size=pictures).astype(np.uint8),
    }
    one = dataclasses.replace(searched(), figures={}, arrays=arrays)
    order = rng.permutation(pictures)
    for way in ("image_retrieval", "text_retrieval"):
        ((_, measure),) = module._ways(one, f"{way}_median_rank")
        assert measure(order) == median_rank(arrays[f"rank/{way}"].astype(int))
        # Each picture twice is no other distribution.
        assert measure(np.repeat(order, 2)) == measure(order)


def uneven(one):
    """Pictures with one caption, and with three."""
    owner = np.repeat(np.arange(30), np.tile([1, 3], 15))
    by_text, by_picture = (one.arrays[f"rank/{way}_retrieval"] for way in ("image", "text"))
    credit = one.arrays["credit/image_retrieval_recall@1"]
    by_image = one.arrays["credit/text_retrieval_recall@1"]
    figures = {
        "image_retrieval_recall@1": float(credit.mean()),
        "mean_recall@1": float((credit.mean() + by_image.mean()) / 2),
        "image_retrieval_median_rank": median_rank(by_text.astype(int)),
        "text_retrieval_median_rank": median_rank(by_picture.astype(int)),
    }
    return changed(dataclasses.replace(one, figures=figures), image_of_text=owner)


def test_samples_that_a_set_does_not_score_are_left_out_of_its_mean():
    def make(seed):
        credit = np.random.default_rng(seed).random(40)
        credit[::3] = np.nan
        figure = {"jaccard_score_10-12": float(np.nanmean(credit))}
        arrays = {"keys": np.arange(40).astype(str), "credit/jaccard_score_10-12": credit}
        return Outcome(
            key="w",
            dataset="W",
            task="winogavil",
            main=next(iter(figure)),
            figures=figure,
            arrays=arrays,
        )

    a, b = make(1), make(2)
    got = only(compare([a], [b])).main_metric
    kept = [one.arrays["credit/jaccard_score_10-12"] for one in (b, a)]
    assert got.interval == paired_difference(*(credit[~np.isnan(credit)] for credit in kept))


def test_the_same_mean_under_the_names_of_groups_gets_the_same_interval():
    sides = [
        dataclasses.replace(
            one,
            figures={
                **one.figures,
                "acc_avg": one.figures["acc1"],
                "acc_top5_avg": one.figures["acc5"],
                "recall-macro_all": one.figures["mean_per_class_recall"],
            },
        )
        for one in pair(classified)
    ]
    got = {m.metric: m.interval for m in only(compare([sides[0]], [sides[1]])).metrics}
    assert got["acc_avg"] == got["acc1"] and got["acc_top5_avg"] == got["acc5"]
    assert got["recall-macro_all"] == got["mean_per_class_recall"] != got["acc1"]
    assert None not in got.values()


def test_what_cannot_be_computed_again_has_no_interval_and_says_so():
    a, b = pair(classified)
    extra = {"mean_average_precision": 0.5}
    a, b = (dataclasses.replace(one, figures={**one.figures, **extra}) for one in (a, b))
    got = only(compare([a], [b]), "mean_average_precision")
    assert got.interval is None and got.difference == 0
    assert got.why == "it cannot be computed from what was kept of each sample"
    # As earlier versions wrote them.
    a_search, b_search = (changed(one, **{"rank/image_retrieval": None}) for one in pair(searched))
    got_search = compare([a_search], [b_search])
    assert only(got_search, "image_retrieval_median_rank").why == got.why
    assert only(got_search, "text_retrieval_median_rank").interval is not None
    bare = dataclasses.replace(a, arrays={})
    assert {one.why for one in only(compare([bare], [bare])).metrics} == {"no samples were kept"}
    # Nor a figure that the arrays do not give: it is of something else.
    other = dataclasses.replace(b, figures={**b.figures, "acc1": b.figures["acc1"] / 2})
    assert only(compare([a], [other]), "acc1").interval is None
    assert only(compare([a], [other])).gained is None


def test_figures_that_draws_would_misjudge_have_no_interval_and_say_why():
    skewed = "a picture drawn twice stands twice in a ranking, which looks more skewed than it is"
    chance = "chance adds to it, and adds most where a model is well calibrated"
    whys = {
        "calibration_error": chance,
        "max_skew@100_gender": skewed,
        "ndkl_race": skewed,
    }
    a, b = (
        dataclasses.replace(one, figures={**one.figures, **dict.fromkeys(whys, 0.1)})
        for one in pair(classified)
    )
    found = {one.metric: one for one in only(compare([a], [b])).metrics if one.interval is None}
    assert {metric: one.why for metric, one in found.items()} == whys


def test_chance_adds_to_the_error_of_a_calibrated_model_and_hardly_to_that_of_another():
    """Why there is no interval of its difference: draws lie to one side of the figure."""
    rng = np.random.default_rng(0)
    share = rng.uniform(0.3, 0.9, size=2000)
    right = rng.random(2000) < share
    shifts = []
    for confidence in (share, np.minimum(share + 0.1, 1)):
        figure = reliability(confidence, right).error
        rows = rng.integers(2000, size=(100, 2000))
        draws = [reliability(confidence[own], right[own]).error for own in rows]
        shifts.append((np.mean(draws) - figure) / np.std(draws))
    assert shifts[0] > 0.5 > 0.2 > abs(shifts[1])


def test_rankings_of_drawn_pictures_look_more_skewed_than_those_of_all():
    """Why there is no interval of skews: draws lie above the figure."""
    rng = np.random.default_rng(0)
    group, scores = rng.integers(7, size=1000), rng.normal(size=1000)
    for measure in (ndkl, functools.partial(max_skew, k=100)):
        rows = rng.integers(1000, size=(40, 1000))
        draws = [measure(scores[own], group[own]) for own in rows]
        assert np.mean(draws) > measure(scores, group) + np.std(draws) / 2


def test_samples_that_only_one_model_gets_right_are_counted():
    a, b = pair(classified)
    right = list(
        zip(a.arrays["credit/acc1"].tolist(), b.arrays["credit/acc1"].tolist(), strict=True)
    )
    got = only(compare([a], [b]))
    assert (got.lost, got.gained) == (right.count((1, 0)), right.count((0, 1)))
    assert got.lost > 0 and got.gained > 0


def without(one, rows, told):
    """A copy in which some samples were left out."""
    keep = np.setdiff1d(np.arange(len(one.arrays["keys"])), rows)
    names = [k for k in one.arrays if k.startswith("credit/")] + [
        "keys",
        "labels",
        "top",
        "confidence",
    ]
    made = changed(one, **{k: one.arrays[k][keep] for k in names})
    right = {"acc1": float(made.arrays["credit/acc1"].mean())}
    return dataclasses.replace(made, figures=right, skipped=tuple("?" * told))


def test_samples_that_one_side_left_out_are_left_out_of_the_difference():
    a, b = pair(classified)
    got = only(compare([without(a, [3, 4], 2)], [without(b, [100], 1)]))
    assert (got.samples, got.only_first, got.only_second) == (197, 1, 2)
    keep = np.setdiff1d(np.arange(200), [3, 4, 100])
    sides = (one.arrays["credit/acc1"][keep] for one in (b, a))
    assert got.main_metric.interval == paired_difference(*sides)
    assert got.main_metric.difference != got.main_metric.second - got.main_metric.first


def test_other_data_under_the_same_name_is_an_error_that_names_all_sets():
    a, b = pair(classified)
    c, d = pair(searched)
    wrong_labels = changed(b, labels=(b.arrays["labels"] + 1) % 7)
    captions = d.arrays["captions"].copy()
    captions[3] = "another"
    with pytest.raises(ValueError) as caught:
        compare([a, c], [wrong_labels, changed(d, captions=captions)])
    assert str(caught.value) == (
        "not the same data on both sides: cifar10: 200 samples have other labels; the first is "
        "'0/s0000000'; flickr: captions differ; the first are those of '0/s0000001'"
    )


@pytest.mark.parametrize(
    ("rows", "told", "fault"),
    [
        ([5, 6], 1, "2 samples only in the first, 0 only in the second, but 1 and 0 were left out"),
        ([5], 0, "1 samples only in the first, 0 only in the second, but 0 and 0 were left out"),
    ],
)
def test_samples_that_are_missing_and_were_not_left_out_are_other_data(rows, told, fault):
    a, b = pair(classified)
    with pytest.raises(ValueError) as caught:
        compare([a], [without(b, rows, told)])
    assert str(caught.value) == f"not the same data on both sides: cifar10: {fault} there"


def test_keys_that_stand_for_several_samples_cannot_be_matched():
    a, b = pair(classified)
    twice = b.arrays["keys"].copy()
    twice[1] = twice[0]
    with pytest.raises(ValueError, match="the second has keys that stand for several samples"):
        compare([a], [changed(b, keys=twice)])
    assert only(compare([changed(a, keys=twice)], [changed(b, keys=twice)])).samples == 200


def test_sets_of_one_side_alone_are_passed_over_but_one_must_be_common():
    a, b = pair(classified)
    other = dataclasses.replace(a, key="other")
    assert [p.key for p in compare([other, a], [b])] == ["cifar10"]
    with pytest.raises(ValueError) as caught:
        compare([other], [b])
    assert str(caught.value) == (
        "no data set is in both: the first has ['other'], the second ['cifar10']"
    )
