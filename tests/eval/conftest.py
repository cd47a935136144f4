"""A model small enough to check by hand: colours and colour words, seen as RGB."""

import dataclasses

import numpy as np
import pytest

from clip_jax.data.sample import BadSampleError, Sample
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
