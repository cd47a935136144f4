"""Figures of groups (the worst, the gap) of samples drawn again and again, all at once."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from clip_jax.eval.outcome import Outcome

BLOCK = 2**20
"""Numbers held at a time."""
_CREDITS = {"acc": "acc1", "acc_top5": "acc5", "acc_gender_x": "acc_gender"}
"""What figures that begin so are means of, where it has another name."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GroupFigure:
    """A figure of the means of groups."""

    parts: tuple[tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]], ...]
    """Groups from 0 on, -1 for samples that do not count, and what a sample adds to the mean of its
    own; each pair gives means."""
    of: Callable[..., Float[np.ndarray, " draws"]]
    """Means of each part, (draws, groups), NaN where a group has no sample -> the figure."""

    def __call__(self, rows: Int[np.ndarray, " m"]) -> float:
        """The figure over some rows, each as often as it is among them."""
        return float(self.drawn(rows, np.ones((1, len(rows)), np.int64))[0])

    def drawn(
        self, rows: Int[np.ndarray, " m"], weights: Int[np.ndarray, "draws m"]
    ) -> Float[np.ndarray, " draws"]:
        """The figure for each draw, in which each of the rows comes up so often."""
        return self.of(*(_means(group, value, rows, weights) for group, value in self.parts))


