"""Whether names are found as well for one group of samples as for another, as an evaluation."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from clip_jax.data import DatasetConfig
from clip_jax.data.sample import Dataset, Source
from clip_jax.eval import metrics
from clip_jax.eval.checks import require_every
from clip_jax.eval.embed import Embedded, Embedder
from clip_jax.eval.fairness import by_group
from clip_jax.eval.learned import Rows
from clip_jax.eval.zero_shot import ZeroShot, require_placeholders


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByGroups:
    """Accuracy of naming the class of pictures within groups of them: the worst, and the gap."""

    task: ClassVar[str] = "fairness"
    split: str
    """Split of the data set; its samples carry labels and numbers (tar shards: a `.npy`)."""
    groups: tuple[str, ...]
    """Names of the groups 0, 1, ..."""
    column: int = 0
    """Which of a sample's numbers is its group."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Prompts around a class name, each with one placeholder, `{}` or `{c}`."""
    class_names: tuple[str, ...] | None = None
    """In the order of the labels; those of the data set if None."""
    data: DatasetConfig | None = None
    """Another data set than the one given to `run`."""
    every_steps: int | None = None
    """During training; only at its end if None."""

    def __post_init__(self):
        require_every(self.every_steps)
        require_placeholders(self.templates)
        faults = []
        if len(set(self.groups)) < max(len(self.groups), 1):
            faults.append(f"groups must be one or more names, no two alike, got {self.groups}")
        if wrong := [name for name in self.groups if not name or "/" in name]:
            faults.append(f"names of groups are not empty and have no slash: {wrong}")
        if self.column < 0:
            faults.append(f"column counts from 0 on, got {self.column}")
        if faults:
            raise ValueError("; ".join(faults))

    def run(self, dataset: Dataset, embedder: Embedder) -> Iterator[tuple[str, float]]:
        """Yield acc1, `acc1_GROUP` of each group with a sample, acc1_worst and acc1_gap.

        And `skipped`, the number of samples left out, where there are any.

        Raises:
          ValueError: samples without their group's number, or with one that has no name; as
            `ZeroShot.run`.
        """
        dataset = dataset if self.data is None else self.data
        found, weights, _ = self._shot.embed(dataset, embedder)
        if not all(found.numbers):
            found = _with_numbers(found, dataset, self.split, embedder)
        lacking = [
            key for key, n in zip(found.keys, found.numbers, strict=True) if not n[self.column :]
        ]
        if lacking:
            raise ValueError(
                f"split {self.split!r}: {len(lacking)} of {len(found.keys)} samples have no number "
                f"{self.column} that would tell their group; the first is {lacking[0]!r}"
            )
        group = np.array([numbers[self.column] for numbers in found.numbers], np.int64)
        labels = np.array(found.labels, np.int64)
        right = metrics.class_ranks(found.images, weights, labels) < 1
        by = by_group(right, group, self.groups)
        yield "acc1", float(right.mean())
        for name, count, mean in zip(by.names, by.counts, by.means, strict=True):
            if count:
                yield f"acc1_{name}", float(mean)
        yield "acc1_worst", by.worst[1]
        yield "acc1_gap", by.gap
        if found.skipped:
            yield "skipped", float(len(found.skipped))

    def names(self, dataset: Dataset) -> tuple[str, ...]:
        """As `ZeroShot.names`."""
        return self._shot.names(dataset)

    @property
    def _shot(self) -> ZeroShot:
        return ZeroShot(split=self.split, templates=self.templates, class_names=self.class_names)


def _with_numbers(found: Embedded, dataset: Dataset, split: str, embedder: Embedder) -> Embedded:
    """The samples of `found` whose numbers can be read, with these.

    They are read apart, so that the pictures are those of every other evaluation of this split,
    and a number that is wrong changes no figure of theirs.
    """
    blind = dataclasses.replace(
        embedder,
        prepare=lambda image: np.zeros(1),
        image_fn=lambda images: np.ones((embedder.batch, 1)),
        progress=None,
    )
    beside = blind.split(_Numbered(dataset, np.array(found.indices)), split)
    skipped = (*found.skipped, *beside.skipped)
    return dataclasses.replace(found.at(beside.indices), numbers=beside.numbers, skipped=skipped)


@dataclasses.dataclass(frozen=True)
class _Numbered:
    """Some samples with their numbers, also where reading these must be asked for."""

    dataset: Dataset
    rows: np.ndarray

    def open(self, split: str) -> Source:
        source: Any = self.dataset.open(split)
        return Rows(source.with_numbers() if hasattr(source, "with_numbers") else source, self.rows)

    def class_names(self, split: str) -> tuple[str, ...]:
        return self.dataset.class_names(split)
