"""Figures of merit as pure functions of embeddings, exact and in tiles.

Everything rests on one number for each query: its *rank*, how many wrong candidates score at
least as high as its best match. Rank 0 means that a match stands alone at the top. So a tie
never counts in the model's favour: a model that gives everything the same score has recall 0.

Scores are cosines summed in float64, where two of them are a tie if closer than `TIE`. Rounding
inside a matrix product (which varies with tile and position) therefore decides nothing.
"""

import numpy as np
from jaxtyping import Float, Int

TIE = 1e-9
"""Cosines closer than this are equal: above float64 rounding, below what float32 can tell."""


def match_ranks(
    queries: Float[np.ndarray, "n D"],
    keys: Float[np.ndarray, "m D"],
    matches: Int[np.ndarray, "P 2"],
    *,
    copies: Int[np.ndarray, " m"] | None = None,
    tile: int = 1024,
) -> Int[np.ndarray, " n"]:
    """How many wrong keys are at least as near to each query as its best match (0 is perfect).

    Args:
      queries, keys: unit-norm embeddings.
      matches: pairs (query, key) that belong together; every query has one or more.
      copies: how often each key counts among the candidates; once if not given.
      tile: at most tile x tile scores exist at a time.

    Raises:
      ValueError: embeddings that are not finite; queries with no match; indices out of range.
    """
    n, m = len(queries), len(keys)
    _require_finite("queries", queries)
    _require_finite("keys", keys)
    matches = matches[np.argsort(matches[:, 0], kind="stable")]
    best = _best_match(queries, keys, matches, tile)
    copies = np.ones(m, np.int64) if copies is None else copies
    ranks = np.zeros(n, np.int64)
    for top in range(0, n, tile):
        rows = slice(top, min(top + tile, n))
        first, last = np.searchsorted(matches[:, 0], (rows.start, rows.stop))
        own = matches[first:last]
        for left in range(0, m, tile):
            columns = slice(left, min(left + tile, m))
            scores = queries[rows].astype(np.float64) @ keys[columns].astype(np.float64).T
            ahead = scores >= best[rows, None] - TIE
            here = own[(own[:, 1] >= columns.start) & (own[:, 1] < columns.stop)]
            ahead[here[:, 0] - top, here[:, 1] - left] = False
            ranks[rows] += ahead @ copies[columns]
    return ranks


def retrieval_ranks(
    images: Float[np.ndarray, "n D"],
    texts: Float[np.ndarray, "m D"],
    image_of_text: Int[np.ndarray, " m"],
    text_ids: Int[np.ndarray, " m"] | None = None,
    *,
    tile: int = 1024,
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Rank of each image among the texts, and of each text among the images.

    Args:
      images, texts: unit-norm embeddings; an image may have any number of texts but none.
      image_of_text: for each text, the row of its image.
      text_ids: texts of equal id (0, 1, ...) are one text: whichever image carries it is right
        for it. It still counts as often as it occurs, as candidate and as query.
      tile: see `match_ranks`.

    Raises:
      ValueError: as `match_ranks`.
    """
    ids = np.arange(len(texts)) if text_ids is None else text_ids
    _, first, text, copies = np.unique(
        ids, return_index=True, return_inverse=True, return_counts=True
    )
    matches = np.unique(np.stack([image_of_text, text], axis=1), axis=0)
    to_text = match_ranks(images, texts[first], matches, copies=copies, tile=tile)
    to_image = match_ranks(texts[first], images, matches[:, ::-1], tile=tile)
    return to_text, to_image[text]


def class_ranks(
    images: Float[np.ndarray, "n D"],
    classifier: Float[np.ndarray, "K D"],
    labels: Int[np.ndarray, " n"],
    *,
    tile: int = 1024,
) -> Int[np.ndarray, " n"]:
    """Rank of each image's own class among the K class embeddings (see `match_ranks`)."""
    matches = np.stack([np.arange(len(labels)), labels], axis=1)
    return match_ranks(images, classifier, matches, tile=tile)


def score_ranks(
    scores: Float[np.ndarray, "n K"], labels: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """How many wrong classes score at least as high as the right one (0 is perfect).

    Args:
      scores: higher is better; closer than `TIE` is a tie.
      labels: in 0 to K - 1.
    """
    own = scores[np.arange(len(labels)), labels].astype(np.float64)
    return (scores >= (own - TIE)[:, None]).sum(axis=1) - 1


def hit_rate(ranks: Int[np.ndarray, " n"], k: int) -> float:
    """Share of queries with a match among the first k: recall@k, or top-k accuracy; 0 to 1.

    Raises:
      ValueError: there is no query, or k < 1.
    """
    _require_queries(ranks)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return float(np.mean(ranks < k))


def median_rank(ranks: Int[np.ndarray, " n"]) -> float:
    """Median place of the first match, counted from 1 as usual in print; 1 is perfect.

    Raises:
      ValueError: there is no query.
    """
    _require_queries(ranks)
    return float(np.median(ranks)) + 1.0


def mean_per_class_recall(ranks: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """Top-1 accuracy within each class, averaged over the classes that have a sample; 0 to 1.

    A class without a sample has no recall: it is left out of the mean, but stays a candidate.

    Raises:
      ValueError: there is no query.
    """
    _require_queries(ranks)
    samples = np.bincount(labels)
    hits = np.bincount(labels, weights=ranks < 1)
    return float(np.mean(hits[samples > 0] / samples[samples > 0]))


def _best_match(
    queries: np.ndarray, keys: np.ndarray, matches: np.ndarray, tile: int
) -> np.ndarray:
    """Highest cosine of each query to one of its matches, in float64."""
    for column, count, what in ((0, len(queries), "query"), (1, len(keys), "key")):
        wrong = matches[(matches[:, column] < 0) | (matches[:, column] >= count), column]
        if wrong.size:
            raise ValueError(f"matches name {what} {wrong[0]}, but there are {count}")
    best = np.full(len(queries), -np.inf)
    for start in range(0, len(matches), tile):
        query, key = matches[start : start + tile].T
        cosines = np.sum(queries[query].astype(np.float64) * keys[key], axis=1)
        np.maximum.at(best, query, cosines)
    lonely = np.flatnonzero(np.isneginf(best))
    if lonely.size:
        raise ValueError(
            f"{lonely.size} of {len(queries)} queries have no match; the first is {lonely[0]}"
        )
    return best


def _require_finite(what: str, rows: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise ValueError(f"{bad.size} of {len(rows)} {what} are not finite; the first is {bad[0]}")


def _require_queries(ranks: np.ndarray) -> None:
    if not ranks.size:
        raise ValueError("no query: the mean of nothing is undefined")
