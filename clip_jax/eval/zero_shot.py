"""Classification by names alone: each class is the mean of its prompts' embeddings."""

import dataclasses
import string
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from clip_jax.data import DatasetConfig
from clip_jax.data.sample import Dataset
from clip_jax.eval import metrics
from clip_jax.eval.checks import require_every, without_label
from clip_jax.eval.embed import Embedded, Embedder, unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Accuracy of naming the class of pictures, with no training on the classes."""

    task: ClassVar[str] = "zero_shot"
    split: str
    """Split of the data set; its samples carry labels."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Prompts around a class name, each with one placeholder, `{}` or `{c}`."""
    class_names: tuple[str, ...] | None = None
    """In the order of the labels; those of the data set if None."""
    data: DatasetConfig | None = None
    """Another data set than the one given to `run`."""
    every_steps: int | None = None
    """During training; only at its end if None."""

    def __post_init__(self):
        require_placeholders(self.templates)
        require_every(self.every_steps)

    def run(self, dataset: Dataset, embedder: Embedder) -> Iterator[tuple[str, float]]:
        """Yield acc1, acc5 (from 5 classes on), mean_per_class_recall, each in 0 to 1.

        And `skipped`, the number of samples left out, where there are any.

        Raises:
          ValueError: no usable sample, no class names, labels that name no class.
        """
        found, weights, labels = self.embed(dataset, embedder)
        ranks = metrics.class_ranks(found.images, weights, labels)
        yield "acc1", metrics.hit_rate(ranks, 1)
        if len(weights) >= 5:
            yield "acc5", metrics.hit_rate(ranks, 5)
        yield "mean_per_class_recall", metrics.mean_per_class_recall(ranks, labels)
        if found.skipped:
            yield "skipped", float(len(found.skipped))

    def embed(
        self, dataset: Dataset, embedder: Embedder
    ) -> tuple[Embedded, Float[np.ndarray, "K D"], Int[np.ndarray, " n"]]:
        """Embedded pictures, the classifier, and the class of each picture.

        Raises:
          ValueError: as `run`.
        """
        dataset = dataset if self.data is None else self.data
        names = embedder.agreed(lambda: self.names(dataset))
        found = embedder.split(dataset, self.split, without_label)
        labels = np.asarray(found.labels, np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if wrong.size:
            raise ValueError(
                f"split {self.split!r}: {wrong.size} of {len(labels)} labels are not among the "
                f"{len(names)} classes (0 to {len(names) - 1}); the first is "
                f"{labels[wrong[0]]} of sample {found.keys[wrong[0]]!r}"
            )
        if twins := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            embedder.warn(
                f"split {self.split!r}: class names that stand for several classes {twins}; "
                "no picture of these can count as right"
            )
        return found, classifier(embedder.texts, names, self.templates), labels

    def names(self, dataset: Dataset) -> tuple[str, ...]:
        """The class names in use.

        Raises:
          ValueError: neither this evaluation nor the data set has any.
        """
        names = self.class_names
        if names is None:
            names = dataset.class_names(self.split)
        if not names:
            raise ValueError(
                f"split {self.split!r} has no class names: give them as class_names, "
                "or choose a split that has"
            )
        return names


def classifier(
    embed_texts: Callable[[list[str]], Float[np.ndarray, "n D"]],
    class_names: Sequence[str],
    templates: Sequence[str],
) -> Float[np.ndarray, "K D"]:
    """Unit-norm embedding of each class: its unit-norm prompt embeddings, averaged, rescaled.

    Args:
      embed_texts: texts -> unit-norm embeddings, such as `Embedder.texts`.
      class_names: in the order of the labels.
      templates: prompts, each with one placeholder, `{}` or `{c}`.

    Raises:
      ValueError: no class or template; an empty name; templates without one placeholder.

    Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.4.
    """
    require_placeholders(templates)
    if not class_names:
        raise ValueError("a classifier needs at least one class name")
    if empty := [k for k, name in enumerate(class_names) if not name.strip()]:
        raise ValueError(f"empty class names: those of classes {empty}")
    prompts = [t.format(name, c=name) for name in class_names for t in templates]
    rows = unit(embed_texts(prompts), "prompts")
    means = rows.reshape(len(class_names), len(templates), -1).mean(axis=1)
    return unit(means, "classes")


def classify(
    images: Float[np.ndarray, "n D"],
    classifier: Float[np.ndarray, "K D"],
    *,
    scale: float = 100.0,
) -> Float[np.ndarray, "n K"]:
    """Probability of each class for each picture; rows sum to 1.

    Args:
      images, classifier: unit-norm embeddings.
      scale: inverse temperature, of the softmax over classes (a trained model has its own).
    """
    logits = scale * (images.astype(np.float64) @ classifier.astype(np.float64).T)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def require_placeholders(templates: Sequence[str]) -> None:
    """Check that templates hold exactly one placeholder each, `{}` or `{c}`.

    Raises:
      ValueError: lists all templates that do not; or there is none.
    """
    if not templates:
        raise ValueError("at least one template is needed, such as 'a photo of a {}.'")
    faults = [f"{t!r} {fault}" for t in templates if (fault := _fault(t))]
    if faults:
        raise ValueError(
            "a template holds exactly one placeholder, {} or {c}, but " + "; ".join(faults)
        )


def _fault(template: str) -> str | None:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return f"cannot be read ({error})"
    fields = [
        "{" + field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
        for _, field, spec, conversion in parts
        if field is not None
    ]
    if not fields:
        return "has none"
    if len(fields) > 1:
        return f"has {len(fields)}: {', '.join(fields)}"
    return None if fields[0] in ("{}", "{c}") else f"has {fields[0]}"
