"""Tests of word order and association: small sets of candidates that a bag of words confuses.

Scores are cosines in float64; one that beats another by less than `metrics.TIE` does not beat it,
so a model that cannot tell candidates apart gets 0.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.eval.checks import require_finite, require_indices, require_lengths
from clip_jax.eval.fairness import ByGroup, by_group
from clip_jax.eval.metrics import TIE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Winoground:
    """Which examples are solved; the scores in print are the means."""

    text: Bool[np.ndarray, " n"]
    """For both images, its caption scores higher than the other's."""
    image: Bool[np.ndarray, " n"]
    """For both captions, its image scores higher than the other's."""
    group: Bool[np.ndarray, " n"]
    """Both of these."""


def winoground(images: Float[np.ndarray, "n 2 D"], texts: Float[np.ndarray, "n 2 D"]) -> Winoground:
    """Two images and two captions of the same words an example; caption i belongs to image i.

    Args:
      images, texts: unit-norm embeddings.

    Raises:
      ValueError: no example; lengths that differ; embeddings that are not finite.

    Source: Thrush et al. 2022, arXiv:2204.03162, section 3.3.
    """
    _require_rows(images=images, texts=texts)
    scores = np.einsum("ntd,nid->nti", texts.astype(np.float64), images.astype(np.float64))
    own = scores[:, [0, 1], [0, 1]]
    text = np.all(own > scores[:, [1, 0], [0, 1]] + TIE, axis=1)
    image = np.all(own > scores[:, [0, 1], [1, 0]] + TIE, axis=1)
    return Winoground(text=text, image=image, group=text & image)


def sugarcrepe(
    images: Float[np.ndarray, "n D"],
    positives: Float[np.ndarray, "n D"],
    negatives: Float[np.ndarray, "n D"],
    categories: Int[np.ndarray, " n"],
    names: Sequence[str],
) -> ByGroup:
    """Share of images, by category, nearer to their caption than to its hard negative.

    Args:
      images, positives, negatives: unit-norm embeddings; row i of each belongs together.
      categories: number of each row's category (swap, replace, add; of object, attribute, ...).
      names: of the categories.

    Raises:
      ValueError: no example; lengths that differ; embeddings that are not finite; as `by_group`.

    Source: Hsieh et al. 2023, arXiv:2306.14610, section 4.
    """
    _require_rows(images=images, positives=positives, negatives=negatives)
    wide = images.astype(np.float64)
    margin = np.sum(wide * positives, axis=1) - np.sum(wide * negatives, axis=1)
    return by_group(margin > TIE, categories, names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WinoGAViL:
    """How well the images associated with each cue were chosen."""

    jaccard: Float[np.ndarray, " n"]
    """Of the chosen and the associated images: size of intersection over union; 0 to 1."""
    candidates: Int[np.ndarray, " n"]
    """Images to choose from: 5, 6, 10 or 12."""

    def mean(self, *candidates: int) -> float:
        """Mean Jaccard index of the cues with so many candidates; of all if none are given.

        `mean(10, 12)` is DataComp's `jaccard_score_10-12`.

        Raises:
          ValueError: no cue has so many.
        """
        chosen = np.isin(self.candidates, candidates) if candidates else self.candidates > 0
        if not chosen.any():
            known = sorted(set(self.candidates.tolist()))
            raise ValueError(f"no cue has {candidates} candidates; there are {known}")
        return float(self.jaccard[chosen].mean())


def winogavil(
    cues: Float[np.ndarray, "n D"],
    candidates: Float[np.ndarray, "m D"],
    cue_of_candidate: Int[np.ndarray, " m"],
    associated: Bool[np.ndarray, " m"],
) -> WinoGAViL:
    """Choose for each cue its nearest candidates, as many as are associated with it.

    Where candidates tie for the last places, those that are not associated get them.

    Args:
      cues: unit-norm text embeddings.
      candidates: unit-norm image embeddings, of all cues one after another.
      cue_of_candidate: row of the cue for which each is a candidate.
      associated: whether people associated it with the cue.

    Raises:
      ValueError: a cue without an associated candidate; lengths that differ; not finite.

    Source: Bitton et al. 2022, arXiv:2207.12576, section 4.
    """
    _require_rows(cues=cues)
    _require_rows(candidates=candidates, cue_of_candidate=cue_of_candidate, associated=associated)
    require_indices("cues of candidates", cue_of_candidate, len(cues))
    wanted = np.bincount(cue_of_candidate[associated], minlength=len(cues))
    if (lonely := np.flatnonzero(wanted == 0)).size:
        raise ValueError(
            f"{lonely.size} of {len(cues)} cues have no associated candidate; "
            f"the first is cue {lonely[0]}"
        )
    scores = np.sum(cues[cue_of_candidate].astype(np.float64) * candidates, axis=1)
    order = np.argsort(cue_of_candidate, kind="stable")
    counts = np.bincount(cue_of_candidate, minlength=len(cues))
    rows = np.split(order, np.cumsum(counts)[:-1])
    hits = np.array([_hits(scores[row], associated[row]) for row in rows])
    return WinoGAViL(jaccard=hits / (2 * wanted - hits), candidates=counts)


def _hits(scores: np.ndarray, associated: np.ndarray) -> int:
    """Associated candidates among the first, as many as there are; ties go to the others."""
    places = int(associated.sum())
    last = np.sort(scores)[-places]
    above, level = scores > last + TIE, np.abs(scores - last) <= TIE
    left = places - int(above.sum()) - int((level & ~associated).sum())
    return int((above & associated).sum()) + max(0, left)


def _require_rows(**arrays: np.ndarray) -> None:
    require_lengths(**arrays)
    for name, rows in arrays.items():
        require_finite(name, rows)
