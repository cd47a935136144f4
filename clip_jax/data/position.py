"""Where a run is in its data, over all hosts together, whatever their number was or will be.

Every host counts its own visits (see `data.visits`): visit v of a host with b rows in each global
batch is row v % b of its share of batch v // b. Bad samples are replaced by the host's next one,
so hosts need not be equally far. Other hosts that go on later, or batches of another size, share
the places of the order otherwise: they count from the batch that was furthest behind, and leave
out what was visited.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from clip_jax.data.visits import Skip

Counts = dict[str, int]

NOTHING: Mapping[str, Any] = {"skipped": {"reasons": {}, "shards": {}}, "cut": 0}
"""What a position counts, at the start."""


def add(counts: Sequence[Mapping[str, int]]) -> Counts:
    """Sums by name."""
    total: Counts = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


def counted(skipped: Mapping[str, Counts], skips: Sequence[Skip]) -> dict[str, Counts]:
    """Counts of bad samples by `reasons` and by `shards`, with some more."""
    return {
        "reasons": add([skipped["reasons"], Counter(skip.reason for skip in skips)]),
        "shards": add([skipped["shards"], Counter(skip.shard for skip in skips if skip.shard)]),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reached:
    """How many visits each host of a run has behind it."""

    batch: int
    """Global."""
    streams: int
    origin: int
    """Place of each stream at which visit 0 of its first row lies."""
    visits: tuple[int, ...]
    """One number a host, counted from the origin."""

    @property
    def rows(self) -> int:
        """Of one host, in each global batch."""
        return self.batch // len(self.visits)

    @property
    def group(self) -> int:
        """Rows of a stream, in each global batch."""
        return self.batch // self.streams

    @property
    def first(self) -> int:
        """Of every stream, the place where the first batch begins of which a row is missing."""
        return self.origin + min(self.visits) // self.rows * self.group

    @property
    def end(self) -> int:
        """Of every stream, the place from which on no sample was visited."""
        return self.origin + -(-max(self.visits) // self.rows) * self.group

    def has(
        self, streams: Int[np.ndarray, " V"], places: Int[np.ndarray, " V"]
    ) -> Bool[np.ndarray, " V"]:
        """Whether these hosts have visited places of streams, none of them before the origin."""
        block, row = np.divmod(places - self.origin, self.group)
        owner, own_row = np.divmod(streams * self.group + row, self.rows)
        return block * self.rows + own_row < np.array(self.visits)[owner]


def join(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The position of a run from those of all its hosts, in their order (`Feed.position`).

    Counts are added. One host's is the run's already.
    """
    sources = [part["source"] for part in parts]
    joined = {
        **sources[0],
        "visits": [n for source in sources for n in source["visits"]],
        # Who is furthest behind still needs all of them.
        "before": max((source["before"] for source in sources), key=len),
    }
    if "drawn" in joined:
        joined["drawn"] = add([source["drawn"] for source in sources])
    skipped = {
        kind: add([part["skipped"][kind] for part in parts]) for kind in ("reasons", "shards")
    }
    return {"source": joined, "skipped": skipped, "cut": sum(part["cut"] for part in parts)}
