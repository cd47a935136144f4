import dataclasses
import json
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.eval import embed as embed_module
from clip_jax.eval.embed import unit
from clip_jax.eval.encoders import Encoders
from clip_jax.models.vit import Patches
from clip_jax.preprocess.naflex import NaflexRecipe


@pytest.fixture(scope="module")
def projection():
    return jax.random.normal(jax.random.key(0), (8 * 8 * 3, 5))


@pytest.fixture
def jitted(toy, projection):
    """A compiled image tower that notes the shapes it was traced with."""
    shapes = []

    @jax.jit
    def image_fn(images):
        shapes.append(images.shape)
        return (jnp.reshape(images / 255.0, (len(images), -1)) @ projection).astype(jnp.bfloat16)

    return toy.embedder(image_fn=image_fn), shapes


def pictures(n):
    rng = np.random.default_rng(n)
    return [rng.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in range(n)]


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 11])
def test_any_number_of_pictures_equals_one_by_one(jitted, n):
    embedder, shapes = jitted
    items = pictures(n)
    rows = embedder.images(iter(items))
    assert rows.shape == (n, 5)
    assert rows.dtype == np.float32
    assert set(shapes) == {(4, 8, 8, 3)}
    single = np.concatenate([np.zeros((0, 5))] + [embedder.images([item]) for item in items])
    np.testing.assert_allclose(rows, single, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 4, 5, 13])
def test_each_distinct_text_is_embedded_once_and_order_is_kept(toy, n):
    seen, sizes = [], []

    def tokenizer(texts):
        seen.extend(texts)
        return np.array([[len(text), ord(text[0]), 1] for text in texts], np.int32)

    def text_fn(tokens):
        sizes.append(tokens.shape)
        return tokens.astype(np.float32)

    embedder = toy.embedder(tokenizer=tokenizer, text_fn=text_fn)
    texts = [name * (1 + number % 3) for number, name in enumerate("abcabcabcaabz"[:n])]
    rows = embedder.texts(texts)
    expected = np.array([[len(t), ord(t[0]), 1] for t in texts], np.float64).reshape(n, 3)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert set(sizes) == {(4, 3)}
    if n:
        assert sorted(seen) == sorted(set(texts))
        assert [len(text) for text in seen] == sorted(len(text) for text in seen)


def test_a_short_batch_is_filled_with_its_last_row(toy):
    seen = []

    def image_fn(images):
        seen.append(images[:, 0, 0, 0].tolist())
        return images[:, 0, 0, :].astype(np.float32)

    grey = [np.full((2, 2, 3), value, np.uint8) for value in (1, 2, 3, 4, 5, 6)]
    toy.embedder(image_fn=image_fn).images(grey)
    assert seen == [[1, 2, 3, 4], [5, 6, 6, 6]]


def test_progress_counts_real_items_not_padding(toy):
    told = []
    embedder = toy.embedder(progress=lambda *news: told.append(news))
    embedder.images(pictures(6))
    embedder.images(iter(pictures(2)))
    embedder.texts(["red", "red", "blue"])
    assert told == [("images", 4, 6), ("images", 6, 6), ("images", 2, None), ("texts", 2, 2)]


class Pending:
    """Rows of a device: it notes when the host asks for them."""

    def __init__(self, number, images, events):
        self.number, self.images, self.events = number, images, events
        events.append(f"begin {number}")

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"fetch {self.number}")
        return self.images.reshape(len(self.images), -1).astype(np.float32)


@pytest.mark.parametrize("way", ["images", "source"])
def test_a_batch_is_fetched_while_the_next_is_computed(toy, way):
    events = []

    def image_fn(images):
        return Pending(sum(str(event).startswith("begin") for event in events), images, events)

    embedder = toy.embedder(image_fn=image_fn, progress=lambda *told: events.append(told))
    samples = [toy.sample("red", str(i)) for i in range(10)]
    if way == "images":
        embedder.images([sample.image for sample in samples])
    else:
        embedder.source(toy.entries(samples))
    assert events == [
        *("begin 0", "begin 1", "fetch 0", ("images", 4, 10)),
        *("begin 2", "fetch 1", ("images", 8, 10), "fetch 2", ("images", 10, 10)),
    ]


