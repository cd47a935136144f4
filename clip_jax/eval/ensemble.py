"""Several models as one: averages of what they answer, and of their weights ("soups")."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from clip_jax import tree


def average(
    answers: Sequence[Float[np.ndarray, "n K"]], weights: Sequence[float] | None = None
) -> Float[np.ndarray, "n K"]:
    """Weighted mean of several models' answers to the same samples, in float64.

    Of probabilities, the mean is again a probability. Of logits (each at its own model's
    temperature), the softmax of the mean is the models' geometric mean: one that is certain of a
    class being wrong can veto it.

    Args:
      answers: of each model, all in probability or all in logits.
      weights: of each model, not all 0; equal if None.

    Raises:
      ValueError: no model; shapes that differ; weights that are negative, all 0, or
        not as many.
    """
    if not answers:
        raise ValueError("an ensemble needs at least one model's answers")
    if len(shapes := dict.fromkeys(answer.shape for answer in answers)) > 1:
        raise ValueError(f"models answered in different shapes: {list(shapes)}")
    parts = np.ones(len(answers)) if weights is None else np.array(weights, np.float64)
    if len(parts) != len(answers) or not (parts >= 0).all() or not parts.sum() > 0:
        raise ValueError(
            f"{len(answers)} models need as many weights, none negative and not all 0; "
            f"got {parts.tolist()}"
        )
    parts /= parts.sum()
    total = np.zeros(answers[0].shape)
    for part, answer in zip(parts, answers, strict=True):
        total += part * answer
    return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soup:
    """Parameters averaged from several models, and how they were chosen."""

    params: Any
    members: tuple[int, ...]
    """Which models are in it, in the order in which they came in."""
    alone: tuple[float, ...]
    """Figure of each model by itself."""
    score: float
    """Figure of the soup on the same samples."""

    @property
    def gain(self) -> float:
        """Over the best single model."""
        return self.score - max(self.alone)


def uniform_soup(models: Sequence[Any], evaluate: Callable[[Any], float]) -> Soup:
    """The mean of all models' parameters.

    Args:
      models: parameter trees of one architecture. It may load a model whenever it is asked for
        one: few are held at a time.
      evaluate: parameters -> a figure, higher is better.

    Raises:
      ValueError: no model; trees that differ, with all that differs.

    Source: Wortsman et al. 2022, arXiv:2203.05482, section 2.
    """
    alone = _alone(models, evaluate)
    params = _mean(models[i] for i in range(len(models)))
    members = tuple(range(len(models)))
    return Soup(params=params, members=members, alone=alone, score=evaluate(params))


def greedy_soup(models: Sequence[Any], evaluate: Callable[[Any], float]) -> Soup:
    """Models from the best to the worst, each taken in if the mean does not get worse by it.

    Equal models are tried in their order. Arguments and errors as `uniform_soup`.

    Source: Wortsman et al. 2022, arXiv:2203.05482, section 2, recipe 1.
    """
    alone = _alone(models, evaluate)
    first, *others = sorted(range(len(models)), key=lambda i: (-alone[i], i))
    members, params, score = (first,), models[first], alone[first]
    for i in others:
        tried = _mean(models[j] for j in (*members, i))
        if (figure := evaluate(tried)) >= score:
            members, params, score = (*members, i), tried, figure
    return Soup(params=params, members=members, alone=alone, score=score)


def require_same(first: Any, other: Any, what: str) -> None:
    """Check that two trees have leaves of the same paths, shapes and types; `what` is the other.

    Raises:
      ValueError: lists all leaves that differ.
    """
    shapes = [_shapes(params) for params in (first, other)]
    faults = [
        f"{path} is {shapes[1].get(path, 'absent')}, but {shapes[0].get(path, 'absent')} "
        "in the first"
        for path in sorted(shapes[0].keys() | shapes[1].keys())
        if shapes[0].get(path) != shapes[1].get(path)
    ]
    if faults:
        raise ValueError(f"{what} is of another architecture: {'; '.join(faults)}")


def _shapes(params: Any) -> dict[str, str]:
    leaves = jax.tree.leaves(params)
    return {
        path: f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in zip(tree.paths(params), leaves, strict=True)
    }


def _alone(models: Sequence[Any], evaluate: Callable[[Any], float]) -> tuple[float, ...]:
    """Figure of each model, which is checked against the first."""
    if not len(models):
        raise ValueError("a soup needs at least one model")
    first = models[0]
    figures = [evaluate(first)]
    for i in range(1, len(models)):
        model = models[i]
        require_same(first, model, f"model {i}")
        figures.append(evaluate(model))
    return tuple(figures)


def _mean(models: Iterable[Any]) -> Any:
    """Sums in float32 at least, one model at a time; the types stay as they are."""
    count, total, types = 0, None, None
    for model in models:
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, "f4")), model)
        total = wide if total is None else jax.tree.map(lambda a, b: a + b, total, wide)
        types, count = jax.tree.map(lambda leaf: leaf.dtype, model), count + 1
    return jax.tree.map(lambda leaf, dtype: (leaf / count).astype(dtype), total, types)
