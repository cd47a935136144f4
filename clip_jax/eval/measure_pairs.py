"""Outcome of tasks that match pictures and texts: retrieval, and small sets of candidates."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from clip_jax.eval import compositional, metrics
from clip_jax.eval.checks import without_caption
from clip_jax.eval.once import Embeddings
from clip_jax.eval.opened import Example, Opened
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.thumbnails import thumbnails

KS = (1, 5, 10)
SHOWN = 6
"""Queries of each direction that the report shows, with what was found for them."""
FOUND = 5


def retrieval(opened: Opened, embeddings: Embeddings, warn: Callable[[str], None]) -> Outcome:
    """Recall both ways under CLIP_benchmark's names, and median ranks.

    As there, every caption stands for itself and is right for its own picture only. A tie counts
    as a miss: so do equal captions of two pictures.

    Raises:
      ValueError: no picture with a caption.
    """
    task = opened.task
    found = embeddings.pictures(opened.source, opened.pictures).passing(without_caption)
    if not found.keys:
        raise ValueError(f"{opened.folder}: no sample has a caption")
    pairs = [(row, t) for row, texts in enumerate(found.texts) for t in texts if t.strip()]
    captions = [text for _, text in pairs]
    image_of_text = np.array([row for row, _ in pairs], np.int64)
    texts = embeddings.texts(captions)
    to_text, to_image = metrics.retrieval_ranks(found.images, texts, image_of_text)
    figures, arrays = _recalls(to_image, to_text)
    grids, rows = _grids(found.images, texts)
    return Outcome(
        key=task.key,
        dataset=task.name,
        task=task.kind,
        main=task.main,
        figures=figures,
        skipped=found.skipped,
        arrays={
            "keys": np.array(found.keys),
            "captions": np.array(captions),
            "image_of_text": image_of_text,
            **arrays,
            **grids,
            **thumbnails(opened.source, found.indices, rows),
        },
    )


def winogavil(opened: Opened, embeddings: Embeddings, warn: Callable[[str], None]) -> Outcome:
    """Jaccard index of the chosen pictures, by the number of candidates, under DataComp's names.

    Raises:
      ValueError: no cue whose pictures can all be read.
    """
    sets = _sets(opened, embeddings)
    counts = [len(example.pictures) for example in sets.examples]
    found = compositional.winogavil(
        sets.texts[:, 0],
        sets.images,
        np.repeat(np.arange(len(counts)), counts),
        np.array([right for example in sets.examples for right in example.right]),
    )
    figures = {"avg_jaccard_score": found.mean()}
    credit = {"avg_jaccard_score": found.jaccard}
    sizes = sorted(set(counts))
    wanted: dict[str, tuple[int, ...]] = {str(size): (size,) for size in (5, 6, 10, 12)}
    wanted["5-6"] = tuple(size for size in sizes if size <= 6)
    wanted["10-12"] = tuple(size for size in sizes if size >= 10)
    for name, these in wanted.items():
        if set(these) & set(sizes):
            figures[f"jaccard_score_{name}"] = found.mean(*these)
            of_these = np.isin(counts, these)
            credit[f"jaccard_score_{name}"] = np.where(of_these, found.jaccard, np.nan)
    return _outcome(opened, sets, figures, credit)


def winoground(opened: Opened, embeddings: Embeddings, warn: Callable[[str], None]) -> Outcome:
    """`text_acc`, `image_acc` and, for the group score, `acc`, under CLIP_benchmark's names.

    Raises:
      ValueError: no row whose pictures can both be read.
    """
    sets = _sets(opened, embeddings)
    images = sets.images.reshape(len(sets.examples), 2, -1)
    found = compositional.winoground(images, sets.texts)
    solved = {"image_acc": found.image, "text_acc": found.text, "acc": found.group}
    figures = {name: float(np.mean(values)) for name, values in solved.items()}
    return _outcome(opened, sets, figures, solved)


def sugarcrepe(opened: Opened, embeddings: Embeddings, warn: Callable[[str], None]) -> Outcome:
    """`acc`, the mean over all captions, and `acc_CATEGORY`.

    Raises:
      ValueError: no caption whose picture can be read.
    """
    sets = _sets(opened, embeddings)
    names = sorted({example.category for example in sets.examples})
    categories = np.array([names.index(example.category) for example in sets.examples])
    positives, negatives = sets.texts[:, 0], sets.texts[:, 1]
    found = compositional.sugarcrepe(sets.images, positives, negatives, categories, names)
    margin = np.sum(sets.images.astype(np.float64) * (positives.astype(np.float64) - negatives), 1)
    figures = {"acc": float(np.average(found.means, weights=found.counts))}
    figures |= {f"acc_{name}": float(m) for name, m in zip(names, found.means, strict=True)}
    outcome = _outcome(opened, sets, figures, {"acc": margin > metrics.TIE})
    rows = {
        name: {"accuracy": float(mean), "captions": float(count)}
        for name, mean, count in zip(names, found.means, found.counts, strict=True)
    }
    groups = {"group/category": categories, "group_names/category": np.array(names)}
    return dataclasses.replace(
        outcome, tables={"Accuracy by category": rows}, arrays={**outcome.arrays, **groups}
    )


@dataclasses.dataclass(frozen=True)
class _Sets:
    """Examples all of whose pictures could be read, and their embeddings."""

    examples: tuple[Example, ...]
    images: Float[np.ndarray, "pictures D"]
    """Those of one example after those of another."""
    texts: Float[np.ndarray, "n texts D"]
    skipped: tuple[str, ...]


def _sets(opened: Opened, embeddings: Embeddings) -> _Sets:
    found = embeddings.pictures(opened.source, opened.pictures)
    row_of = {index: row for row, index in enumerate(found.indices)}
    whole = tuple(e for e in opened.examples if all(number in row_of for number in e.pictures))
    if not whole:
        raise ValueError(f"{opened.folder}: no example whose pictures can all be read")
    kept = set(whole)
    lost = tuple(f"{e.key}: a picture is missing" for e in opened.examples if e not in kept)
    rows = [row_of[number] for example in whole for number in example.pictures]
    texts = embeddings.texts([text for example in whole for text in example.texts])
    return _Sets(
        examples=whole,
        images=found.images[rows],
        texts=texts.reshape(len(whole), -1, texts.shape[1]),
        skipped=(*found.skipped, *lost),
    )


def _outcome(
    opened: Opened, sets: _Sets, figures: dict[str, float], credit: dict[str, np.ndarray]
) -> Outcome:
    return Outcome(
        key=opened.task.key,
        dataset=opened.task.name,
        task=opened.task.kind,
        # A part of WinoGAViL may lack the cues that its main figure is about.
        main=opened.task.main if opened.task.main in figures else None,
        figures=figures,
        skipped=sets.skipped,
        arrays={
            "keys": np.array([example.key for example in sets.examples]),
            **{f"credit/{name}": values.astype(np.float64) for name, values in credit.items()},
        },
    )


def _recalls(
    to_image: Int[np.ndarray, " m"], to_text: Int[np.ndarray, " n"]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Figures, and the arrays behind them; no recall at more than there are candidates."""
    figures: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    ways = {"image_retrieval": (to_image, len(to_text)), "text_retrieval": (to_text, len(to_image))}
    for way, (ranks, candidates) in ways.items():
        for k in [k for k in KS if k <= candidates]:
            figures[f"{way}_recall@{k}"] = metrics.hit_rate(ranks, k)
            arrays[f"credit/{way}_recall@{k}"] = (ranks < k).astype(np.float64)
        arrays[f"rank/{way}"] = ranks.astype(np.min_scalar_type(ranks.max()))
    figures["mean_recall@1"] = sum(figures[f"{way}_recall@1"] for way in ways) / 2
    figures |= {f"{way}_median_rank": metrics.median_rank(r) for way, (r, _) in ways.items()}
    return figures, arrays


def _grids(
    images: Float[np.ndarray, "n D"], texts: Float[np.ndarray, "m D"]
) -> tuple[dict[str, Int[np.ndarray, "..."]], list[int]]:
    """Evenly spread queries and what was found for them; and the rows of all pictures in these."""
    to_image, to_text = _spread(len(texts)), _spread(len(images))
    found_images = _nearest(texts[to_image], images)
    found = {
        "to_image/queries": to_image,
        "to_image/found": found_images,
        "to_text/queries": to_text,
        "to_text/found": _nearest(images[to_text], texts),
    }
    return found, [*found_images.reshape(-1).tolist(), *to_text.tolist()]


def _spread(count: int) -> Int[np.ndarray, " queries"]:
    """Positions evenly spread, so that nobody picked the examples."""
    return np.unique(np.linspace(0, count - 1, min(count, SHOWN)).astype(np.int64))


def _nearest(queries: np.ndarray, keys: np.ndarray) -> Int[np.ndarray, "queries found"]:
    scores = queries.astype(np.float64) @ keys.astype(np.float64).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :FOUND]
