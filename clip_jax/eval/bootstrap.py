"""Is one model better than another, or luckier? Confidence intervals by resampling the samples."""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float

from clip_jax.eval.checks import require_finite, require_lengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean difference, and where it would lie had other samples been drawn."""

    difference: float
    """Mean of the first less mean of the second."""
    low: float
    high: float
    confidence: float
    """How often such an interval holds the difference of all samples that there could be."""

    @property
    def decided(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def levels(count: int, confidence: float) -> tuple[float, float]:
    """Which quantiles of resampled figures are the ends of an interval.

    Those of the plain percentile interval are (1 - confidence) / 2 and its complement. It is too
    narrow for few samples: draws from n samples vary by sqrt((n - 1) / n) less than samples of the
    population do, and nothing allows for a variance that is itself estimated. These levels lie
    further out by as much as both make of a normal law. From 100 samples on the two hardly differ.

    Args:
      count: of the samples drawn from; of one, the levels are those of two.
      confidence: above 0 and below 1.

    Source: Hesterberg 2015, What Teachers Should Know About the Bootstrap, The American
      Statistician 69(4), arXiv:1411.5279, on the expanded percentile interval.
    """
    from scipy.special import ndtr, stdtrit

    freedom = max(count - 1, 1)
    wide = math.sqrt((freedom + 1) / freedom) * stdtrit(freedom, (1 + confidence) / 2)
    return float(ndtr(-wide)), float(ndtr(wide))


def paired_difference(
    first: Float[np.ndarray, " n"] | Bool[np.ndarray, " n"],
    second: Float[np.ndarray, " n"] | Bool[np.ndarray, " n"],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    block: int = 2**22,
) -> Interval:
    """Bootstrap interval of the difference between two models' means over the same samples.

    The order of the samples and the size of the blocks decide nothing.

    Args:
      first, second: a figure of each sample under each model, such as whether it was right.
      confidence: above 0 and below 1.
      resamples: how often n samples are drawn, with replacement.
      seed: of the draws.
      block: numbers held at a time.

    Raises:
      ValueError: no sample; lengths that differ; figures that are not finite; settings out of
        range.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; and `levels`.
    """
    require_lengths(first=first, second=second)
    require_finite("first", first)
    require_finite("second", second)
    if not 0 < confidence < 1 or resamples < 1 or block < 1:
        raise ValueError(
            "confidence must be between 0 and 1, resamples and block at least 1; "
            f"got {confidence}, {resamples}, {block}"
        )
    differences = first.astype(np.float64) - second.astype(np.float64)
    means = _resampled_means(differences, resamples, np.random.default_rng(seed), block)
    low, high = np.quantile(means, levels(len(differences), confidence))
    return Interval(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        confidence=confidence,
    )


def _resampled_means(
    values: np.ndarray, resamples: int, rng: np.random.Generator, block: int
) -> np.ndarray:
    values, counts = np.unique(values, return_counts=True)
    n = int(counts.sum())
    # Right and wrong differ by -1, 0 or 1: how often each is drawn is multinomial, and one draw of
    # that takes as long as about ten samples for each value.
    few = 10 * len(values) < n
    values, wide = (values, len(values)) if few else (np.repeat(values, counts), n)
    at_once = max(1, block // wide)
    means = []
    for done in range(0, resamples, at_once):
        size = min(at_once, resamples - done)
        if few:
            means.append(rng.multinomial(n, counts / n, size=size) @ values / n)
        else:
            means.append(values[rng.integers(n, size=(size, n))].mean(axis=1))
    return np.concatenate(means)
