"""The report of an evaluation: one page that holds all it shows, and the plots beside it."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from clip_jax.eval import outcome as outcomes
from clip_jax.eval import page_data, page_plots
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.page_parts import (
    NONE,
    Html,
    breakable,
    change,
    document,
    join,
    number,
    table,
    tag,
    write,
)
from clip_jax.eval.page_task import samples, section
from clip_jax.eval.published import AVERAGE, Reported, reported

SCORED = 38
"""Main figures in the average that is published."""


def write_report(
    out: str | os.PathLike[str],
    model: str,
    *,
    keys: Sequence[str] | None = None,
    averages: Mapping[str, float] | None = None,
    absent: Mapping[str, str] | None = None,
    about: str = "",
) -> pathlib.Path:
    """Write OUT/report.html and OUT/plots/ from the outcomes in OUT/results.

    The page needs nothing else: no network, no script. Everything that comes from data is escaped.

    Args:
      out: the folder of the evaluation.
      model: what was evaluated; of a catalogued name, published figures stand beside those found.
      keys: of the outcomes to show, in this order; all if None. A folder may hold those of an
        earlier evaluation, too.
      averages: by name, in the order in which they are shown; the mean of all main figures if None.
      absent: data sets that were asked for and not evaluated, with the reason.
      about: what else there is to say of the model.

    Raises:
      FileNotFoundError: OUT/results holds no outcome.
      ValueError: a file there is none; keys without an outcome.
      OSError: a file cannot be written; an earlier page is still whole.
    """
    out = pathlib.Path(out)
    found = page_data.read_all(out, keys)
    page_plots.draw(found, out / "plots")
    return write(out / "report.html", _page(found, model, averages, absent or {}, about))


def _page(
    found: Sequence[Outcome],
    model: str,
    averages: Mapping[str, float] | None,
    absent: Mapping[str, str],
    about: str,
) -> str:
    counts = [count for one in found if (count := samples(one)) is not None]
    told = [_count(len(found), "data set"), _count(sum(counts), "sample")]
    if skipped := sum(len(one.skipped) for one in found):
        told.append(f"{_count(skipped, 'sample')} left out")
    if absent:
        told.append(f"{_count(len(absent), 'data set')} not evaluated")
    return document(
        f"Evaluation of {model}",
        tag("h1", "Evaluation of ", tag("bdi", model)),
        tag("p", about) if about else Html(),
        tag("p", ", ".join(told), class_="quiet"),
        _averages(found, model, averages),
        _overview(found, model),
        _absent(absent),
        *(section(one) for one in found),
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _averages(found: Sequence[Outcome], model: str, averages: Mapping[str, float] | None) -> Html:
    main = [value for one in found if (value := one.main_figure) is not None]
    if averages is None:
        label = f"mean of {_count(len(main), 'main figure')}"
        averages = {label: float(np.mean(main))} if main else {}
    if not averages:
        return Html()
    rows = []
    for label, value in averages.items():
        whole = label.lower().startswith(AVERAGE) and len(main) == SCORED
        known = reported(model, AVERAGE, AVERAGE) if whole else ()
        rows.append((label, number("acc", value), _published(known), _gap(value, known)))
    told = "Means of main figures"
    head = ("", "value", "published", "difference")
    if all(row[2] == "" for row in rows):
        head, rows = head[:2], [row[:2] for row in rows]
    return join([tag("h2", "Averages"), table(told, head, rows)])


def _overview(found: Sequence[Outcome], model: str) -> Html:
    rows, with_published = [], False
    for one in found:
        count, value = samples(one), one.main_figure
        known = reported(model, one.key, one.main) if one.main is not None else ()
        with_published |= bool(known)
        rows.append(
            (
                tag("a", one.dataset, href=f"#{outcomes.file_name(one.key)}"),
                _metrics(one),
                number(one.main or "", value),
                _published(known),
                _gap(value, known),
                NONE if count is None else f"{count:,}",
            )
        )
    head = ["data set", "metric", "value", "published", "difference", "samples"]
    told = "Main figure of each data set; a metric unfolds to all."
    if with_published:
        told += " Differences in percentage points."
    else:
        head, rows = [*head[:3], head[5]], [(*row[:3], row[5]) for row in rows]
        told += " No published figure of this model on these data sets is known here."
    return tag("section", tag("h2", "Data sets"), table(told, head, rows, words=(1,)), id="all")


def _metrics(outcome: Outcome) -> Html:
    pairs = (
        part
        for metric, value in outcome.figures.items()
        for part in (tag("dt", metric), tag("dd", number(metric, value)))
    )
    label = outcome.main or "no main figure"
    return tag("details", tag("summary", breakable(label)), tag("dl", *pairs))


def _published(known: Sequence[Reported]) -> Html:
    lines = []
    for one in known:
        shown = tag("data", f"{100 * one.value:.{one.digits}f}%", value=repr(one.value))
        lines += [shown, tag("span", one.source, class_="source")]
    return join(lines)


def _gap(value: float | None, known: Sequence[Reported]) -> Html:
    """To the first of the published figures."""
    return change("acc", value - known[0].value) if known and value is not None else Html()


def _absent(absent: Mapping[str, str]) -> Html:
    if not absent:
        return Html()
    told = "Asked for, but without a result"
    return join(
        [
            tag("h2", "Not evaluated"),
            table(told, ("data set", "reason"), list(absent.items()), words=(1,)),
        ]
    )
