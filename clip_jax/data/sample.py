"""The two contracts of the data room: one picture with its words, and where such pictures are."""

import dataclasses
from functools import partial
from typing import Any, Protocol, runtime_checkable

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
    numbers: tuple[int, ...] = ()
    """What else is known of the image, one number a column: labels 0 and 1, groups. Read only where
    it is asked for."""
    shard: str = dataclasses.field(default="", compare=False)
    """Path or address of the file, where one file holds many samples; errors are counted by it."""


class Fault(ValueError):
    """What is wrong with a sample: a few words to count it by, and a message."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class BadSampleError(Exception):
    """One sample cannot be used; the message names its key (and file) and says why.

    The pipeline skips such a sample, and counts it in the metrics by reason and by shard.
    """

    def __init__(self, message: str, *, reason: str = "unreadable", shard: str = ""):
        super().__init__(message)
        self.reason = reason
        """missing image, bad image, missing caption, empty caption, bad caption, bad label, bad
        numbers, missing embedding; or, of the file that holds the sample: truncated, changed,
        vanished, unreadable."""
        self.shard = shard
        """Path or address of that file, where one file holds many samples."""

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(BadSampleError, reason=self.reason, shard=self.shard), (str(self),)


def reason_of(fault: Exception) -> str:
    """The words to count a sample by that a source could not read because of `fault`."""
    if isinstance(fault, Fault):
        return fault.reason
    if isinstance(fault, UnicodeError):
        return "bad caption"
    return "vanished" if isinstance(fault, FileNotFoundError) else "unreadable"


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
