"""The data sets of the public suites as an evaluation of a run."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import ClassVar

from clip_jax.data.sample import Dataset
from clip_jax.eval.by_key import first_layout, open_by_key
from clip_jax.eval.cache import Memory
from clip_jax.eval.checks import require_every
from clip_jax.eval.embed import Embedder, message
from clip_jax.eval.measures import STANDARD
from clip_jax.eval.once import Embeddings, Model, brief
from clip_jax.eval.opened import Opened
from clip_jax.eval.outcome import Outcome, file_name
from clip_jax.eval.tasks import aggregates, keys_of
from clip_jax.eval.tfds_set import PREFIX

MEMORY = 2**30
"""Bytes of embeddings kept for another data set of the same pictures: 500,000 of 512 numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicSets:
    """Public data sets, whatever is asked of their pictures: measured as by `eval.py --suite`."""

    task: ClassVar[str] = "public"
    sets: tuple[str, ...]
    """Data sets and suites as `--suite` names them: `winoground`, `wilds/iwildcam`, `quick`; or
    folders of your own below the root."""
    root: str
    """Folder of the data sets; `hub`: fetched from Hugging Face."""
    every_steps: int | None = None
    """During training; only at its end if None."""

    def __post_init__(self):
        require_every(self.every_steps)
        if isinstance(self.sets, str):
            raise ValueError(f"sets holds names, so write ({self.sets!r},) with a comma")
        faults = []
        if not self.sets or not all(self.sets):
            faults.append(f"sets must be one or more names, none of them empty, got {self.sets}")
        if not self.root:
            faults.append("root must name a folder, or be 'hub'")
        if prepared := [name for name in self.sets if name.startswith(PREFIX)]:
            faults.append(f"{', '.join(prepared)}: here that is ZeroShot(data=Tfds(...))")
        names = [file_name(key) for key in self.keys]
        if twins := sorted({name for name in names if names.count(name) > 1}):
            faults.append(f"figures of several of these data sets would be called {twins}")
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all data sets that are meant, each once."""
        return keys_of(self.sets)

    def open(self) -> list[Opened]:
        """All data sets, so that what is missing shows before it is needed.

        Raises:
          ValueError, OSError: what opening the one that cannot be opened raises; of several, a
            ValueError with all messages.
        """
        opened, faults = [], []
        for key in self.keys:
            try:
                opened.append(self._open(key, _unheard))
            except (ValueError, OSError) as fault:
                faults.append(fault)
        if len(faults) > 1:
            raise ValueError("; ".join(map(str, faults)))
        if faults:
            raise faults[0]
        return opened

    def run(self, dataset: Dataset, embedder: Embedder) -> Iterator[tuple[str, float]]:
        """Yield the figures that the suite gives, `skipped` among them.

        Of several data sets each name begins with its own, `vtab-pets/acc1`, and then come their
        means, `Average/mean`, where none of their data sets is missing. A data set that cannot be
        measured is told to the embedder's `warn`; `left_out` is how many these are, if any.

        Args:
          dataset: of no use here.

        Raises:
          ValueError: an embedder that knows no temperature.
        """
        if embedder.scale is None:
            raise ValueError("this embedder tells no temperature, which confidences need")
        # Nothing outlasts this call, so nothing need be told from other models'.
        model = Model(
            embedder=embedder, scale=embedder.scale, weights="", preprocessing="", tokenizer=""
        )
        embeddings = Embeddings(model, Memory(limit=MEMORY), embedder.warn)
        keys, mains, left_out = self.keys, {}, 0
        for key in keys:
            found = self._measure(key, embeddings)
            if found is None:
                left_out += 1
                continue
            if found.main_figure is not None:
                mains[key] = found.main_figure
            prefix = f"{file_name(key)}/" if len(keys) > 1 else ""
            yield from ((prefix + metric, value) for metric, value in found.counted.items())
        if len(keys) > 1:
            yield from ((f"{a.name}/mean", a.mean) for a in aggregates(mains, keys) if a.whole)
        if left_out:
            yield "left_out", float(left_out)

    def _open(self, key: str, warn: Callable[[str], None]) -> Opened:
        return open_by_key(key, self.root, warn, first=first_layout(self.sets))

    def _measure(self, key: str, embeddings: Embeddings) -> Outcome | None:
        """The outcome, or None where there can be none: no reason to end a run."""
        warn, embedder = embeddings.warn, embeddings.model.embedder
        try:
            opened = embedder.agreed(lambda: self._open(key, warn))
            found = STANDARD.of(opened)(opened, embeddings, warn)
        except embedder.common_faults as fault:
            warn(f"{key}: left out: {message(fault)}")
            return None
        if found.skipped:
            warn(f"{key}: {brief(found.skipped)}")
        return found


def _unheard(message: str) -> None:
    """Each measurement says it again."""
