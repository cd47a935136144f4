"""Mean average precision of samples drawn again and again, from the order of their scores alone."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt


def ranks(scores: Float[np.ndarray, "n K"]) -> UInt[np.ndarray, "n K"]:
    """The place of each score among those of its class, 0 for the highest; equal ones share it.

    It is all that average precision depends on, exactly, in as few bytes as n asks for.
    """
    columns = [np.unique(-column, return_inverse=True)[1] for column in scores.T]
    return np.stack(columns, axis=1).astype(np.min_scalar_type(len(scores)))


def drawn_precision(
    ranks: UInt[np.ndarray, "n K"], targets: Bool[np.ndarray, "n K"]
) -> Callable[[Int[np.ndarray, " m"]], float]:
    """What gives `mean_average_precision` over some rows, each as often as it is among them.

    A class without a positive picture at all counts as 0. One whose positive pictures are merely
    not among the rows is left out of the mean, as `compare` does with recalls.

    Everything is sorted once. A draw is then a weight of each picture and one running sum.

    Args:
      ranks: of `ranks`.
      targets: whether a sample carries each label.

    Returns:
      Rows, some of them several times -> 0 to 1; NaN if none of them is positive.
    """
    count, classes = ranks.shape
    order = np.argsort(ranks.T, axis=1, kind="stable")
    places = np.take_along_axis(ranks.T, order, axis=1)
    own, at = np.nonzero(np.take_along_axis(targets.T, order, axis=1))
    # Equal scores pass the threshold together: precision is that at the last of them.
    last = np.array(
        [
            np.searchsorted(places[k], places[k, p], "right") - 1
            for k, p in zip(own, at, strict=True)
        ],
        np.int64,
    )
    seen_at, positives = own * count + last, order[own, at]
    begins = np.searchsorted(own, np.arange(classes))
    share = len(np.unique(own)) / classes
    # The last positive of equal score, and those of its class that come before any of its own.
    twin = np.searchsorted(seen_at, seen_at, "right") - 1
    before = begins[own] - 1

    def measure(rows: Int[np.ndarray, " m"]) -> float:
        weights = np.bincount(rows, minlength=count)
        seen = np.cumsum(weights[order], axis=1).ravel()[seen_at]
        hits = weights[positives]
        sums = np.append(np.cumsum(hits), 0)  # The last stands for "before the first".
        got = sums[twin] - sums[before]
        total = np.bincount(own, weights=hits, minlength=classes)
        areas = np.bincount(own, weights=hits * got / np.maximum(seen, 1), minlength=classes)
        some = total > 0
        return share * float(np.mean(areas[some] / total[some])) if some.any() else np.nan

    return measure
