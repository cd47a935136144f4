"""What training sees when: which sample at which place of an epoch, by which caption and view."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from clip_jax.data.mixture import MixtureSource
from clip_jax.data.sample import BadSampleError, Source
from clip_jax.preprocess.augment import Augment
from clip_jax.tokenizers import Tokenizer

_CHUNK = 32
"""Visits that one thread makes in one go: few enough for all threads to share a batch."""


class Skip(NamedTuple):
    """A bad sample, by what it is told and counted by; see `BadSampleError`."""

    message: str
    reason: str
    shard: str


def reasons(skips: Sequence[Skip]) -> str:
    """How many for which reason."""
    counts = Counter(skip.reason for skip in skips)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def summary(skips: Sequence[Skip]) -> str:
    """How many for which reason, in which shards most, and the first of them in full."""
    shards = Counter(skip.shard for skip in skips if skip.shard)
    parts = [reasons(skips)]
    if shards:
        worst = ", ".join(f"{shard} ({count})" for shard, count in shards.most_common(3))
        parts.append(f"most of them in {worst}" if len(shards) > 3 else f"in {worst}")
    return "; ".join([*parts, "the first: " + "; ".join(dict.fromkeys(s[0] for s in skips[:3]))])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visits:
    """Chunks of this host's visits, numbered from 0: a pure function of the number."""

    source: Source
    batch: int
    seed: int
    size: int
    augment: Augment
    tokenizer: Tokenizer
    process_index: int
    process_count: int

    @property
    def rows(self) -> int:
        """Of this host, in each global batch."""
        return self.batch // self.process_count

    @property
    def chunk(self) -> int:
        return min(_CHUNK, self.rows)

    def __call__(self, number: int) -> dict[str, Any]:
        """Make the visits of one chunk; `faults` has those that failed, the arrays the others."""
        first = number * self.chunk
        visits, parts, texts, faults = [], [], [], []
        images = np.empty((self.chunk, self.size, self.size, 3), np.uint8)
        for visit in range(first, first + self.chunk):
            try:
                part, image, text = self._visit(visit)
            except BadSampleError as fault:
                faults.append((visit, Skip(str(fault), fault.reason, fault.shard)))
            else:
                images[len(visits)] = image
                visits.append(visit)
                parts.append(part)
                texts.append(text)
        tokens, cut = self.tokenizer.tokenize(texts)
        return {
            "first": first,
            "count": self.chunk,
            "visits": np.array(visits, np.int64),
            "parts": np.array(parts, np.int64),
            "images": images[: len(visits)],
            "tokens": tokens,
            "cut": cut,
            "faults": faults,
        }

    def _visit(self, visit: int) -> tuple[int, UInt8[np.ndarray, "size size 3"], str]:
        """One training pair, after the number of its source in a mixture (otherwise 0).

        Raises:
          BadSampleError: the source says so; the picture cannot be decoded; there is no caption.
        """
        block, row = divmod(visit, self.rows)
        position = block * self.batch + self.process_index * self.rows + row
        epoch, index = locate(self.source, self.seed, position)
        sample = self.source[index]
        texts = [text for text in sample.texts if text.strip()]
        if not texts:
            why = f"sample {sample.key!r}: it has no caption"
            raise BadSampleError(why, reason="missing caption", shard=sample.shard)
        rng = np.random.default_rng(_hash("visit", self.seed, epoch, sample.key))
        text = texts[rng.integers(len(texts))]
        part = self.source.part(index) if isinstance(self.source, MixtureSource) else 0
        try:
            return part, self.augment(sample.image, self.size, rng), text
        except ValueError as fault:
            why = f"sample {sample.key!r}: {fault}"
            raise BadSampleError(why, reason="bad image", shard=sample.shard) from fault


def locate(source: Source, seed: int, position: int) -> tuple[int, int]:
    """Epoch and index of the sample at a position, counted from 0 over all epochs.

    In an epoch every sample has one position. The epochs of a mixture are those of its sources;
    each has a seed of its own, so that sources of one size do not go in one order.
    """
    if isinstance(source, MixtureSource):
        part, turn = source.turn(position)
        own = _hash("source", seed, source.names[part])
        epoch, index = locate(source.sources[part], own, turn)
        return epoch, source.first(part) + index
    epoch, place = divmod(position, len(source))
    return epoch, _shuffled(seed, epoch, place, len(source))


def _shuffled(seed: int, epoch: int, place: int, samples: int) -> int:
    """Index of the sample at a place of an epoch's order; a permutation of 0 ... samples - 1."""
    from grain.experimental import index_shuffle

    order = _hash("order", seed, epoch) % 2**32
    return index_shuffle(place, max_index=samples - 1, seed=order, rounds=4)


def _hash(*parts: Any) -> int:
    """64 bits that depend on the parts alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest())