def drawn_difference(
    first: GroupFigure,
    second: GroupFigure,
    rows: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    draws: int,
) -> Float[np.ndarray, " draws"]:
    """The second figure less the first, for each of many draws of as many rows as there are.

    Samples that are alike in all that both figures look at are one cell, and of a draw only how
    often each cell comes up matters: that is multinomial. Cells are few (twice two answers a
    group), so the time hardly grows with the samples, and memory is bounded.

    Args:
      rows: of the first and of the second, sample by sample.
    """
    columns = [
        column[own]
        for figure, own in zip((first, second), rows, strict=True)
        for part in figure.parts
        for column in part
    ]
    cells, counts = _cells(columns)
    count = len(columns[0])
    at_once = max(1, BLOCK // len(cells))
    found = []
    for done in range(0, draws, at_once):
        weights = rng.multinomial(count, counts / count, size=min(at_once, draws - done))
        # Any one sample of a cell stands for all of them.
        values = [
            figure.drawn(own[cells], weights)
            for figure, own in zip((first, second), rows, strict=True)
        ]
        found.append(values[1] - values[0])
    return np.concatenate(found)


def of_group(one: Outcome, metric: str) -> Float[np.ndarray, " n"] | None:
    """What each sample adds to the mean of one group, NaN for those of others; None if it is none.

    So draws hold as many samples of the group as there are, and an interval knows how few these be.
    """
    _, credit, rest = _stem(one, metric)
    values = _values(rest)
    for name, names in one.arrays.items():
        if name.startswith("group_names/") and rest in names:
            values = {name.removeprefix("group_names/"): names.tolist().index(rest)}
    groups = [one.arrays.get(f"group/{field}", np.zeros(0)) == k for field, k in values.items()]
    if not groups or any(len(group) != len(credit) for group in groups):
        return None
    return np.where(np.all(groups, axis=0), credit, np.nan)


def group_ways(one: Outcome, metric: str) -> Iterator[tuple[str, GroupFigure]]:
    """Named ways in which a metric may come from several groups: the worst, a gap, as odds."""
    if odds := re.fullmatch(r"(\w+)_equalized_odds_(\w+)", metric):
        yield from _odds(one.arrays, *odds.groups())
        return
    stem, credit, rest = _stem(one, metric)
    kinds = {"gap": _gap, "wg": _worst, "worst": _worst}
    named = [of for kind, of in kinds.items() if kind in rest.split("_")]
    for fields in _attributes(one, stem, rest) if named else ():
        for ignored in ("", "Other"):
            group = _crossed(one.arrays, fields, ignored)
            if group is not None and len(group) == len(credit):
                figure = GroupFigure(parts=((group, credit),), of=named[0])
                yield f"{fields} {ignored}", figure


def _stem(one: Outcome, metric: str) -> tuple[str, np.ndarray, str]:
    """The mean whose name a metric begins with, its credit, and the rest of the name.

    Where there is none, the rest is empty.
    """
    told = [name for name in one.arrays if name.startswith("credit/")]
    stems = {name.removeprefix("credit/"): name for name in told}
    stems |= {stem: f"credit/{name}" for stem, name in _CREDITS.items() if f"credit/{name}" in told}
    fitting = [stem for stem in stems if metric.startswith(f"{stem}_")]
    if not fitting:
        return "", np.zeros(0), ""
    stem = max(fitting, key=len)
    return stem, one.arrays[stems[stem]], metric.removeprefix(f"{stem}_")


def _means(
    group: np.ndarray, value: np.ndarray, rows: np.ndarray, weights: np.ndarray
) -> Float[np.ndarray, "draws G"]:
    """Mean of each group that there is at all, in each draw."""
    group, value, count = group[rows], value[rows], max(1, int(group.max()) + 1)
    order = np.argsort(group, kind="stable")
    names, begins = np.unique(group[order], return_index=True)
    weights = weights[:, order]
    samples = np.add.reduceat(weights, begins, axis=1)
    hits = np.add.reduceat(weights * value[order], begins, axis=1)
    found = np.full((len(weights), count), np.nan)
    some = names >= 0
    with np.errstate(invalid="ignore"):
        found[:, names[some]] = hits[:, some] / samples[:, some]
    return found


def _cells(
    columns: list[np.ndarray],
) -> tuple[Int[np.ndarray, " cells"], Int[np.ndarray, " cells"]]:
    """The first row of each distinct one, in their order, and how often it is there."""
    code = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, own = np.unique(column, return_inverse=True)
        # Numbered anew each time, so that they stay small.
        code = np.unique(code * len(values) + own, return_inverse=True)[1]
    _, cells, counts = np.unique(code, return_index=True, return_counts=True)
    return cells, counts


def _worst(means: np.ndarray) -> np.ndarray:
    return np.fmin.reduce(means, axis=1)  # Of groups that have a sample in the draw.


def _gap(means: np.ndarray) -> np.ndarray:
    return np.fmax.reduce(means, axis=1) - np.fmin.reduce(means, axis=1)


def _widest(*parts: np.ndarray) -> np.ndarray:
    return np.max([_gap(means) for means in parts], axis=0)


def _odds(
    arrays: Mapping[str, np.ndarray], what: str, field: str
) -> Iterator[tuple[str, GroupFigure]]:
    """Equalised odds of saying `what` is 1: gaps of true and of false positives."""
    names = f"predicted/{what}", f"group/{what}", f"group/{field}"
    if all(name in arrays for name in names):
        said, truth, group = (arrays[name] for name in names)
        value = (said == 1).astype(np.float64)
        chosen = truth == 1, truth != 1
        parts = tuple((np.where(own, group, -1), value) for own in chosen)
        yield "odds", GroupFigure(parts=parts, of=_widest)


def _values(rest: str) -> dict[str, int]:
    """`race:1_gender:0` -> fields and their values; empty if it names none."""
    if not re.fullmatch(r"[a-z]\w*?:\d+(_[a-z]\w*?:\d+)*", rest):
        return {}
    return {field: int(value) for field, value in re.findall(r"_?([a-z]\w*?):(\d+)", rest)}


def _attributes(one: Outcome, stem: str, rest: str) -> list[tuple[str, ...]]:
    """Fields by which the groups may be: those named in the rest of the metric's name.

    Without any, all by which there are means of groups under the stem; without these, each field.
    """
    rests = (name.removeprefix(f"{stem}_") for name in one.figures if name.startswith(f"{stem}_"))
    named = dict.fromkeys(tuple(found) for rest in rests if (found := _values(rest)))
    every = [(name.removeprefix("group/"),) for name in one.arrays if name.startswith("group/")]
    possible = list(named) or every
    return [fields for fields in possible if "_".join(fields) in rest] or possible


def _crossed(
    arrays: Mapping[str, np.ndarray], fields: Sequence[str], ignored: str
) -> Int[np.ndarray, " n"] | None:
    """The group of each sample by one or several fields, -1 for the ignored one.

    None where a field is not kept, or has no group of that name.
    """
    if any(f"group/{field}" not in arrays for field in fields):
        return None
    code = np.zeros(len(arrays[f"group/{fields[0]}"]), np.int64)
    for field in fields:
        own = np.unique(arrays[f"group/{field}"], return_inverse=True)[1]
        code = code * (1 + own.max()) + own
    if not ignored:
        return code
    names = arrays.get(f"group_names/{fields[0]}", np.zeros(0, str))
    other = np.flatnonzero(names == ignored)
    if len(fields) > 1 or not other.size:
        return None
    return np.where(np.isin(arrays[f"group/{fields[0]}"], other), -1, code)
