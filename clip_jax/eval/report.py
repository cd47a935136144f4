"""Figures for people: a table for the terminal, and pictures of what the model found."""

import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from clip_jax.data.sample import Dataset
from clip_jax.eval import pictures
from clip_jax.eval.embed import Embedder
from clip_jax.eval.retrieval import Retrieval
from clip_jax.eval.suite import Evaluator
from clip_jax.eval.zero_shot import ZeroShot

LARGEST_CONFUSION = 20
"""Classes; more make a picture that nobody can read."""
ROWS, COLUMNS = 6, 5
"""Queries in a retrieval picture, and what is shown for each."""


RATES = (
    r"accuracy|(validation_)?acc\d*(_.+)?|.*recall(@\d+|-macro_all)?|F1-macro_all|.*jaccard_score.*"
    r"|(validation_)?mean_average_precision|.*calibration_error|(text|image)_acc|toxicity_.+"
    r"|.*equalized_odds.*"
)
"""Metrics that are shown in percent."""

LOSSES = r"_gap|_error|median_rank|toxicity|equalized_odds|max_skew|ndkl"
"""Metrics of which less is better."""


def table(figures: Mapping[str, float]) -> Table:
    """A rich table of flat figures, `<task>/<name>/<metric>`; rates are shown in percent."""
    drawn = Table(title="Evaluation")
    drawn.add_column("evaluation", style="bold", overflow="fold")
    drawn.add_column("metric", overflow="fold")
    drawn.add_column("value", justify="right", no_wrap=True)
    before = None
    for name in sorted(figures, key=_natural):
        group, _, metric = name.rpartition("/")
        if group != before and before is not None:
            drawn.add_section()
        # Not markup: a name may hold square brackets.
        shown = Text(group if group != before else "")
        drawn.add_row(shown, Text(metric), readable(metric, figures[name]))
        before = group
    return drawn


def is_rate(metric: str) -> bool:
    """Whether a metric is a share, which people read in percent."""
    return re.fullmatch(RATES, metric) is not None


def is_loss(metric: str) -> bool:
    """Whether less of a metric is better."""
    return re.search(LOSSES, metric) is not None


def signed(metric: str, value: float) -> str:
    """A difference of a metric: percentage points for shares, with a sign unless it rounds to 0."""
    plain = f"{value:+,.4g}" if abs(value) >= 1 else f"{value:+.2g}"
    shown = f"{100 * value:+.1f}" if is_rate(metric) else plain
    zero = not shown.strip("+-0.")
    return shown[1:] if zero else shown.replace("-", "\N{MINUS SIGN}")


def readable(metric: str, value: float) -> str:
    """A value as people read it: `81.3%` for accuracies and recalls, a plain number otherwise."""
    if is_rate(metric):
        return f"{100 * value:.1f}%"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def draw_evals(
    evals: Mapping[str, Evaluator],
    dataset: Dataset,
    embedder: Embedder,
    folder: str | os.PathLike[str],
) -> list[pathlib.Path]:
    """Draw each evaluation that has a picture into `folder`; the paths, in order.

    `Retrieval` gives `<name>_text_to_image.png` and `<name>_image_to_text.png`, `ZeroShot` of
    up to 20 classes `<name>_confusion.png`. A slash in a name becomes an underscore. The model
    is asked again, as figures alone do not say which picture was found (see `eval.remember`).

    Raises:
      ValueError: as the evaluations' own `run`.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Figure] = {}
    for name, evaluation in evals.items():
        if isinstance(evaluation, Retrieval):
            drawn |= _draw_retrieval(name, evaluation, dataset, embedder)
        elif isinstance(evaluation, ZeroShot):
            drawn |= _draw_zero_shot(name, evaluation, dataset, embedder)
    paths = {folder / f"{name.replace('/', '_')}.png": figure for name, figure in drawn.items()}
    for path, figure in paths.items():
        pictures.save(figure, path)
    return list(paths)


def _draw_retrieval(
    name: str, evaluation: Retrieval, dataset: Dataset, embedder: Embedder
) -> dict[str, Figure]:
    split = evaluation.embed(dataset, embedder)
    source = (dataset if evaluation.data is None else evaluation.data).open(evaluation.split)
    first = np.unique(split.text_ids, return_index=True)[1]  # Each distinct caption once.
    pairs = set(zip(split.image_of_text.tolist(), split.text_ids.tolist(), strict=True))
    images, texts = split.found.images, split.texts[first]

    def pixels(row: int) -> np.ndarray:
        return embedder.prepare(source[split.found.indices[row]].image)

    queries = _spread(len(texts), ROWS)
    found = _nearest(texts[queries], images, COLUMNS)
    right = [[(i, t) in pairs for i in row] for t, row in zip(queries, found, strict=True)]
    to_image = pictures.text_to_image_grid(
        [split.captions[first[text]] for text in queries],
        np.array([[pixels(image) for image in row] for row in found]),
        np.array(right),
        f"{name}: nearest of {len(images):,} pictures (green: of this caption)",
    )
    queries = _spread(len(images), ROWS)
    found = _nearest(images[queries], texts, COLUMNS)
    to_text = pictures.image_to_text_grid(
        np.array([pixels(image) for image in queries]),
        [[split.captions[first[text]] for text in row] for row in found],
        [[(i, t) in pairs for t in row] for i, row in zip(queries, found, strict=True)],
        f"{name}: nearest of {len(texts):,} captions (green: its own)",
    )
    return {f"{name}_text_to_image": to_image, f"{name}_image_to_text": to_text}


def _draw_zero_shot(
    name: str, evaluation: ZeroShot, dataset: Dataset, embedder: Embedder
) -> dict[str, Figure]:
    classes = evaluation.names(dataset if evaluation.data is None else evaluation.data)
    if len(classes) > LARGEST_CONFUSION:
        return {}
    found, classifier, labels = evaluation.embed(dataset, embedder)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (labels, np.argmax(found.images @ classifier.T, axis=1)), 1)
    share = np.trace(counts) / len(labels)
    title = f"{name}: {100 * share:.1f}% of {len(labels):,} pictures are right"
    return {f"{name}_confusion": pictures.confusion(counts, classes, title)}


def _spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of `count` positions, evenly spread: examples that nobody picked by hand."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int)).tolist()


def _nearest(queries: np.ndarray, keys: np.ndarray, k: int) -> list[list[int]]:
    """Rows of the k keys nearest to each query, best first."""
    return np.argsort(-(queries @ keys.T), axis=1, kind="stable")[:, :k].tolist()


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which `recall@5` stands before `recall@10`."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
