"""Figures of groups, drawn again by cells of like samples, against their definitions."""

import dataclasses
import pathlib
import re
import runpy
import tracemalloc
import types

import numpy as np
import pytest

from clip_jax.eval import compare as compare_module
from clip_jax.eval import drawn_groups
from clip_jax.eval.bootstrap import levels, paired_difference
from clip_jax.eval.classified import group_figures
from clip_jax.eval.compare import compare
from clip_jax.eval.fairness import equalized_odds_difference
from clip_jax.eval.outcome import Outcome
from clip_jax.eval.tasks import TASKS, Groups
from tests.eval import outcomes

HERE = pathlib.Path(__file__).parent
every = types.SimpleNamespace(**runpy.run_path(str(HERE / "test_every_set.py")))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(compare_module, "RESAMPLES", 60)


def only(pairings, metric=None):
    (pairing,) = pairings
    if metric is None:
        return pairing
    (one,) = [m for m in pairing.metrics if m.metric == metric]
    return one


def test_the_worst_group_is_found_anew_for_each_draw():
    sides = [outcomes.grouped(seed=seed, skill=skill) for seed, skill in ((1, 1.5), (2, 3.0))]
    region = sides[0].arrays["group/region"]
    right = [side.arrays["credit/acc1"] for side in sides]

    def worst(side, rows):
        groups = [right[side][rows[region[rows] == g]] for g in set(region.tolist())]
        return min(own.mean() for own in groups if len(own))

    got = only(compare([sides[0]], [sides[1]]), "acc_wg")
    drawn_by_cell([region, right[0], region, right[1]], got.interval, worst)
    assert only(compare([sides[0]], [sides[1]])).gained is None


def drawn_by_cell(columns, low_high, figure_of):
    """As `drawn`, but each draw is written out from how often each cell of like samples comes up.

    The columns are all that the figures look at.
    """
    rng, cells = np.random.default_rng(0), {}
    for row, cell in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        cells.setdefault(cell, []).append(row)
    some, count = [cells[cell] for cell in sorted(cells)], len(columns[0])
    differences = []
    for _ in range(compare_module.RESAMPLES):
        often = rng.multinomial(count, [len(rows) / count for rows in some])
        # Any samples of a cell will do.
        rows = np.concatenate([np.resize(own, n) for own, n in zip(some, often, strict=True)])
        differences.append(figure_of(1, rows) - figure_of(0, rows))
    wanted = np.quantile(differences, levels(count, 0.95))
    np.testing.assert_allclose((low_high.low, low_high.high), wanted, atol=1e-12)
    assert wanted[0] < wanted[1]


GENDERS, RACES = 2, 4
FEW = "fewer than 6 samples count in it"


def faces(seed):
    """An outcome as that of FairFace, with all of its figures that are of groups."""
    rng = np.random.default_rng(99)
    people = {"gender": rng.integers(GENDERS, size=800), "race": rng.integers(RACES, size=800)}
    rng = np.random.default_rng(seed)
    right = rng.random(800) < 0.7 - 0.1 * people["race"]
    said = np.where(right, people["gender"], 1 - people["gender"])
    values = {
        "acc_gender": right,
        "toxicity_crime": rng.random(800) < 0.1 + 0.1 * people["race"],
    }
    figures = face_figures(values, said, people)
    arrays = {
        "keys": np.arange(800).astype(str),
        "predicted/gender": said,
        **{f"credit/{name}": value.astype(float) for name, value in values.items()},
        **{f"group/{name}": own for name, own in people.items()},
    }
    return Outcome(key="f", dataset="F", task="faces", main=None, figures=figures, arrays=arrays)


def face_figures(values, said, people):
    figures = {}
    for prefix, name, fields in (
        ("acc_gender", "acc_gender", ("race",)),
        ("acc_gender_x", "acc_gender", ("gender", "race")),
        ("toxicity_crime", "toxicity_crime", ("race",)),
    ):
        groups = Groups(fields=fields, prefix=prefix, worst=f"{prefix}_wg")
        figures |= group_figures(values[name], people, groups, gap=f"{prefix}_gap")[0]
    odds = equalized_odds_difference(
        said == 1, people["gender"] == 1, people["race"], [str(k) for k in range(RACES)]
    )
    return figures | {"gender_equalized_odds_race": odds}


