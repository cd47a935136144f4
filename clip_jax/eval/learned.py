"""Evaluations that learn from labelled pictures: a cheap linear probe, and nearest neighbours."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from clip_jax.data import DatasetConfig
from clip_jax.data.sample import Dataset, Sample, Source
from clip_jax.eval import metrics
from clip_jax.eval.checks import require_every, without_label
from clip_jax.eval.embed import Embedder, unit
from clip_jax.eval.neighbours import neighbour_votes
from clip_jax.eval.probe import Labelled, hold_out, linear_probe, plain_probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Accuracy of a logistic regression on the image tower's features, at one strength."""

    task: ClassVar[str] = "linear_probe"
    split: str
    """Split that it is measured on; its samples carry labels."""
    learn_from: str = "train"
    """Split that it learns from; its samples carry labels, too."""
    at_most: int | None = 10_000
    """Samples to learn from, evenly spread over that split; None: all of them."""
    strength: float | None = 1.0
    """Of the L2 penalty, scikit-learn's 1 / C; None: swept on a fifth of what it learns from, which
    takes up to 15 times as long."""
    projected: bool = False
    """Whether it sees unit embeddings, and not the features before their projection."""
    data: DatasetConfig | None = None
    """Another data set than the one given to `run`."""
    every_steps: int | None = None
    """During training; only at its end if None."""

    def __post_init__(self):
        require_every(self.every_steps)
        _require_some(self.at_most)
        if self.strength is not None and not self.strength > 0:
            raise ValueError(f"strength must be above 0, or None, got {self.strength}")

    def run(self, dataset: Dataset, embedder: Embedder) -> Iterator[tuple[str, float]]:
        """Yield acc1, acc5 (from 5 classes on), mean_per_class_recall, each in 0 to 1.

        And `strength` where it was swept; `skipped`, the number of samples left out, where there
        are any.

        Raises:
          ValueError: a split without a usable sample or of labels that name no class; fewer than
            two classes to learn; an embedder without features.
        """
        dataset = dataset if self.data is None else self.data
        found = _embed(dataset, embedder, self)
        if self.strength is None:
            kept, held = hold_out(found.train.labels)
            parts = found.train.rows(kept), found.train.rows(held)
            probe = linear_probe(*parts, found.classes).probe
        else:
            probe = plain_probe(found.train, found.classes, self.strength)
        yield from found.figures(probe.logits(found.test.features))
        if self.strength is None:
            yield "strength", probe.strength


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearestNeighbours:
    """Accuracy of the votes of the nearest labelled pictures; nothing is trained."""

    task: ClassVar[str] = "knn"
    split: str
    """Split that it is measured on; its samples carry labels."""
    learn_from: str = "train"
    """Split whose pictures vote; its samples carry labels, too."""
    at_most: int | None = 10_000
    """Samples that vote, evenly spread over that split; None: all of them."""
    k: int = 20
    """How many vote, at most."""
    temperature: float | None = 0.07
    """A vote weighs exp(cosine / temperature); votes are equal if None."""
    projected: bool = False
    """Whether it sees embeddings, and not the features before their projection."""
    data: DatasetConfig | None = None
    """Another data set than the one given to `run`."""
    every_steps: int | None = None
    """During training; only at its end if None."""

    def __post_init__(self):
        require_every(self.every_steps)
        _require_some(self.at_most)
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, or None, got {self.temperature}")

    def run(self, dataset: Dataset, embedder: Embedder) -> Iterator[tuple[str, float]]:
        """Yield what `LinearProbe` yields; errors as there."""
        dataset = dataset if self.data is None else self.data
        found = _embed(dataset, embedder, self)
        votes = neighbour_votes(
            unit(found.train.features, "pictures"),
            found.train.labels,
            unit(found.test.features, "pictures"),
            found.classes,
            k=min(self.k, len(found.train)),
            temperature=self.temperature,
        )
        yield from found.figures(votes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    train: Labelled
    test: Labelled
    classes: int
    skipped: int

    def figures(self, scores: np.ndarray) -> Iterator[tuple[str, float]]:
        ranks = metrics.score_ranks(scores, self.test.labels)
        yield "acc1", metrics.hit_rate(ranks, 1)
        if self.classes >= 5:
            yield "acc5", metrics.hit_rate(ranks, 5)
        yield "mean_per_class_recall", metrics.mean_per_class_recall(ranks, self.test.labels)
        if self.skipped:
            yield "skipped", float(self.skipped)


def _embed(
    dataset: Dataset, embedder: Embedder, evaluation: LinearProbe | NearestNeighbours
) -> _Found:
    embedder = embedder if evaluation.projected else embedder.of_features
    names = embedder.agreed(lambda: dataset.class_names(evaluation.split))
    few = _Few(dataset, evaluation.at_most)
    learned = embedder.split(few, evaluation.learn_from, without_label)
    tested = embedder.split(dataset, evaluation.split, without_label)
    parts = {evaluation.learn_from: learned, evaluation.split: tested}
    labels = {split: np.array(found.labels, np.int64) for split, found in parts.items()}
    classes = len(names) or 1 + max(int(own.max()) for own in labels.values())
    for split, own in labels.items():
        wrong = np.flatnonzero((own < 0) | (own >= classes))
        if wrong.size:
            raise ValueError(
                f"split {split!r}: {wrong.size} of {len(own)} labels are not among the {classes} "
                f"classes (0 to {classes - 1}); the first is {own[wrong[0]]} of sample "
                f"{parts[split].keys[wrong[0]]!r}"
            )
    return _Found(
        train=Labelled(features=learned.images, labels=labels[evaluation.learn_from]),
        test=Labelled(features=tested.images, labels=labels[evaluation.split]),
        classes=classes,
        skipped=len(tested.skipped),
    )


@dataclasses.dataclass(frozen=True)
class _Few:
    """A data set of which each split has so many samples at most, evenly spread."""

    dataset: Dataset
    most: int | None

    def open(self, split: str) -> Source:
        source = self.dataset.open(split)
        if self.most is None or len(source) <= self.most:
            return source
        return Rows(source, np.linspace(0, len(source) - 1, self.most).astype(np.int64))

    def class_names(self, split: str) -> tuple[str, ...]:
        return self.dataset.class_names(split)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some samples of a source, in this order."""

    source: Source
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Sample:
        return self.source[int(self.rows[index])]


def _require_some(at_most: int | None) -> None:
    if at_most is not None and at_most < 1:
        raise ValueError(f"at_most must be at least 1, or None, got {at_most}")
