import dataclasses
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import types

import numpy as np
import pytest

from clip_jax.eval import outcome
from clip_jax.eval import run_suite as run_suite_module
from clip_jax.eval.cache import Cache

STANDINS = pathlib.Path(__file__).parent / "standins.py"
sets = types.SimpleNamespace(**runpy.run_path(str(STANDINS)))
CLASSES, KEYS, one = sets.CLASSES, sets.KEYS, sets.one


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three small sets."""
    return sets.three_sets(tmp_path_factory.mktemp("root"))


def test_files_of_a_suite(root, tmp_path):
    said = []
    report = sets.run(root, KEYS, tmp_path / "out", said=said)
    assert list(report.outcomes) == list(KEYS)
    flat = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert flat["zero_shot/mnist/acc1"] == report.outcomes["mnist"].figures["acc1"]
    assert flat["retrieval/flickr8k/image_retrieval_recall@5"]
    mains = [found.main_figure for found in report.outcomes.values()]
    assert flat["aggregate/Average/mean"] == pytest.approx(np.mean(mains))
    lines = (tmp_path / "out" / "eval_results.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == list(KEYS)
    for key, found in report.outcomes.items():
        loaded = outcome.load(tmp_path / "out" / "results", key)
        assert dataclasses.replace(loaded, arrays={}) == dataclasses.replace(found, arrays={})
        for name, array in found.arrays.items():
            np.testing.assert_array_equal(loaded.arrays[name], array)
    assert "1/3 MNIST: 23 pictures" in said
    assert said[-1].startswith("3/3 Flickr8k: mean_recall@1 0.")


def test_what_is_done_is_not_redone_and_changed_data_is(root, tmp_path):
    own = tmp_path / "root"
    own.mkdir()
    for name in ("wds_mnist", "flickr8k"):
        (own / name).symlink_to(root / name)
    sets.wds(own / "wds_stl10", sets.labelled(9, 3, seed=3), classes=CLASSES[:3])
    out, counts, said = tmp_path / "out", [], []
    first = sets.run(own, KEYS, out, counts=counts)
    files = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    assert counts
    counts.clear()
    again = sets.run(own, KEYS, out, counts=counts, said=said)
    assert counts == []
    assert {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()} == files
    assert sum("done before" in line for line in said) == 3
    figures = [
        {key: found.figures for key, found in run.outcomes.items()} for run in (first, again)
    ]
    assert figures[0] == figures[1]
    sets.wds(own / "wds_stl10", sets.labelled(12, 3, seed=4), classes=CLASSES[:3])
    changed = sets.run(own, KEYS, out, counts=counts)
    assert counts.count("images") == 3
    assert changed.outcomes["stl10"].figures != first.outcomes["stl10"].figures
    assert changed.outcomes["mnist"].figures == first.outcomes["mnist"].figures


@pytest.mark.parametrize(
    ("file", "content"),
    [("mnist.npz", b"PK"), ("mnist.json", b'{"key": "mni'), ("mnist.json", b"[]")],
)
def test_a_damaged_outcome_is_measured_anew(root, tmp_path, file, content):
    first = one(root, "mnist", tmp_path)
    (tmp_path / "out" / "results" / file).write_bytes(content)
    counts, said = [], []
    assert one(root, "mnist", tmp_path, counts=counts, said=said).figures == first.figures
    assert counts == []  # The embeddings are still there.
    assert any("mnist: measured anew: " in line for line in said)


def test_an_outcome_of_an_earlier_version_is_measured_anew(tmp_path, monkeypatch):
    """An earlier version kept no ranks of several labels, so there was no interval."""
    sets.wds(
        tmp_path / "root" / "wds_voc2007_multilabel",
        [{"png": sets.picture(i), "npy": sets.npy([i % 2, 1, i % 3 == 0])} for i in range(9)],
        classes=CLASSES[:3],
        kind="multilabel",
    )
    key, results, said = "voc2007_multilabel", tmp_path / "out" / "results", []
    with monkeypatch.context() as earlier:
        earlier.setattr(run_suite_module, "PROGRAM", "1")
        lacking = one(tmp_path / "root", key, tmp_path, said=said)
        identity = json.loads((results / f"{key}.json").read_text())["identity"]
        few = {name: array for name, array in lacking.arrays.items() if name != "ranks"}
        outcome.save(dataclasses.replace(lacking, arrays=few), results, identity)
        assert "ranks" not in one(tmp_path / "root", key, tmp_path, said=said).arrays
    assert not any("measured anew" in line for line in said)
    counts = []
    found = one(tmp_path / "root", key, tmp_path, counts=counts, said=said)
    assert set(found.arrays) == set(lacking.arrays) and counts == []
    assert said.count(f"{key}: measured anew: this version keeps other things of a result") == 1
    assert "ranks" in outcome.load(results, key).arrays
    again = []
    one(tmp_path / "root", key, tmp_path, said=again)
    assert not any("measured anew" in line for line in again)
    path = results / f"{key}.json"
    whole = json.loads(path.read_text())
    for identity in (None, [], "x"):
        path.write_text(json.dumps({**whole, "identity": identity}))
        with pytest.raises(ValueError, match=f"holds results of another model .{key}.json"):
            one(tmp_path / "root", key, tmp_path)


def test_a_damaged_outcome_of_another_data_set_is_in_nobody_s_way(root, tmp_path):
    one(root, "mnist", tmp_path)
    for name, content in {"cut": '{"key": "cu', "list": "[]"}.items():
        (tmp_path / "out" / "results" / f"{name}.json").write_text(content)
    figures = one(root, "stl10", tmp_path).figures
    flat = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert flat["zero_shot/stl10/acc1"] == figures["acc1"]
    assert "zero_shot/mnist/acc1" in flat


def test_killed_and_started_again_equals_a_suite_without_a_break(root, tmp_path):
    ran = subprocess.run(
        [sys.executable, STANDINS, root, tmp_path / "killed"],
        env={**os.environ, "PYTHONPATH": str(STANDINS.parents[2]), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert outcome.load(tmp_path / "killed" / "results", "mnist") is not None
    assert not (tmp_path / "killed" / "eval.json").exists()
    said = []
    sets.run(root, KEYS, tmp_path / "killed", said=said)
    assert [line.partition(" ")[0] for line in said if "done before" in line] == ["1/3"]
    (tmp_path / "elsewhere").mkdir()
    sets.run(root, KEYS, tmp_path / "elsewhere" / "whole")
    for name in ("eval.json", "eval_results.jsonl"):
        killed, whole = (tmp_path / run / name for run in ("killed", "elsewhere/whole"))
        assert killed.read_bytes() == whole.read_bytes()


def test_what_fails_is_reported_and_the_rest_is_measured(root, tmp_path):
    broken = tmp_path / "root"
    broken.mkdir()
    (broken / "wds_mnist").symlink_to(root / "wds_mnist")
    sets.wds(broken / "wds_gtsrb", sets.labelled(4, 5, seed=8), classes=CLASSES[:2])
    sets.wds(broken / "wds_cars", 7 * [{"png": b"none", "cls": "0"}], classes=CLASSES, shards=1)
    unlabelled = [{"png": sets.picture(0), "txt": "a"}]
    sets.wds(broken / "wds_sun397", unlabelled, classes=CLASSES, shards=1)
    grouped = sets.labelled(3, 2, npy=lambda row: sets.npy([0] * (2 + row // 2)))
    sets.wds(broken / "wds_geode_test", grouped, classes=CLASSES[:2])
    keys = ("gtsrb", "food101", "mnist", "cars", "sun397", "fairness/geode")
    said = []
    report = sets.run(broken, keys, tmp_path / "out", said=said)
    assert list(report.outcomes) == ["mnist"]
    assert list(report.failures) == ["gtsrb", "food101", "cars", "sun397", "fairness/geode"]
    labels = [int(sample["cls"]) for sample in sets.labelled(4, 5, seed=8)]
    wrong = [(row, label) for row, label in enumerate(labels) if label > 1]
    assert report.failures["gtsrb"] == (
        f"{broken}/wds_gtsrb: {len(wrong)} of 4 labels are not among the 2 classes of "
        f"classnames.txt (0 to 1); the first is {wrong[0][1]} of sample "
        f"'{wrong[0][0] // 2}/s{wrong[0][0]:07d}'"
    )
    assert report.failures["food101"].startswith(f"food101 is not in {broken}: looked for wds_food")
    # One cause may be that of all samples: two examples of it are enough to read.
    told = report.failures["cars"].split("; ")
    assert told[:1] + told[-1:] == ["no usable sample", "and 5 more"] and len(told) == 4
    assert told[1].startswith("7 left out: sample '0/s0000000': ")
    assert report.failures["sun397"] == f"{broken}/wds_sun397: no sample has what sun397 needs"
    assert report.failures["fairness/geode"] == (
        f"{broken}/wds_geode_test: 1 of 3 samples have not a number in their .npy for each of 2 "
        "columns (region, country); the first, '1/s0000002', has 3"
    )
    for key, why in report.failures.items():
        assert any(line.endswith(f"{key}: left out: {why}") for line in said)
    assert not report.aggregates[-1].whole
    assert "aggregate/Average/mean" not in json.loads((tmp_path / "out" / "eval.json").read_text())


def test_some_samples_that_cannot_be_read_are_told_and_left_out(tmp_path):
    samples = sets.labelled(6, 3)
    samples[2]["png"] = b"no picture"
    samples[4]["cls"] = "-1"
    sets.wds(tmp_path / "mnist", samples, classes=CLASSES[:3])
    found = one(tmp_path, "mnist", tmp_path)
    assert found.arrays["keys"].tolist() == [f"{row // 3}/s{row:07d}" for row in (0, 1, 3, 5)]
    assert len(found.skipped) == 2
    assert "its .cls must hold a number from 0 on, not b'-1'" in found.skipped[1]
    flat = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert flat["zero_shot/mnist/skipped"] == 2


def test_a_folder_with_another_models_results_is_refused(root, tmp_path):
    sets.run(root, ("mnist",), tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds results of another model \(mnist.json\): choose"):
        sets.run(root, ("mnist",), tmp_path / "out", weights="other")
    assert sets.run(root, ("mnist",), tmp_path / "new", weights="other").outcomes


def test_another_call_adds_to_what_the_folder_has(root, tmp_path):
    sets.run(root, ("mnist",), tmp_path / "out")
    sets.run(root, ("flickr8k", "stl10"), tmp_path / "out")
    lines = (tmp_path / "out" / "eval_results.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["mnist", "flickr8k", "stl10"]
    flat = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert {name.split("/")[1] for name in flat} == {"mnist", "flickr8k", "stl10", "Average"}


def test_pictures_are_embedded_once_for_all_tasks_of_a_folder(tmp_path):
    targets = np.eye(3, dtype=int)[[0, 1, 2, 1, 0, 2, 1, 0, 0]]
    samples = sets.labelled(9, 3, npy=lambda row: sets.npy(targets[row]))
    sets.wds(tmp_path / "wds_voc2007", samples, classes=CLASSES[:3])
    (tmp_path / "wds_voc2007_multilabel").symlink_to(tmp_path / "wds_voc2007")
    counts = []
    report = sets.run(tmp_path, ("voc2007", "voc2007_multilabel"), tmp_path / "out", counts=counts)
    assert len(report.outcomes) == 2
    assert counts.count("images") == 3  # Nine pictures in batches of four.
    assert counts.count("texts") == 2  # Six prompts, the same for both.


def test_prompts_are_embedded_once_for_all_data_sets_in_all_runs(root, tmp_path):
    counts = []
    sets.run(root, ("mnist",), tmp_path / "a", counts=counts)
    assert counts.count("texts") == 3  # Twelve prompts.
    sets.run(root, ("stl10",), tmp_path / "b", counts=counts)
    assert counts.count("texts") == 3
    first = counts.count("images")
    sets.run(root, KEYS, tmp_path / "c", counts=counts, tokenizer="other")
    assert counts.count("texts") > 6
    more = counts.count("images") - first
    sets.run(root, KEYS, tmp_path / "d", counts=counts, preprocessing="other")
    assert counts.count("images") - first - more > more  # Those of flickr8k alone were new before.


def test_a_cache_of_no_size_keeps_nothing_and_changes_nothing(root, tmp_path):
    none = Cache(folder=tmp_path / "none", limit=0)
    found = sets.run(root, KEYS, tmp_path / "a", cache=none)
    assert not (tmp_path / "none").exists()
    sets.run(root, KEYS, tmp_path / "b")
    again = sets.run(root, KEYS, tmp_path / "c")  # From the cache.
    for key in KEYS:
        assert found.outcomes[key].figures == again.outcomes[key].figures
        for name, array in found.outcomes[key].arrays.items():
            np.testing.assert_array_equal(array, again.outcomes[key].arrays[name])


def test_what_cannot_be_kept_costs_no_figure(root, tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    full = Cache(folder=tmp_path / "file", limit=10**9)
    assert one(root, "mnist", tmp_path, cache=full, said=said).figures
    assert any(line.startswith("embeddings are not kept: ") for line in said)


def test_real_pictures_from_the_shared_folder(shared, tmp_path):
    report = sets.run(shared / "data", ("cifar10", "flickr8k"), tmp_path / "out", batch=250)
    assert report.failures == {}
    assert len(report.outcomes["cifar10"].arrays["keys"]) == 1000
    assert len(report.outcomes["flickr8k"].arrays["captions"]) == 5000
    assert report.outcomes["cifar10"].arrays["class_names"][0] == "airplane"
