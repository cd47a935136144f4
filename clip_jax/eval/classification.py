"""How good a classifier is beyond its accuracy: calibration, confusions, F1, average precision."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.eval.checks import require_finite, require_indices, require_lengths
from clip_jax.eval.metrics import TIE


def predict(
    scores: Float[np.ndarray, "n K"], labels: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Best class of each row; where a wrong class scores as high as the right one, the wrong one.

    So `predict(...) == labels` exactly where `metrics.class_ranks` is 0.

    Args:
      scores: higher is better: cosines, logits or probabilities.
      labels: the right classes, which decide ties (closer than `metrics.TIE`) against the model.

    Raises:
      ValueError: no sample, scores that are not finite, labels that name no class.
    """
    require_lengths(scores=scores, labels=labels)
    require_finite("scores", scores)
    require_indices("labels", labels, scores.shape[1])
    rows = np.arange(len(labels))
    rivals = scores.astype(np.float64)
    own = rivals[rows, labels]
    rivals[rows, labels] = -np.inf
    rival = np.argmax(rivals, axis=1)
    return np.where(own > rivals[rows, rival] + TIE, labels, rival)


def accuracy(scores: Float[np.ndarray, "n K"], labels: Int[np.ndarray, " n"]) -> float:
    """Share of rows whose best class is the right one, alone at the top; 0 to 1.

    Raises:
      ValueError: as `predict`.
    """
    return float(np.mean(predict(scores, labels) == labels))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Reliability curve: how sure the model was, and how often right, in bins of equal width."""

    edges: Float[np.ndarray, " edges"]
    """From 0 to 1, one more than there are bins; a bin holds its upper edge."""
    counts: Int[np.ndarray, " bins"]
    """Samples in each bin."""
    confidence: Float[np.ndarray, " bins"]
    """Mean probability given to the best class; NaN in an empty bin."""
    accuracy: Float[np.ndarray, " bins"]
    """Share of samples whose best class was right; NaN in an empty bin."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy; 0 is perfect."""
        some = self.counts > 0
        gaps = np.abs(self.accuracy[some] - self.confidence[some])
        return float(np.average(gaps, weights=self.counts[some]))


def calibration(
    probabilities: Float[np.ndarray, "n K"], labels: Int[np.ndarray, " n"], *, bins: int = 15
) -> Calibration:
    """Reliability curve of a classifier (see `Calibration`); a tie counts as wrong.

    Args:
      probabilities: rows that sum to 1, such as those of `zero_shot.classify`.
      bins: how many of equal width divide 0 to 1.

    Raises:
      ValueError: rows that are no probabilities; bins < 1; as `predict`.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    right = predict(probabilities, labels) == labels
    sums = probabilities.sum(axis=1, dtype=np.float64)
    bad = np.flatnonzero((np.abs(sums - 1) > 1e-4) | (probabilities < 0).any(axis=1))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {len(sums)} rows are no probabilities (0 or more, summing to 1); "
            f"the first is row {bad[0]}, of sum {sums[bad[0]]:.6g}"
        )
    return reliability(probabilities.max(axis=1), right, bins=bins)


def reliability(
    confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], *, bins: int = 15
) -> Calibration:
    """`calibration`, given the best class's probability and whether that class was right."""
    sure = confidence.astype(np.float64)
    edges = np.arange(bins + 1) / bins
    # Rounding may put a certainty just above 1.
    place = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    some = np.where(counts, counts, np.nan)
    return Calibration(
        edges=edges,
        counts=counts,
        confidence=np.bincount(place, weights=sure, minlength=bins) / some,
        accuracy=np.bincount(place, weights=right, minlength=bins) / some,
    )


def confusion_matrix(
    predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int
) -> Int[np.ndarray, "K K"]:
    """How often a sample of each class (row) was taken for each class (column).

    Raises:
      ValueError: no sample; lengths that differ; numbers that name no class.
    """
    require_lengths(predicted=predicted, labels=labels)
    require_indices("predictions", predicted, classes)
    require_indices("labels", labels, classes)
    pairs = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes)


def per_class_accuracy(confusion: Int[np.ndarray, "K K"]) -> Float[np.ndarray, " K"]:
    """Share of each class's samples taken for that class; NaN for a class without a sample."""
    samples = confusion.sum(axis=1)
    return np.diag(confusion) / np.where(samples, samples, np.nan)


def f1_scores(confusion: Int[np.ndarray, "K K"]) -> Float[np.ndarray, " K"]:
    """Harmonic mean of precision and recall of each class.

    0 where every sample and prediction of the class is wrong; NaN where it has neither.
    """
    either = confusion.sum(axis=0) + confusion.sum(axis=1)
    return 2 * np.diag(confusion) / np.where(either, either, np.nan)


def macro_f1(confusion: Int[np.ndarray, "K K"]) -> float:
    """F1 averaged over the classes that have a sample or a prediction, as in scikit-learn.

    Raises:
      ValueError: no sample.
    """
    if not confusion.any():
        raise ValueError("the confusion matrix counts no sample, so no figure is defined")
    return float(np.nanmean(f1_scores(confusion)))


def average_precision(
    scores: Float[np.ndarray, "n K"], targets: Bool[np.ndarray, "n K"]
) -> Float[np.ndarray, " K"]:
    """Area under each class's precision-recall curve, as a sum of steps, no interpolation.

    Samples of equal score pass the threshold together, as in scikit-learn. A class without a
    positive sample has NaN.

    Args:
      scores: higher means more likely; any scale, a column for each class.
      targets: whether a sample carries each label; any number of labels a sample.

    Raises:
      ValueError: no sample; lengths that differ; scores that are not finite.
    """
    require_lengths(scores=scores, targets=targets)
    require_finite("scores", scores)
    found = np.full(scores.shape[1], np.nan)
    for k, (column, truth) in enumerate(zip(scores.T, targets.T, strict=True)):
        if truth.any():
            found[k] = _area(column, truth)
    return found


def mean_average_precision(
    scores: Float[np.ndarray, "n K"], targets: Bool[np.ndarray, "n K"]
) -> float:
    """`average_precision` averaged over the classes that have a positive sample; 0 to 1.

    clip_benchmark counts a class without one as 0; where all have one the figures are the same.

    Raises:
      ValueError: no class has a positive sample; as `average_precision`.
    """
    found = average_precision(scores, targets)
    if np.isnan(found).all():
        raise ValueError(f"none of {len(found)} classes has a positive sample")
    return float(np.nanmean(found))


def _area(scores: np.ndarray, truth: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    precision = hits[last] / (last + 1)
    gained = np.diff(hits[last], prepend=0)
    return float(np.sum(precision * gained) / hits[-1])
