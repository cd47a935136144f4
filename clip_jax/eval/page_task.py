"""The part of a report that shows one data set."""

from collections.abc import Iterable, Mapping

import numpy as np

from clip_jax.eval import outcome as outcomes
from clip_jax.eval import page_data as data
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.page_chart import reliability_chart
from clip_jax.eval.page_parts import (
    SMALL,
    Html,
    bar,
    join,
    name,
    number,
    picture,
    scrolling,
    table,
    tag,
)

COUNTS = ("count", "pictures", "captions", "samples")
"""Columns of tables that are numbers of something, also where these happen to be 0 and 1."""
MANY = 20
"""Metrics; more are folded away."""


def section(outcome: Outcome) -> Html:
    """Everything about one data set; its id is `outcome.file_name`."""
    parts = [
        tag("h2", outcome.dataset),
        tag("p", f"{outcome.key} · {outcome.task}", class_="key"),
        figures(outcome),
        *_tables(outcome),
        _classes(outcome),
        _confusions(outcome),
        _mistakes(outcome),
        *_searches(outcome),
        _reliability(outcome),
        _skipped(outcome),
        tag("p", tag("a", "↑ all data sets", href="#all"), class_="quiet back"),
    ]
    return tag("section", *parts, id=outcomes.file_name(outcome.key))


def figures(outcome: Outcome) -> Html:
    """All metrics, the main one marked."""
    rows = [
        (f"{metric} (main)" if metric == outcome.main else metric, number(metric, value))
        for metric, value in outcome.figures.items()
    ]
    told = f"All {len(rows)} metrics" if len(rows) != 1 else "The only metric"
    made = table(told, ("metric", "value"), rows, caption=len(rows) <= MANY)
    if len(rows) <= MANY:
        return made
    return tag("details", tag("summary", told), made, class_="apart")


def samples(outcome: Outcome) -> int | None:
    """How many were evaluated; None where the outcome does not tell."""
    return len(outcome.arrays["keys"]) if "keys" in outcome.arrays else None


def _tables(outcome: Outcome) -> list[Html]:
    made = []
    for title, rows in outcome.tables.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        kinds = {column: _kind(column, rows.values()) for column in columns}
        cells = [
            (label, *(number(kinds[column], row.get(column)) for column in columns))
            for label, row in rows.items()
        ]
        made.append(join([tag("h3", title), table(title, ("", *columns), cells, caption=False)]))
    return made


def _kind(column: str, rows: Iterable[Mapping[str, float]]) -> str:
    """What a column of a table of groups is read as: shares, whatever it is called, as accuracy."""
    values = [row[column] for row in rows if column in row and np.isfinite(row[column])]
    shares = column not in COUNTS and all(0 <= value <= 1 for value in values)
    return "accuracy" if shares else column


