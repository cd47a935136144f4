"""Linear probes: what a simple classifier can learn from a model's features.

The CLIP paper probes the image tower's features before their projection to the joint embedding;
its results rest on that. Unit embeddings can be probed as well, and score a little lower.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from clip_jax.eval.checks import require_indices
from clip_jax.eval.classification import accuracy
from clip_jax.eval.logistic import Probe, Regression

STRENGTHS = tuple(10.0 ** (step / 8 - 6) for step in range(97))
"""Of the penalty, 1e-6 to 1e6, eight a decade."""

NEVER = -1e30
"""Logit of a class that nothing was learned of; scores are finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """Features of samples, each of one class, or each with any number of labels."""

    features: Float[np.ndarray, "n D"]
    labels: Int[np.ndarray, " n"] | Bool[np.ndarray, "n K"]
    """The class, or which of the labels a sample has."""

    def __len__(self):
        return len(self.labels)

    def rows(self, rows: Int[np.ndarray, " m"]) -> "Labelled":
        """Some of the samples."""
        return Labelled(features=self.features[rows], labels=self.labels[rows])

    def __add__(self, other: "Labelled") -> "Labelled":
        return Labelled(
            features=np.concatenate([self.features, other.features]),
            labels=np.concatenate([self.labels, other.labels]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swept:
    """A probe whose strength was chosen on a validation split."""

    probe: Probe
    tried: dict[float, float]
    """Accuracy on the validation split by strength, for those tried, in ascending order."""


def linear_probe(
    train: Labelled,
    validation: Labelled,
    classes: int,
    *,
    refit: bool = True,
    mesh: Mesh | None = None,
) -> Swept:
    """Logistic regression whose penalty is swept on a validation split, then refitted on both.

    Args:
      train, validation: of the same classes.
      classes: how many; one without a sample to learn from is never answered, as in scikit-learn.
      refit: train the result on the validation split too, as the paper does.
      mesh: divide the samples over its devices.

    Raises:
      ValueError: as `logistic.Regression` and `classification.accuracy`.

    Source: Radford et al. 2021, arXiv:2103.00020, appendix A.3.
    """
    rows = len(train) + (len(validation) if refit else 0)
    regression = _Regression(train, classes, rows, mesh)
    fits: dict[int, Probe] = {}

    def measured(step: int) -> float:
        fits[step] = regression.solve(STRENGTHS[step])
        return accuracy(fits[step].logits(validation.features), validation.labels)

    best, tried = binary_search(measured)
    if refit:
        probe = _Regression(train + validation, classes, rows, mesh).solve(STRENGTHS[best])
    else:
        probe = fits[best]
    return Swept(probe=probe, tried={STRENGTHS[step]: tried[step] for step in sorted(tried)})


class _Regression:
    """`logistic.Regression` over those classes that have a sample."""

    def __init__(self, samples: Labelled, classes: int, rows: int, mesh: Mesh | None):
        require_indices("labels", samples.labels, classes)
        self._classes, self._seen = classes, np.unique(samples.labels)
        labels = np.searchsorted(self._seen, samples.labels)
        self._inner = Regression(samples.features, labels, len(self._seen), rows=rows, mesh=mesh)

    def solve(self, strength: float) -> Probe:
        found = self._inner.solve(strength)
        weights = np.zeros((len(found.weights), self._classes))
        bias = np.full(self._classes, NEVER)
        weights[:, self._seen], bias[self._seen] = found.weights, found.bias
        return dataclasses.replace(found, weights=weights, bias=bias)


def plain_probe(
    train: Labelled, classes: int, strength: float, *, mesh: Mesh | None = None
) -> Probe:
    """Logistic regression at one strength; arguments and errors as `linear_probe`."""
    return _Regression(train, classes, 0, mesh).solve(strength)


def hold_out(
    labels: Int[np.ndarray, " n"], *, share: float = 0.2, seed: int = 0
) -> tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held"]]:
    """Rows to learn from, and rows to validate on, both in ascending order.

    Of each class that share is held, rounded down, but at least one of two samples or more, and
    not the only one. A class's draw depends on no other class.

    Args:
      share: in (0, 1).

    Raises:
      ValueError: no class has two samples; a share out of range.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share}")
    held = []
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        count = max(int(share * len(rows)), 1) if len(rows) > 1 else 0
        drawn = np.random.default_rng([seed, int(c)]).choice(rows, count, replace=False)
        held.append(drawn)
    if not sum(map(len, held)):
        raise ValueError("no class has two samples, so none can be held out for validation")
    validation = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), validation), validation


def binary_search(measure: Callable[[int], float]) -> tuple[int, dict[int, float]]:
    """The paper's parametric binary search for the best of `STRENGTHS`, at most 15 trials.

    Seven strengths two decades apart come first; then those beside the best so far, at half the
    distance each time, until eight a decade. It finds the best where there is one peak. Of equals
    the strongest penalty wins.

    Args:
      measure: index into `STRENGTHS` -> a figure, higher is better.

    Returns:
      The best index; the figures of those that were tried.
    """
    found = {step: measure(step) for step in range(0, len(STRENGTHS), 16)}

    def best() -> int:
        return max(found, key=lambda step: (found[step], step))

    for distance in (8, 4, 2, 1):
        middle = best()
        for step in (middle - distance, middle + distance):
            if 0 <= step < len(STRENGTHS) and step not in found:
                found[step] = measure(step)
    return best(), found


def few_shot_rows(labels: Int[np.ndarray, " n"], k: int, seed: int) -> Int[np.ndarray, " m"]:
    """Rows of k samples of each class that has any, drawn by the seed alone, in ascending order.

    Raises:
      ValueError: k < 1; classes that have fewer than k, all of them.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    classes, counts = np.unique(labels, return_counts=True)
    if (counts < k).any():
        short = {int(c): int(n) for c, n in zip(classes, counts, strict=True) if n < k}
        raise ValueError(f"{k} samples of each class are needed, but these have fewer: {short}")
    drawn = [
        # A class's draw depends on no other class.
        np.random.default_rng([seed, int(c)]).choice(np.flatnonzero(labels == c), k, replace=False)
        for c in classes
    ]
    return np.sort(np.concatenate(drawn))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over several draws of the training samples."""

    values: tuple[float, ...]
    """One a seed."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Of the draws themselves (divided by their number); 0 for a single one."""
        return float(np.std(self.values))


def few_shot(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    classes: int,
    *,
    k: int,
    seeds: Sequence[int],
    mesh: Mesh | None = None,
) -> Spread:
    """Accuracy on `test` of probes that learn from k samples a class; one probe a seed.

    The strength of each is chosen on the validation split, from which no probe learns.

    Raises:
      ValueError: no seed; as `few_shot_rows` and `linear_probe`.
    """
    if not seeds:
        raise ValueError("at least one seed is needed")
    values = []
    for seed in seeds:
        shots = train.rows(few_shot_rows(train.labels, k, seed))
        swept = linear_probe(shots, validation, classes, refit=False, mesh=mesh)
        values.append(accuracy(swept.probe.logits(test.features), test.labels))
    return Spread(values=tuple(values))
