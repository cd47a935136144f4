"""The training pipeline: shuffled visits to a source, decoded in threads, tokenized, batched."""

import dataclasses
import sys
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_jax.config import require
from clip_jax.data.embeddings import EmbeddingTable
from clip_jax.data.mixture import MixtureSource
from clip_jax.data.order import check_streams
from clip_jax.data.position import Reached
from clip_jax.data.sample import BadSampleError, Sample, Source
from clip_jax.data.slots import Slots
from clip_jax.data.visits import Skip, Visits, summary
from clip_jax.preprocess.augment import Augment
from clip_jax.preprocess.recipe import Recipe
from clip_jax.tokenizers import Tokenizer

if TYPE_CHECKING:
    import grain

_WINDOW = 1000
"""Visits in a row of which `Pipeline.bad` may be bad."""
_BETWEEN = 5
"""Chunks that lie between a worker's readers and the process that waits for them, or are copied."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """How fast data is made ready. No field changes a batch."""

    threads: int = 4
    """Readers and decoders a process; 0 reads in the thread that asks. One or two are enough where
    pictures are tiny: Python then is what they wait for."""
    prefetch: int = 2
    """Batches that are made ready ahead."""
    workers: int = 0
    """Processes, each with its own threads, for machines with many cores; 0 stays in this one.
    A program that starts workers must guard its entry by `if __name__ == "__main__":`."""
    bad: float = 0.5
    """Share of bad samples, of the last 1,000 that a process visited, above which a run stops with
    a summary; fewer are skipped and counted."""

    def __post_init__(self):
        whole = ("threads", "prefetch", "workers")
        require(
            self,
            *((name, getattr(self, name) >= 0, "0 or more") for name in whole),
            ("bad", 0 <= self.bad <= 1, "from 0 to 1"),
        )


def train_batches(
    source: Source,
    *,
    batch: int,
    seed: int,
    recipe: Recipe,
    augment: Augment,
    tokenizer: Tokenizer,
    pipeline: Pipeline,
    streams: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    embeddings: EmbeddingTable | None = None,
) -> "TrainBatches":
    """An endless iterator over this host's part of every global batch.

    Each epoch visits every sample once, in an order of its own; batches run across the border of
    two epochs. (In a `Mixture`, each source has epochs of its own.) Host h of H takes rows h*b to
    (h+1)*b of each global batch, b = batch / H, so the global order does not depend on H (where no
    sample is bad). Caption and augmentation of a visit depend on seed, epoch and the sample's key,
    never on the order, the threads or the workers.

    A sample that is bad (`BadSampleError`), cannot be decoded or has no caption is skipped; its
    place is taken by the next one.

    Args:
      batch: of all hosts together.
      recipe: only its size is used: normalising happens on the device.
      streams: equal groups of rows of each batch, with a part of each epoch for each (see
        `data.order`): a host reads nothing but the parts of its rows. 1, or a multiple of H.
      embeddings: of the pictures, which then are not decoded; samples without one are bad.

    Raises:
      ValueError: no samples, or a batch that hosts or streams cannot share equally.
    """
    _check_shares(source, batch, process_index, process_count)
    check_streams(source, batch=batch, streams=streams, hosts=process_count)
    visits = Visits(
        source=source,
        batch=batch,
        streams=streams,
        seed=seed,
        size=recipe.size,
        augment=augment,
        tokenizer=tokenizer,
        process_index=process_index,
        process_count=process_count,
        embeddings=embeddings,
    )
    return TrainBatches(visits, pipeline)


def _check_shares(source: Source, batch: int, host: int, hosts: int) -> None:
    """Raises ValueError if this host has no equal share of batches of the source."""
    if batch < 1 or batch % hosts:
        raise ValueError(f"a batch of {batch} cannot be shared by {hosts} hosts")
    if not 0 <= host < hosts:
        raise ValueError(f"there is no host {host} among {hosts}")
    if len(source) == 0:
        raise ValueError("the training data has no samples")


class TrainBatches(Iterator[dict[str, Any]]):
    """Batches on the host; see `train_batches`.

    A batch holds `images` (uint8, b size size 3; or embeddings, float32, b D), `tokens` (int32,
    b L), `skipped` (a `Skip` for each bad sample met while it was filled) and `cut` (number of
    captions that were too long).
    """

    def __init__(self, visits: Visits, pipeline: Pipeline):
        self._visits = visits
        self._pipeline = pipeline
        self._next = 0
        """Visits of this host that are in batches given out, or were skipped on the way."""
        self._before: list[Reached] = []
        """Under other numbers of hosts or rows: visits beyond `_next` that were made then."""
        self._chunks: grain.DatasetIterator[dict[str, Any]] | None = None
        self._chunk: dict[str, Any] | None = None
        self._slots: Slots | None = None
        source = visits.source
        self._names = source.names if isinstance(source, MixtureSource) else ()
        self._drawn = np.zeros(len(self._names), np.int64)
        """Samples in batches given out, by source of a mixture."""
        self._recent: deque[Skip | None] = deque(maxlen=_WINDOW)
        """What was wrong with each of the last visits, or None."""
        self._closed = False

    def __next__(self) -> dict[str, Any]:
        if self._closed:
            raise ValueError("these batches were closed")
        tokens, cut, skipped = [], 0, []
        missing = self._visits.rows
        # Filled chunk by chunk, so that the memory of a chunk serves the next one.
        images = np.empty((missing, *self._visits.shape[1:]), self._visits.dtype)
        while missing:
            chunk = self._current_chunk()
            end = chunk["first"] + chunk["count"]
            begin = int(np.searchsorted(chunk["visits"], self._next))
            good = slice(begin, begin + missing)
            count = len(chunk["visits"][good])
            images[len(images) - missing :][:count] = chunk["images"][good]
            missing -= count
            after = end if missing else int(chunk["visits"][good][-1]) + 1
            tokens.append(chunk["tokens"][good])
            cut += int(chunk["cut"][good].sum())
            if self._names:
                self._drawn += np.bincount(chunk["parts"][good], minlength=len(self._names))
            faults = [skip for visit, skip in chunk["faults"] if self._next <= visit < after]
            self._watch(count, faults)
            skipped += faults
            self._next = after
        return {
            "images": images,
            "tokens": np.concatenate(tokens),
            "skipped": skipped,
            "cut": cut,
        }

    def get_state(self) -> dict[str, Any]:
        """This host's position, JSON-able; those of all hosts are joined by `data.position`.

        Of a mixture, `drawn` counts the samples in batches given out, by the name of their source;
        nothing follows from it.
        """
        state = {
            "hosts": self._visits.process_count,
            "visits": [self._next],
            "before": [
                {"batch": one.batch, "origin": one.origin, "visits": list(one.visits)}
                for one in self._ahead(self._before)
            ],
            "batch": self._visits.batch,
            "origin": self._visits.origin,
            "streams": self._visits.streams,
            "samples": len(self._visits.source),
        }
        drawn = dict(zip(self._names, self._drawn.tolist(), strict=True))
        return {**state, "drawn": drawn} if drawn else state

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position of all hosts; at most a few samples are read twice.

        The number of hosts may have been another. Then no sample is visited twice or left out, but
        if some were bad, batches may be filled otherwise. So it is where the batch had another
        size: the order goes on in batches of this one.

        Raises:
          ValueError: samples or streams were others in number, so the order was another.
        """
        here = self.get_state()
        if set(state) != set(here):
            raise ValueError(f"a data position has {sorted(here)}, not {sorted(state)}")
        if len(state["visits"]) != state["hosts"]:
            raise ValueError(f"a position of {len(state['visits'])} of {state['hosts']} hosts")
        for name in ("samples", "streams"):
            if state[name] != here[name]:
                raise ValueError(
                    f"the position was saved with {state[name]} {name}, but now there are "
                    f"{here[name]}: the order is another, so the run cannot go on exactly"
                )
        if sorted(state.get("drawn", ())) != sorted(self._names):
            raise ValueError(
                f"the position was saved in a mixture of {', '.join(state['drawn'])}, but the "
                f"training data now is one of {', '.join(self._names)}"
            )
        self._stop()
        self._go_to(state)
        first = self._visits.process_index == 0  # It counts for all hosts of the past.
        self._drawn[:] = [first * state["drawn"][name] for name in self._names]

    def _go_to(self, state: dict[str, Any]) -> None:
        *before, now = (
            Reached(
                batch=one["batch"],
                streams=self._visits.streams,
                origin=one["origin"],
                visits=tuple(one["visits"]),
            )
            for one in (*state["before"], state)
        )
        if (now.batch, len(now.visits)) == (self._visits.batch, self._visits.process_count):
            origin, self._next = now.origin, now.visits[self._visits.process_index]
        else:
            before.append(now)
            origin, self._next = now.first, 0
        self._visits = dataclasses.replace(self._visits, origin=origin)
        self._before = self._ahead(before)

    def _ahead(self, before: list[Reached]) -> list[Reached]:
        """Those that have visited something from the next batch on."""
        visits = self._visits
        place = visits.origin + self._next // visits.rows * visits.group
        return [one for one in before if one.end > place]

    def close(self) -> None:
        """End threads and workers; no batch can be asked for after that."""
        self._stop()
        self._visits.close()
        self._closed = True

    def _current_chunk(self) -> dict[str, Any]:
        """The chunk that holds visit `_next`; starts the readers if they do not run."""
        while self._chunk is None or self._chunk["first"] + self._chunk["count"] <= self._next:
            if self._chunks is None:
                self._chunks = self._start(self._next // self._visits.chunk)
            chunk = next(self._chunks)
            if self._slots:
                number, rows = chunk["first"] // chunk["count"], len(chunk["visits"])
                chunk["images"] = self._slots.take(number, rows)
            self._chunk = self._unvisited(chunk)
        return self._chunk

    def _unvisited(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """A chunk without what other hosts have visited."""
        for reached in self._before:
            kept = ~reached.has(*self._visits.where(chunk["visits"]))
            bad = np.array([visit for visit, _ in chunk["faults"]], np.int64)
            gone = reached.has(*self._visits.where(bad))
            faults = [f for f, out in zip(chunk["faults"], gone, strict=True) if not out]
            rows = ("visits", "parts", "images", "tokens", "cut")
            chunk = {**chunk, **{name: chunk[name][kept] for name in rows}, "faults": faults}
        return chunk

    def _start(self, chunk: int) -> "grain.DatasetIterator[dict[str, Any]]":
        import grain
        from absl import flags

        self._visits.open()
        visits, threads, workers = self._visits, self._pipeline.threads, self._pipeline.workers
        ahead = -(-self._pipeline.prefetch * self._visits.rows // self._visits.chunk)
        ahead = max(-(-ahead // max(workers, 1)), threads)
        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead if threads else 0)
        if workers and visits.dtype == np.uint8:
            self._slots = Slots(visits.shape, workers * (ahead + _BETWEEN), chunk)
            visits = dataclasses.replace(visits, slots=self._slots)
        chunks = grain.MapDataset.range(chunk, sys.maxsize).map(visits).to_iter_dataset(read)
        if workers:
            if not flags.FLAGS.is_parsed():  # grain asks absl for settings that nobody gives here.
                flags.FLAGS.mark_as_parsed()
            # Their pictures lie in the slots; shared memory for what is left would only cost time.
            options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            chunks = grain.experimental.WithOptionsIterDataset(chunks, options)
            chunks = chunks.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        return iter(chunks)

    def _stop(self) -> None:
        if self._slots:
            self._slots.release()
        if self._chunks is not None:
            self._chunks.close()
        if self._slots:
            self._slots.close()
        self._chunks = self._chunk = self._slots = None

    def _watch(self, good: int, faults: list[Skip]) -> None:
        """Stop where skipping no longer helps.

        Raises:
          ValueError: a whole epoch of visits was bad, or too many of the last 1,000.
        """
        self._recent.extend([None] * good)
        self._recent.extend(faults)
        if not faults:
            return
        bad = [skip for skip in self._recent if skip is not None]
        seen, epoch = len(self._recent), len(self._visits.source)
        limit = self._pipeline.bad
        if (len(bad) == seen and seen >= epoch) or (len(bad) > limit * seen and seen == _WINDOW):
            raise ValueError(
                f"{len(bad)} of the last {seen} training samples are bad (pipeline.bad is "
                f"{limit}): {summary(bad)}"
            )


def iterate(source: Source, *, threads: int = 4) -> Iterator[Sample | BadSampleError]:
    """All samples in their order, read ahead in threads; in place of a bad one, its error."""
    import grain

    def read(index: int) -> Sample | BadSampleError:
        try:
            return source[index]
        except BadSampleError as fault:
            return fault

    read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 * threads)
    samples = iter(grain.MapDataset.range(len(source)).map(read).to_iter_dataset(read_options))
    try:
        yield from samples
    finally:
        samples.close()