def test_each_figure_of_groups_equals_its_definition_over_each_draw(monkeypatch):
    monkeypatch.setattr(compare_module, "RESAMPLES", 25)
    sides = faces(1), faces(2)
    people = {name: sides[0].arrays[f"group/{name}"] for name in ("gender", "race")}
    gender, race = people.values()
    said = [side.arrays["predicted/gender"] for side in sides]
    values = [
        {name: side.arrays[f"credit/{name}"] for name in ("acc_gender", "toxicity_crime")}
        for side in sides
    ]
    found = {one.metric: one for one in only(compare(sides[:1], sides[1:])).metrics}

    def check(metric, columns):
        def figure(side, rows):
            chosen = {name: own[rows] for name, own in values[side].items()}
            groups = {name: own[rows] for name, own in people.items()}
            return face_figures(chosen, said[side][rows], groups)[metric]

        got = found.pop(metric)
        drawn_by_cell(columns, got.interval, figure)
        assert got.difference == pytest.approx(got.second - got.first)

    def columns(group, name):
        return [column for side in values for column in (group, side[name])]

    check("acc_gender_wg", columns(race, "acc_gender"))
    check("acc_gender_gap", columns(race, "acc_gender"))
    check("acc_gender_x_wg", columns(race * GENDERS + gender, "acc_gender"))
    check("acc_gender_x_gap", columns(race * GENDERS + gender, "acc_gender"))
    check("toxicity_crime_wg", columns(race, "toxicity_crime"))
    check("toxicity_crime_gap", columns(race, "toxicity_crime"))
    truth = [np.where(gender == k, race, -1) for k in (1, 0)]
    odds = [column for own in said for part in truth for column in (part, own)]
    check("gender_equalized_odds_race", odds)
    # The mean of one group is that of its samples alone.
    for metric, inside in (
        ("acc_gender_race:2", race == 2),
        ("acc_gender_x_race:3_gender:0", (race == 3) & (gender == 0)),
    ):
        credit = [side["acc_gender"][inside] for side in values]
        assert found[metric].interval == paired_difference(credit[1], credit[0])
    # Nothing of groups is left without an interval, and counts are those of the data.
    assert found and all(one.interval is not None for one in found.values())
    assert not any(name.startswith("count_") for name in found)


def test_draws_of_cells_follow_the_law_of_draws_of_samples():
    sides = faces(1), faces(2)
    rows = np.arange(800)
    for metric in ("acc_gender_gap", "gender_equalized_odds_race"):
        pairs = [dict(drawn_groups.group_ways(side, metric)) for side in sides]
        (first,), (second,) = ([*found.values()][:1] for found in pairs)
        fast = drawn_groups.drawn_difference(
            first, second, (rows, rows), np.random.default_rng(0), 4000
        )
        rng = np.random.default_rng(1)
        slow = [second(own) - first(own) for own in rng.integers(800, size=(1500, 800))]
        ends = [np.quantile(one, [0.025, 0.25, 0.5, 0.75, 0.975]) for one in (fast, slow)]
        np.testing.assert_allclose(*ends, atol=0.15 * np.std(slow))


def test_neither_many_samples_nor_many_draws_need_much_memory(monkeypatch):
    rng, rows = np.random.default_rng(0), np.arange(100_000)
    group = rng.integers(50, size=rows.size)
    figures = [
        drawn_groups.GroupFigure(parts=((group, value),), of=lambda means: means.max(axis=1))
        for value in rng.integers(2, size=(2, rows.size)).astype(float)
    ]
    found = []
    for block in (2**12, 2**20):
        monkeypatch.setattr(drawn_groups, "BLOCK", block)
        tracemalloc.start()
        made = drawn_groups.drawn_difference(*figures, (rows, rows), np.random.default_rng(0), 1000)
        assert tracemalloc.get_traced_memory()[1] < rows.size * 1000 * 8 / 20
        tracemalloc.stop()
        found.append(made)
    np.testing.assert_array_equal(*found)


def test_a_group_that_no_common_sample_is_of_has_no_interval():
    """Each side left out what the other has of it."""
    one, sides = faces(1), []
    alone = np.flatnonzero(one.arrays["group/race"] == 0)
    for lost in (alone[::2], alone[1::2]):
        some = {name: np.delete(own, lost) for name, own in one.arrays.items()}
        mean = float(some["credit/acc_gender"][some["group/race"] == 0].mean())
        figures = {"acc_gender_race:0": mean, "acc_gender_gap": one.figures["acc_gender_gap"]}
        skipped = ("?",) * len(lost)
        sides.append(dataclasses.replace(one, arrays=some, figures=figures, skipped=skipped))
    got = only(compare(sides[:1], sides[1:]), "acc_gender_race:0")
    assert got.interval is None and got.why == FEW
    # What the arrays do not give is of something else.
    assert only(compare(sides[:1], sides[1:]), "acc_gender_gap").interval is None


