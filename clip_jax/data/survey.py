"""What is in a data set: counts, sizes, caption lengths, what is broken, and how fast it reads."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from clip_jax.data.sample import BadSampleError, Source
from clip_jax.preprocess import geometry
from clip_jax.preprocess.augment import Augment
from clip_jax.tokenizers import Tokenizer

QUANTILES = (0, 0.05, 0.5, 0.95, 1)
_BATCH = 256
"""Captions tokenized at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """Facts of one split; arrays have an entry for each sample that could be used."""

    samples: int
    """Samples in the split."""
    looked_at: int
    """Of these, evenly spread."""
    broken: dict[str, str]
    """Key or position of each sample that cannot be used, and why."""
    sides: Int[np.ndarray, "n 2"]
    """Height and width in pixels."""
    encoded: Int[np.ndarray, " n"]
    """Bytes of each encoded picture; 0 for a decoded one."""
    captions: Int[np.ndarray, " n"]
    """How many captions a sample has."""
    tokens: Int[np.ndarray, " m"]
    """Tokens of each caption, special ones included, no more than the context holds."""
    cut: int
    """Captions that the context cuts."""
    context: int
    labels: dict[int, int]
    """How many samples have each label."""
    rates: dict[str, float]
    """Samples a second of each stage alone, in one thread: read, decode, crop, tokenize."""


def survey(
    source: Source,
    tokenizer: Tokenizer,
    *,
    size: int = 224,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Survey, list[int]]:
    """Read, decode, crop and tokenize samples one by one, and count.

    Args:
      size: pixels of the training crops whose speed is measured.
      limit: at most so many samples, evenly spread; None: all.
      progress: called with how many are done, and of how many.

    Returns:
      The facts, and the positions of samples that can be used.
    """
    total = len(source)
    positions = np.arange(total)
    if limit is not None and limit < total:
        positions = np.unique(np.linspace(0, total - 1, limit).astype(int))
    looks = _Looks(source, size)
    for done, position in enumerate(map(int, positions), 1):
        looks.at(position)
        progress(done, len(positions))
    found, spent = looks.found, looks.spent
    with _timed(spent, "tokenize"):
        tokens, cut = _lengths(found["texts"], tokenizer)
    counts: dict[str, int] = {"tokenize": len(found["texts"])}
    counts |= dict.fromkeys(("read", "decode", "crop"), len(positions))
    facts = Survey(
        samples=total,
        looked_at=len(positions),
        broken=looks.broken,
        sides=np.array(found["sides"], int).reshape(-1, 2),
        encoded=np.array(found["encoded"], int),
        captions=np.array(found["captions"], int),
        tokens=tokens,
        cut=cut,
        context=tokenizer.context_length,
        labels=dict(sorted(collections.Counter(found["labels"]).items())),
        rates={stage: counts[stage] / s for stage, s in spent.items() if s and counts[stage]},
    )
    return facts, found["positions"]


class _Looks:
    """What was found in the samples looked at so far."""

    def __init__(self, source: Source, size: int):
        self._source, self._size = source, size
        self._augment, self._rng = Augment(), np.random.default_rng(0)
        self.found: dict[str, list[Any]] = collections.defaultdict(list)
        self.broken: dict[str, str] = {}
        self.spent: dict[str, float] = collections.defaultdict(float)

    def at(self, position: int) -> None:
        """Read, decode and crop one sample."""
        key = str(position)
        try:
            with _timed(self.spent, "read"):
                sample = self._source[position]
            key = sample.key
            with _timed(self.spent, "decode"):
                pixels = geometry.as_rgb(sample.image)
            with _timed(self.spent, "crop"):
                self._augment(sample.image, self._size, self._rng)
        except (BadSampleError, ValueError, OSError) as fault:
            self.broken[key] = str(fault)
            return
        found = self.found
        found["positions"].append(position)
        found["sides"].append(pixels.shape[:2])
        found["encoded"].append(len(sample.image) if isinstance(sample.image, bytes) else 0)
        found["captions"].append(len(sample.texts))
        found["texts"] += sample.texts
        found["labels"] += [] if sample.label is None else [sample.label]


class _timed:
    """Adds the seconds inside to an entry."""

    def __init__(self, spent: dict[str, float], stage: str):
        self._spent, self._stage = spent, stage

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._spent[self._stage] += time.perf_counter() - self._start


def _lengths(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[Int[np.ndarray, " m"], int]:
    """Tokens of each text without its padding, and how many texts are cut."""
    probe = tokenizer(["a", "b"])
    padding = probe[0, -1]
    ends = [int(np.flatnonzero(row != padding)[-1]) for row in probe]
    # SigLIP pads with its end token: then what stands before the padding is the text itself.
    is_end = probe[0, ends[0]] != probe[1, ends[1]]
    lengths, cut = [np.zeros(0, int)], 0
    for start in range(0, len(texts), _BATCH):
        ids, was_cut = tokenizer.tokenize(list(texts[start : start + _BATCH]))
        filled = ids != padding
        count = ids.shape[1] - np.argmax(filled[:, ::-1], axis=1)
        count = np.where(filled.any(axis=1), count, 0) + is_end
        lengths.append(np.minimum(count, ids.shape[1]).astype(int))
        cut += int(was_cut.sum())
    return np.concatenate(lengths), cut


def quantiles(values: Int[np.ndarray, " n"]) -> list[int]:
    """Least, 5%, median, 95% and greatest; empty for no values."""
    return [int(np.quantile(values, q)) for q in QUANTILES] if len(values) else []


def chosen(positions: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, evenly spread."""
    if len(positions) <= count:
        return list(positions)
    return [positions[i] for i in np.linspace(0, len(positions) - 1, count).astype(int)]


def squares(
    source: Source, positions: Iterable[int], side: int = 160
) -> tuple[UInt8[np.ndarray, "n side side 3"], list[str]]:
    """Pictures for a contact sheet, whole on a grey ground, and their captions."""
    pictures, captions = [], []
    for position in positions:
        sample = source[position]
        pixels = geometry.as_rgb(sample.image)
        pictures.append(geometry.longest_side(pixels, side, fill=128))
        label = "" if sample.label is None else f"[{sample.label}] "
        captions.append(label + " / ".join(sample.texts))
    return np.array(pictures, np.uint8).reshape(-1, side, side, 3), captions
