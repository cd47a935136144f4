"""Whether a model serves groups of people or places alike: figures by group, and their gaps.

A group is a number; its name is told apart, so that reports can name it. Nothing here decides
which differences are unjust.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.eval.checks import require_finite, require_indices, require_lengths
from clip_jax.eval.metrics import TIE


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByGroup:
    """Mean of a figure within each group."""

    names: tuple[str, ...]
    counts: Int[np.ndarray, " G"]
    """Samples in each group."""
    means: Float[np.ndarray, " G"]
    """NaN in a group without a sample, which counts as neither worst nor best."""

    @property
    def worst(self) -> tuple[str, float]:
        """Name and mean of the lowest group (the first of several)."""
        lowest = int(np.nanargmin(self.means))
        return self.names[lowest], float(self.means[lowest])

    @property
    def gap(self) -> float:
        """Highest mean less lowest."""
        return float(np.nanmax(self.means) - np.nanmin(self.means))


def by_group(
    values: Float[np.ndarray, " n"] | Bool[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    names: Sequence[str],
) -> ByGroup:
    """Mean of a per-sample figure, such as `predict(...) == labels`, within each group.

    Raises:
      ValueError: no sample; lengths that differ; groups without a name; values that are not finite.
    """
    require_lengths(values=values, groups=groups)
    require_finite("values", values)
    require_indices("groups", groups, len(names))
    counts = np.bincount(groups, minlength=len(names))
    sums = np.bincount(groups, weights=values, minlength=len(names))
    return ByGroup(names=tuple(names), counts=counts, means=sums / np.where(counts, counts, np.nan))


def cross(
    first: Int[np.ndarray, " n"],
    first_names: Sequence[str],
    second: Int[np.ndarray, " n"],
    second_names: Sequence[str],
) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Groups of all pairs of two attributes, such as gender and age, and their names.

    Raises:
      ValueError: lengths that differ; groups without a name.
    """
    require_lengths(first=first, second=second)
    require_indices("first groups", first, len(first_names))
    require_indices("second groups", second, len(second_names))
    names = tuple(f"{a}, {b}" for a in first_names for b in second_names)
    return first * len(second_names) + second, names


