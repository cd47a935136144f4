"""Outcome of classification, whatever the classifier rests on: figures, groups, mistakes."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

from clip_jax.eval import metrics
from clip_jax.eval.checks import without_label
from clip_jax.eval.classification import Calibration, calibration
from clip_jax.eval.embed import Embedded
from clip_jax.eval.fairness import ByGroup, by_group
from clip_jax.eval.opened import Opened
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.shifts import present_macro_f1, worst_region
from clip_jax.eval.tasks import Groups, Task
from clip_jax.eval.thumbnails import thumbnails

TOP = 5
"""Classes that are kept of each picture, best first."""
MISTAKES = 24
"""Pictures that are kept for the report: the surest of the wrong."""
_TILE = 4096
"""Pictures whose scores are held at a time."""


Score = Callable[[slice], tuple[np.ndarray, np.ndarray]]
"""Of some rows: the score of each class, which decides, and its probability."""


def labelled(opened: Opened, found: Embedded) -> tuple[Embedded, Int[np.ndarray, " n"]]:
    """The pictures that have a class, and the class of each.

    Raises:
      ValueError: no picture has one; those that are out of range, how many and the first;
        numbers that do not fit the columns of groups.
    """
    found = found.passing(without_label)
    if not found.keys:
        raise ValueError(f"{opened.folder}: no sample has what {opened.task.key} needs")
    labels, count = np.array(found.labels, np.int64), len(opened.classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if wrong.size:
        raise ValueError(
            f"{opened.folder}: {wrong.size} of {len(labels)} labels are not among the {count} "
            f"classes of classnames.txt (0 to {count - 1}); the first is {labels[wrong[0]]} of "
            f"sample {found.keys[wrong[0]]!r}"
        )
    if opened.task.groups or opened.task.macro:
        require_columns(found, opened)
    return found, labels


def report_classes(
    opened: Opened, labels: Int[np.ndarray, " n"], warn: Callable[[str], None]
) -> None:
    """Tell of classes without a sample, and of names that stand for several classes."""
    classes, key = opened.classes, opened.task.key
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if empty.size:
        warn(
            f"{key}: {empty.size} of {len(classes)} classes have no sample, the first "
            f"{classes[empty[0]]!r}: they are not in the mean of the recalls"
        )
    if twins := [name for name in dict.fromkeys(classes) if classes.count(name) > 1]:
        warn(f"{key}: class names that stand for several classes, so none can be right: {twins}")


def classified(
    opened: Opened, found: Embedded, labels: Int[np.ndarray, " n"], score: Score, *, task: str = ""
) -> Outcome:
    """What a classifier makes of pictures, whatever it rests on.

    Args:
      found, labels: of `labelled`.
      score: asked for a few thousand rows at a time.
      task: of the outcome; empty: the data set's own kind.

    Raises:
      ValueError: numbers that do not fit the columns of groups; no probabilities.
    """
    said = _said(labels, score)
    ranks = said.ranks
    recall = metrics.mean_per_class_recall(ranks, labels)
    figures = {"acc1": metrics.hit_rate(ranks, 1)}
    credit = {"acc1": ranks < 1}
    if len(opened.classes) >= 5:
        figures["acc5"] = metrics.hit_rate(ranks, 5)
        credit["acc5"] = ranks < 5
    figures |= {"mean_per_class_recall": recall, "calibration_error": said.curve.error}
    if opened.task.macro:
        figures |= {"acc_avg": figures["acc1"], "recall-macro_all": recall}
        macro = present_macro_f1(said.top[:, 0], labels, len(opened.classes))
        figures["F1-macro_all"] = macro
    figures, tables, groups = _grouped(opened.task, found, ranks, figures)
    shown = np.flatnonzero(ranks >= 1)
    shown = shown[np.argsort(-said.confidence[shown], kind="stable")][:MISTAKES]
    return Outcome(
        key=opened.task.key,
        dataset=opened.task.name,
        task=task or opened.task.kind,
        main=opened.task.main,
        figures=figures,
        tables=tables,
        skipped=found.skipped,
        arrays={
            "keys": np.array(found.keys),
            "class_names": np.array(opened.classes),
            "labels": labels,
            "top": said.top,
            "confidence": said.confidence,
            **{f"credit/{name}": values.astype(np.float64) for name, values in credit.items()},
            **groups,
            **thumbnails(opened.source, found.indices, shown.tolist()),
        },
    )


def group_figures(
    values: np.ndarray,
    columns: Mapping[str, Int[np.ndarray, " n"]],
    groups: Groups,
    *,
    gap: str | None = None,
) -> tuple[dict[str, float], ByGroup, Int[np.ndarray, " n"]]:
    """Means within groups, under the names of WILDS: of groups without a sample only the count.

    Args:
      values: of each sample, 0 to 1.
      columns: numbers of each sample, by field.
      gap: name of the largest difference between groups, which WILDS has not; None: left out.

    Returns:
      The figures; the means by group; the group of each sample.

    Raises:
      ValueError: no sample; negative numbers.
    """
    group, names = np.zeros(len(values), np.int64), [""]
    for field in groups.fields:
        column = columns[field]
        if (negative := np.flatnonzero(column < 0)).size:
            raise ValueError(f"{field} counts from 0 on, but row {negative[0]} has {column.min()}")
        # The first field runs fastest and is named last.
        parts = [f"{field}:{value}" for value in range(int(column.max()) + 1)]
        group = group + len(names) * column
        names = [f"{part}_{name}" if name else part for part in parts for name in names]
    found = by_group(values.astype(np.float64), group, names)
    figures = {f"{groups.prefix}_avg": float(np.mean(values))}
    for name, count, mean in zip(names, found.counts, found.means, strict=True):
        if count:
            figures[f"{groups.prefix}_{name}"] = float(mean)
        figures[f"count_{name}"] = float(count)
    figures[groups.worst] = found.worst[1]
    if gap is not None:
        figures[gap] = found.gap
    return figures, found, group


def columns_of(found: Embedded, task: Task) -> dict[str, Int[np.ndarray, " n"]]:
    """The numbers of all samples by the name of their column."""
    return dict(zip(task.columns, np.array(found.numbers, np.int64).T, strict=True))


def require_columns(found: Embedded, opened: Opened) -> None:
    """Check that each sample has a number for each column of the task.

    Raises:
      ValueError: how many have not, and the first.
    """
    columns = opened.task.columns
    require_lengths(found, len(columns), f"{len(columns)} columns ({', '.join(columns)})", opened)


def require_lengths(found: Embedded, length: int, what: str, opened: Opened) -> None:
    """Check that each sample has so many numbers; `what` says what each stands for.

    Raises:
      ValueError: no sample; how many have not, and the first.
    """
    if not found.keys:
        raise ValueError(f"{opened.folder}: no sample has what {opened.task.key} needs")
    wrong = [row for row, numbers in enumerate(found.numbers) if len(numbers) != length]
    if wrong:
        raise ValueError(
            f"{opened.folder}: {len(wrong)} of {len(found.keys)} samples have not a "
            f"number in their .npy for each of {what}; the first, {found.keys[wrong[0]]!r}, has "
            f"{len(found.numbers[wrong[0]])}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Said:
    """A classifier's answers."""

    ranks: Int[np.ndarray, " n"]
    """Wrong classes that score at least as high as the right one."""
    top: Int[np.ndarray, "n top"]
    confidence: Float[np.ndarray, " n"]
    """Probability of the likeliest class."""
    curve: Calibration