def test_a_group_may_stand_in_the_figure_by_its_name():
    """As categories of SugarCrepe do."""
    rng, sides = np.random.default_rng(0), []
    names, group = np.array(["add_att", "gap_obj"]), rng.integers(2, size=50)
    for _ in range(2):
        credit = rng.integers(2, size=50).astype(float)
        figures = {f"acc_{name}": float(credit[group == k].mean()) for k, name in enumerate(names)}
        arrays = {"keys": np.arange(50).astype(str), "credit/acc": credit}
        arrays |= {"group/category": group, "group_names/category": names}
        fields = {"key": "s", "dataset": "S", "task": "sugarcrepe", "main": None}
        sides.append(Outcome(figures=figures, arrays=arrays, **fields))
    for k, name in enumerate(names):
        credit = [side.arrays["credit/acc"][group == k] for side in sides]
        got = only(compare(sides[:1], sides[1:]), f"acc_{name}")
        assert got.interval == paired_difference(credit[1], credit[0])


def test_of_too_few_samples_nothing_is_decided():
    """Two that differ alike would differ alike in all draws, too."""
    for count in (2, 5, 6):
        sides = []
        for right in (0.0, 1.0):
            one = faces(1)
            group, credit = one.arrays["group/race"].copy(), one.arrays["credit/acc_gender"].copy()
            group[group == 3] = 0
            group[:count], credit[:count] = 3, right
            arrays = {**one.arrays, "group/race": group, "credit/acc_gender": credit}
            figures = {"acc_gender_race:3": right}
            sides.append(dataclasses.replace(one, arrays=arrays, figures=figures))
        got = only(compare(sides[:1], sides[1:]), "acc_gender_race:3")
        assert got.difference == 1 and got.why == ("" if count == 6 else FEW)
        assert (got.interval is not None) == (count == 6)
    # With six it is as rare that all fall to one side by chance as a 95% interval allows, no fewer.
    assert 2 * 0.5**6 <= 1 - compare_module.CONFIDENCE < 2 * 0.5**5


def test_a_region_called_other_may_be_left_out():
    sides = []
    for seed, skill in ((1, 1.5), (2, 3.0)):
        one = outcomes.grouped(seed=seed, skill=skill)
        names = one.arrays["group_names/region"].copy()
        right, region = one.arrays["credit/acc1"].copy(), one.arrays["group/region"]
        names[2], right[region == 2] = "Other", 0.0
        kept = min(right[region == g].mean() for g in set(region.tolist()) - {2})
        arrays = {**one.arrays, "group_names/region": names, "credit/acc1": right}
        figures = {"acc_worst_region": float(kept)}
        sides.append(
            dataclasses.replace(one, arrays=arrays, figures=figures, main="acc_worst_region")
        )
    got = only(compare([sides[0]], [sides[1]]), "acc_worst_region")
    assert got.interval.difference == pytest.approx(got.second - got.first) and got.first > 0


def test_all_that_the_measures_say_of_groups_has_an_interval(tmp_path):
    """What is left is not of groups, or of a group of a few samples."""
    keys = ("wilds/fmow", "fairness/dollar_street", "fairness/geode", "fairness/utkface")
    for key in keys:
        every.write(tmp_path / "root", TASKS[key], "datacomp")
    found = every.sets.run(tmp_path / "root", keys, tmp_path / "out").outcomes
    for pairing in compare(*[list(found.values())] * 2):
        without = {one.metric: one.why for one in pairing.metrics if one.interval is None}
        counts = {
            name.removeprefix("count_"): count
            for name, count in found[pairing.key].figures.items()
            if name.startswith("count_")
        }
        for metric in [metric for metric, why in without.items() if why == FEW]:
            del without[metric]
            assert any(metric.endswith(f"_{name}") and n < 6 for name, n in counts.items())
        kinds = {re.match(r"calibration_error|max_skew|ndkl|", name)[0] for name in without}
        faces = pairing.key == "fairness/utkface"
        assert kinds == ({"max_skew", "ndkl"} if faces else {"calibration_error"})
