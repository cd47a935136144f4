"""Curves of a run, drawn from its `metrics.jsonl`."""

import json
import os
import pathlib
import re
import warnings
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

Curve = dict[int, float]
"""Value of one metric by step, steps ascending."""

RATE = re.compile(
    r"(^acc(\d+|_.+)?|accuracy|recall(@\d+|-macro_all)?|F1-macro_all|jaccard_score(_[-\d]+)?"
    r"|mean_average_precision|calibration_error|(text|image)_acc|toxicity_.+|^mean)$"
)
"""Metrics from 0 to 1, drawn in percent."""
LEGEND = 13
"""Lines whose names stand one above the other beside a panel."""


def plot_run(
    metrics_jsonl: str | os.PathLike[str], folder: str | os.PathLike[str]
) -> list[pathlib.Path]:
    """Draw a run into PNG files; the paths of those there was something to draw for.

    `loss.png` (loss and in-batch accuracy), `schedule.png` (temperature and learning rate), and
    `evals.png` where an evaluation figure (a name with slashes) is known at several steps.

    Raises:
      FileNotFoundError: there is no such metrics file.
      ValueError: it holds no line with a step.
    """
    curves = read_curves(metrics_jsonl)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "loss.png": _panels(
            {
                "loss": {"loss": curves.get("loss", {})},
                "accuracy within the batch": {"accuracy": curves.get("accuracy", {})},
            }
        ),
        "schedule.png": _panels(
            {
                "temperature": {"temperature": curves.get("temperature", {})},
                "learning rate": {"learning_rate": curves.get("learning_rate", {})},
            },
            smooth=False,
        ),
        "evals.png": _panels(_evaluations(curves), smooth=False),
    }
    drawn = {folder / name: figure for name, figure in figures.items() if figure is not None}
    with warnings.catch_warnings():  # A letter that the font lacks in a name becomes a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for path, figure in drawn.items():
            figure.savefig(path, format="png")
    return list(drawn)


def read_curves(metrics_jsonl: str | os.PathLike[str]) -> dict[str, Curve]:
    """Each metric's values by step.

    Where a step occurs again (the run was resumed), the later line wins, metric by metric. A
    line cut short by a kill is passed over, wherever it is: a resumed run writes on after it.

    Raises:
      FileNotFoundError, ValueError: as `plot_run`.
    """
    path = pathlib.Path(metrics_jsonl)
    curves: dict[str, Curve] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            continue
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                curves.setdefault(name, {})[record["step"]] = float(value)
    if not curves:
        raise ValueError(f"{path}: no line is a JSON object with a step and a figure")
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def smoothed(values: Float[np.ndarray, " n"], reach: int) -> Float[np.ndarray, " n"]:
    """Mean over the `reach` values before, at and after each one; fewer at the ends.

    Values that are not finite stay as they are, and count for no other.
    """
    known = np.isfinite(values)
    window = np.ones(2 * reach + 1)
    sums = np.convolve(np.where(known, values, 0.0), window)[reach : reach + len(values)]
    counts = np.convolve(known, window)[reach : reach + len(values)]
    return np.where(known, sums / np.maximum(counts, 1), values)


def _evaluations(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """A panel for each evaluation's rates and one for the rest of its figures, by metric.

    Figures of a single group of samples (`acc_region:0`) are left out: they would hide the others.
    """
    panels: dict[str, dict[str, Curve]] = {}
    for name in sorted(curves, key=_natural):
        group, slash, metric = name.rpartition("/")
        if slash and ":" not in metric and len(curves[name]) > 1:
            title = group if RATE.search(metric) else f"{group}, other figures"
            panels.setdefault(title, {})[metric] = curves[name]
    return dict(sorted(panels.items()))


def _panels(panels: Mapping[str, Mapping[str, Curve]], *, smooth: bool = True) -> Figure | None:
    """One panel above the other with a common step axis; None where there is no curve."""
    panels = {
        title: kept
        for title, lines in panels.items()
        if (kept := {name: curve for name, curve in lines.items() if curve})
    }
    if not panels:
        return None
    figure = Figure(figsize=(8, 0.5 + 2.8 * len(panels)), dpi=110, layout="constrained")
    grid: list[Axes] = list(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0])
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for number, (name, curve) in enumerate(lines.items()):
            _line(axes, name, curve, f"C{number % 10}", smooth)
        axes.set_title(title, loc="left", fontsize=10, parse_math=False)
        axes.grid(alpha=0.3)
        if all(RATE.search(name) for name in lines):
            top = max((v for c in lines.values() for v in c.values() if v <= 1), default=1.0)
            axes.set_ylim(0, max(1.05 * top, 0.01))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if "/" in title:
            beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
            axes.legend(fontsize=8, frameon=False, ncols=1 + len(lines) // LEGEND, **beside)
    grid[-1].set_xlabel("step")
    return figure


def _line(axes: Axes, name: str, curve: Curve, color: str, smooth: bool) -> None:
    steps, values = np.array(list(curve)), np.array(list(curve.values()))
    values[np.isinf(values)] = np.nan  # Drawn as a gap, like NaN.
    marker = "o" if len(steps) <= 30 else ""
    reach = len(steps) // 40
    if smooth and reach:
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=1)
        values, marker = smoothed(values, reach), ""
    axes.plot(steps, values, color=color, label=name, marker=marker, markersize=3, linewidth=1.6)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which `recall@5` stands before `recall@10`."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
