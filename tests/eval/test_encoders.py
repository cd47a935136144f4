import dataclasses
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clip_jax.data.sample import Sample
from clip_jax.eval import metrics
from clip_jax.eval.cache import Cache
from clip_jax.eval.encoders import Encoders, apart
from clip_jax.eval.once import Model
from clip_jax.eval.opened import Opened
from clip_jax.eval.run_suite import run_suite
from clip_jax.eval.tasks import TASKS
from clip_jax.models.clip import CLIP, init_params
from clip_jax.preprocess.recipe import Recipe, normalize

CONTEXT, END, BATCH = 40, 63, 8
NAMES, TEMPLATES = ("ant", "bee", "cow"), ("a {c}.", "{c}", "one very old picture of a {c}")


def tokenize(texts):
    """As many tokens as a text has letters, the last one its end; then noise without meaning."""
    rows = []
    for text in texts:
        row = np.random.default_rng(len(text)).integers(0, END, CONTEXT, np.int32)
        row[: len(text)] = [ord(letter) % END for letter in text]
        row[len(text) - 1] = END
        rows.append(row)
    return np.stack(rows)


@pytest.fixture(scope="module")
def config(tiny):
    return dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, context_length=CONTEXT))


@pytest.fixture(scope="module")
def params(config):
    return jax.jit(lambda: init_params(config, jax.random.key(0)))()


@pytest.fixture(scope="module")
def bound(config, params):
    """`bound(devices)`: an embedder whose batches lie on that many."""

    def make(devices):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
        encoders = Encoders(
            CLIP(config), Recipe(size=8), lambda rows: jax.device_put(rows, split), whole
        )
        return encoders.bind(jax.device_put(params, whole), tokenize, BATCH, threads=2)

    made = {devices: make(devices) for devices in (1, 8)}
    return made.__getitem__


@pytest.fixture(scope="module")
def slow(config, params):
    """Embeddings one at a time, with all of the context."""
    model = CLIP(config)

    @jax.jit
    def look(pixels):
        images = normalize(pixels[None], Recipe(size=8))
        return model.apply({"params": params}, images, method="encode_image")[0]

    @jax.jit
    def read(tokens):
        return model.apply({"params": params}, tokens[None], method="encode_text")[0]

    def both(pictures, texts):
        return (
            np.array([look(picture) for picture in pictures]).reshape(-1, config.embed_dim),
            np.array([read(tokens) for tokens in tokenize(texts)]),
        )

    return both


def test_blocks_apart_lie_where_they_lay_and_give_the_same(config, params):
    there = jax.device_put(params, jax.devices()[3])
    parts = apart(there)
    for tower in ("image", "text"):
        stacked, blocks = (p[tower]["stack"]["blocks"] for p in (there, parts))
        assert len(blocks) == getattr(config, tower).stack.layers > 1
        for layer, block in enumerate(blocks):
            for whole, share in zip(*map(jax.tree.leaves, (stacked, block)), strict=True):
                np.testing.assert_array_equal(share, whole[layer])
                assert share.devices() == whole.devices()
                # An array that begins between two lines of the cache is copied.
                if whole[0].nbytes % 64 == 0:
                    offset = share.unsafe_buffer_pointer() - whole.unsafe_buffer_pointer()
                    assert offset == layer * whole[0].nbytes
    assert parts["logit_scale"] is there["logit_scale"]
    tokens = tokenize(["a bee", "an ant"])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    for method, given in (
        ("encode_text", tokens),
        ("encode_image", normalize(jnp.asarray(pixels), Recipe(size=8))),
    ):
        run = jax.jit(
            lambda p, x, method=method: CLIP(config).apply({"params": p}, x, method=method)
        )
        np.testing.assert_allclose(run(parts, given), run(there, given), 1e-6, 1e-6)


def test_parameters_on_several_devices_stay_as_they_are(params):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    shared = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    assert apart(shared) is shared