def equalized_odds_difference(
    predicted: Bool[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    names: Sequence[str],
) -> float:
    """Largest gap between groups in true positive or in false positive rate; 0 to 1, 0 is fair.

    For one class against the rest: whether it was predicted, whether it is right. It is fairlearn's
    `equalized_odds_difference` with its defaults, but fairlearn takes a rate of nothing as 0.

    Raises:
      ValueError: groups in which a rate is undefined, all by name; as `by_group`.
    """
    require_lengths(predicted=predicted, truth=truth, groups=groups)
    require_indices("groups", groups, len(names))
    present = np.bincount(groups, minlength=len(names)) > 0
    gaps, faults = [], []
    for kind, chosen in (("positive", truth), ("negative", ~truth)):
        samples = np.bincount(groups[chosen], minlength=len(names))
        lacking = [names[int(g)] for g in np.flatnonzero(present & (samples == 0))]
        if lacking:
            faults.append(f"groups without a {kind} sample: {', '.join(lacking)}")
            continue
        gaps.append(by_group(predicted[chosen], groups[chosen], names).gap)
    if faults:
        raise ValueError(f"equalised odds are not defined for {'; '.join(faults)}")
    return max(gaps)


def concept_association(
    scores: Float[np.ndarray, "n P"],
    concepts: Sequence[str | None],
    groups: Int[np.ndarray, " n"],
    names: Sequence[str],
) -> dict[str, ByGroup]:
    """For each concept, the share of a group's images whose best prompt belongs to it.

    An image whose best prompts tie is divided evenly among them.

    Args:
      scores: of each image with each prompt, such as cosines.
      concepts: of each prompt: "crime", "animal", ...; None where it stands for the person.

    Raises:
      ValueError: no concept at all; lengths that differ; as `by_group`.

    Source: Radford et al. 2021, arXiv:2103.00020, section 7.1 (tables 6 and 7).
    """
    require_lengths(scores=scores, groups=groups)
    require_finite("scores", scores)
    if len(concepts) != scores.shape[1]:
        raise ValueError(
            f"{scores.shape[1]} prompts are scored, but {len(concepts)} have a concept"
        )
    listed = dict.fromkeys(concept for concept in concepts if concept is not None)
    if not listed:
        raise ValueError("no prompt belongs to a concept, so there is no association to measure")
    best = scores >= scores.max(axis=1, keepdims=True) - TIE
    shares = best / best.sum(axis=1, keepdims=True)
    return {
        concept: by_group(shares @ np.array([float(c == concept) for c in concepts]), groups, names)
        for concept in listed
    }


def max_skew(
    scores: Float[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    k: int,
    desired: Float[np.ndarray, " G"] | None = None,
) -> float:
    """MaxSkew@k of one query: log of the largest over-representation among its first k results.

    0 if the first k are of the desired shares; log 2 if a group is there twice as often. Results of
    equal score share their places evenly, so the order of the samples decides nothing.

    Args:
      scores: of each candidate for the query.
      groups: of each candidate.
      k: results looked at, 1 to n.
      desired: share of each group, summing to 1; that among all candidates if None.

    Raises:
      ValueError: k out of range; shares that are none; a candidate of a group with no share.

    Source: Geyik et al. 2019, arXiv:1905.01989, section 3; Berg et al. 2022, arXiv:2203.11933.
    """
    desired = _desired(groups, desired)
    shares = _shares(scores, groups, k, len(desired))[-1]
    some = desired > 0
    with np.errstate(divide="ignore"):  # A group that is absent has a skew of minus infinity.
        return float(np.max(np.log(shares[some] / desired[some])))


def ndkl(
    scores: Float[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    desired: Float[np.ndarray, " G"] | None = None,
    *,
    k: int | None = None,
) -> float:
    """Normalised discounted KL divergence of one query's ranking from the desired shares.

    The divergence (in nats) of the first i results, averaged over i = 1 to k (all if None) with
    weights 1 / log2(i + 1). 0 is fair. Arguments, ties, errors and sources as `max_skew`.
    """
    k = len(scores) if k is None else k
    desired = _desired(groups, desired)
    some = desired > 0
    shares = _shares(scores, groups, k, len(desired))[:, some]
    terms = shares * np.log(np.where(shares > 0, shares, 1.0) / desired[some])
    return float(np.average(terms.sum(axis=1), weights=1 / np.log2(np.arange(2, k + 2))))


def _desired(groups: np.ndarray, desired: np.ndarray | None) -> np.ndarray:
    """Checked shares; those among all candidates if none are given."""
    if desired is None:
        require_lengths(groups=groups)
        require_indices("groups", groups, int(groups.max()) + 1)
        return np.bincount(groups) / len(groups)
    if np.any(desired < 0) or abs(desired.sum() - 1) > 1e-6:
        raise ValueError(f"desired shares are 0 or more and sum to 1, got {desired.tolist()}")
    require_indices("groups", groups, len(desired))
    if strange := sorted(set(np.flatnonzero(desired == 0)) & set(groups.tolist())):
        listed = [int(group) for group in strange]
        raise ValueError(f"groups {listed} have candidates but a desired share of 0")
    return desired


def _shares(scores: np.ndarray, groups: np.ndarray, k: int, count: int) -> np.ndarray:
    """Expected share of each group among the first 1, 2, ... k results, (k, count)."""
    require_lengths(scores=scores, groups=groups)
    require_finite("scores", scores)
    if not 1 <= k <= len(scores):
        raise ValueError(f"k must be in 1 to {len(scores)}, the number of candidates; got {k}")
    order = np.argsort(-scores, kind="stable")
    block = np.append(0, np.cumsum(np.diff(-scores[order].astype(np.float64)) > TIE))
    members = np.zeros((block[-1] + 1, count))
    np.add.at(members, (block, groups[order]), 1.0)
    each = members / members.sum(axis=1, keepdims=True)
    return np.cumsum(each[block[:k]], axis=0) / np.arange(1, k + 1)[:, None]
