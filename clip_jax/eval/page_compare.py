"""Two evaluations side by side: a table for the terminal, and a page."""

import os
import pathlib
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from clip_jax.eval.compare import Compared, Pairing
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
from clip_jax.eval.report import is_loss, readable, signed

NOTE = (
    "The interval holds 95% of the differences found when the same samples are drawn again and "
    "again with replacement, for both models alike; of few samples, some more. Where it leaves 0 "
    "out, the difference is more than the luck of these samples: green where B is better, red "
    "where A is. Of twenty data sets on which two models are equally good, about one will look "
    "decided all the same."
)

HEAD = ("metric", "A", "B", "B\xa0\N{MINUS SIGN}\xa0A", "95% interval", "")
"""Columns of a compared metric."""


def verdict(one: Compared) -> str:
    """`A is higher` or `B is higher` where the interval leaves 0 out; otherwise nothing."""
    if one.interval is None or not one.interval.decided:
        return ""
    return "B is higher" if one.interval.low > 0 else "A is higher"


def _is_better(one: Compared) -> bool:
    """Of a decided difference, whether B is better."""
    return verdict(one).startswith("B") != is_loss(one.metric)


def unpaired(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """A line for each side that has data sets of its own."""
    sides = (("A", first, second), ("B", second, first))
    lines = []
    for side, own, other in sides:
        if lonely := [key for key in own if key not in other]:
            lines.append(f"only in {side}: {', '.join(lonely)}")
    return lines


def terminal_table(pairings: Sequence[Pairing]) -> Table:
    """The main metric of each data set."""
    drawn = Table(title="B less A")
    drawn.add_column("data set", style="bold", overflow="fold")
    drawn.add_column("metric", overflow="fold")
    for name in ("A", "B", "B - A", "95% interval"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("", no_wrap=True)
    for pairing in pairings:
        one = pairing.main_metric
        if one is None:
            drawn.add_row(Text(pairing.key), Text("no main metric", style="dim"))
            continue
        low_high = NONE
        if one.interval is not None:
            low_high = " to ".join(signed(one.metric, v) for v in _ends(one))
        told = verdict(one)
        drawn.add_row(
            Text(pairing.key),
            Text(one.metric),
            readable(one.metric, one.first),
            readable(one.metric, one.second),
            signed(one.metric, one.difference),
            low_high,
            Text(told, style="green" if _is_better(one) else "red"),
        )
    return drawn


def notes(pairings: Sequence[Pairing]) -> list[str]:
    """What a reader of the figures must know: samples that differ, intervals that are not there."""
    lines = []
    for one in pairings:
        if one.only_first or one.only_second:
            lines.append(
                f"{one.key}: compared over the {one.samples:,} samples that both have "
                f"({one.only_first:,} only in A, {one.only_second:,} only in B)"
            )
        if (main := one.main_metric) is not None and main.why:
            lines.append(f"{one.key}: no interval for {main.metric}: {main.why}")
    return lines


def write_comparison(
    path: str | os.PathLike[str],
    pairings: Sequence[Pairing],
    names: tuple[str, str],
    lonely: Sequence[str] = (),
) -> pathlib.Path:
    """Write the page whole or not at all.

    Args:
      path: of the page.
      pairings: the data sets that both have.
      names: of the two evaluations.
      lonely: what `unpaired` says.

    Raises:
      OSError: the file cannot be written.
    """
    told = [*lonely, *notes(pairings)]
    listed = tag("ul", *(tag("li", line) for line in told), class_="messages") if told else Html()
    page = document(
        "Comparison",
        tag("h1", "Comparison"),
        tag("p", "A: ", tag("bdi", names[0])),
        tag("p", "B: ", tag("bdi", names[1])),
        tag("h2", "Data sets"),
        table(
            "Main figure of each data set. Differences of shares in percentage points.",
            ("data set", *HEAD[1:], "only A right", "only B right"),
            [_row(one) for one in pairings],
            words=(5,),
        ),
        tag("p", NOTE, class_="quiet"),
        listed,
        *(_all_metrics(one) for one in pairings),
    )
    return write(path, page)


def _row(pairing: Pairing) -> tuple[str, ...]:
    one = pairing.main_metric
    told = tag("span", "no main metric" if one is None else breakable(one.metric), class_="metric")
    # One column for both: on a phone the differences are in sight.
    name = join([tag("bdi", pairing.dataset), told])
    if one is None:
        return (name, *[NONE] * 4, "", NONE, NONE)
    sides = (NONE if n is None else f"{n:,}" for n in (pairing.lost, pairing.gained))
    return (name, *_cells(one)[1:], *sides)


def _cells(one: Compared) -> tuple[str, ...]:
    told, low_high = verdict(one), Html()
    style = "better" if _is_better(one) else "worse"
    less = change(one.metric, one.difference)
    if one.interval is not None:
        low, high = (change(one.metric, end) for end in _ends(one))
        low_high = tag("span", low, " to ", high, class_="interval")
    return (
        breakable(one.metric),
        number(one.metric, one.first),
        number(one.metric, one.second),
        # On a phone the last column is out of sight, so this one tells as much.
        tag("b", less, class_=style) if told else less,
        low_high or NONE,
        tag("span", told, class_=style) if told else "",
    )


def _all_metrics(pairing: Pairing) -> Html:
    rows = [_cells(one) for one in pairing.metrics]
    label = f"All metrics of {pairing.dataset}"
    body = table(label, HEAD, rows, words=(5,), caption=False)
    told = (
        tag("p", f"No interval for {', '.join(names)}: {why}.", class_="quiet")
        for why, names in _without(pairing).items()
    )
    return tag("details", tag("summary", label), body, *told)


def _without(pairing: Pairing) -> dict[str, list[str]]:
    """Metrics without an interval, by the reason."""
    found: dict[str, list[str]] = {}
    for one in pairing.metrics:
        if one.why:
            found.setdefault(one.why, []).append(one.metric)
    return found


def _ends(one: Compared) -> tuple[float, float]:
    return (one.interval.low, one.interval.high) if one.interval else (0.0, 0.0)
