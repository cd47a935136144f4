"""Not a test: tiny data sets in the layouts of both suites, and a model of numpy that sees them.

As a script: python standins.py ROOT OUT, a suite that kills itself at its second data set.
"""

import hashlib
import io
import os
import pathlib
import signal
import sys
import tarfile

import numpy as np
from PIL import Image

from clip_jax.eval.cache import Cache
from clip_jax.eval.embed import Embedder
from clip_jax.eval.example_sets import open_folder
from clip_jax.eval.folders import find, open_with_train
from clip_jax.eval.once import Model
from clip_jax.eval.run_suite import STANDARD, Measures, run_suite
from clip_jax.eval.tasks import TASKS
from clip_jax.preprocess.recipe import Recipe

SIZE, WIDTH, TOKENS = 4, 6, 5
LOOK = np.random.default_rng(1).normal(size=(SIZE * SIZE * 3, WIDTH)).astype(np.float32)
FEEL = np.random.default_rng(3).normal(size=(SIZE * SIZE * 3, WIDTH + 2)).astype(np.float32)
READ = np.random.default_rng(2).normal(size=(TOKENS, WIDTH)).astype(np.float32)
CLASSES = ("cat", "dog", "cow", "hen", "owl", "yak")
KEYS = ("mnist", "stl10", "flickr8k")
"""Of `three_sets`."""


def picture(seed):
    """An encoded picture of 4 x 4 pixels."""
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def npy(values):
    data = io.BytesIO()
    np.save(data, np.asarray(values))
    return data.getvalue()


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def wds(
    folder, samples, *, classes=None, templates=("a {c}.", "{c}"), kind=None, shards=2, split="test"
):
    """A folder of CLIP_benchmark; samples are dicts from suffix to bytes or text, with a `png`."""
    parts = np.array_split(np.arange(len(samples)), shards)
    for shard, rows in enumerate(parts):
        members = [
            (f"s{row:07d}.{suffix}", content if isinstance(content, bytes) else content.encode())
            for row in rows
            for suffix, content in samples[row].items()
        ]
        tar(folder / split / f"{shard}.tar", members)
    (folder / split / "nshards.txt").write_text(f"{shards}\n")
    if classes is not None:
        (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
        lines = "\n".join(templates)
        (folder / "zeroshot_classification_templates.txt").write_text(lines + "\n")
    if kind is not None:
        (folder / "dataset_type.txt").write_text(kind + "\n")
    return folder


def labelled(count, classes, seed=0, **more):
    """Samples with `.cls`; `more` are functions of the row that give further members."""
    labels = np.random.default_rng(seed).integers(0, classes, count)
    return [
        {
            "png": picture(1000 * seed + row),
            "cls": str(label),
            **{suffix: make(row) for suffix, make in more.items()},
        }
        for row, label in enumerate(labels)
    ]


def captioned(count, seed=7):
    """One to three captions a picture, no two alike."""
    return [
        {
            "png": picture(1000 * seed + row),
            "txt": "\n".join(f"picture {row} {n}" for n in range(1 + row % 3)),
        }
        for row in range(count)
    ]


def three_sets(root):
    """Two sets with labels, one without pictures of its last class, and one with captions."""
    wds(root / "wds_mnist", labelled(23, 5), classes=CLASSES)
    wds(root / "wds_stl10_test", labelled(9, 3, seed=3), classes=CLASSES[:3], shards=1)
    wds(root / "flickr8k", captioned(13), kind="retrieval")
    return root


def tokenize(texts):
    """Five numbers of each text, all from its hash."""
    digests = [hashlib.sha256(text.encode()).digest()[:TOKENS] for text in texts]
    return np.array([list(digest) for digest in digests], np.int32).reshape(len(texts), TOKENS)


def look(images):
    return (np.asarray(images).reshape(len(images), -1) / 255 - 0.5).astype(np.float32) @ LOOK


def feel(images):
    """Features before a projection; of other lengths."""
    return (np.asarray(images).reshape(len(images), -1) / 255 - 0.5).astype(np.float32) @ FEEL


def read(tokens):
    return np.sin(np.asarray(tokens) @ READ)


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def see(data):
    """The unit embedding of one encoded picture, in float64."""
    return unit(look(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[None]))[0]


def say(text):
    """The unit embedding of one text."""
    return unit(read(tokenize([text])))[0]


def prototypes(classes, templates):
    """A class after the other, as the papers write it down."""
    rows = []
    for name in classes:
        prompts = [say(t.replace("{c}", name)) for t in templates]
        rows.append(unit(sum(prompts) / len(prompts)))
    return np.stack(rows)


def model(counts=None, batch=4, **changes):
    """A `Model`; `counts` collects how many pictures and texts were embedded, by call."""

    def counting(name, function):
        def call(rows):
            if counts is not None:
                counts.append(name)
            return function(rows)

        return call

    embedder = Embedder(
        image_fn=counting("images", look),
        feature_fn=counting("features", feel),
        text_fn=counting("texts", read),
        tokenizer=tokenize,
        prepare=Recipe(size=SIZE),
        batch=batch,
        threads=2,
    )
    fields = {"weights": "w", "preprocessing": "p", "tokenizer": "t", "scale": 20.0}
    return Model(embedder=embedder, **fields | changes)


def run(
    root, keys, out, *, counts=None, cache=None, said=None, measures=None, train=False, **changes
):
    """A suite below `root`; the cache is beside `out` and large, unless given.

    With `train`, as probes need it, data sets have that split.
    """
    lines = [] if said is None else said
    cache = cache or Cache(folder=out.parent / "cache", limit=10**9)

    def opened(key):
        open_one = open_with_train if train else open_folder
        return open_one(TASKS[key], find(TASKS[key], root), lines.append)

    how = STANDARD if measures is None else Measures(by_kind=measures, settings="own")
    return run_suite(keys, opened, model(counts, **changes), out, cache, lines.append, how)


def one(root, key, tmp_path, **more):
    """The outcome of a single data set."""
    report = run(root, (key,), tmp_path / "out", **more)
    assert not report.failures
    return report.outcomes[key]


if __name__ == "__main__":
    root, out = map(pathlib.Path, sys.argv[1:])
    seen = []

    def deadly(line):
        seen.append(line)
        if line.startswith("2/"):
            os.kill(os.getpid(), signal.SIGKILL)

    class Lines(list):
        """What is said goes to `deadly`."""

        def append(self, line):
            deadly(line)

    run(root, KEYS, out, said=Lines())
