"""A model small enough to check by hand: colours and colour words, seen as RGB."""

import dataclasses
import json
import threading

import numpy as np
import pytest

from clip_jax.data.sample import BadSampleError, Sample
from clip_jax.eval import embed as embed_module
from clip_jax.eval.embed import Embedder

COLOURS = {
    "red": (250, 30, 20),
    "green": (20, 220, 40),
    "blue": (30, 40, 240),
    "yellow": (240, 230, 30),
    "violet": (160, 30, 200),
    "white": (250, 250, 250),
}
SIDE = 8


def prepare(image):
    """Accept decoded RGB only; an encoded picture stands for one that cannot be decoded."""
    if isinstance(image, bytes):
        raise ValueError("cannot be decoded")
    return np.ascontiguousarray(np.broadcast_to(image.mean((0, 1)), (SIDE, SIDE, 3)).astype("u1"))


def tokenize(texts):
    """The mean colour of the colour words in a text, as three tokens."""
    rows = []
    for text in texts:
        known = [rgb for name, rgb in COLOURS.items() if name in text] or [(128, 128, 128)]
        rows.append(np.mean(known, axis=0).astype(np.int32))
    return np.stack(rows)


@dataclasses.dataclass
class Memory:
    """A data set in memory; an entry that is a string is a bad sample with that message."""

    splits: dict
    names: tuple = ()

    def open(self, split):
        return Entries(self.splits[split])

    def class_names(self, split):
        return self.names


@dataclasses.dataclass
class Entries:
    entries: list

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        entry = self.entries[index]
        if isinstance(entry, str):
            raise BadSampleError(entry)
        return entry


def plain(name, key=None, *, texts=None, label=None):
    """A sample of one colour, captioned with its name."""
    pixels = np.full((5, 7, 3), COLOURS[name], np.uint8)
    texts = (f"something {name}",) if texts is None else texts
    return Sample(key=key or name, image=pixels, texts=texts, label=label)


@pytest.fixture
def toy():
    """Everything above, and `embedder(**changes)`, which sees colours exactly."""

    class Toy:
        colours, side = COLOURS, SIDE
        dataset = Memory
        sample = staticmethod(plain)
        entries = Entries

        @staticmethod
        def embedder(**changes):
            fields = {
                "image_fn": lambda images: images[:, 0, 0, :].astype(np.float32),
                "text_fn": lambda tokens: tokens.astype(np.float32),
                "tokenizer": tokenize,
                "prepare": prepare,
                "batch": 4,
                "threads": 2,
            }
            return Embedder(**fields | changes)

    return Toy


class Pair:
    """Two processes as threads, which exchange what they would send each other."""

    def __init__(self):
        self.barrier, self.values = threading.Barrier(2, timeout=30), [None, None]
        self.own = threading.local()

    def exchange(self, value):
        self.barrier.wait()
        self.values[self.own.number] = value
        self.barrier.wait()
        return list(self.values)

    def shared(self, function, rows):
        def call(block):
            parts = self.exchange(np.asarray(function(block)))
            whole = np.zeros((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
            for own, part in zip(rows, parts, strict=True):
                whole[list(own)] = part
            return whole

        return call

    def __call__(self, embedder, work):
        rows = [tuple(range(first, embedder.batch, 2)) for first in range(2)]
        ends = [None, None]
        made = dataclasses.replace(
            embedder,
            image_fn=self.shared(embedder.image_fn, rows),
            text_fn=self.shared(embedder.text_fn, rows),
        )

        def process(number):
            self.own.number = number
            try:
                ends[number] = work(number, dataclasses.replace(made, rows=rows[number]))
            except Exception as error:
                ends[number] = error
                self.barrier.abort()  # The other need not wait for this one.

        threads = [threading.Thread(target=process, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ends


@pytest.fixture
def pair(monkeypatch):
    """`pair(embedder, work)`: what `work(number, embedder)` gives, or raises, in each of two."""
    made = Pair()
    monkeypatch.setattr(
        embed_module, "gather_json", lambda value: made.exchange(json.loads(json.dumps(value)))
    )
    return made
