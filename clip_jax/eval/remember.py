"""An embedder for several readers of the same data: each split and each text is embedded once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.data.sample import Dataset, Sample
from clip_jax.eval.embed import Embedded, Embedder, nothing_wrong


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remembering(Embedder):
    """Keeps what it gave out: for figures of several kinds, and pictures of them, of one model."""

    _splits: list[tuple[Any, Embedded]] = dataclasses.field(
        default_factory=list, init=False, repr=False
    )
    _given: list[tuple[Any, Embedded]] = dataclasses.field(
        default_factory=list, init=False, repr=False
    )
    _texts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @functools.cached_property
    def of_features(self) -> "Embedder":
        """As that of an `Embedder`; it remembers, too, and is the same each time."""
        return super().of_features

    def split(
        self, dataset: Dataset, split: str, check: Callable[[Sample], str | None] = nothing_wrong
    ) -> Embedded:
        """As `Embedder.split`; what was left out is told the first time.

        Args:
          check: asked of what lies beside a picture, the picture itself being gone.
        """
        asked = (dataset, split, check)
        return self._known(self._given, asked, lambda: super(Remembering, self).split(*asked))

    def _of_split(
        self, dataset: Dataset, split: str, check: Callable[[Sample], str | None]
    ) -> Embedded:
        # One reader asks for labels, the next for captions: mostly of the same pictures.
        read = super()._of_split
        asked = dataset, split
        return self._known(self._splits, asked, lambda: read(*asked, nothing_wrong)).passing(check)

    def _known(
        self, found: list[tuple[Any, Embedded]], asked: Any, make: Callable[[], Embedded]
    ) -> Embedded:
        # Data sets can be compared, but not all of them hashed.
        known = [one for before, one in found if before == asked]
        # Where processes embed together all know it, or all embed: paths may be equal on one alone.
        if not all(self.everyone(bool(known))):
            known = [make()]
            found.append((asked, known[0]))
        return known[0]

    def texts(self, texts: list[str]) -> Float[np.ndarray, "n D"]:
        """As `Embedder.texts`."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new or not texts:
            rows = super().texts(new)
            self._texts.update(zip(new, rows, strict=True))
            if not texts:
                return rows
        return np.stack([self._texts[text] for text in texts])


def remembering(embedder: Embedder) -> Remembering:
    """The same embedder, but it remembers; one that does already is given back."""
    if isinstance(embedder, Remembering):
        return embedder
    fields = [field.name for field in dataclasses.fields(Embedder)]
    return Remembering(**{name: getattr(embedder, name) for name in fields})
