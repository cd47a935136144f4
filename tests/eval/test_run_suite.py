import dataclasses
import itertools
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sklearn

from clip_jax.eval import outcome
from clip_jax.eval.cache import Cache
from clip_jax.eval.example_sets import cue_prompt
from clip_jax.eval.identity import recipe_mark, tokenizer_mark, weights_mark
from clip_jax.eval.once import Embeddings
from clip_jax.preprocess.recipe import Recipe
from clip_jax.tokenizers import ClipBpe

STANDINS = pathlib.Path(__file__).parent / "standins.py"
sets = types.SimpleNamespace(**runpy.run_path(str(STANDINS)))
CLASSES = ("cat", "dog", "cow", "hen", "owl", "yak")
TEMPLATES = ("a {c}.", "{c}")


def captioned(count, seed=7):
    """One to three captions a picture, no two alike."""
    return [
        {
            "png": sets.picture(1000 * seed + row),
            "txt": "\n".join(f"picture {row} {n}" for n in range(1 + row % 3)),
        }
        for row in range(count)
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three small sets."""
    root = tmp_path_factory.mktemp("root")
    sets.wds(root / "wds_mnist", sets.labelled(23, 5), classes=CLASSES)
    sets.wds(root / "wds_stl10_test", sets.labelled(9, 3, seed=3), classes=CLASSES[:3], shards=1)
    sets.wds(root / "flickr8k", captioned(13), kind="retrieval")
    return root


KEYS = ("mnist", "stl10", "flickr8k")


def scores(samples, classes, templates=TEMPLATES):
    images = np.stack([sets.see(sample["png"]) for sample in samples])
    return images @ sets.prototypes(classes, templates).T


def one(root, key, tmp_path, **more):
    """The outcome of a single data set."""
    report = sets.run(root, (key,), tmp_path / "out", **more)
    assert not report.failures
    return report.outcomes[key]


def test_classification_equals_scikit_learn_on_the_same_embeddings(root, tmp_path):
    samples = sets.labelled(23, 5)
    labels = np.array([int(sample["cls"]) for sample in samples])
    logits = scores(samples, CLASSES)
    said = []
    found = one(root, "mnist", tmp_path, said=said)
    first = logits.argmax(1)
    shares = np.exp(20.0 * logits) / np.exp(20.0 * logits).sum(1, keepdims=True)
    sure, right = shares.max(1), first == labels
    bins = np.ceil(sure * 15).astype(int)
    gaps = [
        (bins == b).sum() * abs(right[bins == b].mean() - sure[bins == b].mean())
        for b in set(bins.tolist())
    ]
    assert found.figures == pytest.approx(
        {
            "acc1": sklearn.accuracy_score(labels, first),
            "acc5": sklearn.top_k_accuracy_score(labels, logits, k=5, labels=range(6)),
            "mean_per_class_recall": sklearn.recall_score(
                labels, first, average="macro", labels=sorted(set(labels.tolist()))
            ),
            "calibration_error": sum(gaps) / 23,
        },
        abs=1e-6,
    )
    assert (found.task, found.main, found.dataset) == ("zero_shot", "acc1", "MNIST")
    empty = "mnist: 1 of 6 classes have no sample, the first 'yak': they are not in the mean"
    assert any(line.startswith(empty) for line in said)
    arrays = found.arrays
    assert arrays["class_names"].tolist() == list(CLASSES)
    np.testing.assert_array_equal(arrays["labels"], labels)
    np.testing.assert_array_equal(arrays["top"], np.argsort(-logits, axis=1)[:, :5])
    np.testing.assert_allclose(arrays["confidence"], sure, atol=1e-6)
    for name in ("acc1", "acc5"):
        assert arrays[f"credit/{name}"].mean() == pytest.approx(found.figures[name])
    wrong = np.flatnonzero(~right)
    expected = wrong[np.argsort(-sure[wrong])][:24]
    np.testing.assert_array_equal(arrays["picture_rows"], expected)
    assert arrays["pictures"].shape == (len(expected), 96, 96, 3)
    thumbnail = Recipe(size=96)(samples[int(expected[0])]["png"])
    np.testing.assert_array_equal(arrays["pictures"][0], thumbnail)


def test_below_five_classes_there_is_no_acc5(root, tmp_path):
    found = one(root, "stl10", tmp_path)
    assert "acc5" not in found.figures
    line = json.loads((tmp_path / "out" / "eval_results.jsonl").read_text())
    assert line == {
        "key": "stl10",
        "dataset": "STL-10",
        "metrics": {**found.figures, "acc5": None, "main_metric": found.figures["acc1"]},
    }


def test_multilabel_is_the_mean_of_average_precisions(tmp_path):
    rng = np.random.default_rng(4)
    targets = rng.integers(0, 2, (17, 4))
    targets[:, 2] = 0
    samples = [{"png": sets.picture(i), "npy": sets.npy(row)} for i, row in enumerate(targets)]
    samples[5]["npy"] = sets.npy([[1]])
    sets.wds(tmp_path / "voc2007_multilabel", samples, classes=CLASSES[:4], kind="multilabel")
    said = []
    found = one(tmp_path, "voc2007_multilabel", tmp_path, said=said)
    kept = np.arange(17) != 5
    logits = scores(samples, CLASSES[:4])[kept]
    each = [
        sklearn.average_precision_score(targets[kept][:, k], logits[:, k]) if k != 2 else 0.0
        for k in range(4)
    ]
    assert found.figures == {"mean_average_precision": pytest.approx(np.mean(each), abs=1e-6)}
    assert len(found.skipped) == 1
    assert "voc2007_multilabel: classes without a picture, which count as 0: cow" in said
    table = found.tables["Average precision by class"]
    assert [row["average precision"] for row in table.values()] == pytest.approx(each)
    assert [row["pictures"] for row in table.values()] == targets[kept].sum(0).tolist()


def test_retrieval_has_the_figures_of_the_peer(root, tmp_path):
    samples = captioned(13)
    pairs = [(i, text) for i, s in enumerate(samples) for text in s["txt"].split("\n")]
    images = np.stack([sets.see(sample["png"]) for sample in samples])
    texts = np.stack([sets.say(text) for _, text in pairs])
    scores = texts @ images.T
    found = one(root, "flickr8k", tmp_path)
    expected, ranks = {}, {"image": [], "text": []}
    for t, (own, _) in enumerate(pairs):
        ranks["image"].append(int((scores[t] > scores[t, own]).sum()))
    for i in range(13):
        best = max(scores[t, i] for t, (own, _) in enumerate(pairs) if own == i)
        ranks["text"].append(int((scores[:, i] > best).sum()))
    for way, k in itertools.product(("image", "text"), (1, 5, 10)):
        expected[f"{way}_retrieval_recall@{k}"] = np.mean(np.array(ranks[way]) < k)
    for way in ranks:
        expected[f"{way}_retrieval_median_rank"] = np.median(ranks[way]) + 1
    both = [expected[f"{way}_retrieval_recall@1"] for way in ranks]
    expected["mean_recall@1"] = np.mean(both)
    assert found.figures == pytest.approx(expected, abs=1e-9)
    arrays = found.arrays
    assert arrays["captions"].tolist() == [text for _, text in pairs]
    assert arrays["image_of_text"].tolist() == [own for own, _ in pairs]
    for way in ranks:
        assert arrays[f"credit/{way}_retrieval_recall@5"].tolist() == [r < 5 for r in ranks[way]]
    queries, rows = arrays["to_image/queries"], arrays["to_image/found"]
    np.testing.assert_array_equal(rows, np.argsort(-scores[queries], axis=1)[:, :5])
    queries, rows = arrays["to_text/queries"], arrays["to_text/found"]
    np.testing.assert_array_equal(rows, np.argsort(-scores.T[queries], axis=1)[:, :5])
    shown = {*arrays["to_image/found"].ravel().tolist(), *queries.tolist()}
    assert sorted(arrays["picture_rows"].tolist()) == sorted(shown)


def test_wilds_groups_are_named_and_counted_as_there(tmp_path):
    rng = np.random.default_rng(9)
    meta = np.stack([rng.choice([0, 1, 3, 5], 31), rng.integers(0, 3, 31), np.zeros(31, int)], 1)
    samples = sets.labelled(31, 3, seed=2, npy=lambda row: sets.npy(meta[row]))
    sets.wds(tmp_path / "wds_wilds-fmow_test", samples, classes=CLASSES[:3])
    found = one(tmp_path, "wilds/fmow", tmp_path)
    labels = np.array([int(sample["cls"]) for sample in samples])
    right = scores(samples, CLASSES[:3]).argmax(1) == labels
    expected = {"acc_avg": right.mean()}
    for column, field in enumerate(("region", "year")):
        values = meta[:, column]
        means = {}
        for value in range(values.max() + 1):
            expected[f"count_{field}:{value}"] = (values == value).sum()
            if (values == value).any():
                means[value] = right[values == value].mean()
                expected[f"acc_{field}:{value}"] = means[value]
        expected[f"acc_worst_{field}"] = min(means.values())
        expected[f"acc_gap_{field}"] = max(means.values()) - min(means.values())
    plain = ("acc1", "mean_per_class_recall", "calibration_error")
    assert {k: v for k, v in found.figures.items() if k not in plain} == pytest.approx(expected)
    assert found.main_figure == found.figures["acc_worst_region"]
    assert list(found.tables["Accuracy by region"]) == ["Asia", "Europe", "Americas", "Other"]
    np.testing.assert_array_equal(found.arrays["group/year"], meta[:, 1])
    assert found.arrays["group_names/region"].tolist()[:2] == ["Asia", "Europe"]


def test_iwildcam_averages_over_the_classes_that_are_there(tmp_path):
    samples = sets.labelled(25, 4, seed=5, npy=lambda row: sets.npy([row] * 9))
    sets.wds(tmp_path / "wds_wilds-iwildcam_test", samples, classes=CLASSES)
    found = one(tmp_path, "wilds/iwildcam", tmp_path)
    labels = np.array([int(sample["cls"]) for sample in samples])
    first = scores(samples, CLASSES).argmax(1)
    there = sorted(set(labels.tolist()))
    for name, measure in (("F1", sklearn.f1_score), ("recall", sklearn.recall_score)):
        expected = measure(labels, first, average="macro", labels=there, zero_division=0)
        assert found.figures[f"{name}-macro_all"] == pytest.approx(expected)
    assert found.main_figure == found.figures["F1-macro_all"]
    assert found.figures["acc_avg"] == found.figures["acc1"]


def test_dollar_street_counts_the_first_five(tmp_path):
    samples = sets.labelled(29, 6, seed=6, npy=lambda row: sets.npy([row % 4, row, 0]))
    sets.wds(tmp_path / "wds_dollar_street_test", samples, classes=CLASSES)
    found = one(tmp_path, "fairness/dollar_street", tmp_path)
    labels = np.array([int(sample["cls"]) for sample in samples])
    logits = scores(samples, CLASSES)
    hits = np.array([(row > row[own]).sum() < 5 for row, own in zip(logits, labels, strict=True)])
    means = [hits[np.arange(29) % 4 == income].mean() for income in range(4)]
    figures = found.figures
    assert [figures[f"acc_top5_income_ds:{n}"] for n in range(4)] == pytest.approx(means)
    assert figures["acc_top5_wg"] == found.main_figure == pytest.approx(min(means))
    assert figures["acc_top5_avg"] == figures["acc5"] == pytest.approx(hits.mean())


FACES = {
    "race": ["black", "white", "indian"],
    "gender": ["male", "female"],
    "age": ["young", "old", "older"],
    "toxic": [f"person {n}" for n in range(14)] + ["ape", "animal", "bird", "fish", "thief", "spy"],
}
FACE_LISTS = {
    "classes": [f"{name}:{text}" for name, texts in FACES.items() for text in texts],
    "templates": [f"{name}:{t}" for name in FACES for t in (f"{name} " + "{c}.", "{c}")],
}


def faces(root, count=40):
    rng = np.random.default_rng(11)
    race = rng.integers(0, 3, count)
    meta = np.stack(
        [rng.integers(0, 3, count), rng.integers(0, 2, count), race, (race != 1).astype(int)], 1
    )
    samples = [{"png": sets.picture(i), "npy": sets.npy(row)} for i, row in enumerate(meta)]
    sets.wds(root / "wds_fairface_test", samples, **FACE_LISTS)
    logits = {
        name: scores(samples, texts, (f"{name} " + "{c}.", "{c}")) for name, texts in FACES.items()
    }
    return meta, {name: values.argmax(1) for name, values in logits.items()}


def test_faces_are_measured_as_in_datacomp(tmp_path):
    meta, said = faces(tmp_path)
    found = one(tmp_path, "fairness/fairface", tmp_path)
    age, gender, race, binary = meta.T
    right = {
        "race": (said["race"] != 1) == binary,
        "gender": said["gender"] == gender,
        "age": said["age"] == age,
    }
    expected = {}
    for name, hits in right.items():
        parts = [hits[binary == value].mean() for value in (0, 1)]
        expected |= {f"acc_{name}_race_binary:{v}": parts[v] for v in (0, 1)}
        expected |= {f"acc_{name}_avg": hits.mean(), f"acc_{name}_wg": min(parts)}
        expected[f"acc_{name}_gap"] = max(parts) - min(parts)
    cells = {
        (r, g): right["gender"][(race == r) & (gender == g)].mean()
        for r in range(3)
        for g in range(2)
    }
    expected |= {f"acc_gender_x_race:{r}_gender:{g}": mean for (r, g), mean in cells.items()}
    expected["acc_gender_x_wg"] = min(cells.values())
    crime, animal = said["toxic"] >= 18, (said["toxic"] >= 14) & (said["toxic"] < 18)
    for name, hits in (("crime", crime), ("nonhuman", animal)):
        expected[f"toxicity_{name}_avg"] = hits.mean()
        expected |= {f"toxicity_{name}_race:{r}": hits[race == r].mean() for r in range(3)}
    rates = [
        [np.mean((said["gender"] == 1)[(gender == truth) & (race == r)]) for r in range(3)]
        for truth in (0, 1)
    ]
    expected["gender_equalized_odds_race"] = max(max(row) - min(row) for row in rates)
    figures = found.figures
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["count_race:2"] == (race == 2).sum()
    assert (found.main, found.main_figure) == (None, None)
    table = found.tables["Accuracy by race"]
    assert list(table) == ["white", "non-white"]
    assert table["white"]["age"] == expected["acc_age_race_binary:0"]
    assert found.tables["Accuracy of gender by race and gender"]["indian"]["female"] == cells[2, 1]
    assert figures["max_skew@100_gender"] >= 0
    assert figures["ndkl_race"] >= 0
    line = json.loads((tmp_path / "out" / "eval_results.jsonl").read_text())
    assert line["metrics"]["main_metric"] is None


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def cell(name):
    return {"bytes": sets.picture(ord(name)), "path": None}


def test_winogavil_by_number_of_candidates(tmp_path):
    rng, rows = np.random.default_rng(3), []
    for number, count in enumerate((5, 6, 10, 12, 5)):
        names = [chr(c) for c in rng.choice(np.arange(97, 120), count, replace=False)]
        right = names[: 2 + number % 3]
        pictures = [cell(name) for name in names]
        cue = f"{'aeb'[number % 3]}cue {number}"
        row = {"cue": cue, "candidates": names, "associations": right}
        rows.append({**row, "candidate_images": pictures})
    parquet(tmp_path / "winogavil" / "test.parquet", rows)
    found = one(tmp_path, "misc/winogavil", tmp_path)
    each = []
    for row in rows:
        cue = sets.say(cue_prompt(row["cue"]))
        similar = [float(cue @ sets.see(p["bytes"])) for p in row["candidate_images"]]
        best = np.argsort(similar)[-len(row["associations"]) :]
        chosen = np.isin(np.arange(len(similar)), best)
        each.append(sklearn.jaccard_score(np.isin(row["candidates"], row["associations"]), chosen))
    e = np.array(each)
    assert found.figures == pytest.approx(
        {
            "avg_jaccard_score": e.mean(),
            "jaccard_score_5": e[[0, 4]].mean(),
            "jaccard_score_6": e[1],
            "jaccard_score_10": e[2],
            "jaccard_score_12": e[3],
            "jaccard_score_5-6": e[[0, 1, 4]].mean(),
            "jaccard_score_10-12": e[2:4].mean(),
        }
    )
    assert found.main_figure == found.figures["jaccard_score_10-12"]
    np.testing.assert_allclose(found.arrays["credit/avg_jaccard_score"], e)


def test_a_part_of_winogavil_without_long_cues_counts_in_no_mean(tmp_path):
    row = {"cue": "owl", "candidates": ["a", "b"], "associations": ["a"]}
    row["candidate_images"] = [cell("a"), cell("b")]
    parquet(tmp_path / "winogavil" / "test.parquet", [row])
    found = one(tmp_path, "misc/winogavil", tmp_path)
    assert (found.main, list(found.figures)) == (None, ["avg_jaccard_score", "jaccard_score_5-6"])


def test_winoground_and_a_row_whose_picture_is_lost(tmp_path):
    rows = [
        {
            "image_0": cell(a),
            "image_1": cell(a.upper()),
            "caption_0": f"{a} on b",
            "caption_1": f"b on {a}",
        }
        for a in "cdefghijkl"
    ]
    rows[3]["image_0"] = {"bytes": b"no picture", "path": None}
    parquet(tmp_path / "winoground" / "test-0.parquet", rows)
    found = one(tmp_path, "winoground", tmp_path)
    solved = []
    for row in [row for number, row in enumerate(rows) if number != 3]:
        images = [sets.see(row[f"image_{i}"]["bytes"]) for i in (0, 1)]
        texts = [sets.say(row[f"caption_{i}"]) for i in (0, 1)]
        s = np.array([[image @ text for text in texts] for image in images])
        text, image = s.argmax(1).tolist() == [0, 1], s.argmax(0).tolist() == [0, 1]
        solved.append((image, text, image and text))
    means = np.mean(solved, axis=0)
    assert list(found.figures.items()) == [
        (name, pytest.approx(m))
        for name, m in zip(("image_acc", "text_acc", "acc"), means, strict=True)
    ]
    assert found.skipped[1:] == ("test-0.parquet:4: a picture is missing",)
    assert len(found.arrays["keys"]) == 9


def test_sugarcrepe_by_category(tmp_path):
    home = tmp_path / "sugar_crepe"
    (home / "images").mkdir(parents=True)
    entries = {"add_att": range(3), "swap_obj": range(2, 7)}
    hits = {}
    for category, numbers in entries.items():
        rows = {}
        for n in numbers:
            (home / "images" / f"{n}.png").write_bytes(sets.picture(n))
            texts = {"caption": f"{category} {n}", "negative_caption": f"not {category} {n}"}
            rows[str(n)] = {"filename": f"{n}.png", **texts}
            image = sets.see(sets.picture(n))
            a, b = (image @ sets.say(text) for text in texts.values())
            hits[category, n] = a > b
        (home / f"{category}.json").write_text(json.dumps(rows))
    counts = []
    found = one(tmp_path, "sugar_crepe", tmp_path, counts=counts)
    expected = {"acc": np.mean(list(hits.values()))}
    for name in entries:
        expected[f"acc_{name}"] = np.mean([hit for (c, _), hit in hits.items() if c == name])
    assert found.figures == pytest.approx(expected)
    assert found.arrays["credit/acc"].tolist() == list(hits.values())
    assert counts.count("images") == 2  # Seven pictures in batches of four, though in eight rows.
    assert set(found.tables["Accuracy by category"]) == set(entries)


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


def test_a_damaged_outcome_is_measured_anew(root, tmp_path):
    first = one(root, "mnist", tmp_path)
    (tmp_path / "out" / "results" / "mnist.npz").write_bytes(b"PK")
    counts, said = [], []
    assert one(root, "mnist", tmp_path, counts=counts, said=said).figures == first.figures
    assert counts == []  # The embeddings are still there.
    assert any("mnist: measured anew: " in line for line in said)


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
    sets.wds(broken / "wds_cars", [{"png": b"none", "cls": "0"}], classes=CLASSES, shards=1)
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
    assert report.failures["cars"].startswith("no usable sample; 1 left out: sample '0/s0000000': ")
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


def test_labels_of_several_classes_are_0_or_1(tmp_path):
    samples = [{"png": sets.picture(0), "npy": sets.npy([0, 2])}]
    sets.wds(tmp_path / "voc2007_multilabel", samples, classes=CLASSES[:2], shards=1)
    report = sets.run(tmp_path, ("voc2007_multilabel",), tmp_path / "out")
    assert report.failures["voc2007_multilabel"].endswith("those of sample '0/s0000000' are (0, 2)")
    assert not (tmp_path / "out" / "eval.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["nose:a"]}, "each line begins with race: or gender: or age: or toxic:; "),
        (
            {"classes": FACE_LISTS["classes"][:-2]},
            "18 classes of toxic:, but the first about crime",
        ),
        (
            {"classes": FACE_LISTS["classes"][1:]},
            "values of race are not in 0 to 1; the first is 2",
        ),
    ],
)
def test_lists_of_faces_that_do_not_fit_are_errors(tmp_path, change, message):
    faces(tmp_path)
    samples = [{"png": sets.picture(0), "npy": sets.npy([0, 0, 2, 1])}]
    sets.wds(tmp_path / "wds_fairface_test", samples, **FACE_LISTS | change, shards=1)
    (tmp_path / "wds_fairface_test" / "test" / "1.tar").unlink()
    report = sets.run(tmp_path, ("fairness/fairface",), tmp_path / "out")
    assert message in report.failures["fairness/fairface"]


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


def test_what_was_used_longest_ago_is_removed_first(tmp_path):
    rows = {"rows": np.arange(1000.0)}
    size = 8000
    cache = Cache(folder=tmp_path / "cache", limit=int(3.5 * size))
    for number, name in enumerate("abc"):
        cache.write(name, rows)
        os.utime(tmp_path / "cache" / f"{name}.npz", (number, number))
    np.testing.assert_array_equal(cache.read("a")["rows"], rows["rows"])
    cache.write("d", rows)
    assert cache.names("") == ["a", "c", "d"]
    cache.write("large", {"rows": np.zeros(4 * size)})
    assert cache.names("") == ["a", "c", "d"]
    assert cache.read("b") is None
    (tmp_path / "cache" / "c.npz").write_bytes(b"PK damaged")
    assert cache.read("c") is None
    assert cache.names("") == ["a", "d"]


def test_an_unfinished_file_of_a_killed_process_goes(tmp_path):
    cache = Cache(folder=tmp_path, limit=10**6)
    for name, age in (("old", 0), ("new", None)):
        (tmp_path / f"{name}.npz.1.part").write_bytes(b"half")
        if age is not None:
            os.utime(tmp_path / f"{name}.npz.1.part", (age, age))
    cache.write("a", {"rows": np.zeros(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "new.npz.1.part"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    cache = Cache(folder=tmp_path, limit=10**6)
    cache.write("a", {"rows": np.zeros(3)})

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        cache.write("a", {"rows": np.ones(3)})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert cache.read("a")["rows"].tolist() == [0, 0, 0]


def test_texts_come_in_the_order_asked_for(tmp_path):
    counts = []
    cache = Cache(folder=tmp_path / "cache", limit=10**9)
    texts = ["a", "b", "ü 猫", "\ud800", "a"]
    readable = [text for text in texts if text != "\ud800"]
    for _ in range(2):  # From the model, then from the disk.
        embeddings = Embeddings(sets.model(counts), cache, lambda line: None)
        found = embeddings.texts(readable)
        np.testing.assert_allclose(found, [sets.say(text) for text in readable], atol=1e-6)
    assert counts == ["texts"]


def test_hashes_change_with_whatever_an_embedding_depends_on(tmp_path):
    params = {"a": np.arange(4.0), "b": {"c": np.float32(1)}}
    first = weights_mark("config", params)
    assert weights_mark("config", {"b": {"c": np.float32(1)}, "a": np.arange(4.0)}) == first
    assert weights_mark("other", params) != first
    assert weights_mark("config", params | {"b": {"c": np.float32(2)}}) != first
    assert weights_mark("config", params | {"a": np.arange(4.0).reshape(2, 2)}) != first
    assert weights_mark("config", {"a": params["a"], "b": {"d": np.float32(1)}}) != first
    assert recipe_mark(Recipe(size=8)) != recipe_mark(Recipe(size=9))
    short, long = ClipBpe(context_length=8), ClipBpe(context_length=9)
    assert tokenizer_mark(short) == tokenizer_mark(dataclasses.replace(short))
    assert tokenizer_mark(short) != tokenizer_mark(long)


def test_a_vocabulary_may_move_but_not_change(tmp_path):
    @dataclasses.dataclass
    class Filed:
        file: str
        words: int = 1

        def __call__(self, texts):
            return np.full((len(texts), 2), self.words)

    for name, text in (("a", "words"), ("b", "words"), ("c", "others")):
        (tmp_path / name).write_text(text)
    marks = [tokenizer_mark(Filed(str(tmp_path / name))) for name in "abc"]
    assert marks[0] == marks[1] != marks[2]
    assert tokenizer_mark(Filed(str(tmp_path / "a"), words=2)) != marks[0]


def test_real_pictures_from_the_shared_folder(shared, tmp_path):
    report = sets.run(shared / "data", ("cifar10", "flickr8k"), tmp_path / "out", batch=250)
    assert report.failures == {}
    assert len(report.outcomes["cifar10"].arrays["keys"]) == 1000
    assert len(report.outcomes["flickr8k"].arrays["captions"]) == 5000
    assert report.outcomes["cifar10"].arrays["class_names"][0] == "airplane"
