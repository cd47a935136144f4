"""What a report shows of an outcome, found in its arrays: the page and the plots draw the same."""

import dataclasses
import os
import pathlib
from collections.abc import Collection

import numpy as np
from jaxtyping import Int, UInt8

from clip_jax.config import read_json
from clip_jax.eval import outcome as outcomes
from clip_jax.eval.classification import Calibration, confusion_matrix, reliability
from clip_jax.eval.outcome import Outcome

ENDS = 20
"""Classes shown from either end, where there are more than twice as many."""
LARGEST_CONFUSION = 20
"""Classes of a whole confusion matrix; of more, the pairs confused most are shown."""
PAIRS = 20
MISTAKES = 12


def read_all(out: str | os.PathLike[str], keys: Collection[str] | None = None) -> list[Outcome]:
    """The outcomes in OUT/results: those asked for, in their order, or all by name.

    Raises:
      FileNotFoundError: there is none; says what was looked for.
      ValueError: a file that is no outcome, or lacks its arrays; keys without an outcome.
    """
    folder = pathlib.Path(out) / "results"
    wanted = None if keys is None else {outcomes.file_name(key) for key in keys}
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(_read(folder, path))
        except ValueError:
            # What an earlier evaluation left damaged is not shown, and no fault of this one.
            if wanted is None or path.stem in wanted:
                raise
    if not found:
        raise FileNotFoundError(f"no evaluation in {out}: it has no results/*.json")
    if keys is None:
        return found
    known = {one.key: one for one in found}
    if missing := [key for key in keys if key not in known]:
        raise ValueError(f"{folder} has no outcome of {missing}; it has {list(known)}")
    return [known[key] for key in keys]


def _read(folder: pathlib.Path, path: pathlib.Path) -> Outcome:
    data = read_json(path)
    key = data.get("key") if isinstance(data, dict) else None
    if not isinstance(key, str) or outcomes.file_name(key) != path.stem:
        raise ValueError(f"{path}: not an outcome as this program writes it")
    one = outcomes.load(folder, key)
    if one is None:
        raise ValueError(f"{path} has lost its arrays, {path.stem}.npz: evaluate it again")
    return one


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassRow:
    """How one class fared."""

    name: str
    accuracy: float
    samples: int


def by_class(outcome: Outcome) -> list[ClassRow]:
    """Classes that have a sample, best first; empty where the task has no classes."""
    if not _classified(outcome):
        return []
    # Not from a confusion matrix: ten thousand classes have a hundred million cells.
    names, labels = outcome.arrays["class_names"], outcome.arrays["labels"]
    hits = np.bincount(labels, weights=outcome.arrays["top"][:, 0] == labels)
    samples = np.bincount(labels)
    rows = [
        ClassRow(name=str(names[k]), accuracy=float(hits[k] / samples[k]), samples=int(samples[k]))
        for k in np.flatnonzero(samples)
    ]
    return sorted(rows, key=lambda row: -row.accuracy)


def whole_confusion(outcome: Outcome) -> Int[np.ndarray, "K K"] | None:
    """Counts of true class (row) by class given; None for many classes, or for none."""
    if not _classified(outcome) or len(outcome.arrays["class_names"]) > LARGEST_CONFUSION:
        return None
    arrays = outcome.arrays
    given, labels = arrays["top"][:, 0].astype(np.int64), arrays["labels"].astype(np.int64)
    return confusion_matrix(given, labels, len(arrays["class_names"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Samples of one class that were taken for another."""

    true: str
    given: str
    count: int
    share: float
    """Of all samples of the true class."""


def confused(outcome: Outcome) -> list[Pair]:
    """The pairs confused most often, at most `PAIRS`."""
    if not _classified(outcome):
        return []
    names = outcome.arrays["class_names"]
    labels, given = outcome.arrays["labels"], outcome.arrays["top"][:, 0]
    wrong = labels != given
    cells, counts = np.unique(
        np.stack([labels[wrong], given[wrong]], axis=1), axis=0, return_counts=True
    )
    samples = np.bincount(labels, minlength=len(names))
    return [
        Pair(
            true=str(names[cells[at, 0]]),
            given=str(names[cells[at, 1]]),
            count=int(counts[at]),
            share=float(counts[at] / samples[cells[at, 0]]),
        )
        for at in np.argsort(-counts, kind="stable")[:PAIRS]
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistake:
    """A sample that was put into a wrong class."""

    key: str
    true: str
    given: str
    confidence: float
    pixels: UInt8[np.ndarray, "S S 3"] | None
    """None where no thumbnail was kept."""


def mistakes(outcome: Outcome) -> list[Mistake]:
    """Those the model was surest of, at most `MISTAKES`, the surest first."""
    if not _classified(outcome) or "confidence" not in outcome.arrays:
        return []
    arrays, shown = outcome.arrays, thumbnails(outcome)
    names, given, confidence = arrays["class_names"], arrays["top"][:, 0], arrays["confidence"]
    wrong = np.flatnonzero(given != arrays["labels"])
    rows = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES].tolist()
    return [
        Mistake(
            key=str(arrays["keys"][row]),
            true=str(names[arrays["labels"][row]]),
            given=str(names[given[row]]),
            confidence=float(confidence[row]),
            pixels=shown.get(row),
        )
        for row in rows
    ]


def calibration(outcome: Outcome) -> Calibration | None:
    """The reliability curve; None where the task has no probabilities."""
    if not _classified(outcome) or "confidence" not in outcome.arrays:
        return None
    arrays = outcome.arrays
    return reliability(arrays["confidence"], arrays["top"][:, 0] == arrays["labels"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A query and what was found for it, best first; pictures and captions as rows."""

    query: int
    found: tuple[int, ...]
    right: tuple[bool, ...]


def searches(outcome: Outcome, wanted: str) -> list[Search]:
    """The kept queries of one direction: `to_image` or `to_text`; empty where there is none.

    A picture is right for a caption that it carries, whoever else carries the same words.
    """
    arrays = outcome.arrays
    if f"{wanted}/queries" not in arrays:
        return []
    captions, owner = arrays["captions"].tolist(), arrays["image_of_text"].tolist()
    pairs = set(zip(owner, captions, strict=True))
    queries, found_for = arrays[f"{wanted}/queries"], arrays[f"{wanted}/found"]
    to_image = wanted == "to_image"
    return [
        Search(
            query=query,
            found=tuple(found),
            right=tuple(
                ((f, captions[query]) if to_image else (query, captions[f])) in pairs for f in found
            ),
        )
        for query, found in zip(queries.tolist(), found_for.tolist(), strict=True)
    ]


def thumbnails(outcome: Outcome) -> dict[int, UInt8[np.ndarray, "S S 3"]]:
    """Kept pictures by the row of their sample."""
    arrays = outcome.arrays
    if "pictures" not in arrays:
        return {}
    return dict(zip(arrays["picture_rows"].tolist(), arrays["pictures"], strict=True))


def _classified(outcome: Outcome) -> bool:
    return {"class_names", "labels", "top"} <= set(outcome.arrays)
