"""Each picture embedded once for all tasks, and each text once for all data sets, in all runs."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.data.sample import Source
from clip_jax.eval.cache import Cache, Memory
from clip_jax.eval.embed import Embedded, Embedder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model as the suite knows it."""

    embedder: Embedder
    scale: float
    """One over the temperature: of confidences."""
    weights: str
    """Hash of architecture and parameters, see `identity`."""
    preprocessing: str
    """Hash of the recipe of pictures."""
    tokenizer: str
    """Hash of the tokenizer."""
    projects: bool = True
    """Whether the image tower's features differ from its embeddings by more than their length."""


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """A model's embeddings, from the cache where they are there."""

    model: Model
    cache: Cache | Memory
    warn: Callable[[str], None]

    def pictures(self, source: Source, digest: str, *, features: bool = False) -> Embedded:
        """All pictures of a source.

        Args:
          digest: a hash that changes with them.
          features: those before the projection in place of embeddings.

        Raises:
          ValueError: no picture can be read; embeddings that are not finite.
        """
        marks = _short(self.model.weights, self.model.preprocessing), _short(digest)
        name = "-".join(("features" if features else "images", *marks))
        found = self.cache.read(name)
        # Where processes embed together all have them, or all embed, wherever files lie on each.
        known = all(self.model.embedder.everyone(found is not None))
        if found is None or not known:
            embedder = self.model.embedder.of_features if features else self.model.embedder
            pictures = embedder.source(source)
            self._keep(name, _packed(pictures))
        else:
            pictures = _unpacked(found)
        if not pictures.keys:
            why = ": the data set is empty"
            if pictures.skipped:  # Often all for one cause.
                why = f"; {brief(pictures.skipped, shown=2)}"
            raise ValueError(f"no usable sample{why}")
        return pictures

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        """Unit-norm embeddings of texts in their order.

        Raises:
          ValueError: as `Embedder.texts`.
        """
        marks = {text: _short(text) for text in dict.fromkeys(texts)}
        new = [text for text, mark in marks.items() if mark not in self._known]
        if new:
            rows = self.model.embedder.texts(new)
            named = [marks[text] for text in new]
            self._known.update(zip(named, rows, strict=True))
            self._keep(f"{self._texts}-{_short(*named)}", {"texts": np.array(named), "rows": rows})
        return np.stack([self._known[marks[text]] for text in texts])

    @property
    def _texts(self) -> str:
        return f"texts-{_short(self.model.weights, self.model.tokenizer)}"

    @functools.cached_property
    def _known(self) -> dict[str, np.ndarray]:
        """Rows by the hash of their text, of all files that are kept."""
        files = (self.cache.read(name) for name in self.cache.names(self._texts))
        return {
            mark: row
            for file in files
            if file is not None
            for mark, row in zip(file["texts"].tolist(), file["rows"], strict=True)
        }

    def _keep(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        try:
            self.cache.write(name, arrays)
        except OSError as fault:  # A full disk must not cost the figures.
            self.warn(f"embeddings are not kept: {fault}")


def brief(messages: Sequence[str], shown: int = 5) -> str:
    """How many samples were left out, and the first reasons."""
    more = f"; and {len(messages) - shown} more" if len(messages) > shown else ""
    return f"{len(messages)} left out: {'; '.join(messages[:shown])}{more}"


def _packed(pictures: Embedded) -> dict[str, np.ndarray]:
    """Arrays alone: words as the bytes of JSON, in which any key can be written."""
    words = {
        field.name: getattr(pictures, field.name)
        for field in dataclasses.fields(pictures)
        if field.name != "images"
    }
    return {"images": pictures.images, "words": np.frombuffer(json.dumps(words).encode(), np.uint8)}


def _unpacked(arrays: dict[str, np.ndarray]) -> Embedded:
    words: dict[str, Any] = json.loads(arrays["words"].tobytes())
    made: dict[str, Any] = {name: tuple(values) for name, values in words.items()}
    for name in ("texts", "numbers"):
        made[name] = tuple(map(tuple, made[name]))
    return Embedded(images=arrays["images"], **made)


def _short(*texts: str) -> str:
    mark = hashlib.sha256()
    for text in texts:
        mark.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return mark.hexdigest()[:24]
