"""Retrieval: find the captions of a picture, and the picture of a caption, within a split."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from clip_jax.data import DatasetConfig
from clip_jax.data.sample import Dataset
from clip_jax.eval import metrics
from clip_jax.eval.checks import require_every, without_caption
from clip_jax.eval.embed import Embedded, Embedder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captioned:
    """A split ready for retrieval: n pictures, and their captions one by one."""

    found: Embedded
    captions: tuple[str, ...]
    """All captions of all pictures, in order."""
    texts: Float[np.ndarray, "m D"]
    """Unit-norm embeddings of `captions`."""
    image_of_text: Int[np.ndarray, " m"]
    """Row in `found` of the picture that carries the caption."""
    text_ids: Int[np.ndarray, " m"]
    """Equal for captions that are literally equal; 0, 1, ... in order of first sight."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Recall and median rank both ways, with any number of captions a picture.

    Captions that are equal as strings are the same text. A picture's search is a hit at k if
    any of the first k captions equals one of its own; a caption's search is a hit at k if any
    of the first k pictures carries that caption. Candidates and queries are all captions, each
    as often as it occurs.
    """

    task: ClassVar[str] = "retrieval"
    split: str
    """Split of the data set; its samples carry captions."""
    ks: tuple[int, ...] = (1, 5, 10)
    """Lengths of the list in which a match must be; left out where there are fewer candidates."""
    data: DatasetConfig | None = None
    """Another data set than the one given to `run`."""
    every_steps: int | None = None
    """During training; only at its end if None."""

    def __post_init__(self):
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks must be one or more numbers from 1 on, got {self.ks}")
        require_every(self.every_steps)

    def run(self, dataset: Dataset, embedder: Embedder) -> Iterator[tuple[str, float]]:
        """Yield `image_to_text_recall@k` (0 to 1) and `image_to_text_median_rank` (from 1 on).

        Then the same for `text_to_image`; and `skipped`, the number of samples left out, where
        there are any.

        Raises:
          ValueError: no sample with a picture and a caption; what opening the split raises.
        """
        split = self.embed(dataset, embedder)
        to_text, to_image = metrics.retrieval_ranks(
            split.found.images, split.texts, split.image_of_text, split.text_ids
        )
        for way, ranks, candidates in (
            ("image_to_text", to_text, len(split.texts)),
            ("text_to_image", to_image, len(split.found.images)),
        ):
            for k in self.ks:
                if k <= candidates:
                    yield f"{way}_recall@{k}", metrics.hit_rate(ranks, k)
            yield f"{way}_median_rank", metrics.median_rank(ranks)
        if split.found.skipped:
            yield "skipped", float(len(split.found.skipped))

    def embed(self, dataset: Dataset, embedder: Embedder) -> Captioned:
        """The split's pictures and captions; blank captions are no captions.

        Raises:
          ValueError: as `run`.
        """
        dataset = dataset if self.data is None else self.data
        found = embedder.split(dataset, self.split, without_caption)
        pairs = [(row, t) for row, texts in enumerate(found.texts) for t in texts if t.strip()]
        captions = tuple(text for _, text in pairs)
        ids = {text: number for number, text in enumerate(dict.fromkeys(captions))}
        return Captioned(
            found=found,
            captions=captions,
            texts=embedder.texts(list(captions)),
            image_of_text=np.array([row for row, _ in pairs], np.int64),
            text_ids=np.array([ids[text] for text in captions], np.int64),
        )
