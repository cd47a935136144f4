"""Prompt engineering: how good each template is alone, and which of them are best together."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from clip_jax.eval import metrics
from clip_jax.eval.checks import require_lengths
from clip_jax.eval.embed import unit

Measure = Callable[[np.ndarray, np.ndarray], float]
"""Ranks and labels of n samples -> a figure, higher is better; `mean_per_class_recall` is one."""


def top1(ranks: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """Accuracy, as a `Measure`."""
    require_lengths(ranks=ranks, labels=labels)
    return metrics.hit_rate(ranks, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Templates in the order in which greedy selection took them."""

    order: tuple[int, ...]
    curve: tuple[float, ...]
    """Figure of the first 1, 2, ... of `order` together."""

    @property
    def best(self) -> tuple[int, ...]:
        """The best set, in order; the smallest of equals."""
        return self.order[: int(np.argmax(self.curve)) + 1]


def score_each(
    prompts: Float[np.ndarray, "K P D"],
    images: Float[np.ndarray, "n D"],
    labels: Int[np.ndarray, " n"],
    *,
    measure: Measure = top1,
) -> Float[np.ndarray, " P"]:
    """Figure of each template alone, on a validation split.

    Args:
      prompts: unit-norm embedding of each class's name in each template.
      images, labels: of the validation split; unit norm.
      measure: accuracy if not given.

    Raises:
      ValueError: as `metrics.class_ranks`.
    """
    return np.array(
        [_score(prompts, (p,), images, labels, measure) for p in range(prompts.shape[1])]
    )


def greedy(
    prompts: Float[np.ndarray, "K P D"],
    images: Float[np.ndarray, "n D"],
    labels: Int[np.ndarray, " n"],
    *,
    limit: int | None = None,
    measure: Measure = top1,
) -> Selection:
    """Grow an ensemble by the template that helps it most, or harms it least, up to the limit.

    Of equally good templates the earlier is taken, so equal input gives equal sets. Trying all of
    P templates takes about P^2 / 2 evaluations. The figure of the best set is of the samples it
    was chosen on: quote that of a split which was not looked at.

    Args:
      prompts, images, labels, measure: as `score_each`.
      limit: largest ensemble, 1 to P; P if None.

    Raises:
      ValueError: limit out of range; as `metrics.class_ranks`.
    """
    count = int(prompts.shape[1])
    limit = count if limit is None else limit
    if not 1 <= limit <= count:
        raise ValueError(f"limit must be in 1 to {count}, the number of templates; got {limit}")
    order: tuple[int, ...] = ()
    curve: tuple[float, ...] = ()
    while len(order) < limit:
        tried = {
            p: _score(prompts, (*order, p), images, labels, measure)
            for p in range(count)
            if p not in order
        }
        taken = max(tried, key=lambda p: (tried[p], -p))
        order, curve = (*order, taken), (*curve, tried[taken])
    return Selection(order=order, curve=curve)


def ensemble(
    prompts: Float[np.ndarray, "K P D"], chosen: tuple[int, ...]
) -> Float[np.ndarray, "K D"]:
    """Unit-norm class embeddings: the mean of the chosen prompts', as `zero_shot.classifier`.

    Raises:
      ValueError: prompts that cancel.
    """
    return unit(prompts[:, sorted(chosen)].mean(axis=1), "classes")


def _score(
    prompts: np.ndarray,
    chosen: tuple[int, ...],
    images: np.ndarray,
    labels: np.ndarray,
    measure: Measure,
) -> float:
    ranks = metrics.class_ranks(images, ensemble(prompts, chosen), labels)
    return measure(ranks, labels)
