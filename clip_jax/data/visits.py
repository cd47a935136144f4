"""What training sees when: which sample at which place of an epoch, by which caption and view."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data import order
from clip_jax.data.embeddings import EmbeddingTable
from clip_jax.data.mixture import MixtureSource
from clip_jax.data.sample import BadSampleError, Sample, Source
from clip_jax.data.slots import Slots
from clip_jax.data.windows import Windowed, digest
from clip_jax.preprocess.augment import Augment
from clip_jax.tokenizers import Tokenizer

_CHUNK = 32
"""Visits that one thread makes in one go: few enough for all threads to share a batch."""
_READ = 16
"""Samples that are read before their pictures are decoded. Decoding empties the processor's caches
of all else, so doing it in turn with the rest makes the rest take twice as long."""


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


class _Read(NamedTuple):
    """A visit whose picture is still to be decoded."""

    visit: int
    part: int
    """Number of the source in a mixture, otherwise 0."""
    sample: Sample
    text: str
    rng: np.random.Generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visits:
    """Chunks of this host's visits, numbered from 0: a pure function of the number."""

    source: Source
    batch: int
    streams: int
    seed: int
    size: int
    augment: Augment
    tokenizer: Tokenizer
    process_index: int
    process_count: int
    origin: int = 0
    """Place of each stream at which these visits begin."""
    embeddings: EmbeddingTable | None = None
    """What takes the place of pictures, which then are not decoded."""
    slots: Slots | None = None
    """Where the pictures of a worker process go, in place of its chunks."""

    @property
    def rows(self) -> int:
        """Of this host, in each global batch."""
        return self.batch // self.process_count

    @property
    def group(self) -> int:
        """Rows of a stream, in each global batch."""
        return self.batch // self.streams

    @property
    def chunk(self) -> int:
        return min(_CHUNK, self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pictures of a chunk, where none is bad, or of their embeddings."""
        if self.embeddings:
            return self.chunk, self.embeddings.width
        return self.chunk, self.size, self.size, 3

    @property
    def dtype(self) -> type[np.generic]:
        """Of pictures or embeddings."""
        return np.float32 if self.embeddings else np.uint8

    def where(self, visit: Any) -> tuple[Any, Any]:
        """Stream, and place in it, of a visit or of an array of them."""
        block, row = divmod(visit, self.rows)
        stream, row = divmod(self.process_index * self.rows + row, self.group)
        return stream, self.origin + block * self.group + row

    def __call__(self, number: int) -> dict[str, Any]:
        """Make the visits of one chunk; `faults` has those that failed, the arrays the others."""
        first = number * self.chunk
        visits, parts, texts, faults = [], [], [], []
        images = self.slots.write(number) if self.slots else np.empty(self.shape, self.dtype)
        with self._near(first):
            for start in range(first, first + self.chunk, _READ):
                read = self._read(range(start, min(start + _READ, first + self.chunk)), faults)
                for visit, part, sample, text, rng in read:
                    try:
                        self._show(sample, rng, images[len(visits)])
                    except ValueError as fault:
                        why = f"sample {sample.key!r}: {fault}"
                        faults.append((visit, Skip(why, "bad image", sample.shard)))
                    else:
                        visits.append(visit)
                        parts.append(part)
                        texts.append(text)
        tokens, cut = self.tokenizer.tokenize(texts)
        return {
            "first": first,
            "count": self.chunk,
            "visits": np.array(visits, np.int64),
            "parts": np.array(parts, np.int64),
            "images": None if self.slots else images[: len(visits)],
            "tokens": tokens,
            "cut": cut,
            "faults": sorted(faults),
        }

    def _show(self, sample: Sample, rng: np.random.Generator, row: np.ndarray) -> None:
        """Fill a row with what the image tower, or what comes after it, sees of a sample.

        Raises:
          ValueError: the picture cannot be decoded.
        """
        if self.embeddings:
            row[:] = self.embeddings.get(sample.key)
        else:
            self.augment(sample.image, self.size, rng, row)

    def open(self) -> None:
        """Sources may keep what they need soon, also after `close`."""
        for source in self._windowed():
            source.open()

    def close(self) -> None:
        """Delete what sources keep."""
        for source in self._windowed():
            source.close()

    def _windowed(self) -> list[Windowed]:
        whole = self.source
        sources = whole.sources if isinstance(whole, MixtureSource) else (whole,)
        return [source for source in sources if isinstance(source, Windowed)]

    def _near(self, first: int) -> contextlib.ExitStack:
        """While it is open, the shards that these global batches and the next ones need are near.

        Every chunk of a batch names those of the whole batch: together they are one thing.
        """
        begin = first // self.rows
        end = -(-(first + self.chunk) // self.rows)
        places = range(self.origin + begin * self.group, self.origin + end * self.group)
        begin_row = self.process_index * self.rows
        own = range(begin_row // self.group, (begin_row + self.rows - 1) // self.group + 1)
        streams = [
            order.near(self.source, self.seed, places, stream, self.streams) for stream in own
        ]
        opened = contextlib.ExitStack()
        for parts in zip(*streams, strict=True):
            now = [shard for part in parts for shard in part.now]
            then = [shard for part in parts for shard in part.then]
            opened.enter_context(parts[0].source.near(now + then))
        return opened

    def _read(self, visits: range, faults: list[tuple[int, Skip]]) -> list[_Read]:
        """Of good samples; the others are added to the faults."""
        read = []
        for visit in visits:
            try:
                read.append(self._read_one(visit))
            except BadSampleError as fault:
                faults.append((visit, Skip(str(fault), fault.reason, fault.shard)))
        return read

    def _read_one(self, visit: int) -> _Read:
        """Raises:
        BadSampleError: the source says so; there is no caption.
        """
        stream, place = self.where(visit)
        epoch, index = order.locate(self.source, self.seed, place, stream, self.streams)
        sample = self.source[index]
        texts = [text for text in sample.texts if text.strip()]
        if not texts:
            why = f"sample {sample.key!r}: it has no caption"
            raise BadSampleError(why, reason="missing caption", shard=sample.shard)
        if self.embeddings and self.embeddings.get(sample.key) is None:
            why = f"sample {sample.key!r}: {self.embeddings.path} has no embedding of it"
            raise BadSampleError(why, reason="missing embedding", shard=sample.shard)
        rng = np.random.default_rng(digest("visit", self.seed, epoch, sample.key))
        text = texts[rng.integers(len(texts))]
        part = self.source.part(index) if isinstance(self.source, MixtureSource) else 0
        return _Read(visit, part, sample, text, rng)
