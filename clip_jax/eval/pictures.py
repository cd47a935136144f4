"""Drawings of what a model finds: functions of arrays and strings to matplotlib figures.

Only `Figure` objects are used, never pyplot: nothing global changes and no display is needed.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from clip_jax.eval.classification import Calibration

RIGHT, WRONG = "#1a9850", "#b0b0b0"
SIDE = 1.25
"""Inches of a picture's side."""
GAP = 0.14
"""Inches between pictures."""
EDGE = 0.2
"""Inches around the whole drawing."""
CAPTION = 2.3
"""Inches for a caption beside its pictures."""
TOP = 0.55
"""Inches for the title."""
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Noto Sans Devanagari",
    "Arial Unicode MS",
)
"""Tried, where installed, for the letters that matplotlib's own font lacks."""


def text_to_image_grid(
    queries: Sequence[str],
    images: UInt8[np.ndarray, "queries k S S 3"],
    right: Bool[np.ndarray, "queries k"],
    title: str,
) -> Figure:
    """One row a caption, beside it the k pictures found for it, best first, right ones green."""
    rows, columns = right.shape
    width = 2 * EDGE + CAPTION + columns * (SIDE + GAP) - GAP
    figure = Figure(figsize=(width, 2 * EDGE + TOP + rows * (SIDE + GAP) - GAP), dpi=110)
    _title(figure, title)
    for row in range(rows):
        top = EDGE + TOP + row * (SIDE + GAP)
        caption = wrap(queries[row], width=25, lines=6)
        _write(figure, EDGE, top + SIDE / 2, caption)
        for column in range(columns):
            left = EDGE + CAPTION + column * (SIDE + GAP)
            _show(figure, left, top, images[row, column], bool(right[row, column]))
    return figure


def image_to_text_grid(
    images: UInt8[np.ndarray, "queries S S 3"],
    captions: Sequence[Sequence[str]],
    right: Sequence[Sequence[bool]],
    title: str,
) -> Figure:
    """One row a picture, beside it the captions found for it, best first, right ones green."""
    rows, beside = len(images), 5.8
    width = 2 * EDGE + SIDE + GAP + beside
    figure = Figure(figsize=(width, 2 * EDGE + TOP + rows * (SIDE + GAP) - GAP), dpi=110)
    _title(figure, title)
    for row in range(rows):
        top = EDGE + TOP + row * (SIDE + GAP)
        _show(figure, EDGE, top, images[row], None)
        for line, (caption, hit) in enumerate(zip(captions[row], right[row], strict=True)):
            y = top + SIDE * (line + 0.5) / len(captions[row])
            color = RIGHT if hit else "#606060"
            # Apart from the caption, so that it stays in front of right-to-left letters.
            _write(figure, EDGE + SIDE + GAP, y, "✓" if hit else "✗", color=color)
            line_text = wrap(caption, width=64, lines=1)
            _write(figure, EDGE + SIDE + 2.5 * GAP, y, line_text, color=color)
    return figure


