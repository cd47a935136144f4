"""Outcome of classification by names: one label a picture, or several."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from clip_jax.data.sample import Sample
from clip_jax.eval.classification import average_precision
from clip_jax.eval.classified import classified, labelled, report_classes, require_lengths
from clip_jax.eval.drawn_precision import ranks
from clip_jax.eval.embed import Embedded
from clip_jax.eval.once import Embeddings
from clip_jax.eval.opened import Opened
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.zero_shot import classifier, classify

KEPT = 4_000_000
"""Scores whose order an outcome keeps at most, for `compare`: 40,000 pictures of 100 classes, over
which its 2,000 draws take minutes."""


def zero_shot(opened: Opened, embeddings: Embeddings, warn: Callable[[str], None]) -> Outcome:
    """acc1, acc5 (from 5 classes on), mean_per_class_recall, calibration_error; and by groups.

    Raises:
      ValueError: no usable sample; labels that name no class; numbers that do not fit the columns.
    """
    found, labels = labelled(opened, embeddings.pictures(opened.source, opened.pictures))
    report_classes(opened, labels, warn)
    weights = classifier(lambda texts: embeddings.texts(texts), opened.classes, opened.templates)
    wide = weights.astype(np.float64)

    def score(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        images = found.images[rows]
        shares = classify(images, weights, scale=embeddings.model.scale)
        return images.astype(np.float64) @ wide.T, shares

    return classified(opened, found, labels, score)


def multilabel(opened: Opened, embeddings: Embeddings, warn: Callable[[str], None]) -> Outcome:
    """mean_average_precision, as CLIP_benchmark: a class without a positive picture counts as 0.

    Raises:
      ValueError: no usable sample; vectors that are not a 0 or 1 for each class.
    """
    found, targets = with_targets(opened, embeddings.pictures(opened.source, opened.pictures))
    weights = classifier(lambda texts: embeddings.texts(texts), opened.classes, opened.templates)
    scores = found.images.astype(np.float64) @ weights.astype(np.float64).T
    return labelled_with_several(opened, found, targets, scores, warn)


def with_targets(opened: Opened, found: Embedded) -> tuple[Embedded, Bool[np.ndarray, "n K"]]:
    """The pictures that have a vector of labels, and these vectors.

    Raises:
      ValueError: no picture has one; vectors that are not a 0 or 1 for each class.
    """
    found, count = found.passing(_without_numbers), len(opened.classes)
    require_lengths(found, count, f"{count} class names", opened)
    targets = np.array(found.numbers)
    if (strange := np.flatnonzero((targets < 0) | (targets > 1))).size:
        first = int(strange[0]) // count
        raise ValueError(
            f"{opened.folder}: labels of several classes are 0 or 1, but those of sample "
            f"{found.keys[first]!r} are {found.numbers[first]}"
        )
    return found, targets.astype(bool)


def labelled_with_several(
    opened: Opened,
    found: Embedded,
    targets: Bool[np.ndarray, "n K"],
    scores: Float[np.ndarray, "n K"],
    warn: Callable[[str], None],
    *,
    task: str = "",
) -> Outcome:
    """What scores of pictures with several labels are worth, whatever gave them.

    Args:
      found, targets: of `with_targets`.
      scores: higher means more likely; compared within a class only.
      task: of the outcome; empty: the data set's own kind.

    Raises:
      ValueError: scores that are not finite.
    """
    classes, key = opened.classes, opened.task.key
    each = average_precision(scores, targets)
    if lacking := [classes[int(k)] for k in np.flatnonzero(np.isnan(each))]:
        warn(f"{key}: classes without a picture, which count as 0: {', '.join(lacking)}")
    each = np.nan_to_num(each)
    rows = {
        name: {"average precision": float(value), "pictures": float(count)}
        for name, value, count in zip(_distinct(classes), each, targets.sum(axis=0), strict=True)
    }
    kept = {"ranks": ranks(scores), "targets": targets}
    return Outcome(
        key=key,
        dataset=opened.task.name,
        task=task or opened.task.kind,
        main=opened.task.main,
        figures={"mean_average_precision": float(each.mean())},
        tables={"Average precision by class": rows},
        skipped=found.skipped,
        arrays={
            "keys": np.array(found.keys),
            "class_names": np.array(classes),
            **(kept if scores.size <= KEPT else {}),
        },
    )


def _distinct(names: tuple[str, ...]) -> list[str]:
    """Names as keys of a table: a repeated one gets its number."""
    return [name if names.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(names)]


def _without_numbers(sample: Sample) -> str | None:
    return None if sample.numbers else "it has no .npy with labels"
