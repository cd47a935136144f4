"""From host batches to global arrays on the mesh, a few batches ahead of the step."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import NamedSharding

from clip_jax.data.position import NOTHING, counted
from clip_jax.data.visits import Skip
from clip_jax.sharding.place import place_batch


@runtime_checkable
class Batches(Protocol):
    """An endless iterator that can say where it is: `data.pipeline.train_batches`."""

    def __next__(self) -> dict[str, Any]: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any, /) -> None: ...

    def close(self) -> None: ...


class Feed(Iterator[dict[str, jax.Array]]):
    """Reads, places and holds `depth` batches in a thread, so that the step need not wait.

    Its public attributes describe the batches handed out, never those read ahead.
    """

    def __init__(
        self,
        batches: Batches,
        sharding: NamedSharding,
        *,
        position: Mapping[str, Any] | None = None,
        arrange: Callable[[dict[str, Any]], Any] = dict,
        depth: int = 2,
    ):
        """`arrange` turns this host's arrays of a batch into the tree that the step takes."""
        if position is None:
            counts = NOTHING
        else:
            batches.set_state(position["source"])
            # One process counts on for all of the past.
            counts = NOTHING if jax.process_index() else {**position}
        self.position: dict[str, Any] = {**counts, "source": batches.get_state()}
        """This process's part of the position, JSON-able. Feeds started from all parts, joined by
        `data.position.join`, go on with the very next batch.

        Beside the state of the source it counts bad samples (skipped, by reason and by shard) and
        captions cut.
        """
        self.wait_s = 0.0
        """Seconds that callers have waited for a batch."""
        self._batches = batches
        self._skips: list[Skip] = []
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._read, args=(arrange, sharding), name="feed", daemon=True
        )
        self._thread.start()

    def __next__(self) -> dict[str, jax.Array]:
        start = time.perf_counter()
        item = self._queue.get()
        self.wait_s += time.perf_counter() - start
        if isinstance(item, BaseException):
            self._queue.put(item)  # The next call must not wait for ever.
            raise item
        arrays, skipped, cut, source = item
        self._skips += skipped
        self.position = {
            "source": source,
            "skipped": counted(self.position["skipped"], skipped),
            "cut": self.position["cut"] + cut,
        }
        return arrays

    def take_skips(self) -> list[Skip]:
        """Bad samples skipped since the last call."""
        taken, self._skips = self._skips, []
        return taken

    def close(self) -> None:
        """Stop reading ahead; batches already read are dropped."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)
        self._batches.close()

    def _read(self, arrange: Callable[[dict[str, Any]], Any], sharding: NamedSharding) -> None:
        try:
            while not self._stop.is_set():
                batch = dict(next(self._batches))
                skipped, cut = list(batch.pop("skipped")), int(batch.pop("cut"))
                state = self._batches.get_state()
                self._queue.put((place_batch(arrange(batch), sharding), skipped, cut, state))
        except BaseException as error:  # Whoever waits for a batch must hear of it.
            self._queue.put(error)