def contact_sheet(
    images: UInt8[np.ndarray, "n S S 3"], captions: Sequence[str], title: str, columns: int = 6
) -> Figure:
    """Pictures in rows, each with its caption below."""
    rows, below = -(-len(images) // columns), 0.62
    cell = SIDE + 4 * GAP, SIDE + GAP + below
    size = 2 * EDGE + columns * cell[0] - GAP, 2 * EDGE + TOP + rows * cell[1]
    figure = Figure(figsize=size, dpi=110)
    _title(figure, title)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = EDGE + number % columns * cell[0]
        top = EDGE + TOP + number // columns * cell[1]
        _show(figure, left, top, image, None)
        text = wrap(caption, width=29, lines=4)
        _write(figure, left, top + SIDE + 0.06, text, fontsize=7, va="top")
    return figure


def confusion(counts: Int[np.ndarray, "K K"], names: Sequence[str], title: str) -> Figure:
    """Pictures of each true class (row) by the class they were given (column).

    Cells hold counts; their shade is the share of the row.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.42 * len(names)
    figure = Figure(figsize=(side + 0.4, side), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    short = [wrap(name, width=22, lines=1) for name in names]
    axes.set_xticks(range(len(names)), short, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), short)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    axes.set_ylabel("true class")
    axes.set_xlabel("class given")
    axes.tick_params(length=0)
    _style(axes, title, width=int(side * 9))
    return figure


def bars(names: Sequence[str], shares: Float[np.ndarray, " rows"], title: str) -> Figure:
    """A horizontal bar for each name, from above, with its share in percent."""
    figure = Figure(figsize=(6.4, 1.1 + 0.24 * len(names)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    places = range(len(names))
    drawn = axes.barh(places, shares, color="#4878a8", height=0.75)
    axes.bar_label(drawn, [f"{100 * share:.1f}%" for share in shares], padding=3, fontsize=8)
    axes.set_yticks(places, [wrap(name, width=34, lines=1) for name in names])
    axes.set(xlim=(0, 1.08), ylim=(len(names) - 0.4, -0.6), xticks=[])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    _style(axes, title, width=70)
    return figure


def calibration(curve: Calibration, title: str) -> Figure:
    """Accuracy by confidence, against the line of a model that is as sure as it should be."""
    figure = Figure(figsize=(4.6, 4.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    some = curve.counts > 0
    amount = curve.counts / curve.counts.max()
    axes.bar(curve.edges[:-1], amount, np.diff(curve.edges), align="edge", color="#e4e8ef")
    axes.plot([0, 1], [0, 1], linestyle="--", color="#808080", linewidth=1)
    axes.plot(curve.confidence[some], curve.accuracy[some], marker="o", color="#2b5c8a")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set(xlabel="probability of the class given", ylabel="share that is right (bars: samples)")
    _style(axes, f"{title} (error {100 * curve.error:.1f} points)", width=46)
    return figure


def growth(
    curve: Sequence[float], names: Sequence[str], alone: Sequence[float], title: str
) -> Figure:
    """An ensemble's figure as it grows by one name after the other, and each name's alone."""
    figure = Figure(figsize=(6.8, 1.6 + 0.24 * len(names)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    places, best = range(len(names)), int(np.argmax(curve))
    axes.plot(100 * np.array(alone), places, "o", color=WRONG, label="alone")
    axes.plot(100 * np.array(curve), places, "-o", color="#2b5c8a", label="together so far")
    axes.plot(100 * curve[best], best, "o", color=RIGHT, markersize=10, label="best set")
    axes.set_yticks(places, [wrap(name, width=44, lines=1) for name in names])
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="percent")
    axes.grid(axis="x", color="#e4e8ef")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8)
    _style(axes, title, width=74)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG; a letter that no installed font has becomes a box, not a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(os.fspath(path), format="png")


def wrap(text: str, *, width: int, lines: int) -> str:
    """Text in at most `lines` lines of `width` columns (a CJK letter takes two), else with an "…".

    Words are broken only where longer than a line; white space and control characters are blanks.
    """
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    wrapped = [line.plain.rstrip() for line in Text(clean).wrap(Console(width=width), width)]
    if len(wrapped) <= lines:
        return "\n".join(wrapped)
    last = wrapped[lines - 1]
    if cell_len(last) >= width:  # Make room for the dots: a word less, or a letter.
        shorter = last.rpartition(" ")[0] or set_cell_size(last, width - 1)
        last = shorter.rstrip()
    return "\n".join([*wrapped[: lines - 1], last + "…"])


def _fonts() -> list[str]:
    known = set(font_manager.fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in known)]


def _style(axes: Axes, title: str, width: int) -> None:
    """A title, and names of ticks as they are: no formulas, letters of any script."""
    style: dict[str, Any] = {"parse_math": False, "fontfamily": _fonts(), "fontsize": 9}
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set(**style)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    # The figure's, not the axes': long names of ticks leave these little room.
    figure.suptitle(wrap(title, width=width, lines=2)).set(**style | {"fontsize": 11})


def _title(figure: Figure, title: str) -> None:
    width = figure.get_size_inches()[0]
    text = wrap(title, width=int((width - 2 * EDGE) * 9), lines=2)
    _write(figure, EDGE, EDGE + TOP / 2 - 0.08, text, fontsize=11, fontweight="bold")


def _write(figure: Figure, left: float, middle: float, text: str, **style) -> None:
    """Left-aligned text, placed in inches from the top left corner."""
    width, height = figure.get_size_inches()
    style = {"fontsize": 9, "va": "center", "linespacing": 1.15, **style}
    figure.text(
        left / width, 1 - middle / height, text, fontfamily=_fonts(), parse_math=False, **style
    )


def _show(figure: Figure, left: float, top: float, image: np.ndarray, right: bool | None) -> None:
    """A picture in a frame (none where `right` is None), in inches from the top left corner."""
    width, height = figure.get_size_inches()
    place = (left / width, 1 - (top + SIDE) / height, SIDE / width, SIDE / height)
    axes: Axes = figure.add_axes(place)
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(right is not None)
        spine.set(color=RIGHT if right else WRONG, linewidth=4.0 if right else 1.5)
