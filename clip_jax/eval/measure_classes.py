"""Outcome of classification by names: one label a picture, or several."""

from collections.abc import Callable

import numpy as np

from clip_jax.eval.classification import average_precision
from clip_jax.eval.classified import classified, labelled, report_classes, require_lengths
from clip_jax.eval.once import Embeddings, Pictures
from clip_jax.eval.opened import Opened
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.zero_shot import classifier, classify


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
    task, classes = opened.task, opened.classes
    found = embeddings.pictures(opened.source, opened.pictures).without(_without_numbers)
    require_lengths(found, len(classes), f"{len(classes)} class names", opened)
    targets = np.array(found.numbers)
    if (strange := np.flatnonzero((targets < 0) | (targets > 1))).size:
        first = int(strange[0]) // len(classes)
        raise ValueError(
            f"{opened.folder}: labels of several classes are 0 or 1, but those of sample "
            f"{found.keys[first]!r} are {found.numbers[first]}"
        )
    weights = classifier(lambda texts: embeddings.texts(texts), classes, opened.templates)
    scores = found.images.astype(np.float64) @ weights.astype(np.float64).T
    each = average_precision(scores, targets.astype(bool))
    if lacking := [classes[int(k)] for k in np.flatnonzero(np.isnan(each))]:
        warn(f"{task.key}: classes without a picture, which count as 0: {', '.join(lacking)}")
    each = np.nan_to_num(each)
    counts = targets.sum(axis=0)
    rows = {
        name: {"average precision": float(value), "pictures": float(count)}
        for name, value, count in zip(_distinct(classes), each, counts, strict=True)
    }
    return Outcome(
        key=task.key,
        dataset=task.name,
        task=task.kind,
        main=task.main,
        figures={"mean_average_precision": float(each.mean())},
        tables={"Average precision by class": rows},
        skipped=found.skipped,
        arrays={"keys": np.array(found.keys), "class_names": np.array(classes)},
    )


def _distinct(names: tuple[str, ...]) -> list[str]:
    """Names as keys of a table: a repeated one gets its number."""
    return [name if names.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(names)]


def _without_numbers(found: Pictures, row: int) -> str | None:
    return None if found.numbers[row] else "it has no .npy with labels"
