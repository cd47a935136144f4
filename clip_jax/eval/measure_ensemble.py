"""Outcome of classification by several models together: the average of their answers."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from clip_jax.eval import metrics
from clip_jax.eval.classified import classified, labelled, report_classes
from clip_jax.eval.embed import Embedded
from clip_jax.eval.ensemble import average
from clip_jax.eval.once import Embeddings, Model
from clip_jax.eval.opened import Opened
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.zero_shot import classifier

By = Literal["probability", "logits"]
MODELS = "Each model alone"
"""Title of the table with the figures of the members."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Member:
    images: Float[np.ndarray, "n D"]
    weights: Float[np.ndarray, "K D"]
    scale: float

    def logits(self, rows: slice) -> Float[np.ndarray, "m K"]:
        cosines = self.images[rows].astype(np.float64) @ self.weights.astype(np.float64).T
        return self.scale * cosines

    def figures(self, labels: Int[np.ndarray, " n"]) -> dict[str, float]:
        ranks = metrics.class_ranks(self.images, self.weights, labels)
        recall = metrics.mean_per_class_recall(ranks, labels)
        return {"acc1": metrics.hit_rate(ranks, 1), "mean_per_class_recall": recall}


def ensemble(
    opened: Opened,
    embeddings: Embeddings,
    warn: Callable[[str], None],
    *,
    members: Mapping[str, Embeddings],
    by: By,
) -> Outcome:
    """Zero-shot classification by the average of models' probabilities, or of their logits.

    The figures are those of zero-shot classification, then `acc1_best_single` and `acc1_gain`. Each
    model has its own prompts' embeddings and its own temperature.

    Args:
      embeddings: not used; a measure has it.
      members: two or more models, by the name that tables give them.

    Raises:
      ValueError: the models could not read the same pictures; as `measure_classes.zero_shot`.
    """
    found, labels, parts = _embed(opened, members)
    report_classes(opened, labels, warn)

    def score(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        answers = [member.logits(rows) for member in parts.values()]
        if by == "logits":
            scores = average(answers)
            return scores, _softmax(scores)
        shares = average([_softmax(answer) for answer in answers])
        # Small shares are told apart by their logarithms.
        return np.log(np.maximum(shares, np.finfo(np.float64).tiny)), shares

    made = classified(opened, found, labels, score)
    alone = {name: member.figures(labels) for name, member in parts.items()}
    best = max(row["acc1"] for row in alone.values())
    figures = {**made.figures, "acc1_best_single": best, "acc1_gain": made.figures["acc1"] - best}
    return dataclasses.replace(made, figures=figures, tables={**made.tables, MODELS: alone})


def _embed(
    opened: Opened, members: Mapping[str, Embeddings]
) -> tuple[Embedded, Int[np.ndarray, " n"], dict[str, _Member]]:
    """The pictures as the first model sees them, their classes, and what each model sees."""
    read = {
        name: labelled(opened, own.pictures(opened.source, opened.pictures))
        for name, own in members.items()
    }
    found, labels = next(iter(read.values()))
    parts = {}
    for name, (pictures, _) in read.items():
        if odd := sorted(set(pictures.keys) ^ set(found.keys)):
            raise ValueError(
                f"{opened.folder}: {len(odd)} pictures can be read by some of the models only; the "
                f"first is {odd[0]!r}"
            )
        own = members[name]
        weights = classifier(own.texts, opened.classes, opened.templates)
        parts[name] = _Member(images=pictures.images, weights=weights, scale=own.model.scale)
    return found, labels, parts


def joined(models: Mapping[str, Model]) -> Model:
    """What stands for all models where an outcome tells what it is of."""
    first, *_ = models.values()

    def mark(name: str) -> str:
        told: Any = [getattr(model, name) for model in models.values()]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    marks = {name: mark(name) for name in ("weights", "preprocessing", "tokenizer")}
    return dataclasses.replace(first, **marks)


def _softmax(logits: Float[np.ndarray, "n K"]) -> Float[np.ndarray, "n K"]:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)