@pytest.mark.parametrize(("devices", "at_once"), [(1, 2), (8, 1)])
def test_a_lone_cpu_computes_two_batches_at_once_and_compiles_them_once(bound, devices, at_once):
    embedder = bound(devices)
    assert embedder.at_once == at_once
    seen, traced = [], []

    @jax.jit
    def look(images):
        traced.append(images.shape)
        return images.reshape(len(images), -1)[:, :5] + 1.0

    def image_fn(images):
        seen.append(threading.get_ident())
        return look(images)

    pictures = list(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8))
    spied = dataclasses.replace(embedder, image_fn=image_fn, unit=False)
    first = np.stack(pictures).reshape(40, -1)[:, :5] + 1.0
    np.testing.assert_array_equal(spied.images(pictures), first)
    assert len(seen) == 5
    assert len(traced) == 1
    assert (threading.get_ident() in seen) == (at_once == 1)


def spying(embedder):
    """The same, and the lengths of the texts it computes."""
    lengths = []

    def text_fn(tokens):
        lengths.append(tokens.shape[1])
        return embedder.text_fn(tokens)

    return dataclasses.replace(embedder, text_fn=text_fn), lengths


@pytest.mark.parametrize("devices", [1, 8])
def test_texts_are_cut_to_few_lengths_and_nothing_changes(bound, slow, devices):
    counts = (40, 16, 2, 1, 17, 33, 15, 32, 31)
    texts = [letter * count for count in counts for letter in "abc"]
    embedder, lengths = spying(bound(devices))
    rows = embedder.texts(texts)
    np.testing.assert_allclose(rows, slow([], texts)[1], atol=2e-6)
    batches = np.sort(np.repeat(counts, 3)).tolist()
    longest = [max(batches[first : first + BATCH]) for first in range(0, len(batches), BATCH)]
    assert lengths == [next(n for n in (16, 32, CONTEXT) if n >= most) for most in longest]
    assert set(lengths) == {16, 32, CONTEXT}


@pytest.mark.parametrize(
    "change", [{"eot_id": END}, {"pool": "last"}, {"pool": "last", "causal": False}]
)
def test_a_text_is_whole_where_its_padding_counts_or_its_end_is_elsewhere(config, params, change):
    changed = dataclasses.replace(config, text=dataclasses.replace(config.text, **change))
    encoders = Encoders(CLIP(changed), Recipe(size=8))
    tokenizer = encoders.bind(params, tokenize, BATCH).tokenizer
    np.testing.assert_array_equal(tokenizer(["ab", "a"]), tokenize(["ab", "a"]))


@dataclasses.dataclass
class Pictures:
    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return Sample(key=str(index), image=self.pixels[index], label=int(self.labels[index]))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("count", [0, 1, BATCH - 1, BATCH, BATCH + 1])
def test_a_suite_gives_the_same_for_any_number_of_pictures(bound, slow, tmp_path, count, devices):
    rng = np.random.default_rng(count)
    pixels = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    labels = rng.integers(len(NAMES), size=count)
    opened = Opened(
        task=dataclasses.replace(TASKS["mnist"], classes=len(NAMES)),
        folder=pathlib.Path("here"),
        source=Pictures(pixels, labels),
        pictures="p",
        classes=NAMES,
        templates=TEMPLATES,
    )
    marks = {"weights": "w", "preprocessing": "p", "tokenizer": "t"}
    model = Model(embedder=bound(devices), scale=20.0, **marks)
    none = Cache(folder=tmp_path / "none", limit=0)
    report = run_suite(("mnist",), lambda _: opened, model, tmp_path, none, lambda line: None)
    if count == 0:
        assert report.failures == {"mnist": "no usable sample: the data set is empty"}
        return
    prompts = [template.format(c=name) for name in NAMES for template in TEMPLATES]
    images, texts = slow(pixels, prompts)
    classes = texts.reshape(len(NAMES), len(TEMPLATES), -1).mean(axis=1)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    found = report.outcomes["mnist"]
    best = (images @ classes.T).argmax(axis=1)
    assert found.arrays["top"][:, 0].tolist() == best.tolist()
    assert found.figures["acc1"] == pytest.approx(np.mean(best == labels))
    sure = jax.nn.softmax(20 * images @ classes.T).max(axis=1)
    np.testing.assert_allclose(found.arrays["confidence"], sure, atol=1e-5)
    ranks = metrics.class_ranks(images, classes, labels)
    recall = metrics.mean_per_class_recall(ranks, labels)
    assert found.figures["mean_per_class_recall"] == pytest.approx(recall)
