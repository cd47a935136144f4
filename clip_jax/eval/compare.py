"""Two evaluations of the same data: where they differ by more than the luck of the samples."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from clip_jax.eval.bootstrap import Interval, levels, paired_difference
from clip_jax.eval.drawn_groups import GroupFigure, drawn_difference, group_ways, of_group
from clip_jax.eval.drawn_precision import drawn_precision
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.shifts import present_macro_f1

Measure = Callable[[np.ndarray], float]
"""Rows of samples, some of them several times -> a figure over them."""
SAME = 1e-6
"""A figure found again from the arrays may be this far from the one that was saved."""
AVERAGES = {"acc_avg": "acc1", "acc_top5_avg": "acc5", "acc_gender_x_avg": "acc_gender"}
"""Metrics that are the same mean under another name."""
RECALLS = ("mean_per_class_recall", "recall-macro_all")
UNSOUND = {
    # Of 2,000 pictures in seven fair groups NDKL is 0.031 in the mean. Of one such set it was
    # 0.032, and of draws from that 0.046: too large by four times as much as draws vary.
    r"(max_skew@\d+|ndkl)_\w+": "a picture drawn twice stands twice in a ranking, which looks more "
    "skewed than it is",
    # The difference of two models is unbiased only where both are calibrated alike. Of 5,000
    # samples, one model calibrated and the other far too sure, intervals meant to hold the truth 95
    # times in 100 did so 17 times, and 79 times when mirrored at the figure. Draws do not tell
    # when: where they lay around the figure, they held the truth no more often.
    r"calibration_error": "chance adds to it, and adds most where a model is well calibrated",
}
"""Patterns of metrics that have no honest interval, and why."""
FEWEST = 6
"""Samples below which even those that all differ alike decide nothing: with signs by chance it
happens in more than 1 of 20 cases. Draws of them would all be equal, and so seem sure."""
CONFIDENCE = 0.95
RESAMPLES = 2000
"""Of figures that are no mean: each is computed anew."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """One metric of a data set under two models."""

    metric: str
    first: float
    second: float
    interval: Interval | None
    """Of the second less the first, over the samples that both have."""
    why: str = ""
    """Why there is no interval."""

    @property
    def difference(self) -> float:
        """The second less the first; with an interval, over the samples that both have."""
        return self.second - self.first if self.interval is None else self.interval.difference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairing:
    """One data set under two models."""

    key: str
    dataset: str
    main: str | None
    metrics: tuple[Compared, ...]
    samples: int
    """That both have."""
    only_first: int
    """Samples that the second left out."""
    only_second: int
    gained: int | None
    """Samples that the second alone gets right; None where the main metric is no mean over them."""
    lost: int | None
    """Samples that the first alone gets right."""

    @property
    def main_metric(self) -> Compared | None:
        """That of `main`."""
        return next((one for one in self.metrics if one.metric == self.main), None)


def compare(first: Sequence[Outcome], second: Sequence[Outcome]) -> list[Pairing]:
    """Pair the data sets that both evaluations have, in the order of the first.

    Samples are matched by key. Those of one side may be missing on the other only as far as that
    side left samples out.

    Raises:
      ValueError: no common data set; sets that hold other data on either side, all by name.
    """
    others = {one.key: one for one in second}
    pairs = [(one, others[one.key]) for one in first if one.key in others]
    if not pairs:
        raise ValueError(
            f"no data set is in both: the first has {sorted(one.key for one in first)}, "
            f"the second {sorted(others)}"
        )
    found, faults = [], []
    for a, b in pairs:
        try:
            found.append(_pair(a, b))
        except ValueError as fault:
            faults.append(f"{a.key}: {fault}")
    if faults:
        raise ValueError("not the same data on both sides: " + "; ".join(faults))
    return found


def _pair(a: Outcome, b: Outcome) -> Pairing:
    rows = _matched(a, b)
    _require_same_samples(a, b, *rows)
    # How many samples a group has says nothing of a model.
    names = [name for name in a.figures if name in b.figures and not name.startswith("count_")]
    metrics = [_compared(a, b, metric, rows) for metric in names]
    gained, lost = _changes(a, b, rows)
    return Pairing(
        key=a.key,
        dataset=a.dataset,
        main=a.main if a.main == b.main else None,
        metrics=tuple(metrics),
        samples=len(rows[0]),
        only_first=_size(a) - len(rows[0]),
        only_second=_size(b) - len(rows[1]),
        gained=gained,
        lost=lost,
    )


Rows = tuple[np.ndarray, np.ndarray]


def _size(one: Outcome) -> int:
    return len(one.arrays.get("keys", ()))


def _matched(a: Outcome, b: Outcome) -> Rows:
    """Rows of the samples that both have, in the order of the first."""
    if "keys" not in a.arrays or "keys" not in b.arrays:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    keys, others = a.arrays["keys"].tolist(), b.arrays["keys"].tolist()
    if keys == others:
        return np.arange(len(keys)), np.arange(len(keys))
    for side, names in (("first", keys), ("second", others)):
        if len(set(names)) < len(names):
            raise ValueError(f"the {side} has keys that stand for several samples")
    place = {key: row for row, key in enumerate(others)}
    common = [(row, place[key]) for row, key in enumerate(keys) if key in place]
    lacking = (len(keys) - len(common), len(others) - len(common))
    if lacking[0] > len(b.skipped) or lacking[1] > len(a.skipped):
        raise ValueError(
            f"{lacking[0]} samples only in the first, {lacking[1]} only in the second, "
            f"but {len(b.skipped)} and {len(a.skipped)} were left out there"
        )
    rows = np.array(common, np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _require_same_samples(a: Outcome, b: Outcome, first: np.ndarray, second: np.ndarray) -> None:
    """Check that labels and captions of samples with equal keys are equal."""
    if "labels" in a.arrays and "labels" in b.arrays:
        wrong = np.flatnonzero(a.arrays["labels"][first] != b.arrays["labels"][second])
        if wrong.size:
            key = a.arrays["keys"][first[wrong[0]]]
            raise ValueError(f"{wrong.size} samples have other labels; the first is {str(key)!r}")
    if "targets" in a.arrays and "targets" in b.arrays:
        ours, theirs = a.arrays["targets"][first], b.arrays["targets"][second]
        if ours.shape != theirs.shape:
            raise ValueError(f"{ours.shape[1]} and {theirs.shape[1]} classes")
        if (wrong := np.flatnonzero((ours != theirs).any(axis=1))).size:
            key = a.arrays["keys"][first[wrong[0]]]
            raise ValueError(f"{wrong.size} samples have other labels; the first is {str(key)!r}")
    if "captions" in a.arrays and "captions" in b.arrays:
        ours, theirs = _captions(a), _captions(b)
        for row, other in zip(first.tolist(), second.tolist(), strict=True):
            if ours.get(row) != theirs.get(other):
                key = str(a.arrays["keys"][row])
                raise ValueError(f"captions differ; the first are those of {key!r}")


def _captions(one: Outcome) -> dict[int, list[str]]:
    made: dict[int, list[str]] = {}
    pairs = zip(one.arrays["image_of_text"].tolist(), one.arrays["captions"].tolist(), strict=True)
    for row, caption in pairs:
        made.setdefault(row, []).append(caption)
    return made


def _compared(a: Outcome, b: Outcome, metric: str, rows: Rows) -> Compared:
    first, second = float(a.figures[metric]), float(b.figures[metric])
    interval, why = None, "it cannot be computed from what was kept of each sample"
    means = _means(a, b, metric, rows)
    if len(rows[0]) == 0:
        why = "no samples were kept"
    elif len(rows[0] if means is None else means[0]) < FEWEST:
        why = f"fewer than {FEWEST} samples count in it"
    elif unsound := [told for form, told in UNSOUND.items() if re.fullmatch(form, metric)]:
        (why,) = unsound
    elif means is not None:
        interval = paired_difference(means[1], means[0])
    elif (pair := _measures(a, b, metric)) is not None:
        interval = _resampled(*pair, rows)
    return Compared(
        metric=metric,
        first=first,
        second=second,
        interval=interval,
        why="" if interval else why,
    )


def _means(
    a: Outcome, b: Outcome, metric: str, rows: Rows
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]] | None:
    """What each common sample adds to a metric that is a mean over samples; None if it is none."""
    sides = []
    for one, own in zip((a, b), rows, strict=True):
        credit = _credit(one, metric)
        if credit is None:
            return None
        sides.append(credit[own].astype(np.float64))
    counts = np.isfinite(sides[0]) & np.isfinite(sides[1])  # Some sets score only some samples.
    return sides[0][counts], sides[1][counts]


def _credit(one: Outcome, metric: str) -> Float[np.ndarray, " n"] | None:
    """What each picture adds to a metric, if that is the mean of it."""
    names = dict.fromkeys((metric, metric.removesuffix("_avg"), AVERAGES.get(metric, metric)))
    known = [one.arrays.get(f"credit/{name}") for name in names if not _of_captions(one, name)]
    for credit in (*known, of_group(one, metric)):
        if credit is None or len(credit) != _size(one):
            continue
        scored = credit[np.isfinite(credit)]
        if scored.size and abs(scored.mean() - one.figures[metric]) <= SAME:
            return credit
    return None


def _of_captions(one: Outcome, metric: str) -> bool:
    """Whether the credit of a metric has a number for each caption, not for each picture."""
    return "captions" in one.arrays and metric.startswith(("image_retrieval", "text_to_image"))


def _measures(a: Outcome, b: Outcome, metric: str) -> tuple[Measure, Measure] | None:
    """One way to compute a metric from samples that gives both saved figures; None without one."""
    ours, theirs = dict(_ways(a, metric)), dict(_ways(b, metric))
    for way in ours:
        if way in theirs and _agrees(a, metric, ours[way]) and _agrees(b, metric, theirs[way]):
            return ours[way], theirs[way]
    return None


def _agrees(one: Outcome, metric: str, measure: Measure) -> bool:
    return bool(abs(measure(np.arange(_size(one))) - one.figures[metric]) <= SAME)


def _ways(one: Outcome, metric: str) -> Iterator[tuple[str, Measure]]:
    """Named ways in which a metric may come from the arrays."""
    arrays = one.arrays
    if _of_captions(one, metric) and f"credit/{metric}" in arrays:
        yield "captions", _caption_mean(one, metric)
    if match := re.fullmatch(r"mean_(recall@\d+)", metric):
        sides = [f"{side}_retrieval_{match[1]}" for side in ("image", "text")]
        if all(f"credit/{side}" in arrays for side in sides):
            by_text, by_image = _caption_mean(one, sides[0]), arrays[f"credit/{sides[1]}"]
            yield "both", lambda rows: (by_text(rows) + float(by_image[rows].mean())) / 2
    if (way := metric.removesuffix("_median_rank")) != metric and f"rank/{way}" in arrays:
        yield "ranks", _median_rank(one, way)
    if metric in RECALLS and "labels" in arrays and "credit/acc1" in arrays:
        yield "classes", _class_mean(arrays["labels"], arrays["credit/acc1"])
    if metric == "F1-macro_all" and "labels" in arrays and "top" in arrays:
        yield "f1", _macro_f1(arrays)
    if metric == "mean_average_precision" and "ranks" in arrays and "targets" in arrays:
        yield "precisions", drawn_precision(arrays["ranks"], arrays["targets"])
    yield from group_ways(one, metric)


def _caption_mean(one: Outcome, metric: str) -> Measure:
    """Captions go with their picture: those of one picture are no independent samples."""
    owner, credit = one.arrays["image_of_text"], one.arrays[f"credit/{metric}"]
    hits = np.bincount(owner, weights=credit, minlength=_size(one))
    counts = np.bincount(owner, minlength=_size(one))
    return lambda rows: float(hits[rows].sum() / counts[rows].sum())


def _median_rank(one: Outcome, way: str) -> Measure:
    """As `metrics.median_rank` of the searches by the pictures, or by their captions.

    The candidates are not drawn: each search is among all, as in recalls.
    """
    ranks, count = one.arrays[f"rank/{way}"], _size(one)
    owner = one.arrays["image_of_text"] if _of_captions(one, way) else np.arange(count)
    order = np.argsort(ranks, kind="stable")
    places, owner = ranks[order] + 1.0, owner[order]

    def measure(rows: np.ndarray) -> float:
        seen = np.cumsum(np.bincount(rows, minlength=count)[owner])
        middle = (seen[-1] - 1) // 2, seen[-1] // 2
        return float(places[np.searchsorted(seen, middle, "right")].mean())

    return measure


def _class_mean(labels: Int[np.ndarray, " n"], credit: Float[np.ndarray, " n"]) -> Measure:
    def measure(rows: np.ndarray) -> float:
        samples = np.bincount(labels[rows])
        hits = np.bincount(labels[rows], weights=credit[rows])
        return float(np.mean(hits[samples > 0] / samples[samples > 0]))

    return measure


def _macro_f1(arrays: Mapping[str, np.ndarray]) -> Measure:
    labels, given = arrays["labels"].astype(np.int64), arrays["top"][:, 0].astype(np.int64)
    classes = int(max(labels.max(), given.max())) + 1
    return lambda rows: present_macro_f1(given[rows], labels[rows], classes)


def _resampled(first: Measure, second: Measure, rows: Rows, seed: int = 0) -> Interval | None:
    """As `paired_difference`, of figures that are no mean; each is computed anew `RESAMPLES` times.

    None where the common samples do not give the figure: none of a group is among them.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    difference = second(rows[1]) - first(rows[0])
    if not np.isfinite(difference):
        return None
    rng, count = np.random.default_rng(seed), len(rows[0])
    if isinstance(first, GroupFigure) and isinstance(second, GroupFigure):
        drawn = drawn_difference(first, second, rows, rng, RESAMPLES)
    else:
        each = (rng.integers(count, size=count) for _ in range(RESAMPLES))
        drawn = [second(rows[1][chosen]) - first(rows[0][chosen]) for chosen in each]
    low, high = np.nanquantile(drawn, levels(count, CONFIDENCE))
    return Interval(
        difference=difference,
        low=float(low),
        high=float(high),
        confidence=CONFIDENCE,
    )


def _changes(a: Outcome, b: Outcome, rows: Rows) -> tuple[int | None, int | None]:
    """Samples that only the second, and only the first, gets right."""
    sides = None if a.main is None or a.main != b.main else _means(a, b, a.main, rows)
    if sides is None or not np.isin(np.concatenate(sides), (0, 1)).all():
        return None, None
    return int(np.sum(sides[1] > sides[0])), int(np.sum(sides[0] > sides[1]))
