"""The plots of a report as PNG files, for slides and papers."""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from clip_jax.eval import outcome as outcomes
from clip_jax.eval import page_data as data
from clip_jax.eval import pictures
from clip_jax.eval.outcome import Outcome


def draw(found: Sequence[Outcome], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw what each outcome has into `folder`; the paths, in order.

    NAME is `outcome.file_name`: NAME_classes, NAME_confusion (few classes), NAME_mistakes,
    NAME_text_to_image, NAME_image_to_text, NAME_calibration.

    Raises:
      OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in found:
        for kind, figure in _figures(one):
            paths.append(folder / f"{outcomes.file_name(one.key)}_{kind}.png")
            pictures.save(figure, paths[-1])
    return paths


def _figures(one: Outcome) -> Iterator[tuple[str, Figure]]:
    if rows := data.by_class(one):
        shown = rows if len(rows) <= 2 * data.ENDS else [*rows[: data.ENDS], *rows[-data.ENDS :]]
        title = f"{one.dataset}: accuracy of each class"
        if len(shown) < len(rows):
            title = f"{one.dataset}: the {data.ENDS} best and worst of {len(rows):,} classes"
        values = np.array([row.accuracy for row in shown])
        yield "classes", pictures.bars([row.name for row in shown], values, title)
    if (matrix := data.whole_confusion(one)) is not None:
        share = np.trace(matrix) / matrix.sum()
        title = f"{one.dataset}: {100 * share:.1f}% of {matrix.sum():,} pictures are right"
        names = [str(n) for n in one.arrays["class_names"]]
        yield "confusion", pictures.confusion(matrix, names, title)
    if wrong := [m for m in data.mistakes(one) if m.pixels is not None]:
        told = [f"{m.given} ({m.confidence:.0%}), is {m.true}" for m in wrong]
        images = np.stack([m.pixels for m in wrong if m.pixels is not None])
        yield "mistakes", pictures.contact_sheet(images, told, f"{one.dataset}: surest mistakes")
    yield from _grids(one)
    if (curve := data.calibration(one)) is not None:
        yield "calibration", pictures.calibration(curve, f"{one.dataset}: calibration")


def _grids(one: Outcome) -> Iterator[tuple[str, Figure]]:
    shown = data.thumbnails(one)
    if "captions" not in one.arrays or not shown:
        return
    captions = [str(c) for c in one.arrays["captions"]]
    blank = np.full_like(next(iter(shown.values())), 200)
    if found := data.searches(one, "to_image"):
        yield (
            "text_to_image",
            pictures.text_to_image_grid(
                [captions[s.query] for s in found],
                np.array([[shown.get(row, blank) for row in s.found] for s in found]),
                np.array([s.right for s in found]),
                f"{one.dataset}: nearest pictures (green: of this caption)",
            ),
        )
    if found := data.searches(one, "to_text"):
        yield (
            "image_to_text",
            pictures.image_to_text_grid(
                np.array([shown.get(s.query, blank) for s in found]),
                [[captions[row] for row in s.found] for s in found],
                [list(s.right) for s in found],
                f"{one.dataset}: nearest captions (green: its own)",
            ),
        )
