"""k-nearest-neighbour classification by cosine, in tiles, exact and independent of their size."""

import numpy as np
from jaxtyping import Float, Int

from clip_jax.eval.checks import require_finite, require_indices, require_lengths

GRAIN = 2.0**-30
"""Cosines are compared in steps of this size (about `metrics.TIE`): within one, they are equal."""
LAST = 2**32 - 1


def nearest(
    queries: Float[np.ndarray, "n D"],
    keys: Float[np.ndarray, "m D"],
    k: int,
    *,
    tile: int = 1024,
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """The k keys of highest cosine to each query, best first, and these cosines.

    Of equal keys the earlier row comes first.

    Args:
      queries, keys: unit-norm embeddings.
      k: 1 to m.
      tile: at most tile x tile cosines exist at a time.

    Raises:
      ValueError: k out of range; embeddings that are not finite.
    """
    require_finite("queries", queries)
    require_finite("keys", keys)
    if not 1 <= k <= len(keys):
        raise ValueError(f"k must be in 1 to {len(keys)}, the number of keys; got {k}")
    found = np.empty((len(queries), k), np.int64)
    for top in range(0, len(queries), tile):
        rows = slice(top, top + tile)
        best = np.empty((len(queries[rows]), 0), np.int64)
        for left in range(0, len(keys), tile):
            columns = slice(left, left + tile)
            cosines = queries[rows].astype(np.float64) @ keys[columns].astype(np.float64).T
            # One integer holds the cosine and, below it, the row: an order without ties.
            ranked = np.rint(cosines / GRAIN).astype(np.int64) << 32
            ranked += LAST - np.arange(left, left + cosines.shape[1])
            best = np.concatenate([best, ranked], axis=1)
            if best.shape[1] > k:
                best = np.partition(best, -k, axis=1)[:, -k:]
        found[rows] = np.sort(best, axis=1)[:, ::-1]
    return LAST - (found & LAST), (found >> 32) * GRAIN


def neighbour_votes(
    train: Float[np.ndarray, "n D"],
    labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m D"],
    classes: int,
    *,
    k: int,
    temperature: float | None = None,
    tile: int = 1024,
) -> Float[np.ndarray, "m K"]:
    """Votes of each test sample's k nearest training samples for their classes.

    `classification.predict` makes classes of the votes.

    Args:
      train, test: unit-norm embeddings.
      labels: of the training samples.
      k: how many vote; Wu et al. take 200.
      temperature: a vote weighs exp(cosine / temperature), for which Wu et al. take 0.07; votes
        are equal if None.
      tile: see `nearest`.

    Raises:
      ValueError: temperature not above 0; labels out of range; lengths that differ; as `nearest`.

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4.
    """
    require_lengths(train=train, labels=labels)
    require_indices("labels", labels, classes)
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    rows, cosines = nearest(test, train, k, tile=tile)
    # Relative to the nearest, which changes no prediction and keeps the exponential in range.
    weights = (
        np.ones(cosines.shape)
        if temperature is None
        else np.exp((cosines - cosines[:, :1]) / temperature)
    )
    votes = np.zeros((len(test), classes))
    np.add.at(votes, (np.arange(len(test))[:, None], labels[rows]), weights)
    return votes
