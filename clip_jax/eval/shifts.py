"""Figures under distribution shift: effective robustness, worst region, F1 of present classes."""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.eval.checks import require_lengths
from clip_jax.eval.classification import confusion_matrix, f1_scores
from clip_jax.eval.fairness import ByGroup, by_group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trend:
    """What accuracy under shift to expect of a model: a straight line between logits."""

    slope: float
    intercept: float

    def expected(self, accuracy: float) -> float:
        """Accuracy under shift of an ordinary model with this accuracy without; both in 0 to 1.

        Raises:
          ValueError: an accuracy of 0, 1 or outside, which has no logit.
        """
        (logit,) = _logits("accuracy", np.array([accuracy]))
        return float(1 / (1 + np.exp(-(self.slope * logit + self.intercept))))

    def effective_robustness(self, accuracy: float, shifted: float) -> float:
        """How much higher the accuracy under shift is than expected; -1 to 1, 0 is ordinary.

        Args:
          accuracy: without the shift (ImageNet), strictly between 0 and 1.
          shifted: under it (ImageNet-V2, ObjectNet, ...).

        Raises:
          ValueError: as `expected`.
        """
        return shifted - self.expected(accuracy)


def fit_trend(accuracies: Float[np.ndarray, " n"], shifted: Float[np.ndarray, " n"]) -> Trend:
    """Least-squares line between the logits of baseline models' accuracies without and with shift.

    Args:
      accuracies, shifted: of each baseline (models trained on the data without shift alone), both
        strictly between 0 and 1.

    Raises:
      ValueError: lengths that differ; accuracies without a logit; fewer than two distinct ones.

    Source: Taori et al. 2020, arXiv:2007.00644, section 2 and appendix (logit scaling).
    """
    require_lengths(accuracies=accuracies, shifted=shifted)
    x, y = _logits("accuracies", accuracies), _logits("shifted", shifted)
    if np.ptp(x) == 0:
        raise ValueError("a trend needs baselines of at least two different accuracies")
    slope = np.sum((x - x.mean()) * (y - y.mean())) / np.sum((x - x.mean()) ** 2)
    return Trend(slope=float(slope), intercept=float(y.mean() - slope * x.mean()))


def worst_region(
    right: Bool[np.ndarray, " n"],
    regions: Int[np.ndarray, " n"],
    names: Sequence[str],
    *,
    ignored: Collection[str] = (),
) -> ByGroup:
    """Accuracy by region, in which some regions may be left out; `worst` is the WILDS figure.

    Args:
      right: whether each prediction is.
      regions: of each sample.
      names: of the regions.
      ignored: regions that do not count. WILDS ignores FMoW's "Other"; DataComp gives its groups
        no names, and so counts it.

    Raises:
      ValueError: an ignored region that is none; no sample elsewhere; as `by_group`.

    Source: Koh et al. 2021, arXiv:2012.07421, appendix on FMoW.
    """
    if strange := [name for name in ignored if name not in names]:
        raise ValueError(f"ignored regions {strange} are not among {list(names)}")
    found = by_group(right, regions, names)
    kept = [row for row, name in enumerate(names) if name not in ignored]
    if not found.counts[kept].any():
        raise ValueError(f"no sample is left outside the ignored regions {list(ignored)}")
    return ByGroup(
        names=tuple(names[row] for row in kept),
        counts=found.counts[kept],
        means=found.means[kept],
    )


def present_macro_f1(
    predicted: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int
) -> float:
    """F1 averaged over the classes that have a sample, as WILDS does for iWildCam; 0 to 1.

    `classification.macro_f1` also counts, as 0, classes that are predicted and have no sample.

    Raises:
      ValueError: as `classification.confusion_matrix`.
    """
    scores = f1_scores(confusion_matrix(predicted, labels, classes))
    return float(np.mean(scores[np.unique(labels)]))


def _logits(what: str, accuracies: np.ndarray) -> np.ndarray:
    wrong = np.flatnonzero(~((accuracies > 0) & (accuracies < 1)))
    if wrong.size:
        raise ValueError(
            f"{what}: {accuracies[wrong[0]]} of row {wrong[0]} has no logit; "
            "an accuracy strictly between 0 and 1 is needed"
        )
    return np.log(accuracies / (1 - accuracies))