def test_a_source_keeps_words_and_leaves_out_bad_samples(toy):
    entries = [
        toy.sample("red", label=3),
        "sample 'cut': tar member ends early",
        dataclasses.replace(toy.sample("green", "odd"), image=b"no picture"),
        toy.sample("blue", texts=("a", "b")),
        toy.sample("white", texts=()),
    ]
    embedder = toy.embedder()
    found = embedder.source(
        toy.entries(entries), lambda sample: None if sample.texts else "it has no caption"
    )
    assert found.indices == (0, 3)
    assert found.keys == ("red", "blue")
    assert found.texts == (("something red",), ("a", "b"))
    assert found.labels == (3, None)
    assert found.skipped == (
        "sample 'cut': tar member ends early",
        "sample 'odd': cannot be decoded",
        "sample 'white': it has no caption",
    )
    np.testing.assert_allclose(found.images, embedder.images([entries[0].image, entries[3].image]))


class Together:
    """Processes as threads, which exchange what they would send each other."""

    def __init__(self, shares):
        self.shares = shares
        self._everyone, self._told = threading.Barrier(len(shares)), {}
        self._mine = threading.local()

    def exchange(self, value):
        """What every thread gives, to every thread."""
        self._told[self._mine.number] = value
        self._everyone.wait(10)
        values = [self._told[number] for number in range(len(self.shares))]
        self._everyone.wait(10)
        return values

    def whole(self, part):
        """A batch of four rows from the parts of all."""
        whole = np.zeros((4, 3), np.float32)
        for rows, own in zip(self.shares, self.exchange(part), strict=True):
            whole[list(rows)] = own
        return whole

    def run(self, work):
        """`work(number, rows)` of each, in their order."""
        found = {}

        def start(number):
            self._mine.number = number
            found[number] = work(number, self.shares[number])

        threads = [threading.Thread(target=start, args=[n]) for n in range(len(self.shares))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[number] for number in range(len(self.shares))]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9])
@pytest.mark.parametrize("shares", [((0, 1), (2, 3)), ((1, 3), (0, 2)), ((0,), (2,), (3,), (1,))])
def test_processes_that_share_the_rows_of_each_batch_find_what_one_finds(
    toy, monkeypatch, count, shares
):
    names = ["red", "green", "blue", "white", "violet"]
    entries = [toy.sample(names[n % 5], str(n), label=n) for n in range(count)]
    entries[1:4:2] = ["sample: broken"] * len(entries[1:4:2])
    together, loaded = Together(shares), []

    def embed(number, rows):
        def prepare(image):
            loaded.append(number)
            return toy.embedder().prepare(image)

        embedder = toy.embedder(
            image_fn=lambda images: together.whole(images[:, 0, 0, :]),
            text_fn=together.whole,
            prepare=prepare,
            rows=rows,
        )
        return embedder.source(toy.entries(entries)), embedder.texts(names)

    monkeypatch.setattr(
        embed_module, "gather_json", lambda v: together.exchange(json.loads(json.dumps(v)))
    )
    found = together.run(embed)
    alone = toy.embedder().source(toy.entries(entries))
    for source, texts in found:
        np.testing.assert_array_equal(source.images, alone.images)
        words = ("indices", "keys", "texts", "labels", "skipped")
        assert [getattr(source, w) for w in words] == [getattr(alone, w) for w in words]
        np.testing.assert_array_equal(texts, toy.embedder().texts(names))
    if count > 4:  # Each picture is prepared once; where a batch has none of use, a black one.
        usable = len(alone.keys)
        assert usable <= len(loaded) <= usable + 3 * len(shares)


def test_a_split_tells_what_was_left_out(toy):
    told = []
    entries = [toy.sample("red"), *(f"sample {n}: broken" for n in range(7))]
    toy.embedder(warn=told.append).split(toy.dataset({"test": entries}), "test")
    broken = "; ".join(f"sample {n}: broken" for n in range(5))
    assert told == [f"split 'test': 7 left out: {broken}; and 2 more"]


def test_a_warning_is_given_where_nobody_else_listens(toy):
    dataset = toy.dataset({"test": [toy.sample("red"), "sample 1: broken"]})
    with pytest.warns(UserWarning, match="^split 'test': 1 left out: sample 1: broken$"):
        toy.embedder().split(dataset, "test")