def _said(labels: Int[np.ndarray, " n"], score: Score) -> _Said:
    """Ranks and best classes, the probability of the best, and the calibration curve; in tiles."""
    ranks, tops, sure, curves = [], [], [], []
    for start in range(0, len(labels), _TILE):
        rows = slice(start, start + _TILE)
        own = np.arange(len(labels[rows])), labels[rows]
        scores, shares = score(rows)
        ranks.append(metrics.score_ranks(scores, labels[rows]))
        scores = scores.astype(np.float64)  # A copy.
        scores[own] -= metrics.TIE  # What ties with the right class stands before it.
        tops.append(np.argsort(-scores, axis=1, kind="stable")[:, :TOP])
        sure.append(shares.max(axis=1))
        curves.append(calibration(shares, labels[rows]))
    return _Said(
        ranks=np.concatenate(ranks),
        top=np.concatenate(tops),
        confidence=np.concatenate(sure),
        curve=_together(curves),
    )


def _together(curves: list[Calibration]) -> Calibration:
    """The curve of all samples from those of parts."""
    counts = np.sum([curve.counts for curve in curves], axis=0)
    some = np.where(counts, counts, np.nan)

    def mean(name: str) -> np.ndarray:
        sums = [np.nan_to_num(getattr(curve, name)) * curve.counts for curve in curves]
        return np.sum(sums, axis=0) / some

    return Calibration(
        edges=curves[0].edges,
        counts=counts,
        confidence=mean("confidence"),
        accuracy=mean("accuracy"),
    )


def _grouped(
    task: Task, found: Embedded, ranks: np.ndarray, figures: dict[str, float]
) -> tuple[dict[str, float], dict[str, dict[str, dict[str, float]]], dict[str, np.ndarray]]:
    tables: dict[str, dict[str, dict[str, float]]] = {}
    arrays: dict[str, np.ndarray] = {}
    columns = columns_of(found, task) if task.groups else {}
    for groups in task.groups:
        (field,) = groups.fields
        values = ranks < (5 if groups.prefix == "acc_top5" else 1)
        gap = f"{groups.prefix}_gap_{field}"
        more, by, group = group_figures(values, columns, groups, gap=gap)
        figures = figures | more
        names = _group_names(groups, len(by.counts))
        if groups.ignored:
            kept = worst_region(values, group, names, ignored=set(groups.ignored) & set(names))
            figures[f"{groups.worst}_wilds"] = kept.worst[1]
        what = "Top-5 accuracy" if groups.prefix == "acc_top5" else "Accuracy"
        tables[f"{what} by {field}"] = {
            name: {"accuracy": float(mean), "pictures": float(count)}
            for name, mean, count in zip(names, by.means, by.counts, strict=True)
            if count
        }
        arrays[f"group/{field}"] = group
        arrays[f"group_names/{field}"] = np.array(names)
    return figures, tables, arrays


def _group_names(groups: Groups, count: int) -> list[str]:
    numbered = [str(number) for number in range(count)]
    return [*groups.names, *numbered[len(groups.names) :]][:count]
