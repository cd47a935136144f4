"""Pictures and texts in, unit embeddings out: all that an evaluator knows of a model."""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float

from clip_jax.data.sample import BadSampleError, Dataset, Sample, Source
from clip_jax.eval.checks import require_finite
from clip_jax.eval.under_way import Calls, ahead, answered
from clip_jax.sharding.processes import gather_json

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """The usable samples of one split: embedded pictures and their words, without the pixels."""

    images: Float[np.ndarray, "n D"]
    """Unit norm, but for features; row i belongs to entry i of the fields below."""
    indices: tuple[int, ...]
    """Positions in the source."""
    keys: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    labels: tuple[int | None, ...]
    numbers: tuple[tuple[int, ...], ...]
    skipped: tuple[str, ...]
    """One message for each sample left out."""

    def passing(self, check: Callable[[Sample], str | None]) -> "Embedded":
        """The rows whose words pass a check; the others are told as skipped.

        Args:
          check: as that of `Embedder.source`, of a sample without its picture.
        """
        words = zip(self.keys, self.texts, self.labels, self.numbers, strict=True)
        faults = [
            check(Sample(key=key, image=b"", texts=texts, label=label, numbers=numbers))
            for key, texts, label, numbers in words
        ]
        kept = [row for row, fault in enumerate(faults) if fault is None]
        messages = [f"sample {self.keys[row]!r}: {why}" for row, why in enumerate(faults) if why]
        return dataclasses.replace(self.at(kept), skipped=(*self.skipped, *messages))

    def at(self, rows: Sequence[int]) -> "Embedded":
        """Some of the rows, in this order; `skipped` stays."""
        named = ("indices", "keys", "texts", "labels", "numbers")
        words = {name: tuple(getattr(self, name)[row] for row in rows) for name in named}
        return dataclasses.replace(self, images=self.images[list(rows)], **words)


def message(fault: Exception) -> str:
    """What is told of an error: some have no words."""
    return str(fault) or type(fault).__name__