@pytest.mark.parametrize(
    "entries, message",
    [
        ([], "split 'test' holds no usable sample"),
        (["sample 0: broken"], "split 'test' holds no usable sample; 1 left out: sample 0: broken"),
    ],
)
def test_a_split_without_samples_is_an_error(toy, entries, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        toy.embedder().split(toy.dataset({"test": entries}), "test")


def test_an_error_in_a_users_own_picture_is_raised(toy):
    with pytest.raises(ValueError, match=r"^cannot be decoded$"):
        toy.embedder().images([*pictures(5), b"no picture"])


def test_a_programming_error_is_not_taken_for_a_bad_sample(toy):
    def broken(image):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        toy.embedder(prepare=broken).source(toy.entries([toy.sample("red")]))


def test_an_endless_iterator_is_read_only_a_little_ahead(toy):
    asked, lock = [], threading.Lock()

    def endless():
        while True:
            with lock:
                asked.append(len(asked))
            yield np.zeros((4, 4, 3), np.uint8)

    class Enough(Exception):
        pass

    def image_fn(images):
        raise Enough

    with pytest.raises(Enough):
        toy.embedder(image_fn=image_fn).images(endless())
    assert len(asked) <= 3 * 4 + 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_embeddings_without_direction_are_an_error(toy, bad):
    def image_fn(images):
        rows = images[:, 0, 0, :].astype(np.float32) + 1
        rows[images[:, 0, 0, 0] == 77] = bad
        return rows

    items = [np.full((2, 2, 3), value, np.uint8) for value in (1, 2, 3, 4, 77, 6, 77)]
    message = "2 of 7 embeddings of images are NaN, infinite or zero; the first is row 4"
    with pytest.raises(ValueError, match=f"^{message}$"):
        toy.embedder(image_fn=image_fn).images(items)


def test_unit_does_not_overflow_or_vanish():
    rows = unit(np.array([[1e30, 1e30], [1e-30, 0]], np.float32), "things")
    np.testing.assert_allclose(rows, [[0.5**0.5, 0.5**0.5], [1, 0]], rtol=1e-6)


def test_sizes_must_be_positive(toy):
    message = "^an embedder needs at least 1: batch 0, threads -1$"
    with pytest.raises(ValueError, match=message):
        toy.embedder(batch=0, threads=-1)


@pytest.fixture
def flat(toy):
    """Pictures of any shape as a padded row of pixels and how many there are; sums seen."""
    seen = []

    class Flat(NamedTuple):
        pixels: np.ndarray
        count: np.ndarray

    def prepare(image):
        pixels = image.reshape(-1, 3)
        padded = np.zeros((12, 3), np.uint8)
        padded[: len(pixels)] = pixels
        return Flat(padded, np.array([len(pixels)], np.int32))

    def image_fn(batch):
        assert isinstance(batch, Flat)
        seen.append((batch.pixels.shape, batch.count.shape, batch.count.dtype))
        return batch.pixels.sum(axis=1, dtype=np.int64) / batch.count  # 0 / 0 would be an error.

    return toy.embedder(prepare=prepare, image_fn=image_fn), seen


@pytest.mark.parametrize("n", [0, 1, 4, 6])
def test_pictures_may_be_tuples_of_arrays(flat, toy, n):
    embedder, seen = flat
    embedder = dataclasses.replace(embedder, progress=lambda *news: told.append(news))
    told, rng = [], np.random.default_rng(0)
    items = [rng.integers(1, 256, (1 + i % 3, 4, 3), dtype=np.uint8) for i in range(n)]
    if n == 0:
        embedder = dataclasses.replace(
            embedder, prepare=lambda image: flat[0].prepare(image[:2, :2])
        )
    rows = embedder.images(items)
    assert set(seen) == {((4, 12, 3), (4, 1), np.dtype(np.int32))}
    means = np.array([item.mean(axis=(0, 1)) for item in items]).reshape(n, 3)
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert [done for _, done, _ in told] == [min(4, n), n][: -(-n // 4)]


def test_encoders_give_a_naflex_model_normalised_patches_of_every_picture():
    recipe = NaflexRecipe(patch_size=2, max_patches=6, mean=(0.2, 0.4, 0.6))
    pictures = [
        np.full(shape, 51 * i, np.uint8) for i, shape in enumerate([(4, 6), (9, 2), (5, 5)])
    ]
    traced = []

    class Model:
        def apply(self, variables, images, method):
            assert isinstance(images, Patches) and method == "encode_image"
            traced.append(images.pixels.shape)
            grid = images.grid.astype(jnp.float32)
            return jnp.concatenate([grid, images.pixels[:, 0, :3], variables["params"][:, None]], 1)

    embedder = Encoders(Model(), recipe).bind(jnp.full(2, 0.5), lambda texts: None, batch=2)
    rows = embedder.images(pictures)
    # Grey levels 0, 51, 102 are 0, 0.2, 0.4 of the full range; the deviation is 0.5.
    expected = np.array(
        [
            [2, 3, -0.4, -0.8, -1.2, 0.5],
            [5, 1, 0.0, -0.4, -0.8, 0.5],
            [2, 2, 0.4, 0.0, -0.4, 0.5],
        ]
    )
    np.testing.assert_array_equal([recipe(p).grid for p in pictures], expected[:, :2])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert traced == [(2, 6, 12)]
    assert embedder.images([]).shape == (0, 6)
