"""Which sample is visited at which place: a pure function, the same on every host.

The rows of a global batch are cut into equal groups, the streams. Each stream walks through a
segment of its own of every epoch's order, so together they see each sample once. With one stream
that segment is everything.
"""

from collections.abc import Iterator
from typing import NamedTuple

from clip_jax.data.mixture import MixtureSource
from clip_jax.data.sample import Source
from clip_jax.data.windows import Windowed, Windows, digest, shuffled


class Near(NamedTuple):
    """Shards of a source by their numbers."""

    source: Windowed
    now: list[int]
    then: list[int]
    """Of the window after."""


def check_streams(source: Source, *, batch: int, streams: int, hosts: int) -> None:
    """Each host must own whole streams (or all share one), and each stream a sample of its own.

    Raises:
      ValueError: says which of this does not hold.
    """
    faults = []
    if streams < 1:
        faults.append("there must be at least 1")
    elif batch % streams:
        faults.append(f"a batch of {batch} must be a multiple of the streams")
    if streams > 1 and streams % hosts:
        faults.append(f"they must be a multiple of the {hosts} hosts, or 1")
    parts = source.sources if isinstance(source, MixtureSource) else (source,)
    if (fewest := min(map(len, parts))) < streams:
        faults.append(f"a source of {fewest} samples cannot be cut into so many")
    if faults:
        raise ValueError(f"streams is {streams}: {'; '.join(faults)}")


def locate(
    source: Source, seed: int, place: int, stream: int = 0, streams: int = 1
) -> tuple[int, int]:
    """Epoch and index of the sample at a place of a stream, counted from 0 over all epochs.

    In an epoch of all streams together, every sample has one place. The epochs of a mixture are
    those of its sources; each has a seed of its own, so that sources of one size do not go in one
    order.

    Args:
      place: visits that the stream made before this one.
      streams: at most as many as the source (each source of a mixture) has samples.
    """
    if isinstance(source, MixtureSource):
        part, turn = source.turn(place)
        own = _own_seed(source, part, seed)
        epoch, index = locate(source.sources[part], own, turn, stream, streams)
        return epoch, source.first(part) + index
    segment = _segment(len(source), stream, streams)
    epoch, at = divmod(place, len(segment))
    if (windows := _windows(source)) is not None:
        return epoch, windows.index(seed, epoch, segment, segment[at])
    return epoch, shuffled(segment[at], len(source), digest("order", seed, epoch))


def near(
    source: Source, seed: int, places: range, stream: int = 0, streams: int = 1
) -> Iterator[Near]:
    """Of each source in windows (none, one, or those of a mixture) the shards that a stream needs
    at these places, and in the window after them.
    """
    if isinstance(source, MixtureSource):
        turns = zip(source.turns(places.start), source.turns(places.stop), strict=True)
        for part, (start, stop) in enumerate(turns):
            own, visits = _own_seed(source, part, seed), range(start, stop)
            yield from near(source.sources[part], own, visits, stream, streams)
        return
    if (windows := _windows(source)) is None or not isinstance(source, Windowed):
        return
    spans = windows.spans(seed, _segment(len(source), stream, streams), places.start)
    now: list[int] = []
    for after, span in spans:
        now += span.shards.tolist()
        if after >= places.stop:
            break
    yield Near(source, now, next(spans)[1].shards.tolist())


def _segment(samples: int, stream: int, streams: int) -> range:
    """A stream's part of the places of an epoch."""
    return range(stream * samples // streams, (stream + 1) * samples // streams)


def _own_seed(source: MixtureSource, part: int, seed: int) -> int:
    return digest("source", seed, source.names[part])


def _windows(source: Source) -> Windows | None:
    # Once for each sample, so no check of the whole protocol: that would cost as much as the rest.
    windows = getattr(source, "windows", None)
    return windows if isinstance(windows, Windows) else None