def nothing_wrong(sample: Sample) -> None:
    """The check that lets every sample pass."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedder:
    """Two towers behind plain callables; every batch they see has exactly `batch` rows."""

    image_fn: Callable[[Any], Any]
    """uint8 (b, S, S, 3) -> (b, D), compiled once; each row depends on its own picture only.
    Where `prepare` gives a tuple of arrays, a tuple of their stacks (`preprocess.FlatPatches`)."""
    text_fn: Callable[[np.ndarray], Any]
    """int32 (b, L) -> (b, D)."""
    tokenizer: Callable[[list[str]], np.ndarray]
    """Texts -> int32 (number of texts, L)."""
    prepare: Callable[[Any], Any]
    """One picture, encoded or decoded -> uint8 (S, S, 3), or a tuple of arrays of fixed shapes;
    it is called from several threads."""
    batch: int
    feature_fn: Callable[[Any], Any] | None = None
    """As `image_fn`, but before the projection to embeddings: what probes learn from."""
    scale: float | None = None
    """One over the temperature, of confidences; None: not known."""
    unit: bool = True
    """Scale the embeddings of pictures to length 1."""
    rows: tuple[int, ...] | None = None
    """Rows of each batch that this process fills, where several embed together; all if None.
    The functions then take these rows, and give those of all processes to each."""
    threads: int = 8
    """Pictures that are read and prepared at the same time."""
    at_once: int = 1
    """Batches that a lone device computes at the same time. With 2, cores of a CPU that wait for
    one another between two products of one batch work on the other."""
    progress: Callable[[str, int, int | None], None] | None = None
    """Called after each batch with "images" or "texts", how many are done, and of how many."""
    warn: Callable[[str], None] = warnings.warn
    """Told what was left out of a figure, and why."""

    def __post_init__(self):
        names = ("batch", "threads", "at_once")
        faults = [f"{name} {value}" for name in names if (value := getattr(self, name)) < 1]
        if faults:
            raise ValueError(f"an embedder needs at least 1: {', '.join(faults)}")

    @property
    def of_features(self) -> "Embedder":
        """The same, but pictures become features before the projection, as long as they are.

        Raises:
          ValueError: this embedder knows no features.
        """
        if self.feature_fn is None:
            raise ValueError("this model tells no features before the projection to embeddings")
        return dataclasses.replace(self, image_fn=self.feature_fn, feature_fn=None, unit=False)

    def everyone(self, value: Any) -> list[Any]:
        """The JSON-able `value` of each process that embeds with this one, in their order."""
        return [value] if self.rows is None else gather_json(value)

    @property
    def common_faults(self) -> tuple[type[Exception], ...]:
        """Errors that all processes that embed together meet alike, so that all can go on alike.

        An OSError is one process's own, unless it was read by `agreed`.
        """
        return (ValueError, OSError) if self.rows is None else (ValueError,)

    def agreed(self, read: Callable[[], _T]) -> _T:
        """What `read` gives; where processes embed together, all have it or none.

        Raises:
          ValueError: `read` raises ValueError or OSError in one of them; a lone process raises
            what `read` does.
        """
        if self.rows is None:
            return read()
        found, fault = list[_T](), ""
        try:
            found.append(read())
        except (ValueError, OSError) as error:
            fault = message(error)
        if faults := dict.fromkeys(filter(None, self.everyone(fault))):
            raise ValueError("; ".join(faults))
        return found[0]

    def images(self, items: Iterable[Any]) -> Float[np.ndarray, "n D"]:
        """Unit-norm float32 embeddings of pictures, in their order.

        Items are what `prepare` takes; an iterator is read only a few batches ahead.

        Raises:
          ValueError: an embedding is NaN, infinite or zero, with the row; what `prepare` raises.
        """
        total = len(items) if isinstance(items, Sized) else None
        return self._embed_images(self._prepared(self.prepare, items), total)

    def texts(self, texts: list[str]) -> Float[np.ndarray, "n D"]:
        """Unit-norm float32 embeddings of texts, in their order; equal texts are embedded once.

        Raises:
          ValueError: an embedding is NaN, infinite or zero; what the tokenizer raises.
        """
        # Short ones together: a batch is computed for as many tokens as its longest text has.
        ordered = sorted(dict.fromkeys(texts), key=len)
        distinct = {text: row for row, text in enumerate(ordered)}
        blocks = (self.tokenizer(block) for block in _blocks(distinct, self.batch))
        if not distinct:
            return self._no_rows(self.text_fn, self.tokenizer(["a"]))
        calls = self._calls(self.text_fn, blocks)
        rows = unit(self._run(calls, "texts", len(distinct)), "texts")
        return rows[[distinct[text] for text in texts]]

    def source(
        self, source: Source, check: Callable[[Sample], str | None] = nothing_wrong
    ) -> Embedded:
        """Embed the pictures of a source; samples that cannot be used are left out.

        Args:
          source: read in order, from `threads` threads.
          check: says why a sample is of no use here, or None.
        """
        kept: dict[int, Sample] = {}
        skipped: dict[int, str] = {}

        def load(index: int) -> Any:
            """A picture ready for the tower; None where there is none of use."""
            if index >= len(source):
                return None
            try:
                sample, pixels = self._load(source, index, check)
            except BadSampleError as fault:
                skipped[index] = str(fault)
                return None
            # Encoded pictures of a whole split need not stay in memory: only words are kept.
            kept[index] = dataclasses.replace(sample, image=b"")
            return pixels

        rows = self._embed_rows(load, len(source))
        if self.rows is not None:
            kept, skipped = _of_all(kept, skipped)
        indices = sorted(kept)
        samples = [kept[index] for index in indices]
        return Embedded(
            images=self._scaled(rows[indices]),
            indices=tuple(indices),
            keys=tuple(sample.key for sample in samples),
            texts=tuple(sample.texts for sample in samples),
            labels=tuple(sample.label for sample in samples),
            numbers=tuple(sample.numbers for sample in samples),
            skipped=tuple(skipped[index] for index in sorted(skipped)),
        )

    def split(
        self, dataset: Dataset, split: str, check: Callable[[Sample], str | None] = nothing_wrong
    ) -> Embedded:
        """`source` of one split, telling `warn` what was left out.

        Raises:
          ValueError: no sample is left; what opening the split raises.
        """
        found = self._of_split(dataset, split, check)
        if not found.keys:
            why = f"; {_brief(found.skipped)}" if found.skipped else ""
            raise ValueError(f"split {split!r} holds no usable sample{why}")
        if found.skipped:
            self.warn(f"split {split!r}: {_brief(found.skipped)}")
        return found

    def _of_split(
        self, dataset: Dataset, split: str, check: Callable[[Sample], str | None]
    ) -> Embedded:
        return self.source(self.agreed(lambda: dataset.open(split)), check)

    def _load(
        self, source: Source, index: int, check: Callable[[Sample], str | None]
    ) -> tuple[Sample, Any]:
        """A sample and its prepared picture; raises BadSampleError if it is of no use."""
        try:
            sample = source[index]
        except (ValueError, OSError) as fault:
            raise BadSampleError(f"sample {index}: {message(fault)}") from fault
        if wrong := check(sample):
            raise BadSampleError(f"sample {sample.key!r}: {wrong}")
        try:
            return sample, self.prepare(sample.image)
        except (BadSampleError, ValueError, OSError) as fault:
            raise BadSampleError(f"sample {sample.key!r}: {fault}") from fault

    def _prepared(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return ahead(function, items, threads=self.threads, most=self.batch + self.threads)

    def _embed_images(self, items: Iterator[Any], total: int | None) -> np.ndarray:
        first = next(items, None)
        if first is None:
            return self._no_images()
        blocks = map(_stack, _blocks(itertools.chain([first], items), self.batch))
        return self._scaled(self._run(self._calls(self.image_fn, blocks), "images", total))

    def _embed_rows(self, load: Callable[[int], Any], count: int) -> np.ndarray:
        """Row i is the embedding of picture i, whichever process loads it, or anything."""
        if count == 0:
            return self._no_images()
        mine = range(self.batch) if self.rows is None else self.rows
        firsts = range(0, count, self.batch)
        loaded = self._prepared(load, (first + row for first in firsts for row in mine))

        def calls() -> Calls:
            fill = None
            for first, block in zip(firsts, _blocks(loaded, len(mine)), strict=True):
                fill = next((pixels for pixels in block if pixels is not None), fill)
                if fill is None:
                    fill = self._black()
                pixels = _stack([fill if b is None else b for b in block])
                yield functools.partial(self.image_fn, pixels), min(self.batch, count - first)

        return self._run(calls(), "images", count)

    def _no_images(self) -> np.ndarray:
        return self._no_rows(self.image_fn, _stack([self._black()]))

    def _no_rows(self, function: Callable, block: Any) -> np.ndarray:
        """Their width D is known only from an answer."""
        ((call, _),) = self._calls(function, iter([block]))
        return np.asarray(call()).astype(np.float32)[:0]

    def _black(self) -> Any:
        return self.prepare(np.zeros((64, 64, 3), np.uint8))

    def _run(self, calls: Calls, what: str, total: int | None) -> np.ndarray:
        """The rows that a tower gives, of each call as many as said."""
        parts, done = [], 0
        for rows, count in answered(calls, self.at_once):
            parts.append(rows.astype(np.float32)[:count])
            done += count
            if self.progress is not None:
                self.progress(what, done, total)
        return np.concatenate(parts)

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        if self.unit:
            return unit(rows, "images")
        require_finite("features", rows)
        return rows

    def _calls(self, function: Callable, blocks: Iterator[Any]) -> Calls:
        """Calls with blocks of any number of rows up to the batch, and that number."""
        for block in blocks:
            count = len(jax.tree.leaves(block)[0])

            def filled(array: np.ndarray, count: int = count) -> np.ndarray:
                # With copies of the last row, not zeros: valid input makes no NaN.
                fill = [(0, self.batch - count)] + [(0, 0)] * (array.ndim - 1)
                array = np.pad(array, fill, mode="edge")
                return array if self.rows is None else array[list(self.rows)]

            yield functools.partial(function, jax.tree.map(filled, block)), count


def _of_all(
    kept: dict[int, Sample], skipped: dict[int, str]
) -> tuple[dict[int, Sample], dict[int, str]]:
    """What all processes together kept (but for the pictures) and skipped, by index."""
    words = {index: (s.key, s.texts, s.label, s.numbers) for index, s in kept.items()}
    everyone = gather_json([words, skipped])
    samples = {
        int(index): Sample(
            key=key, image=b"", texts=tuple(texts), label=label, numbers=tuple(numbers)
        )
        for theirs, _ in everyone
        for index, (key, texts, label, numbers) in theirs.items()
    }
    faults = {int(index): why for _, theirs in everyone for index, why in theirs.items()}
    return samples, faults


def unit(rows: Float[np.ndarray, "n D"], what: str) -> Float[np.ndarray, "n D"]:
    """Rows scaled to length 1, in float32.

    Raises:
      ValueError: rows that are NaN, infinite or zero; `what` says of what they are.
    """
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if bad.size:
        raise ValueError(
            f"{bad.size} of {len(rows)} embeddings of {what} are NaN, infinite or zero; "
            f"the first is row {bad[0]}"
        )
    return (rows / norms).astype(np.float32)


def _stack(rows: list[Any]) -> Any:
    """Equal trees of arrays as one tree, a row each."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *rows)


def _blocks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    items = iter(items)
    while block := list(itertools.islice(items, size)):
        yield block


def _brief(messages: tuple[str, ...], shown: int = 5) -> str:
    more = f"; and {len(messages) - shown} more" if len(messages) > shown else ""
    return f"{len(messages)} left out: " + "; ".join(messages[:shown]) + more
