"""The order of a source whose shards are read whole: near in time are samples of a few shards."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from clip_jax.config import require

_EPOCHS = 4
"""Orders of shards that are remembered: streams are in the same epoch, or in two."""
_FEW = 1000
"""Samples up to which sorting is faster than `shuffled`, whose time grows as they are fewer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Shards are visited in random order, and samples shuffled among as many as lie in a window.

    For shards at an object store or on a slow disk, where reading one sample here and one there is
    dear. They are read whole, once an epoch, while the window before is visited.
    """

    shards: int = 16
    """Shards in a window. It changes the order."""
    cache: str | None = None
    """Folder on a local disk where shards from elsewhere lie while they are near: those of about
    two windows for each stream of a host (`TrainConfig.streams`). What a run puts there is deleted
    at its end, or by the next run. None: one in the system's folder for temporary files."""
    fetches: int = 4
    """Shards that a process fetches at once, ahead of those who read."""

    def __post_init__(self) -> None:
        require(
            self,
            ("shards", self.shards >= 1, "1 or more"),
            ("fetches", self.fetches >= 1, "1 or more"),
        )


class Span(NamedTuple):
    """One window: its samples are these of the epoch's sequence, and lie in these shards."""

    begin: int
    end: int
    shards: Int[np.ndarray, " shards"]


class Windows:
    """The epochs of one source.

    Each has its shards in a random order; their samples, in this order, are its sequence. A stream
    walks through a segment of it: window by window, each of so many shards, and shuffled within.
    """

    def __init__(self, ends: Int[np.ndarray, " shards"], size: int):
        """Args:
        ends: samples in each shard and all before it.
        size: shards in a window.
        """
        self.size = size
        self._begins = np.concatenate([[0], ends])[:-1]
        self._counts = ends - self._begins
        self._full = np.flatnonzero(self._counts)
        self._epoch = functools.lru_cache(maxsize=_EPOCHS)(self._shuffle)

    def index(self, seed: int, epoch: int, segment: range, at: int) -> int:
        """Index of the sample that a stream with this segment visits at a place of the sequence."""
        order, ends = self._epoch(seed, epoch)
        begin, end, _ = self.span(seed, epoch, segment, at)
        key, samples = digest("window", seed, epoch, begin), end - begin
        if samples > _FEW:
            at = begin + shuffled(at - begin, samples, key)
        else:
            at = begin + int(_order(samples, key)[at - begin])
        rank = int(ends.searchsorted(at, side="right"))
        before = int(ends[rank - 1]) if rank else 0
        return int(self._begins[order[rank]]) + at - before

    def span(self, seed: int, epoch: int, segment: range, at: int) -> Span:
        """The window around a place of the sequence, as far as it lies in the segment."""
        order, ends = self._epoch(seed, epoch)
        outer = np.array([segment.start, at, segment.stop - 1])
        first, rank, last = ends.searchsorted(outer, side="right").tolist()
        start = rank - (rank - first) % self.size
        stop = min(start + self.size, last + 1)
        begin = int(ends[start - 1]) if start else 0
        return Span(
            max(begin, segment.start),
            min(int(ends[stop - 1]), segment.stop),
            order[start:stop],
        )

    def spans(self, seed: int, segment: range, place: int) -> Iterator[tuple[int, Span]]:
        """Windows from that of a stream's visit on, through all epochs, with the visit after it."""
        while True:
            epoch, at = divmod(place, len(segment))
            span = self.span(seed, epoch, segment, segment.start + at)
            place = epoch * len(segment) + span.end - segment.start
            yield place, span

    def _shuffle(
        self, seed: int, epoch: int
    ) -> tuple[Int[np.ndarray, " shards"], Int[np.ndarray, " shards"]]:
        """Numbers of the shards that hold samples in an epoch's order; samples up to each's end."""
        order = self._full[_order(len(self._full), digest("shards", seed, epoch))]
        return order, np.cumsum(self._counts[order])


@runtime_checkable
class Windowed(Protocol):
    """What a source adds to `Source` so that its shards can be read whole and ahead."""

    @property
    def windows(self) -> Windows | None:
        """None: it is read at random."""
        ...

    def near(self, shards: Sequence[int], /) -> AbstractContextManager[None]:
        """Numbers of the shards that are read within, and soon after; the most urgent first.

        May be entered by several threads at once.
        """
        ...

    def open(self) -> None:
        """What is near is kept, also after `close`."""
        ...

    def close(self) -> None:
        """Delete what was kept; samples can be read, but nothing is near until `open`."""
        ...


def _order(count: int, key: int) -> Int[np.ndarray, " count"]:
    """A random order of 0 ... count - 1, the same with all versions of numpy (as raw bits are)."""
    return np.random.Philox(key=key).random_raw(count).argsort(kind="stable")


def shuffled(place: int, samples: int, key: int) -> int:
    """What is at a place of a random order of 0 ... samples - 1, without making that order."""
    from grain.experimental import index_shuffle

    return index_shuffle(place, max_index=samples - 1, seed=key % 2**32, rounds=4)


def digest(*parts: Any) -> int:
    """64 bits that depend on the parts alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest())