def _classes(outcome: Outcome) -> Html:
    rows = data.by_class(outcome)
    if not rows:
        return Html()
    if len(rows) <= data.ENDS:
        parts = [_bars(f"All {len(rows)} classes, best first", rows)]
    elif len(rows) <= 2 * data.ENDS:
        half = -(-len(rows) // 2)
        parts = [_bars("Better half", rows[:half]), _bars("Other half", rows[half:])]
    else:
        parts = [
            _bars(f"Best {data.ENDS} of {len(rows):,}", rows[: data.ENDS]),
            _bars(f"Worst {data.ENDS} of {len(rows):,}, worst first", rows[: -data.ENDS - 1 : -1]),
        ]
    return join([tag("h3", "Accuracy of each class"), tag("div", *parts, class_="columns")])


def _bars(caption: str, rows: list[data.ClassRow]) -> Html:
    cells = [(r.name, bar(r.accuracy), number("acc1", r.accuracy), f"{r.samples:,}") for r in rows]
    return table(caption, ("class", "", "accuracy", "samples"), cells, style="bars")


def _confusions(outcome: Outcome) -> Html:
    matrix = data.whole_confusion(outcome)
    if matrix is not None:
        names = [str(n) for n in outcome.arrays["class_names"]]
        return join([tag("h3", "Confusions"), _matrix(matrix, names)])
    pairs = data.confused(outcome)
    if not pairs:
        return Html()
    rows = [(p.true, p.given, f"{p.count:,}", number("acc1", p.share)) for p in pairs]
    head = ("true class", "taken for", "samples", "of the class")
    told = f"The {len(pairs)} pairs confused most often"
    return join([tag("h3", "Confusions"), table(told, head, rows, words=(1,))])


def _matrix(counts: np.ndarray, names: list[str]) -> Html:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    head = [tag("th", tag("span", n, title=n), scope="col") for n in names]
    lines = []
    for row, label in enumerate(names):
        cells = [
            tag("td", f"{count:,}" if count else "", style=_shade(share))
            for count, share in zip(counts[row], shares[row], strict=True)
        ]
        lines.append(tag("tr", tag("th", label, scope="row", dir="auto", title=label), *cells))
    told = "Samples of each class (row) by the class they were given (column)"
    corner = tag("th", "true \\ given", scope="col")
    top, body = tag("thead", tag("tr", corner, *head)), tag("tbody", *lines)
    return scrolling(
        tag("table", tag("caption", tag("span", told)), top, body, class_="matrix"), told
    )


def _shade(share: float) -> str | None:
    if not share:
        return None
    return f"background:color-mix(in srgb, var(--accent) {70 * share:.0f}%, transparent)"


def _mistakes(outcome: Outcome) -> Html:
    found = data.mistakes(outcome)
    if not found:
        return Html()
    cards = []
    for one in found:
        alt = f"{one.key}: {one.true}, taken for {one.given}"
        shown = tag("div", f"no picture kept of {one.key}", class_="blank")
        if one.pixels is not None:
            shown = picture(one.pixels, alt)
        words = (
            *(tag("b", name(one.given)), " ", number("acc1", one.confidence)),
            *(tag("br"), "is ", name(one.true)),
        )
        cards.append(tag("figure", shown, tag("figcaption", *words)))
    return join(
        [
            tag("h3", "Mistakes it was surest of"),
            tag("p", "In bold the class given, with its probability.", class_="quiet"),
            tag("div", *cards, class_=f"cards{_size(outcome)}"),
        ]
    )


def _size(outcome: Outcome) -> str:
    pictures = outcome.arrays.get("pictures")
    return " small" if pictures is not None and pictures.shape[1] <= SMALL else ""


def _searches(outcome: Outcome) -> list[Html]:
    captions = outcome.arrays.get("captions")
    keys, shown = outcome.arrays.get("keys"), data.thumbnails(outcome)

    def image(row: int) -> Html:
        key = str(keys[row]) if keys is not None else f"picture {row}"
        if row not in shown:
            return tag("div", f"no picture kept of {key}", class_="blank")
        return picture(shown[row], key)

    made = []
    for direction, title, one in (
        ("to_image", "Pictures found for a caption", _found_images),
        ("to_text", "Captions found for a picture", _found_texts),
    ):
        found = data.searches(outcome, direction)
        if found and captions is not None:
            grids = [one(search, captions, image) for search in found]
            told = tag("p", "Best first; ✓ belongs to the query.", class_="quiet")
            box = tag("div", *grids, class_=_size(outcome).strip() or None)
            made.append(join([tag("h3", title), told, box]))
    return made


def _found_images(search: data.Search, captions: np.ndarray, image) -> Html:
    items = []
    for row, hit in zip(search.found, search.right, strict=True):
        label = tag("span", "✓" if hit else "✗", aria_label="right" if hit else "wrong")
        items.append(tag("li", image(row), label, class_="hit" if hit else None))
    caption = tag("p", str(captions[search.query]), dir="auto")
    return tag("div", caption, tag("ol", *items, class_="found"), class_="query")


def _found_texts(search: data.Search, captions: np.ndarray, image) -> Html:
    items = [
        tag("li", "✓ " if hit else "✗ ", name(str(captions[row])), class_="hit" if hit else None)
        for row, hit in zip(search.found, search.right, strict=True)
    ]
    inside = tag("div", image(search.query)), tag("ol", *items)
    return tag("div", tag("div", *inside, class_="side"), class_="query")


def _reliability(outcome: Outcome) -> Html:
    curve = data.calibration(outcome)
    if curve is None:
        return Html()
    told = (
        "How often the class given is right (height) by the probability it got; on the dashed "
        "line a model is as sure as it should be. Expected calibration error "
        f"{100 * curve.error:.1f} points. Bars: samples."
    )
    figure = tag("figure", reliability_chart(curve, told), tag("figcaption", told))
    return join([tag("h3", "Calibration"), figure])


def _skipped(outcome: Outcome) -> Html:
    if not outcome.skipped:
        return Html()
    messages = tag("ul", *(tag("li", one) for one in outcome.skipped), class_="messages")
    told = f"{len(outcome.skipped):,} samples left out"
    return tag("details", tag("summary", told), messages, class_="apart")
