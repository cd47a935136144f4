import dataclasses
import pathlib
import re

import pytest

from clip_jax.eval.measures import MEASURES
from clip_jax.eval.tasks import AGGREGATES, SUITES, TASKS, Task, aggregates, nearest, select


def test_the_suites_are_those_of_the_formats_page(shared):
    page = (shared / "reference" / "formats.md").read_text("utf-8")
    named = re.search(r"webdatasets\.txt, 41\): (.*?) vtab/\{(.*?)\}\.", page)
    names = [*named[1].split(), *(f"vtab/{name}" for name in named[2].split())]
    assert sorted(SUITES["clip_benchmark"]) == sorted(names)
    listed = re.search(r"40 keys \(38 scored\):\n(.*?)\. Local|40 keys \(38 scored\):\n(.*)", page)
    text = re.sub(r"\([^)]*\)", "", listed[1] or listed[2]).replace(" & ", ", ")
    keys = [key.strip(" .") for key in text.split(",")]
    assert sorted(SUITES["datacomp"]) == sorted(keys)
    assert len(keys) == 40


def test_main_figures_are_those_of_the_formats_page(shared):
    page = (shared / "reference" / "formats.md").read_text("utf-8")
    short = {"mpcr": "mean_per_class_recall", "no main metric, excluded": None}
    told = re.findall(r"([\w/-]+) ?\(([\w@-]+)\)[,.]", page)
    told = {key: main for key, main in told if key in TASKS}
    assert len(told) >= 8
    assert {key: TASKS[key].main for key in told} == {k: short.get(m, m) for k, m in told.items()}
    assert {k for k in SUITES["datacomp"] if TASKS[k].main is None} == {
        "fairness/fairface",
        "fairness/utkface",
    }


def test_every_row_is_complete():
    for key, task in TASKS.items():
        assert key == task.key
        assert task.kind in MEASURES
        assert task.datacomp or task.benchmark or task.hub or key == "sugar_crepe", key
        assert {field for groups in task.groups for field in groups.fields} <= set(task.columns)
    assert all(set(keys) <= set(TASKS) for keys in [*SUITES.values(), *AGGREGATES.values()])
    assert all(len(set(keys)) == len(keys) for keys in SUITES.values())
    names = [TASKS[key].name for key in SUITES["datacomp"]]
    assert len(set(names)) == len(names)  # DataComp's lines are known by them.


def test_means_are_those_of_datacomp_and_say_what_is_missing():
    mains = {key: number / 100 for number, key in enumerate(SUITES["datacomp"])}
    scored = {key: value for key, value in mains.items() if TASKS[key].main is not None}
    found = {mean.name: mean for mean in aggregates(scored, SUITES["datacomp"])}
    assert list(found) == ["ImageNet", "ImageNet shifts", "VTAB", "Retrieval", "Average"]
    assert [mean.there for mean in found.values()] == [1, 6, 13, 3, 38]
    assert all(mean.whole for mean in found.values())
    for name, keys in AGGREGATES.items():
        assert found[name].mean == pytest.approx(sum(mains[k] for k in keys) / len(keys))
    assert found["Average"].mean == pytest.approx(sum(scored.values()) / 38)
    del scored["imagenet-a"]
    short = {mean.name: mean for mean in aggregates(scored, SUITES["datacomp"])}
    assert (short["ImageNet shifts"].there, short["ImageNet shifts"].wanted) == (5, 6)
    assert not short["Average"].whole


def test_of_a_short_list_there_is_only_the_average():
    found = aggregates({"cifar10": 0.25, "own": 0.75}, ("cifar10", "mnist", "own"))
    assert [dataclasses.astuple(mean) for mean in found] == [("Average", 0.5, 2, 3)]
    assert aggregates({}, ("cifar10",)) == []


def test_names_are_suites_and_data_sets_in_order_each_once():
    assert select("mnist, quick ,cifar10,own/set") == ("mnist", *SUITES["quick"], "own/set")
    assert select("imagenet_shifts") == SUITES["imagenet_shifts"]
    with pytest.raises(ValueError, match=r"^--suite 'mnist,,cars': an empty name; suites are data"):
        select("mnist,,cars")
    assert nearest("vtab/cifr10") == "vtab/cifar10"
    assert nearest("data_comp") == "datacomp"


def test_a_task_is_a_value():
    assert Task(key="a", name="A") == Task(key="a", name="A")
    assert hash(TASKS["wilds/fmow"])


def test_the_page_has_a_row_for_every_data_set():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8")
    rows = [
        line.split(" | ") for line in page.splitlines() if re.search(r"\| `\S+` \| [DC-]", line)
    ]
    told = [(row[0].removeprefix("| "), row[1].strip("`"), row[4].strip("`")) for row in rows]
    assert told == [(task.name, key, task.main or "none") for key, task in TASKS.items()]
    suites = {"D": "datacomp", "C": "clip_benchmark"}
    for letter, suite in suites.items():
        listed = [row[1].strip("`") for row in rows if letter in row[2].split()]
        assert sorted(listed) == sorted(SUITES[suite])
