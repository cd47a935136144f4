"""Linear probes of data sets whose samples carry several labels: one two-class problem a label."""

import dataclasses

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from clip_jax.eval.classification import mean_average_precision
from clip_jax.eval.logistic import Regression
from clip_jax.eval.probe import STRENGTHS, Labelled, binary_search


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneVsRest:
    """A logistic regression for each label, all of one strength."""

    weights: Float[np.ndarray, "D K"]
    bias: Float[np.ndarray, " K"]
    strength: float
    tried: dict[float, float]
    """Mean average precision on the validation split by strength, in ascending order."""

    def scores(self, features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n K"]:
        """Log-odds of each label, in float64."""
        return features.astype(np.float64) @ self.weights + self.bias


def one_versus_rest(
    train: Labelled, validation: Labelled, *, mesh: Mesh | None = None
) -> OneVsRest:
    """The penalty's strength, one for all labels, is swept on a validation split; refitted on both.

    A label that all samples have, or none, teaches nothing: its score is 0 for every sample.

    Args:
      train, validation: of the same labels, any number of them a sample.
      mesh: divide the samples over its devices.

    Raises:
      ValueError: no label that some samples have and others lack, or none in the validation
        split; as `logistic.Regression`.

    Source: Radford et al. 2021, arXiv:2103.00020, appendix A.3, for each label.
    """
    rows = len(train) + len(validation)
    first = _Fit(train, rows, mesh)

    def measured(step: int) -> float:
        weights, bias = first.solve(STRENGTHS[step])
        scores = validation.features.astype(np.float64) @ weights + bias
        return mean_average_precision(scores, validation.labels)

    best, tried = binary_search(measured)
    weights, bias = _Fit(train + validation, rows, mesh).solve(STRENGTHS[best])
    return OneVsRest(
        weights=weights,
        bias=bias,
        strength=STRENGTHS[best],
        tried={STRENGTHS[step]: tried[step] for step in sorted(tried)},
    )


class _Fit:
    """`Regression.solve_each` over those labels that some samples have and others lack."""

    def __init__(self, samples: Labelled, rows: int, mesh: Mesh | None):
        targets = samples.labels
        self._mixed = np.flatnonzero(targets.any(axis=0) & ~targets.all(axis=0))
        if not self._mixed.size:
            raise ValueError("there is no label that some samples have and others lack")
        self._targets = targets
        labels = targets[:, self._mixed[0]].astype(np.int64)
        self._inner = Regression(samples.features, labels, 2, rows=rows, mesh=mesh)

    def solve(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        found, offsets = self._inner.solve_each(self._targets[:, self._mixed], strength)
        weights = np.zeros((len(found), self._targets.shape[1]))
        bias = np.zeros(self._targets.shape[1])
        weights[:, self._mixed], bias[self._mixed] = found, offsets
        return weights, bias
