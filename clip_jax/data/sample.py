"""The two contracts of the data room: one picture with its words, and where such pictures are."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture and what is said of it."""

    key: str
    """Unique within its source and stable between runs; randomness and error messages use it."""
    image: bytes | UInt8[np.ndarray, "height width 3"]
    """An encoded file (JPEG, PNG, WebP), or decoded RGB."""
    texts: tuple[str, ...] = ()
    """Captions, all true of the image; training draws one per visit."""
    label: int | None = None
    """Class of a classification data set, counted from 0."""


class BadSampleError(Exception):
    """One sample cannot be used; the message names its key (and file) and says why.

    The pipeline skips such a sample, counts it, and shows the count in the metrics.
    """


@runtime_checkable
class Source(Protocol):
    """Random-access samples: a position is one integer, so shuffling can be global.

    `source[i]` may raise `BadSampleError`; it must be safe to call from several threads.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@runtime_checkable
class Dataset(Protocol):
    """A frozen config that knows where a data set is and opens its splits.

    Opening raises ValueError or FileNotFoundError, naming the path or split and what exists.
    """

    def open(self, split: str) -> Source: ...

    def class_names(self, split: str) -> tuple[str, ...]:
        """Names of the classes that `Sample.label` counts; empty where there are no labels."""
        ...


def part_and_row(ends: Int[np.ndarray, " parts"], index: int) -> tuple[int, int]:
    """Which part of a source that lies in several files holds a sample, and where in it.

    Args:
      ends: samples in each part and all before it.

    Raises:
      IndexError: there is no such sample.
    """
    total = int(ends[-1]) if len(ends) else 0
    if not 0 <= index < total:
        raise IndexError(f"sample {index} of {total}")
    part = int(np.searchsorted(ends, index, side="right"))
    return part, index - (int(ends[part - 1]) if part else 0)
