"""Several sources in one, each visited as often as its weight says."""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Mapping
from fractions import Fraction

from clip_jax.config import require
from clip_jax.data.array_records import ArrayRecords
from clip_jax.data.digits import Digits
from clip_jax.data.folder import Folder
from clip_jax.data.sample import BadSampleError, Sample, Source
from clip_jax.data.synthetic import Synthetic
from clip_jax.data.table import Table
from clip_jax.data.tar_shards import TarShards
from clip_jax.data.tfds import Tfds

Single = Digits | TarShards | Folder | Table | Tfds | ArrayRecords | Synthetic
"""Every data set that a mixture can join; a new one is a new member."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Training visits its sources in turn, as evenly as the weights allow.

    Of any number of visits in a row each source has its share, give or take as many visits as there
    are sources, so all batches are mixed alike. A source is walked through epochs of its own: all
    its samples are seen, in that epoch's order, before one is seen again. As they end at different
    times, and none waits for another, the mixture itself has no epochs. Adding a source, or
    changing a weight, leaves the order within the others as it was.

    Read from first to last, as evaluations do, it is all samples of its sources, these in the order
    of their names, whatever the weights.
    """

    sources: Mapping[str, tuple[Single, float]]
    """Name -> data set and weight. Visits are in proportion to the weights, whatever the sizes.
    Names begin the keys of samples, and count them in the metrics (`samples/<name>`)."""

    def __post_init__(self) -> None:
        weights = [weight for _, weight in self.sources.values()]
        require(
            self,
            ("sources", bool(self.sources), "one data set or more"),
            ("sources", all(n and "/" not in n for n in self.sources), "named, without a slash"),
            ("sources", all(0 < w < math.inf for w in weights), "given weights above 0"),
        )

    def open(self, split: str) -> "MixtureSource":
        """Open this split of all sources.

        Raises:
          ValueError: lists the sources that have no such split, or cannot be opened.
        """
        opened: dict[str, Source] = {}
        faults = []
        for name, (data, _) in self.sources.items():
            try:
                opened[name] = data.open(split)
                if len(opened[name]) == 0:
                    faults.append(f"{name}: it has no samples")
            except (ValueError, FileNotFoundError) as fault:
                faults.append(f"{name}: {fault}")
        if faults:
            raise ValueError(f"Mixture, split {split!r}: " + "; ".join(faults))
        weights = {name: weight for name, (_, weight) in self.sources.items()}
        return MixtureSource(opened, weights, labels=bool(self.class_names(split)))

    def class_names(self, split: str) -> tuple[str, ...]:
        """Those of the sources, where all have the same; otherwise none, and samples no labels.

        Raises:
          ValueError, FileNotFoundError: as the sources'.
        """
        found = {data.class_names(split) for data, _ in self.sources.values()}
        return found.pop() if len(found) == 1 else ()


class MixtureSource:
    """One split; `data.visits` asks it whose turn it is in training."""

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float], labels: bool):
        self.names = tuple(sorted(sources))  # So that their order in a config means nothing.
        self.sources = tuple(sources[name] for name in self.names)
        self.labels = labels
        # As decimals: 0.7 beside 0.3 is exactly seven of ten.
        exact = [Fraction(str(weights[name])) for name in self.names]
        shares = (weight / sum(exact[number:]) for number, weight in enumerate(exact))
        self._shares = tuple(share.as_integer_ratio() for share in shares)
        """Of each source, of the visits that the sources before it leave; the last one's is 1."""
        self._ends = tuple(itertools.accumulate(map(len, self.sources)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = self.part(index)
        name = self.names[part]
        try:
            sample = self.sources[part][index - self.first(part)]
        except BadSampleError as fault:
            text = f"{name}: {fault}"
            raise BadSampleError(text, reason=fault.reason, shard=fault.shard) from fault
        label = sample.label if self.labels else None
        return dataclasses.replace(sample, key=f"{name}/{sample.key}", label=label)

    def part(self, index: int) -> int:
        """Number of the source that a sample comes from."""
        return bisect.bisect_right(self._ends, index)

    def turn(self, position: int) -> tuple[int, int]:
        """Number of the source at a position, and how many turns it had before."""
        both = zip(self.turns(position), self.turns(position + 1), strict=True)
        return next((part, turn) for part, (turn, after) in enumerate(both) if after > turn)

    def turns(self, position: int) -> tuple[int, ...]:
        """How many turns each source had before a position.

        The first source has had its share of the visits before any position, rounded; the others
        divide what it leaves in the same way.
        """
        counts = []
        for share, of in self._shares:
            # Rounded to the nearest; halves always up, so no place is given to two, or to none.
            counts.append((2 * position * share + of) // (2 * of))
            position -= counts[-1]
        return tuple(counts)

    def first(self, part: int) -> int:
        """Index of a source's first sample."""
        return self._ends[part] - len(self.sources[part])
