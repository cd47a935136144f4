import tracemalloc

import numpy as np
import pytest

from clip_jax.eval import metrics


def unit_rows(rng, n, d=6):
    rows = rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def on_a_grid(rng, n):
    """Unit vectors with many exactly equal cosines: signed axes of a 3-dimensional space."""
    return (np.eye(3)[rng.integers(3, size=n)] * rng.choice([-1, 1], size=(n, 1))).astype("f4")


def slow_place(scores, right):
    """Sort the candidates, wrong ones first among equals; the place of the first right one."""
    order = sorted(range(len(scores)), key=lambda j: (-round(float(scores[j]), 7), right[j]))
    return next(place for place, j in enumerate(order) if right[j])


def slow_ranks(queries, keys, is_match):
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T
    return [slow_place(s, r) for s, r in zip(scores, is_match, strict=True)]


@pytest.mark.parametrize("make", [unit_rows, on_a_grid])
@pytest.mark.parametrize("n, m, tile", [(1, 1, 1), (7, 13, 3), (12, 5, 5), (17, 23, 1024)])
def test_ranks_equal_sorting_everything(make, n, m, tile):
    rng = np.random.default_rng(n * m)
    queries, keys = make(rng, n), make(rng, m)
    is_match = rng.random((n, m)) < 0.2
    is_match[np.arange(n), rng.integers(m, size=n)] = True
    pairs = np.argwhere(is_match)
    rng.shuffle(pairs)
    ranks = metrics.match_ranks(queries, keys, pairs, tile=tile)
    assert ranks.tolist() == slow_ranks(queries, keys, is_match)


@pytest.mark.parametrize("make", [unit_rows, on_a_grid])
@pytest.mark.parametrize("tile", [2, 7, 1024])
def test_captions_of_equal_id_are_one_text_that_counts_as_often_as_it_occurs(make, tile):
    rng = np.random.default_rng(tile)
    images, distinct = make(rng, 9), make(rng, 11)
    ids = np.concatenate([rng.permutation(11), rng.integers(11, size=20)])
    owner = np.concatenate([np.arange(9), rng.integers(9, size=22)])
    texts = distinct[ids]
    carries = np.zeros((9, 11), bool)
    carries[owner, ids] = True
    is_match = carries[:, ids]  # For every image and every single caption.
    to_text, to_image = metrics.retrieval_ranks(images, texts, owner, ids, tile=tile)
    assert to_text.tolist() == slow_ranks(images, texts, is_match)
    assert to_image.tolist() == slow_ranks(texts, images, is_match.T)


def test_without_ids_each_caption_belongs_to_its_image_alone():
    rng = np.random.default_rng(3)
    images, texts, owner = unit_rows(rng, 4), unit_rows(rng, 10), np.arange(10) % 4
    to_text, to_image = metrics.retrieval_ranks(images, texts, owner, tile=3)
    is_match = np.arange(4)[:, None] == owner
    assert to_text.tolist() == slow_ranks(images, texts, is_match)
    assert to_image.tolist() == slow_ranks(texts, images, is_match.T)


def test_recall_at_k_equals_looking_into_the_first_k():
    rng = np.random.default_rng(5)
    images, texts, owner = unit_rows(rng, 20), unit_rows(rng, 60), np.arange(60) % 20
    to_text, to_image = metrics.retrieval_ranks(images, texts, owner)
    scores = images @ texts.T
    for k in (1, 2, 5, 19):
        first = np.argsort(-scores, axis=1)[:, :k]
        hits = [i in owner[row] for i, row in enumerate(first)]
        assert metrics.hit_rate(to_text, k) == pytest.approx(np.mean(hits))
        first = np.argsort(-scores.T, axis=1)[:, :k]
        hits = [owner[t] in row for t, row in enumerate(first)]
        assert metrics.hit_rate(to_image, k) == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("tile", [3, 64, 1000])
def test_a_model_that_tells_nothing_apart_gets_nothing(tile):
    same = np.repeat(unit_rows(np.random.default_rng(0), 1, 33), 100, axis=0)
    ranks = metrics.class_ranks(same[:37], same, np.arange(37), tile=tile)
    assert set(ranks.tolist()) == {99}
    assert metrics.hit_rate(ranks, 99) == 0.0
    assert metrics.hit_rate(ranks, 100) == 1.0


def test_accuracies_equal_their_definitions():
    rng = np.random.default_rng(8)
    images, classifier = unit_rows(rng, 200), unit_rows(rng, 7)
    labels = rng.choice([0, 1, 1, 1, 2, 4, 6], size=200)  # Classes 3 and 5 have no sample.
    ranks = metrics.class_ranks(images, classifier, labels, tile=32)
    given = np.argmax(images @ classifier.T, axis=1)
    assert metrics.hit_rate(ranks, 1) == pytest.approx(np.mean(given == labels))
    recalls = [np.mean(given[labels == k] == k) for k in (0, 1, 2, 4, 6)]
    assert metrics.mean_per_class_recall(ranks, labels) == pytest.approx(np.mean(recalls))
    two = np.argsort(-(images @ classifier.T), axis=1)[:, :2]
    expected = np.mean([label in row for label, row in zip(labels, two, strict=True)])
    assert metrics.hit_rate(ranks, 2) == pytest.approx(expected)


def test_median_rank_counts_from_one():
    assert metrics.median_rank(np.array([0, 0, 5])) == 1.0
    assert metrics.median_rank(np.array([0, 3])) == 2.5


def test_no_more_than_a_tile_of_scores_exists():
    rng = np.random.default_rng(1)
    images, texts = unit_rows(rng, 1500, 4), unit_rows(rng, 1500, 4)
    peaks = {}
    for tile in (50, 1500):
        tracemalloc.start()
        metrics.retrieval_ranks(images, texts, np.arange(1500), tile=tile)
        peaks[tile] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[50] < 1500 * 1500 / 4  # Bytes: a quarter of the matrix at one byte a score.
    assert peaks[1500] > 1500 * 1500 * 8  # So the measure does see a whole matrix.


@pytest.mark.parametrize(
    "change, message",
    [
        ({"queries": [1]}, "1 of 4 queries are not finite; the first is 1"),
        ({"keys": [0, 2]}, "2 of 3 keys are not finite; the first is 0"),
        ({"matches": [[0, 0], [2, 1]]}, "2 of 4 queries have no match; the first is 1"),
        ({"matches": [[0, 3]]}, "matches name key 3, but there are 3"),
        ({"matches": [[-1, 0]]}, "matches name query -1, but there are 4"),
    ],
)
def test_what_cannot_be_ranked_is_an_error(change, message):
    rng = np.random.default_rng(2)
    arrays = {"queries": unit_rows(rng, 4), "keys": unit_rows(rng, 3)}
    matches = np.array(change.pop("matches", [[0, 0], [1, 1], [2, 2], [3, 0]]))
    for name, rows in change.items():
        arrays[name][rows, 2] = np.nan
    with pytest.raises(ValueError, match=f"^{message}$"):
        metrics.match_ranks(arrays["queries"], arrays["keys"], matches)


def test_the_mean_of_nothing_is_an_error():
    none = np.zeros(0, np.int64)
    for call in (
        lambda: metrics.hit_rate(none, 1),
        lambda: metrics.median_rank(none),
        lambda: metrics.mean_per_class_recall(none, none),
    ):
        with pytest.raises(ValueError, match=r"^no query: the mean of nothing is undefined$"):
            call()
    with pytest.raises(ValueError, match=r"^k must be at least 1, got 0$"):
        metrics.hit_rate(np.zeros(1, np.int64), 0)
